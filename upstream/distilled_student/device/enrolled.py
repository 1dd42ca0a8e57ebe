"""Enrolled people for programs that run for days: read again when the files of their profiles change."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distilled_student.common.errors import UserError
from distilled_student.device.household import apply_household
from distilled_student.device.profiles import Profiles

if TYPE_CHECKING:
    from distilled_student.onnx import Enrolment, Model

SECONDS = 1.0  # between two looks at the folder

log = logging.getLogger(__name__)


class Enrolled:
    """The people in the folder of the profiles, as it is now, with the household's calibration of the model.

    A file that was damaged later changes nothing: a warning names it, and what was read before stays.

    Args:
        model: The model; `refresh` sets its calibration.
        folder: See `profiles_folder`.

    Attributes:
        speakers: The people of this model by name.
        version: Another number after each change.

    Raises:
        UserError: a file is damaged when it is read for the first time.
    """

    def __init__(self, model: Model, folder: Path | None = None) -> None:
        self._model, self._calibration = model, model.calibration
        self._people = Profiles(folder, model)
        self.speakers: Mapping[str, Enrolment] = {}
        self.version = 0
        self._files = self._look()
        self._read()
        self._next_look = time.monotonic() + SECONDS

    def refresh(self) -> None:
        """Read the files again if any has changed; looks at most once in `SECONDS`."""
        if time.monotonic() < self._next_look:
            return
        self._next_look = time.monotonic() + SECONDS
        files = self._look()
        if files == self._files:
            return
        self._files = files
        try:
            self._read()
        except (OSError, UserError, ValueError) as error:
            log.warning("%s; what was read before is used", error)

    def _look(self) -> dict[str, tuple[Any, ...]]:
        """Name -> what changes with the content, of each file in the folder."""
        try:
            with os.scandir(self._people.folder) as entries:
                found = {entry.name: entry.stat() for entry in entries if entry.name.endswith(".json")}
        except OSError:  # no folder, or a file that has just been deleted
            return {}
        return {name: (stat.st_mtime_ns, stat.st_size, stat.st_ino) for name, stat in found.items()}

    def _read(self) -> None:
        profiles = self._people.all()
        of_model = [profile for profile in profiles if profile.fingerprint == self._model.fingerprint]
        before, self._model.calibration = self._model.calibration, self._calibration
        try:
            apply_household(self._model, self._people.folder)
        except UserError:
            self._model.calibration = before
            raise
        self.speakers = {profile.name: profile.enrolment for profile in of_model}
        self.version += 1
        others = ", ".join(profile.name for profile in profiles if profile not in of_model)
        if others:
            log.warning("not compared, enrolled with another model: %s", others)
        log.info("enrolled people: %s", ", ".join(self.speakers) or "none")
