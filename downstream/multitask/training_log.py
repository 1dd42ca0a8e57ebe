"""``log.jsonl`` in the experiment folder: one line of JSON for each log entry and each evaluation of a training."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distilled_student.common.files import write_files

LOG = "log.jsonl"


class TrainingLog:
    """The file ``log.jsonl`` in ``folder``; every entry has its ``step``."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.file = folder, folder / LOG

    def write(self, entry: Mapping[str, Any]) -> None:
        """Append an entry."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")

    def remove_after(self, step: int) -> None:
        """Remove the entries after ``step``, from which training resumes: the resumed run writes them again."""
        if not self.file.is_file():
            return
        entries = []
        for line in self.file.read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(ValueError):  # a killed run may have left half a line at the end
                entries.append(json.loads(line))
        kept = [json.dumps(entry) + "\n" for entry in entries if entry["step"] <= step]
        write_files(self.folder, {self.file.name: "".join(kept).encode()})
