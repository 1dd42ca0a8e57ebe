"""Small speech students distilled from large teachers. Nothing is imported before it is used; a student needs torch."""

from __future__ import annotations

import os

from distilled_student.common.lazy_names import importer

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # onnxruntime 1.29 reports to Microsoft when it is imported

_HOMES = {
    "Student": "student.network",
    "StudentConfig": "student.config",
    "StudentOutput": "student.network",
    "UserError": "common.errors",
    "build_student": "student.network",
    "load": "onnx",
    "load_student": "checkpoints.folder",
    "named_size": "student.config",
    "save_student": "checkpoints.folder",
    "size_names": "student.config",
}
__all__ = [*_HOMES, "register"]
__version__ = "0.2.0"  # setup.py reads this line


# `distilled_student.onnx` does without torch, so nothing is imported before its first use
__getattr__ = importer(__name__, {name: f"{__name__}.{home}" for name, home in _HOMES.items()})


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def register() -> None:
    """Make s3prl usable on today's libraries, with our ``distilled_student``, ``teacher`` and ``multitask`` in it.

    The one visible registration: call it before the first import of s3prl. Calling it again does nothing.
    """
    from distilled_student.host import plugin

    plugin.register()
