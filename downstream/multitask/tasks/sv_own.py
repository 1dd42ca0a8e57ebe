"""The index of speaker verification on a folder of own recordings, with further voices of the embedded corpus."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from distilled_student.corpora import embedded
from distilled_student.corpora.own_folder import read_own_folder
from distilled_student.corpora.speakers import Trials
from distilled_student.multitask.tasks.sv_index import SpeakerIndex, random_trials

if TYPE_CHECKING:
    from distilled_student.multitask.tasks.sv_settings import Settings


class OwnSpeakerIndex(SpeakerIndex):
    """The people of the folder, without those who are held out, and the training voices of the embedded corpus.

    Where a single person is held out, the voices of the same part of the embedded corpus are the others of the trials.
    They are synthetic and have another microphone, so these trials are easier than those of two people.
    """

    def __init__(self, settings: Settings, key: str) -> None:
        super().__init__(Path(str(settings.data)), None, 0, settings.extra_roots, key)
        self.settings = settings

    @functools.cached_property
    def roots(self) -> list[str]:
        return [*self.extra_roots, str(embedded.cached() / "voxceleb1/dev/wav")]

    @functools.cached_property
    def _people(self) -> dict[str, list[Path]]:
        folder = read_own_folder(self.root, f"{self.key}.data", self.settings.layout)
        return {name: [clip.path for clip in folder.of(name)] for name in folder.people}

    def _held_out_people(self, names: list[str] | None, part: str) -> dict[str, list[Path]]:
        """The files of the people ``names``, and those of embedded voices where it is one person."""
        people = {name: self._people[name] for name in names or () if name in self._people}
        if len(people) != 1:
            return people
        root, voices = embedded.cached(), dict[str, list[Path]]()
        for output in embedded.plan_files():
            if output.clip.split == part and output.clip.kind == "sentence":
                path = root / output.path  # .../SPEAKER/SESSION/FILE
                voices.setdefault(path.parts[-3], []).append(path)
        return people | voices

    @functools.cached_property
    def development(self) -> dict[str, list[Path]]:
        return self._held_out_people(self.settings.dev_people, "dev")

    @functools.cached_property
    def _test(self) -> tuple[Trials | None, set[str]]:
        people = self._held_out_people(self.settings.test_people, "test")
        if not people:
            return None, set()
        return random_trials(people, self.settings.dev_trials, np.random.default_rng(1)), set(people)

    @functools.cached_property
    def _speakers(self) -> dict[str, list[Path]]:
        held_out = {*(self.settings.dev_people or ()), *(self.settings.test_people or ())}
        return {name: files for name, files in self._people.items() if name not in held_out}
