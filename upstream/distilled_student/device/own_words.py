"""Words of one's own on disk: a JSON file for each, made from checked recordings, without audio."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from distilled_student.common.errors import UserError, did_you_mean
from distilled_student.common.files import read_json
from distilled_student.device.clip_checks import Likeness, mark_copies, mark_unlike, measure_sound, sound_problems
from distilled_student.device.model_files import one_line_errors
from distilled_student.device.named_files import (
    NamedFiles,
    as_rows,
    as_vectors,
    checked_name,
    is_number,
    note_of_case,
    note_of_few,
    profiles_folder,
)
from distilled_student.device.recordings import read_recording
from distilled_student.onnx.words import WORDS

if TYPE_CHECKING:
    from distilled_student.onnx import Model, Word

PREFIX = "word-"  # of the files' names
FORMAT = 1
MAX_FRAMES = 100_000  # of a recording: more than half an hour
COPY_COSINE = 0.9995  # of two recordings; those of two takes have less
LARGEST_LEVEL = 2.0  # a difference of cosines is between -2 and 2
UNLIKE = -0.1  # difference of cosines to the others; see `WordMaps.differences`


@dataclass(frozen=True)
class OwnWord:
    """What the file of a word holds; the fields of the dataclass are the keys of the JSON.

    Attributes:
        name: The word.
        model: The model's name or file when the word was added, for messages.
        fingerprint: `Model.fingerprint`: vectors of other weights cannot be compared with these.
        maps: `WordMaps.digest`: nor can those of other maps.
        frames: The length of the word in each recording, in frames.
        vectors: Of the recordings, ``(recordings, size)``, each of length 1.
        level: `WordMaps.level`; None: of an earlier version.
    """

    name: str
    model: str
    fingerprint: str
    maps: str
    frames: list[float]
    vectors: list[list[float]]
    level: float | None = None
    format: int = FORMAT

    @property
    def count(self) -> int:
        """The number of recordings."""
        return len(self.vectors)

    @property
    def template(self) -> Word:
        """The word for `Model.spot`."""
        from distilled_student.onnx.words import template

        return template(np.array(self.vectors, np.float32), self.frames, self.maps)._replace(level=self.level)


@dataclass(eq=False)
class Recording:
    """A recording that a word is to be added from; ``problems``: what is wrong with it, in words."""

    file: str
    vector: NDArray[np.float32]
    frames: float
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Added:
    """What `add_word` has done: the word as it is stored, None if there is none, and all recordings."""

    word: OwnWord | None
    added: list[Recording]
    refused: list[Recording]
    notes: tuple[str, ...] = ()


class OwnWords:
    """The words in a folder, for one model.

    Args:
        folder: See `profiles_folder`; it is made when the first word is added.
        model: None: the words are only listed and deleted.
        model_name: How messages and files name the model.

    Raises:
        UserError: from all methods: an unknown name, a damaged file, or one of another model.
    """

    def __init__(self, folder: Path | None = None, model: Model | None = None, model_name: str | Path = "") -> None:
        self.folder = profiles_folder(folder)
        self._files = NamedFiles(self.folder, PREFIX)
        self.model, self._model_name = model, str(model_name)

    def all(self) -> list[OwnWord]:
        """All words, of other models too, sorted by name."""
        return sorted(map(self._read, self._files.all()), key=lambda word: word.name)

    def templates(self) -> tuple[dict[str, Word], list[str]]:
        """The words of this model by name, for `Model.spot`, and a note for each reason why others are not used."""
        usable: dict[str, Word] = {}
        unusable: dict[str, list[str]] = {}
        for word in self.all():
            if (reason := self._why_unusable(word)) is None:
                usable[word.name] = word.template
            else:
                unusable.setdefault(reason, []).append(word.name)
        return usable, [f"words not used, {reason}: {', '.join(names)}" for reason, names in unusable.items()]

    def find(self, name: str) -> OwnWord | None:
        """The word, of any model; None if there is none of this name."""
        file = self._files.path(name)
        return self._read(file) if file.is_file() else None

    def usable(self, name: str) -> OwnWord | None:
        """The word, of this model; None if there is none of this name."""
        word = self.find(name)
        if word is not None and (reason := self._why_unusable(word)) is not None:
            remedy = f"use --model {word.model}, or add it again with --replace"
            raise UserError(f"{name}: was {reason}, {word.model}: {remedy}")
        return word

    def lock(self) -> AbstractContextManager[None]:
        """Let nobody else change the folder between a look at a word and its `write`; see `NamedFiles.lock`."""
        return self._files.lock()

    def write(self, name: str, recordings: Sequence[Recording], replace: bool = False) -> OwnWord:
        """Add recordings to those that the word has; ``replace``: forget these, of any model."""
        from distilled_student.onnx.words import template

        name, model = checked_name(name), self._needed_model()
        with self._files.lock():
            before = None if replace else self.usable(name)
            rows = [] if before is None else before.vectors
            lengths = [] if before is None else before.frames
            rows = rows + as_rows(recording.vector for recording in recordings)
            lengths = lengths + [recording.frames for recording in recordings]
            maps = model.word_maps
            level = maps.level(template(np.array(rows, np.float32), lengths))
            word = OwnWord(name, self._model_name, model.fingerprint, maps.digest, lengths, rows, level)
            self._files.write(name, word)
        return word

    def forget(self, name: str) -> None:
        """Delete a word, of any model, damaged or not."""
        if not self._files.path(name).is_file():
            names = [word.name for word in self.all()]
            remedy = did_you_mean(name, names) or f"; words: {', '.join(names) or 'none'}"
            raise UserError(f"{name}: is not a word in {self.folder}{remedy}")
        self._files.remove(name)

    def _read(self, file: Path) -> OwnWord:
        """The word in a file, checked."""
        remedy = "delete it and add the word again"
        content = read_json(file, remedy)
        try:
            if content.get("format") != FORMAT:
                raise ValueError(f"format: expected {FORMAT}, found {content.get('format')!r}")
            word = OwnWord(**content)
            if not all(isinstance(text, str) for text in (word.name, word.model, word.fingerprint, word.maps)):
                raise ValueError("name, model, fingerprint, maps: expected texts")
            as_vectors(word.vectors, len(word.frames))
            self._files.check(file, word.name)
            if not all(is_number(length, MAX_FRAMES) for length in word.frames):
                raise ValueError(f"frames: expected positive numbers up to {MAX_FRAMES}")
            if not (word.level is None or is_number(word.level + LARGEST_LEVEL, 2 * LARGEST_LEVEL)):
                raise ValueError("level: expected a difference of cosines")
        except (TypeError, ValueError) as error:
            raise UserError(f"{file}: is not a word of one's own ({error}); {remedy}") from None
        return word

    def _why_unusable(self, word: OwnWord) -> str | None:
        """Why a word cannot be used: its vectors are of another model, or the maps that they need are missing."""
        model = self._needed_model()
        if word.fingerprint != model.fingerprint:
            return "added with another model"
        if not model.file.with_name(WORDS).is_file():
            return f"added with a copy of this model that has {WORDS} in its folder"
        with one_line_errors():
            if word.maps != model.word_maps.digest:
                return f"added with another {WORDS}"
            size = model.word_maps.mapping.shape[1]
        if len(word.vectors[0]) != size:
            reason = f"vectors: {len(word.vectors[0])} numbers, but those of the model have {size}"
            raise UserError(f"{self._files.path(word.name)}: {reason}; delete it and add the word again")
        return None

    def _needed_model(self) -> Model:
        if self.model is None:
            raise ValueError("words that were opened without a model cannot be used or written")
        return self.model


def add_word(
    words: OwnWords, name: str, files: Sequence[str | Path], force: bool = False, replace: bool = False
) -> Added:
    """Add the good recordings of ``files`` to a word.

    Args:
        force: Add recordings with problems too.
        replace: Forget what was added before.

    Raises:
        UserError: a file cannot be read, the name is that of a keyword, or the word is of another model: then nothing
            is added.
    """
    name, model = checked_name(name), words._needed_model()
    if name in model.labels or name.startswith("_"):
        raise UserError(f"{name}: is a class of the model; choose another name")
    if not files:
        raise UserError("FILES: none given")
    if not replace:
        words.usable(name)  # of another model, or damaged: said before recordings are read
    recordings = [read_word(model, file) for file in files]
    with words.lock():  # another process may add the same recordings
        word = None if replace else words.usable(name)
        before = np.array([] if word is None else word.vectors, np.float32)
        mark_copies(recordings, before, COPY_COSINE, "added already")
        mark_other_words(model, recordings, before)
        good = [recording for recording in recordings if force or not recording.problems]
        if good:
            word = words.write(name, good, replace)
        elif replace:  # nothing was replaced
            word = words.usable(name)
    refused = [recording for recording in recordings if recording.problems and not force]
    return Added(word, good, refused, _notes(words, name, word))


def _notes(words: OwnWords, name: str, word: OwnWord | None) -> tuple[str, ...]:
    few = note_of_few(word.count if word else 0, "recordings: words are missed more often")
    return (*few, *note_of_case(name, lambda: [other.name for other in words.all()], "words"))


def read_word(model: Model, file: str | Path) -> Recording:
    """Read and check one recording of a word. Raises UserError for a file that cannot be read."""
    samples = read_recording(file)
    with one_line_errors():
        vector, frames = model.word_vector(samples)
    return Recording(str(file), vector, frames, sound_problems(measure_sound(samples)))


def mark_other_words(model: Model, recordings: Sequence[Recording], before: NDArray[np.float32]) -> None:
    """Add a problem to recordings that are as unlike the others and those ``before`` as other words are."""
    from distilled_student.onnx.words import template

    def likeness(recording: Recording, others: Sequence[Recording]) -> Likeness:
        rest = template(np.stack([*before, *(other.vector for other in others)]), [recording.frames])
        return Likeness(float(model.word_maps.differences(recording.vector[None], rest.vector)[0]))

    mark_unlike(recordings, len(before), likeness, UNLIKE, "word")
