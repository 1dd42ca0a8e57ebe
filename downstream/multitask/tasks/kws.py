"""Keyword spotting on the folders of Speech Commands: its settings, data, loss and metrics."""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from distilled_student.common import audio
from distilled_student.common.errors import UserError
from distilled_student.corpora.keywords import SILENCE, UNKNOWN, normal_word, speaker_of
from distilled_student.corpora.speaker_groups import SpeakerGroups
from distilled_student.corpora.speaker_names import identity, match_speaker
from distilled_student.multitask import metrics as M
from distilled_student.multitask.augment import Augmentation, change_speed
from distilled_student.multitask.copies import Use, check_copies
from distilled_student.multitask.group_figures import Figures, accuracy_by_group
from distilled_student.multitask.owner_trials import SpokenClip
from distilled_student.multitask.short_utterances import Filling, pad_to
from distilled_student.multitask.soft_targets import RunTeacher, soft_target_loss
from distilled_student.multitask.speaker_calibration import Recording
from distilled_student.multitask.tasks.base import (
    KEYWORD_SCORES,
    SHORTEST,
    BaseTask,
    Item,
    balanced_order,
    load_speech,
    samples_of,
    square_root_order,
)
from distilled_student.multitask.tasks.kws_index import (
    SILENCE_LABEL,
    UNKNOWN_LABEL,
    KeywordClip,
    check_training,
    class_index,
    class_recordings,
    cut_silence,
    no_speaker,
    share_of,
    test_index,
    warn_of_tested_speakers,
)
from distilled_student.multitask.tasks.kws_own import SPEAKER, loudest, own_class_index
from distilled_student.multitask.tasks.kws_settings import Settings

log = logging.getLogger(__name__)
NOBODY = "/"  # starts what stands for the speaker of a clip that has none


def filling_of(settings: Settings) -> Filling:
    """See `BaseTask.filling`: zeros follow shorter clips."""
    return Filling(int(settings.crop_seconds * audio.SAMPLE_RATE) if settings.fill else SHORTEST)


class Training:
    """Training clips, cut at random to the same length."""

    def __init__(self, clips: list[KeywordClip], settings: Settings, noises: list[Path], key: str) -> None:
        self.clips, self.settings, self.noises = clips, settings, noises
        self.augment = Augmentation(settings.augment, f"{key}.augment", noises)

    def order(self, rng: np.random.Generator) -> Sequence[int]:
        labels = np.array([clip.label for clip in self.clips])
        if self.settings.sampling == "class":
            return balanced_order(labels, rng)
        if self.settings.sampling == "square_root":
            return square_root_order(labels, rng)
        if not self.settings.unknown_each_pass:
            return rng.permutation(len(self.clips)).tolist()
        is_unknown, words = labels == UNKNOWN_LABEL, int((labels > UNKNOWN_LABEL).sum())
        unknown = rng.permutation(np.flatnonzero(is_unknown))[: share_of(words, self.settings.unknown_percentage)]
        return rng.permutation(np.concatenate([np.flatnonzero(~is_unknown), unknown])).tolist()

    def files(self) -> Sequence[Path]:
        return [*(clip.path for clip in self.clips if clip.volume is None), *self.noises]

    def item(self, index: int, rng: np.random.Generator) -> Item:
        clip, samples = self.clips[index], int(self.settings.crop_seconds * audio.SAMPLE_RATE)
        if clip.volume is not None:
            path, start, volume = cut_silence(self.noises, self.settings, rng)
            waveform = audio.load(path, start, self.settings.crop_seconds) * volume
        else:
            waveform = change_speed(load_speech(clip.path), self.augment.speed(rng))
            waveform = self._shift(waveform, samples, rng)
        first = int(rng.integers(max(1, len(waveform) - samples + 1)))
        if self.settings.data is not None and clip.label > UNKNOWN_LABEL:  # silence around a word may be longer than it
            first = loudest(waveform, samples)
        waveform = filling_of(self.settings).fill(waveform[first : first + samples])
        waveform, past = self.augment.with_past(waveform, rng)
        return Item(waveform, clip.label, clip.key, past)

    def _shift(self, waveform: Tensor, samples: int, rng: np.random.Generator) -> Tensor:
        """Move a clip earlier, which cuts its beginning, or later, which puts zeros in front and cuts what is behind
        ``samples``, the length of a training clip.
        """
        largest = int(self.settings.shift_seconds * audio.SAMPLE_RATE)
        later = int(rng.integers(-largest, largest + 1)) if largest else 0
        if later > 0:
            return F.pad(waveform, (later, 0))[: max(len(waveform), samples)]
        return waveform[min(-later, len(waveform) - 1) :]


