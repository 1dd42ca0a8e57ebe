"""Checks of a distillation's settings that need no torch: a wrong path or student is reported within a second."""

from __future__ import annotations

import re
from pathlib import Path

from distilled_student.common.errors import UserError
from distilled_student.distillation.config import DistillConfig, student_config_for


def _is_folder_name(teacher: str) -> bool:
    """Whether the name of a teacher can only be a folder: names on a hub have at most one slash, inside."""
    return teacher.startswith(("/", ".", "~")) or teacher.endswith("/") or teacher.count("/") > 1


def check_settings(config: DistillConfig, where: str | Path) -> None:
    """Check folders, the teacher's and those of the data, and the student's configuration.

    URLs, patterns and names on a hub are checked when they are opened.

    Raises:
        UserError: a folder or file is missing, or the student is wrong; begins with ``where`` and names the key.
    """
    for name in config.data.paths:
        is_url_or_pattern = re.search(r"://|[*?\[{]", name)
        if not is_url_or_pattern and not Path(name).exists():
            raise UserError(f"{where}: data.paths: {name}: no such file or folder")
    if _is_folder_name(config.teacher) and not Path(config.teacher).exists():
        raise UserError(f"{where}: teacher: {config.teacher}: no such file or folder")
    student_config_for(config, target_size=1, where=where)  # raises for an unknown size or a wrong field
