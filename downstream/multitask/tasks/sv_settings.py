"""The settings of speaker verification: ``tasks.sv`` in the YAML file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from distilled_student.common.errors import UserError
from distilled_student.corpora.held_out import check_number, number_held_out
from distilled_student.corpora.speaker_names import check_speaker_pattern, speaker_by_pattern
from distilled_student.multitask.tasks.settings import (
    HEADS,
    NO_TEST_PEOPLE,
    LossSettings,
    TaskSettings,
    first_clip,
    nearby_folder,
    speed_ratio,
)


@dataclass
class Settings(TaskSettings):
    """``tasks.sv`` in the YAML file.

    Attributes:
        root: Folder with ``dev/wav/SPEAKER/SESSION/*.wav`` and ``test/wav/...``, or both in ``wav/SPEAKER/...``. A
            training speaker, who is a class, needs one utterance; a development speaker needs two for a target trial.
        trials: File of test trials, relative to ``root``, with a line ``1|0 a.wav b.wav`` for each; None: no test.
        trials_root: Folder of the list and its files, in the layout of ``root``; None: ``root``.
        speaker_pattern: Regular expression with one group, which finds the speaker in the path of a file below
            ``dev/wav``, ``test/wav``, ``wav`` or an extra root, such as ``^[^/]+/([^/]+)/`` for the second folder.
            None: the first folder.
        dev_speakers: Number of development speakers, or their share of all (0.2), who are not trained on: those with
            the lowest hash of the name. A share is rounded, to two or more.
        dev_utterances: If it is not 0: instead of ``dev_speakers``, hold out this number of utterances, those with the
            lowest hash, of all speakers, who stay training speakers. Each keeps one training utterance at least. The
            paper holds out 5,000 and does not say of whom.
        dev_trials: Number of development trials, made from the held-out utterances.
        extra_roots: Folders of further training speakers, one folder per speaker in each of them. A file counts once
            for each ``crop_seconds`` in it.
        sampling: ``utterance`` (each once in a pass) or ``speaker`` (each speaker equally often).
        clips_per_speaker: Each batch has groups of this number of clips of one speaker, as ``loss.contrastive`` needs
            them; 1: clips are drawn one by one.
        crop_seconds: Length of a training crop.
        longest_crop_seconds: The length of each crop is drawn between ``crop_seconds`` and this. An upstream's
            features depend on the position in the utterance, so a head trained on one length fails on others. None:
            every crop has ``crop_seconds``.
        fill: Whether an utterance shorter than its crop is repeated to fill it: in training, and then (to
            ``crop_seconds``) in evaluations, exported files and streams too.
        embedding_size: Features of a speaker embedding; those of the ``pooled`` head are the pooled features.
        center: Whether the mean of the training embeddings is subtracted from an embedding in evaluation and on a
            device. All embeddings share it, so it makes the cosines of different speakers alike.
        as_norm_top: Number of nearest training speakers that adaptive s-norm compares each utterance with.
        loss: The loss; its keys have a table of their own.

    With ``augment.speed`` each training speaker is a further class at each of the ``speed_factors``: the pitch changes,
    so it is another voice (Kaldi's and SpeechBrain's recipes do the same).
    """

    heads: ClassVar[tuple[str, ...]] = HEADS
    classes_from: ClassVar[tuple[str, ...]] = (
        "root",
        "extra_roots",
        "dev_speakers",
        "dev_utterances",
        "trials",
        "augment.speed_factors",
    )
    held_out_by: ClassVar[tuple[str, ...]] = ("dev_speakers", "dev_utterances", "dev_people", "test_people")
    inputs_from: ClassVar[tuple[str, ...]] = ("layer", "crop_seconds", "fill")

    root: str = "data/voxceleb1"
    trials: str | None = "veri_test.txt"
    trials_root: str | None = None
    speaker_pattern: str | None = None
    dev_speakers: int | float = 40
    dev_utterances: int = 0
    dev_trials: int = 10_000
    extra_roots: list[str] = field(default_factory=list)
    sampling: str = "utterance"
    clips_per_speaker: int = 1
    crop_seconds: float = 2.0
    longest_crop_seconds: float | None = None
    fill: bool = True
    embedding_size: int = 256
    center: bool = False
    as_norm_top: int = 100
    loss: LossSettings = field(default_factory=LossSettings)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sampling not in ("utterance", "speaker"):
            raise ValueError(f"sampling: '{self.sampling}' is not utterance or speaker")
        if self.clips_per_speaker < 1 or self.batch_size % self.clips_per_speaker:
            reason = f"needs a divisor of batch_size {self.batch_size}, not {self.clips_per_speaker}"
            raise ValueError(f"clips_per_speaker: {reason}")
        if self.loss.contrastive is not None and self.clips_per_speaker < 2:
            raise ValueError(f"loss.contrastive: '{self.loss.contrastive}' needs clips_per_speaker of at least 2")
        if self.loss.contrastive is not None and self.batch_size < 2 * self.clips_per_speaker:
            reason = f"'{self.loss.contrastive}' compares speakers: needs at least 2 * {self.clips_per_speaker}"
            raise ValueError(f"batch_size: {reason} (clips_per_speaker), not {self.batch_size}")
        if self.center and self.head == "xvector":
            raise ValueError("center: cannot be used with head xvector, whose embedding training does not see")
        check_speaker_pattern(self.speaker_pattern)
        if self.augment.speed == 1 and 1 not in map(speed_ratio, self.augment.speed_factors):
            reason = "1 leaves no utterance at its own speed: use a smaller probability, or 1.0 in speed_factors"
            raise ValueError(f"augment.speed: {reason}")
        check_number("dev_speakers", self.dev_speakers)
        if self.dev_speakers == 1:
            raise ValueError(f"dev_speakers: trials need at least 2 speakers (0: no trials), not {self.dev_speakers}")
        if self.dev_utterances == 1 or self.dev_utterances < 0:
            reason = f"trials need at least 2 utterances (0: dev_speakers), not {self.dev_utterances}"
            raise ValueError(f"dev_utterances: {reason}")
        if self.dev_trials < 2 or self.embedding_size < 1 or self.as_norm_top < 2:
            raise ValueError("dev_trials, embedding_size, as_norm_top: need at least 2, 1 and 2")
        if self.crop_seconds < 0.1:
            raise ValueError("crop_seconds: needs at least 0.1")
        if self.longest_crop_seconds is not None and self.longest_crop_seconds < self.crop_seconds:
            raise ValueError(f"longest_crop_seconds: needs at least crop_seconds, {self.crop_seconds:g}")

    @property
    def has_development(self) -> bool:
        """Whether there are development trials."""
        return bool(self.dev_speakers or self.dev_utterances or self.dev_people)

    def no_development(self) -> str:
        """Why there are no development trials, and the remedy."""
        remedy = "set 2 or more, or dev_utterances, or leave dev out of runner.eval_dataloaders"
        return f"dev_speakers: {self.dev_speakers} makes no trials for dev: {remedy}"

    def check_splits(self, key: str, splits: Sequence[str]) -> None:
        if "dev" in splits and not self.has_development:
            raise UserError(f"{key}.{self.no_development()}")
        if "test" in splits and self.data is not None and not self.test_people:
            raise UserError(f"{key}.test_people: {NO_TEST_PEOPLE}: leave test out of runner.eval_dataloaders")
        if "test" in splits and self.trials is None and self.data is None:
            raise UserError(f"{key}.trials: null, but runner.eval_dataloaders has test: give a list of trials")

    @property
    def speeds(self) -> list[float]:
        """The speeds whose utterances are further classes of speakers."""
        factors = self.augment.speed_factors if self.augment.speed else []
        return list({ratio: float(ratio) for ratio in map(speed_ratio, factors) if ratio != 1}.values())

    def data_folders(self) -> list[str]:
        return [self.data or self.root, *self.extra_roots]

    def evaluated_folder(self, split: str) -> str:
        return self.data or (self.trials_root if split == "test" and self.trials_root is not None else self.root)

    def check_folders(self, key: str) -> None:
        super().check_folders(key)
        if self.data is not None:  # `resolve_data` has read it
            for root in self.extra_roots:
                if not Path(root).is_dir():
                    raise UserError(f"{key}.extra_roots: {root}: no such folder")
            return
        folders = [("root", self.root), *(("extra_roots", root) for root in self.extra_roots)]
        folders += [("trials_root", self.trials_root)] if self.trials_root is not None else []
        for name, folder in folders:
            if not Path(folder).is_dir():
                raise UserError(f"{key}.{name}: {folder}: no such folder")
        folder = self._check_root(key)
        self._check_trials(key)
        if self.speaker_pattern is not None:
            for root in (folder, *map(Path, self.extra_roots)):  # the index checks all files
                if file := first_clip(root):
                    speaker_by_pattern(self.speaker_pattern, file.relative_to(root).as_posix(), key)
            return
        for root in map(Path, self.extra_roots):
            if inner := speakers_in(root):
                reason = (
                    f"its folder {inner.relative_to(root)} has the speakers, and each folder in an extra root is one"
                )
                raise UserError(f"{key}.extra_roots: {root}: {reason}: give {inner}")
        # this number includes the speakers of the trials: the index, which reads the trials, checks it again
        speakers = sum(entry.is_dir() for entry in os.scandir(folder))
        if speakers == 0:
            reason = "has no folder of a speaker; if the names of its files say the speaker, set speaker_pattern"
            raise UserError(f"{key}.root: {folder}: {reason}")
        if not self.dev_utterances and (held_out := number_of_development(self.dev_speakers, speakers)) >= speakers:
            reason = f"{held_out} of {speakers} speakers leave no training speaker"
            raise UserError(f"{key}.dev_speakers: {reason}: set fewer; if {folder} is the wrong folder, correct root")

    def _check_root(self, key: str) -> Path:
        """The folder of the training speakers in ``root``. Raises UserError for a root that has another layout."""
        root, folder = Path(self.root), speakers_in(Path(self.root))
        name = self.trials if self.trials_root is None else None  # the list of trials that is in the right folder
        if folder is not None and (name is None or (root / name).is_file()):
            return folder
        others = nearby_folder(root, lambda path: speakers_in(path) is not None and (path / (name or "")).exists())
        if folder is None:
            others = others or nearby_folder(root, lambda path: speakers_in(path) is not None)
            raise UserError(f"{key}.root: {root}: has neither dev/wav nor wav, the folder of the speakers{others}")
        if others:
            raise UserError(f"{key}.root: {root}: has no {name}, the list of test trials{others}")
        return folder

    def _check_trials(self, key: str) -> None:
        trials = Path(self.trials_root or self.root, self.trials or "")
        if self.trials is not None and not trials.is_file():
            remedy = "without test trials give null; if the list is in another folder, set root or trials_root"
            raise UserError(f"{key}.trials: {trials}: no such file; {remedy}")


def number_of_development(dev_speakers: int | float, speakers: int) -> int:
    """How many of ``speakers`` the setting stands for; a share is two or more, because trials need two."""
    number = number_held_out(dev_speakers, speakers)
    return number if isinstance(dev_speakers, int) else max(2, number)


def speakers_in(root: Path) -> Path | None:
    """The folder of the training speakers in VoxCeleb1's layout, ``dev/wav`` or ``wav``; None for another layout."""
    return next((folder for folder in (root / "dev" / "wav", root / "wav") if folder.is_dir()), None)
