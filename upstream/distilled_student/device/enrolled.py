"""Enrolled people and words of one's own for programs that run for days: read again when their files change."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distilled_student.common.errors import UserError
from distilled_student.device.household import apply_household
from distilled_student.device.own_words import OwnWords
from distilled_student.device.profiles import Profiles

if TYPE_CHECKING:
    from distilled_student.onnx import Enrolment, Model, Word

SECONDS = 1.0  # between two looks at the folder

log = logging.getLogger(__name__)


class Enrolled:
    """The people and words in the folder of the profiles, as it is now, with the household's calibration of the model.

    A file that was damaged later changes nothing: a warning names it, and what was read before stays.

    Args:
        model: The model; `refresh` sets its calibration.
        folder: See `profiles_folder`.
        with_words: Read the words of one's own too.

    Attributes:
        speakers: The people of this model by name.
        words: The words of one's own of this model by name, for `Stream.watch`.
        version: Another number after each change.

    Raises:
        UserError: a file is damaged when it is read for the first time.
    """

    def __init__(self, model: Model, folder: Path | None = None, with_words: bool = False) -> None:
        self._model, self._calibration = model, model.calibration
        self._people = Profiles(folder, model)
        self._own_words = OwnWords(self._people.folder, model) if with_words else None
        self.speakers: Mapping[str, Enrolment] = {}
        self.words: Mapping[str, Word] = {}
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
        words, unusable = ({}, []) if self._own_words is None else self._own_words.templates()
        profiles = self._people.all()
        of_model = [profile for profile in profiles if profile.fingerprint == self._model.fingerprint]
        before, self._model.calibration = self._model.calibration, self._calibration
        try:
            apply_household(self._model, self._people.folder)
        except UserError:
            self._model.calibration = before
            raise
        self.speakers, self.words = {profile.name: profile.enrolment for profile in of_model}, words
        self.version += 1
        others = [profile.name for profile in profiles if profile not in of_model]
        if others:
            log.warning("not used, enrolled with another model: %s", ", ".join(others))
        for note in unusable:
            log.warning(note)
        log.info(
            "enrolled people: %s; own words: %s", *(", ".join(names) or "none" for names in (self.speakers, words))
        )
