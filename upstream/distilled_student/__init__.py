"""Small speech students distilled from large teachers. This import needs torch alone."""

from distilled_student.config import SIZES, StudentConfig
from distilled_student.errors import UserError
from distilled_student.storage import load_student, save_student
from distilled_student.student import Student, StudentOutput, build_student

__all__ = [
    "SIZES",
    "Student",
    "StudentConfig",
    "StudentOutput",
    "UserError",
    "build_student",
    "load_student",
    "register",
    "save_student",
]
__version__ = "0.1.0"


def register() -> None:
    """Make s3prl usable on today's libraries, with our ``distilled_student``, ``teacher`` and ``multitask`` in it.

    The one visible registration: call it before the first import of s3prl. Calling it again does nothing.
    """
    from distilled_student import host  # here, so that a device that runs the model alone needs torch alone

    host.register()