class Evaluation:
    """Whole utterances, and the cuts of background noise that the index names.

    `samples` of a clip shorter than those of training is their length: the loader pads it with zeros, as in training.
    """

    def __init__(self, clips: list[KeywordClip], settings: Settings) -> None:
        self.clips, self.crop_seconds, self.filling = clips, settings.crop_seconds, filling_of(settings)
        self.cuts = settings.data is not None  # whether a word is cut out of its recording, as in training

    def __len__(self) -> int:
        return len(self.clips)

    def samples(self, index: int) -> int:
        clip = self.clips[index]
        if clip.volume is not None:
            return int(self.crop_seconds * audio.SAMPLE_RATE)
        samples = samples_of(clip.path)
        if self.cuts and clip.label > UNKNOWN_LABEL:
            samples = min(samples, int(self.crop_seconds * audio.SAMPLE_RATE))
        return max(samples, self.filling.samples)

    def path(self, index: int) -> Path:
        return self.clips[index].path

    def label(self, index: int) -> int:
        return self.clips[index].label

    def item(self, index: int) -> Item:
        clip = self.clips[index]
        if clip.volume is None:
            waveform = (audio.load if clip.label == SILENCE_LABEL else load_speech)(clip.path)
            if self.cuts and clip.label > UNKNOWN_LABEL:
                samples = int(self.crop_seconds * audio.SAMPLE_RATE)
                waveform = waveform[(first := loudest(waveform, samples)) : first + samples]
            return Item(waveform, clip.label, clip.key)
        cut = audio.load(clip.path, clip.start, self.crop_seconds) * clip.volume
        samples = self.samples(index)
        return Item(pad_to(cut[:samples], samples), clip.label, clip.key)


