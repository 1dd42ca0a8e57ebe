"""The settings of keyword spotting: ``tasks.kws`` in the YAML file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from distilled_student.common.early_checks import check_run
from distilled_student.common.errors import UserError, did_you_mean
from distilled_student.corpora.held_out import check_number
from distilled_student.corpora.keywords import BACKGROUND, KEYWORDS, SILENCE, UNKNOWN, normal_word
from distilled_student.corpora.speaker_names import check_speaker_pattern, speaker_by_pattern
from distilled_student.multitask.tasks.settings import TaskSettings, first_clip, nearby_folder


@dataclass
class Settings(TaskSettings):
    """``tasks.kws`` in the YAML file.

    Attributes:
        train_root: Folder with ``WORD/SPEAKER_nohash_TAKE.wav`` and ``_background_noise_/``.
        test_root: Folder with ``KEYWORD/``, ``_unknown_/`` and ``_silence_/``; None: the testing set
            of ``train_root``.
        keywords: The words to recognise; each other word is ``_unknown_``. Case does not matter. None: all words of
            ``downstream_expert.data``.
        speaker_pattern: Regular expression with one group, which finds the speaker in ``WORD/FILE``, such as
            ``([^/]+)/[^/]+$`` for the folder of the file in ``WORD/SPEAKER/FILE``. None: the name of the file up to
            ``_nohash_``.
        validation_percentage: Percentage of the speakers of ``train_root`` in the development set; a hash of a
            speaker's name decides.
        testing_percentage: Percentage of the speakers of ``train_root`` in the testing set, by the same hash.
        dev_speakers: Instead of ``validation_percentage``: the number of speakers of ``train_root`` in the development
            set, or their share (0.2), those with the lowest hash of the name. A share is rounded, to two or more of
            five or more speakers. None: the percentage.
        test_speakers: Instead of ``testing_percentage``: the number or the share of speakers in the testing set, those
            with the next hashes. A share is nobody of fewer than ten speakers. None: the percentage.
        silence_percentage: Silent utterances of each set, as a percentage of its keyword utterances, rounded up
            (TensorFlow). None: each background noise once (SUPERB).
        unknown_percentage: Utterances of other words in each set, as a percentage of its keyword utterances, rounded up
            (TensorFlow). None: all of them (SUPERB).
        unknown_each_pass: Whether the utterances of other words are drawn again in each pass over the training set, so
            that all of them are used in time. Otherwise they are chosen once, as in TensorFlow.
        silence_volume: The lowest and the highest factor that background noise is multiplied by.
        sampling: ``utterance`` (each once in a pass), ``class`` (each class equally often, as in SUPERB) or
            ``square_root`` (a class with four times as many clips twice as often).
        crop_seconds: Length of a training clip; longer recordings are cut.
        shift_seconds: Each training clip of speech is moved by up to this time, earlier or later; zeros fill the gap.
        fill: Whether shorter clips are padded with zeros at the end, to ``crop_seconds``: in training, and then in
            evaluations, exported files and streams too.
        teacher: Folder of a finished run with the same classes, such as of a fine-tuned Whisper. In training it gets
            the same clips, and its probabilities are soft targets. None: no teacher.
        teacher_weight: Share of the soft targets in the loss; the classes themselves have the rest.
        teacher_temperature: What the scores are divided by before they become probabilities, of both.
    """

    classes_from: ClassVar[tuple[str, ...]] = ("keywords",)
    held_out_by: ClassVar[tuple[str, ...]] = (
        "validation_percentage",
        "testing_percentage",
        "dev_speakers",
        "test_speakers",
        "speaker_pattern",
        "dev_people",
        "test_people",
    )
    inputs_from: ClassVar[tuple[str, ...]] = ("layer", "crop_seconds", "fill")

    train_root: str = "data/speech_commands/train"
    test_root: str | None = "data/speech_commands/test"
    keywords: list[str] | None = field(default_factory=lambda: list(KEYWORDS))
    speaker_pattern: str | None = None
    validation_percentage: float = 10.0
    testing_percentage: float = 10.0
    dev_speakers: int | float | None = None
    test_speakers: int | float | None = None
    silence_percentage: float | None = 10.0
    unknown_percentage: float | None = 10.0
    unknown_each_pass: bool = False
    silence_volume: list[float] = field(default_factory=lambda: [0.0, 1.0])
    sampling: str = "utterance"
    crop_seconds: float = 1.0
    shift_seconds: float = 0.0
    fill: bool = True
    teacher: str | None = None
    teacher_weight: float = 0.5
    teacher_temperature: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("validation_percentage", "testing_percentage", "silence_percentage", "unknown_percentage"):
            value = getattr(self, name)
            if value is not None and not 0.0 <= value <= 100.0:
                raise ValueError(f"{name}: needs a number in [0, 100], not {value}")
        if self.validation_percentage + self.testing_percentage >= 100:
            raise ValueError("validation_percentage: together with testing_percentage it leaves no training data")
        if (self.dev_speakers is None) != (self.test_speakers is None):
            raise ValueError("dev_speakers, test_speakers: give both (test_speakers: 0 without a test), or neither")
        for name in ("dev_speakers", "test_speakers"):
            if (number := getattr(self, name)) is not None:
                check_number(name, number)
        check_speaker_pattern(self.speaker_pattern)
        if self.keywords is not None:  # `resolve_data` gives their list before a task is made
            self._check_keywords(self.keywords)
        if len(self.silence_volume) != 2 or not 0 <= self.silence_volume[0] <= self.silence_volume[1]:
            raise ValueError(f"silence_volume: needs [lowest, highest], not {self.silence_volume}")
        if self.sampling not in ("utterance", "class", "square_root"):
            raise ValueError(f"sampling: '{self.sampling}' is not utterance, class or square_root")
        if self.unknown_each_pass and not self.unknown_percentage:
            value = "null, which uses all words" if self.unknown_percentage is None else "0, which uses none"
            raise ValueError(f"unknown_each_pass: cannot be used with unknown_percentage: {value}")
        if not 0 <= self.shift_seconds <= self.crop_seconds:
            raise ValueError(f"shift_seconds: needs a number in [0, crop_seconds], not {self.shift_seconds}")
        if self.crop_seconds < 0.1:
            raise ValueError("crop_seconds: needs at least 0.1")
        if not 0 < self.teacher_weight <= 1:
            raise ValueError(f"teacher_weight: needs a number above 0, at most 1, not {self.teacher_weight}")
        if not self.teacher_temperature > 0:
            raise ValueError(f"teacher_temperature: needs a positive number, not {self.teacher_temperature}")

    @staticmethod
    def _check_keywords(keywords: Sequence[str]) -> None:
        """Raise ValueError for words that YAML reads otherwise, that are equal, or that are no names of folders."""
        if {"True", "False"} & set(keywords):
            raise ValueError("keywords: YAML reads yes, no, on and off as true and false: put them in quotes")
        if not keywords or len(set(map(normal_word, keywords))) != len(keywords):
            raise ValueError("keywords: need one or more different words; upper and lower case are the same")
        for word in keywords:
            if word.startswith("_") or word in ("", ".", "..") or "/" in word or word != word.strip():
                reason = "expected the name of a folder that does not begin with _, as the classes that are no words do"
                raise ValueError(f"keywords: '{word}': {reason}")

    def class_names(self) -> list[str]:
        return [SILENCE, UNKNOWN, *(self.keywords or ())]

    def data_folders(self) -> list[str]:
        return [self.data or self.train_root]

    def evaluated_folder(self, split: str) -> str:
        return self.data or (self.test_root if split == "test" and self.test_root is not None else self.train_root)

    def check_folders(self, key: str) -> None:
        super().check_folders(key)
        if self.teacher is not None:
            try:
                check_run(Path(self.teacher))
            except UserError as error:
                raise UserError(f"{key}.teacher: {error}") from None
        if self.data is not None:  # `resolve_data` has read it
            return
        for name, folder in (("train_root", self.train_root), ("test_root", self.test_root)):
            if folder is not None and not Path(folder).is_dir():
                raise UserError(f"{key}.{name}: {folder}: no such folder")
        _check_train_words(self, f"{key}.train_root", f"{key}.keywords")
        _check_further_classes(self, key)
        keywords = set(map(normal_word, self.keywords))
        for folder in sorted(Path(self.train_root).iterdir()):
            if normal_word(folder.name) in keywords:
                _check_first_clip(self, folder, key)
        if self.test_root is not None:
            _check_test_classes(self, self.test_root, key)

    def check_splits(self, key: str, splits: Sequence[str]) -> None:
        parts = (("dev", self.held_out_setting("dev")), ("test", self.held_out_setting("test")))
        for split, name in parts if self.test_root is None and self.data is None else parts[:1]:
            if split in splits and getattr(self, name) == 0:
                remedy = f"set a larger number, or leave {split} out of runner.eval_dataloaders"
                raise UserError(f"{key}.{name}: 0 puts no speaker into {split}: {remedy}")

    def held_out_setting(self, split: str) -> str:
        """The setting that says how many speakers are in ``split``, ``dev`` or ``test``."""
        numbers, percentages = ("dev_speakers", "test_speakers"), ("validation_percentage", "testing_percentage")
        return (percentages if self.dev_speakers is None else numbers)[split == "test"]


# what the early checks and the index of all clips refuse in the same words


def deeper_clip(clip: Path, root_key: str) -> UserError:
    """The error about a clip in a further folder, where no ``speaker_pattern`` says what that is."""
    remedy = "if its folder is the speaker, set speaker_pattern next to it to '([^/]+)/[^/]+$'"
    return UserError(f"{root_key}: {clip}: is deeper than WORD/FILE: {remedy}")


def no_other_words(root: Path, key: str) -> UserError:
    """The error about a ``train_root`` with keywords alone, where training needs other words."""
    return UserError(f"{key}.unknown_percentage: {root}: class '{UNKNOWN}' has no files: all words are keywords")


def no_noise(root: Path, key: str) -> UserError:
    """The error about a ``train_root`` without background noise, where training needs silence."""
    return UserError(f"{key}.silence_percentage: {root / BACKGROUND}: no files to cut silence from")


def _words(folder: Path) -> set[str]:
    """`normal_word` of each folder in ``folder``; empty for one that cannot be opened."""
    try:
        return {normal_word(entry.name) for entry in os.scandir(folder) if entry.is_dir()}
    except OSError:
        return set()


def _check_train_words(settings: Settings, root_key: str, keywords_key: str) -> None:
    """Refuse a ``train_root`` without a folder of any keyword, then a keyword without a folder."""
    root, keywords = Path(settings.train_root), set(map(normal_word, settings.keywords))
    found = _words(root)
    if not found & keywords:
        others = nearby_folder(root, lambda path: bool(_words(path) & keywords) and SILENCE not in _words(path))
        words = ", ".join(settings.keywords[:3]) + (", ..." if len(settings.keywords) > 3 else "")
        remedy = others or f": give a folder with one folder for each word, or set {keywords_key}"
        raise UserError(f"{root_key}: {root}: has no folder of a keyword ({words}){remedy}")
    for word in settings.keywords:
        if normal_word(word) not in found:
            hint = did_you_mean(word, sorted(found - keywords))
            raise UserError(f"{keywords_key}: {root / word}: class '{word}' has no files{hint}")


def _check_further_classes(settings: Settings, key: str) -> None:
    """Refuse a ``train_root`` without other words, or without background noise, where training needs them."""
    root = Path(settings.train_root)
    others = _words(root) - set(map(normal_word, settings.keywords)) - {BACKGROUND}
    if settings.unknown_percentage != 0 and not others:
        raise no_other_words(root, key)
    if settings.silence_percentage != 0 and BACKGROUND not in _words(root):
        raise no_noise(root, key)


def _check_first_clip(settings: Settings, word: Path, key: str) -> None:
    """Refuse a first clip in which ``speaker_pattern`` finds no speaker, or that is deeper than WORD/FILE without it.

    The index checks all clips.
    """
    clip = first_clip(word)
    if clip is None:
        return
    if settings.speaker_pattern is not None:
        speaker_by_pattern(settings.speaker_pattern, clip.relative_to(word.parent).as_posix(), key)
    elif clip.parent != word:
        raise deeper_clip(clip, f"{key}.train_root")


def _check_test_classes(settings: Settings, test_root: str, key: str) -> None:
    """Refuse a test folder without one of the classes, or with a class that training leaves out."""
    for name, word in (("silence_percentage", SILENCE), ("unknown_percentage", UNKNOWN)):
        if getattr(settings, name) == 0:
            reason = f"0 trains no '{word}', but the test folder, {test_root}, has this class"
            raise UserError(f"{key}.{name}: {reason}: set test_root to null, or a larger percentage")
    root, classes = Path(test_root), settings.class_names()
    found = _words(root)
    for word in classes:
        if normal_word(word) not in found:
            others = nearby_folder(root, lambda folder: _words(folder) >= set(map(normal_word, classes)))
            remedy = others or f": without a test folder set {key}.test_root to null"
            raise UserError(f"{key}.test_root: {root / word}: class '{word}' has no files{remedy}")
