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
    "save_student",
]
__version__ = "0.1.0"
