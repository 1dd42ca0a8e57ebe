"""The named sizes of students: the files in ``configs/student``."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from distilled_student.student.config import StudentConfig


def _files() -> dict[str, Path]:
    room = Path(str(resources.files("distilled_student.configs"))) / "student"
    return {file.stem: file for file in sorted(room.glob("*.yaml"))}


def size_names() -> list[str]:
    """The names that there are."""
    return list(_files())


def named_size(name: str) -> StudentConfig:
    """The student of a name: ``paper``, ``slim``, ``edge`` or ``tiny``; reads its file, for which PyYAML is needed.

    Raises:
        ValueError: no such size.
    """
    import yaml  # here, so that a device that runs a saved student needs torch alone

    files = _files()
    if name not in files:
        raise ValueError(f"{name}: no such student size; there are {', '.join(files)}")
    return StudentConfig(**(yaml.safe_load(files[name].read_text(encoding="utf-8")) or {}))