class Task(BaseTask):
    """Classification into ``_silence_``, ``_unknown_`` and the keywords: cross-entropy, and soft targets if wanted."""

    output_name: ClassVar[str] = KEYWORD_SCORES
    headline: ClassVar[str] = "accuracy"
    has_threshold: ClassVar[bool] = True

    def __init__(self, settings: Settings, features: int, seed: int, key: str) -> None:
        super().__init__(settings, features, 2 + len(settings.keywords))
        self.settings, self.seed, self.key = settings, seed, key
        self.labels = [SILENCE, UNKNOWN, *settings.keywords]
        self.teacher: RunTeacher | None = None

    @property
    def filling(self) -> Filling:
        return filling_of(self.settings)

    @functools.cached_property
    def index(self) -> tuple[dict[str, list[KeywordClip]], list[Path]]:
        """The clips of each set and the background noises, from ``train_root``; a test on ``test_root`` needs none."""
        read = class_index if self.settings.data is None else own_class_index
        return read(self.settings, self.seed, self.key)

    @functools.cached_property
    def testing(self) -> list[KeywordClip]:
        return test_index(self.settings, self.key) if self._has_test_root else self.index[0]["testing"]

    @property
    def _has_test_root(self) -> bool:
        return self.settings.test_root is not None and self.settings.data is None

    @property
    def _speaker_pattern(self) -> str | None:
        """What finds the speaker in the key of a clip."""
        return self.settings.speaker_pattern if self.settings.data is None else SPEAKER

    def prepare_training(self) -> None:
        check_training(self.index[0], self.settings, self.key)
        if self._has_test_root:  # find missing test data now, not after the training
            warn_of_tested_speakers(self.index[0]["training"], self.testing, self.key)
        check_copies(self._uses(), self.key)
        self.recordings = class_recordings(self.index[0]["training"], len(self.labels))
        if self.settings.teacher is not None:
            self.teacher = self._open_teacher()

    def _open_teacher(self) -> RunTeacher:
        """Raises UserError: see `RunTeacher`; it has other classes, or was trained on people who are held out here."""
        key, run = f"{self.key}.teacher", self.settings.teacher
        teacher = RunTeacher(run, self.output_name, key)
        if teacher.settings.class_names() != self.settings.class_names():
            classes = ", ".join(teacher.settings.class_names()[2:])
            raise UserError(f"{key}: {run}: knows other keywords: {classes}: their order must be the same, too")
        if changed := self.changed_setting(teacher.settings, self.settings.held_out_by):
            reason = changed.replace("in the checkpoint", f"in the training of the teacher, {run}")
            raise UserError(f"{reason}: it was trained on people who are held out here: train both with the same value")
        return teacher

    def teachers(self) -> Mapping[str, Any]:
        return {} if self.teacher is None else {"teacher": self.teacher.provenance()}

    def _uses(self) -> list[tuple[Path, Use]]:
        """The files of speech, with their classes, that are trained on or held out."""
        parts = {part: clips for part, clips in self.index[0].items() if part != "testing"} | {"test": self.testing}
        return [
            (clip.path, Use(self.labels[clip.label], part == "training"))
            for part, clips in parts.items()
            for clip in clips
            if clip.volume is None
        ]

    def training_data(self) -> Training:
        sets, noises = self.index
        return Training(sets["training"], self.settings, noises, self.key)

    def evaluation_data(self, split: str) -> Evaluation:
        clips = self.index[0]["validation"] if split == "dev" else self.testing
        if not clips:
            raise no_speaker(split, self.settings, self.key)
        found = {clip.label for clip in clips}
        if missing := [word for label, word in enumerate(self.labels) if label > UNKNOWN_LABEL and label not in found]:
            reason = f"no clip of {', '.join(missing)}, which the scores leave out: record more speakers"
            log.warning("%s: %s: %s", self.key, split, reason)
        return Evaluation(clips, self.settings)

    def soft_targets(self, waveforms: Sequence[Tensor]) -> Tensor | None:
        return None if self.teacher is None else self.teacher.scores(waveforms)

    def loss(self, outputs: Tensor, labels: Tensor, targets: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """``targets (batch, classes)``: the teacher's scores."""
        loss, extra = F.cross_entropy(outputs, labels), {}
        if targets is not None:
            weight, temperature = self.settings.teacher_weight, self.settings.teacher_temperature
            loss = (1 - weight) * loss + weight * soft_target_loss(outputs, targets, temperature)
            extra["teacher_accuracy"] = 100 * (targets.argmax(dim=1) == labels).float().mean()
        extra["accuracy"] = 100 * (outputs.detach().argmax(dim=1) == labels).float().mean()
        return loss, extra

    def collect(self, outputs: Tensor, labels: Sequence[int], keys: Sequence[str]) -> list[Any]:
        if not outputs.isfinite().all():
            raise UserError(f"{self.key}: scores are NaN or infinite: has the training diverged?")
        return list(zip(labels, outputs.argmax(dim=1).tolist(), keys, strict=True))

    def metrics(self, split: str, collected: list[Any]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        labels, predicted, keys = zip(*collected, strict=True)
        confusion = M.confusion_matrix(labels, predicted, len(self.labels))
        shares = [None if share is None else 100 * share for share in M.per_class_accuracy(confusion)]
        of_speech = [key for key, label in zip(keys, labels, strict=True) if label != SILENCE_LABEL]
        names = {key: speaker for key, (_, speaker) in _spoken(of_speech, self._speaker_pattern).items()}
        speakers = np.array([names.get(key, f"{NOBODY}{number}") for number, key in enumerate(keys)])
        arrays = {"labels": np.array(labels), "predicted": np.array(predicted), "speakers": speakers}
        results = {
            "accuracy": 100 * M.accuracy(confusion),
            "accuracy_interval": None if (interval := self.interval([arrays])) is None else list(interval),
            "balanced_accuracy": float(np.mean([share for share in shares if share is not None])),
            "per_class": dict(zip(self.labels, shares, strict=True)),
            "confusion": confusion.tolist(),
            "labels": self.labels,
            "utterances": len(keys),
            "speakers": len(set(names.values())),
        }
        return results, arrays

    def figures_by_group(
        self, split: str, groups: SpeakerGroups, collected: list[Any], arrays: Mapping[str, np.ndarray]
    ) -> Figures:
        spoken = _spoken([key for label, _, key in collected if label != SILENCE_LABEL], self._speaker_pattern)
        clips = [(spoken[key][1], label == predicted) for label, predicted, key in collected if key in spoken]
        return accuracy_by_group(groups, [speaker for speaker, _ in clips], np.array([right for _, right in clips]))

    def spoken_clips(self, split: str) -> list[SpokenClip]:
        clips = self.evaluation_data(split).clips
        spoken = _spoken([clip.key for clip in clips if clip.label != SILENCE_LABEL], self._speaker_pattern)
        found = []
        for index, clip in enumerate(clips):
            if clip.key in spoken:
                word, speaker = spoken[clip.key]
                is_keyword, samples = clip.label > UNKNOWN_LABEL, samples_of(clip.path)
                found.append(SpokenClip(index, clip.key, clip.label, is_keyword, word, speaker, samples))
        return found

    def development_recordings(self) -> list[Recording]:
        clips = self.evaluation_data("dev").clips
        return [Recording(clips[s.index].path, s.speaker, s.word) for s in self.spoken_clips("dev")]

    def score(self, results: Mapping[str, Any]) -> float:
        # with classes drawn equally often in training they count equally here, as in the development data of SUPERB
        return float(results["balanced_accuracy" if self.settings.sampling == "class" else "accuracy"])

    def summary(self, results: Mapping[str, Any]) -> str:
        return f"accuracy {M.with_interval(results, 'accuracy')} % ({results['utterances']} utterances)"

    @classmethod
    def interval(cls, runs: Sequence[Mapping[str, np.ndarray]]) -> tuple[float, float] | None:
        """Bootstrap over speakers; a clip without one, such as silence, is drawn as one of its own.

        The seeds have the same speakers, but may have different unknown words and silences without a test archive.
        None for fewer than three speakers, and for scores of versions before 0.2, which do not say them.
        """
        if any("speakers" not in run for run in runs):
            return None
        if sum(not name.startswith(NOBODY) for name in set(runs[0]["speakers"].tolist())) < 3:
            return None
        correct = np.concatenate([run["labels"] == run["predicted"] for run in runs])
        low, high = M.share_interval(correct, np.concatenate([run["speakers"] for run in runs]))
        return 100 * low, 100 * high

    def describe(self, output: Tensor) -> str:
        probability, label = output.softmax(dim=0).max(dim=0)
        return f"{self.labels[int(label)]} {probability.item():.3f}"

    def device_output(self, outputs: Tensor) -> Tensor:
        """``(batch, classes)`` probabilities."""
        return outputs.softmax(dim=1)

    def device_threshold(self, outputs: Tensor, labels: Sequence[int]) -> float | None:
        """The probability from which on a device reports a keyword: misses and false alarms are equally frequent."""
        is_keyword = [label not in (SILENCE, UNKNOWN) for label in self.labels]
        best = outputs[:, torch.tensor(is_keyword)].max(dim=1).values
        return M.equal_error_threshold(best.tolist(), [is_keyword[label] for label in labels])

    def device_metadata(self, threshold: float | None) -> dict[str, Any]:
        return {"labels": json.dumps(self.labels), "keyword_threshold": threshold}


def _spoken(keys: Sequence[str], pattern: str | None = None) -> dict[str, tuple[str, str]]:
    """``CLASS/FILE`` keys of speech -> word, and `identity` of the speaker; without keys that name no speaker.

    The test archive names unknown files ``WORD_SPEAKER_nohash_TAKE``.
    """
    if pattern is not None:
        spoken = {key: match_speaker(pattern, key) for key in keys if not key.startswith(SILENCE)}
        return {key: (_word(key), identity(speaker)) for key, speaker in spoken.items() if speaker}
    files = [(key, *key.split("/", 1)) for key in keys if "_nohash_" in key]
    found = {key: (_word(key), identity(speaker_of(name))) for key, folder, name in files if folder != UNKNOWN}
    known = {speaker for _, speaker in found.values()}
    for key, folder, name in files:
        if folder == UNKNOWN:
            word, _, speaker = identity(speaker_of(name)).partition("_")
            is_whole_name = identity(speaker_of(name)) in known or not speaker
            found[key] = (UNKNOWN, identity(speaker_of(name))) if is_whole_name else (word, speaker)
    return found


def _word(key: str) -> str:
    return normal_word(key.split("/", 1)[0])
