"""Enrolled people on disk: a JSON file for each, with embeddings and no audio, that only the user may read."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from distilled_student.common.errors import UserError, did_you_mean
from distilled_student.common.files import read_json
from distilled_student.device.named_files import (
    NamedFiles,
    as_rows,
    as_vectors,
    checked_name,
    is_number,
    profiles_folder,
)

if TYPE_CHECKING:
    from distilled_student.onnx import Enrolment, Model

PREFIX = "speaker-"  # of the files' names
FORMAT = 1
MIN_SECONDS, MAX_SECONDS = 0.001, 1e6  # of the clips of a person together; a shorter clip counts as MIN_SECONDS


@dataclass(frozen=True)
class Profile:
    """What the file of a person holds; the fields of the dataclass are the keys of the JSON.

    Attributes:
        name: The person.
        model: The model's name or file when the person was enrolled, for messages.
        fingerprint: `Model.fingerprint`: embeddings of other weights cannot be compared with these.
        count: The number of enrolled clips.
        seconds: Their length together.
        vectors: Their embeddings, ``(count, embedding)``, each of length 1.
    """

    name: str
    model: str
    fingerprint: str
    count: int
    seconds: float
    vectors: list[list[float]]
    format: int = FORMAT

    @property
    def enrolment(self) -> Enrolment:
        """The mean of the vectors, of length 1, with the count and the seconds."""
        from distilled_student.onnx import Enrolment
        from distilled_student.onnx.speakers import unit_length

        vector = unit_length(np.mean(self.matrix, axis=0)).astype(np.float32)
        return Enrolment(vector, self.count, self.seconds, self.fingerprint)

    @property
    def matrix(self) -> NDArray[np.float32]:
        """The vectors as an array ``(count, embedding)``."""
        return np.array(self.vectors, np.float32)


class Profiles:
    """The enrolled people in a folder, compared with the embeddings of one model.

    Args:
        folder: See `profiles_folder`; it is made when the first person is enrolled.
        model: The model that people are compared by. None: their profiles are only listed and deleted.
        model_name: How messages and profiles name the model.

    Raises:
        UserError: from all methods: an unknown name, a damaged file, or one of another model; the message says what to
            do.
    """

    def __init__(self, folder: Path | None = None, model: Model | None = None, model_name: str | Path = "") -> None:
        self.folder = profiles_folder(folder)
        self._files = NamedFiles(self.folder, PREFIX)
        self._fingerprint = None if model is None else model.fingerprint
        self._size = None if model is None else model.embedding_size
        self._model_name = str(model_name)

    def all(self) -> list[Profile]:
        """The profiles of all people, of other models too, sorted by name."""
        return sorted(map(self._read, self._files.all()), key=lambda profile: profile.name)

    def names(self) -> list[str]:
        """The names of all people, sorted."""
        return [profile.name for profile in self.all()]

    def find(self, name: str) -> Profile | None:
        """The profile of one person, of this model; None for somebody who is not enrolled."""
        file = self._files.path(name)
        if not file.is_file():
            return None
        profile = self._read(file)
        self._check_model(profile)
        return profile

    def read(self, name: str) -> Enrolment:
        """One person, for `Model.verify`."""
        profile = self.find(name)
        if profile is None:
            raise self._unknown(name)
        return profile.enrolment

    def read_all(self) -> tuple[dict[str, Enrolment], list[str]]:
        """All people of this model, for `Model.identify`, and the names of those enrolled with another one.

        Raises:
            UserError: nobody is enrolled, or all with another model.
        """
        profiles = self.all()
        if not profiles:
            raise UserError(
                f"{self.folder}: nobody is enrolled; `distilled-student enrol NAME FILES...` enrols a person"
            )
        of_model = [profile for profile in profiles if profile.fingerprint == self._fingerprint]
        if not of_model:
            raise _of_another_model(profiles)
        others = [profile.name for profile in profiles if profile not in of_model]
        return {profile.name: profile.enrolment for profile in of_model}, others

    def lock(self) -> AbstractContextManager[None]:
        """Let nobody else change the folder between a look at a profile and its `write`; see `NamedFiles.lock`."""
        return self._files.lock()

    def write(self, name: str, vectors: NDArray[np.float32], seconds: float, replace: bool = False) -> Profile:
        """Enrol clips of a person, in addition to those that are enrolled.

        Args:
            vectors: Their embeddings ``(clips, embedding)``, of length 1.
            seconds: Their length together.
            replace: Forget what was enrolled before, with any model.
        """
        if self._fingerprint is None:
            raise ValueError("profiles that were opened without a model cannot be written")
        name = checked_name(name)
        with self._files.lock():
            before = None if replace else self.find(name)
            if before is not None:
                vectors, seconds = np.concatenate([before.matrix, vectors]), before.seconds + seconds
            rows = as_rows(vectors)
            seconds = max(round(seconds, 3), MIN_SECONDS)
            profile = Profile(name, self._model_name, self._fingerprint, len(rows), seconds, rows)
            self._files.write(name, profile)
        return profile

    def forget(self, name: str) -> None:
        """Delete the profile of a person, of any model, damaged or not."""
        if not self._files.path(name).is_file():
            raise self._unknown(name)
        self._files.remove(name)

    def _unknown(self, name: str) -> UserError:
        names = self.names()
        remedy = did_you_mean(name, names) or f"; enrolled: {', '.join(names)}"
        if not names:
            remedy = f"; `distilled-student enrol {name} FILES...` enrols them"
        return UserError(f"{name}: is not enrolled in {self.folder}{remedy}")

    def _check_model(self, profile: Profile) -> None:
        if self._fingerprint is not None and profile.fingerprint != self._fingerprint:
            raise _of_another_model([profile])

    def _read(self, file: Path) -> Profile:
        """The profile in a file, checked."""
        remedy = "delete it and enrol the person again"
        content = read_json(file, remedy)
        if content.get("format") != FORMAT:
            raise UserError(f"{file}: format: expected {FORMAT}, found {content.get('format')!r}; {remedy}")
        try:
            profile = Profile(**content)
            _check(profile, self._size if profile.fingerprint == self._fingerprint else None)
            self._files.check(file, profile.name)
        except (TypeError, ValueError) as error:
            raise UserError(f"{file}: is not the profile of a person ({error}); {remedy}") from None
        return profile


def _of_another_model(profiles: Sequence[Profile]) -> UserError:
    """What is raised if people who are to be compared were enrolled with other models."""
    names, models = ", ".join(p.name for p in profiles), ", ".join(dict.fromkeys(p.model for p in profiles))
    remedy = f"use --model {profiles[0].model}, or enrol them again with --replace"
    were = "was" if len(profiles) == 1 else "were"
    return UserError(f"{names}: {were} enrolled with another model, {models}: {remedy}")


def _check(profile: Profile, size: int | None) -> None:
    """Raise ValueError or TypeError for values that `Profiles.write` does not write; ``size``: see `as_vectors`."""
    texts: dict[str, Any] = {"name": profile.name, "model": profile.model, "fingerprint": profile.fingerprint}
    for key, value in texts.items():
        if not isinstance(value, str):
            raise ValueError(f"{key}: expected a text")
    if type(profile.count) is not int:
        raise ValueError("count: expected a whole number")
    as_vectors(profile.vectors, profile.count, size)
    if not is_number(profile.seconds, MAX_SECONDS):
        raise ValueError(f"seconds: expected a positive number up to {MAX_SECONDS:.0f}")
