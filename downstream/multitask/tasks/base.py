"""The contract of a task: its data, its head and loss, its metrics, and its output on a device.

A new task is one module with a dataclass ``Settings`` (a `TaskSettings`, from ``tasks/settings.py``) and a class
``Task`` (a `BaseTask`), and one entry under ``tasks:`` in the YAML file.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any, ClassVar, NamedTuple, Protocol
from unicodedata import normalize

import numpy as np
from torch import Tensor, nn

from distilled_student.common import audio, audio_reading
from distilled_student.common.audio import SAMPLE_RATE
from distilled_student.common.errors import UserError
from distilled_student.corpora.speaker_groups import SpeakerGroups, find_speaker_groups
from distilled_student.multitask.group_figures import Figures
from distilled_student.multitask.heads import make_head
from distilled_student.multitask.owner_trials import SpokenClip
from distilled_student.multitask.short_utterances import Filling
from distilled_student.multitask.speaker_calibration import Recording, Trials
from distilled_student.onnx.calibration import Calibration

log = logging.getLogger(__name__)

# Samples that the front end of every upstream needs at least (a window of 25 ms and some more); a shorter utterance is
# zero-padded to it.
SHORTEST = SAMPLE_RATE // 10
KEYWORD_SCORES, SPEAKER_EMBEDDING = "keyword_scores", "speaker_embedding"  # `BaseTask.output_name`
OTHER_SETTINGS = "-i trains a checkpoint further with other settings"


class Item(NamedTuple):
    """One utterance: ``waveform (samples,)`` at 16 kHz, its class (-1 without one) and a name that identifies it.

    ``past``: samples of other speech at the beginning: the upstream gets them, the head does not get their frames.
    """

    waveform: Tensor
    label: int
    key: str
    past: int = 0


class TrainingData(Protocol):
    """Utterances to train on. All randomness comes from the generators that the methods receive.

    If it also has ``files() -> Sequence[Path]``, all files that items are cut from, ``provenance.json`` lists them.
    """

    def order(self, rng: np.random.Generator) -> Sequence[int]:
        """The indices of one pass over the data, shuffled."""

    def item(self, index: int, rng: np.random.Generator) -> Item:
        """One crop, augmented."""


class EvaluationData(Protocol):
    """Whole utterances, the same at every call.

    If it also has ``path(index) -> Path``, the provenance of an evaluation lists the files. If it also has ``filling``,
    the task's `BaseTask.filling`, shorter utterances are brought to its length by it; all others by zeros to `samples`.
    If it also has ``label(index) -> int``, the class without decoding, int8 is calibrated on utterances of all classes.
    """

    def __len__(self) -> int: ...

    def samples(self, index: int) -> int:
        """Length at 16 kHz as it is evaluated, without decoding: utterances of the same length are one batch."""

    def item(self, index: int) -> Item: ...


class BaseTask(nn.Module):
    """A task of the joint training; its modules are saved in the checkpoint.

    A task is made with its settings, the number of the upstream's features, the seed, and ``key``,
    ``FILE: dotted.key`` for messages.

    Attributes:
        output_name: The name of the task's output in `JointOutput.tasks` and in exported files. Empty: the task's name
            in the settings.
        headline: The metric that a benchmark report shows, a key of the results of `metrics`; its column is
            ``TASK_METRIC``, such as ``kws_accuracy``. Empty: the report does not show the task.
        det_scores: The curves of a DET plot: a curve's label -> the key of its scores in the arrays of `metrics`, which
            then hold the trials' ``labels`` too.
        has_threshold: Whether a device decides by a threshold: `device_threshold`.
        class_names: The names of the classes in the order of their numbers; None where the task does not know them.
            A checkpoint holds them, and refuses to be loaded with other names.
        recordings: The `recordings_fingerprint` of each class's training data, in the order of the numbers, empty for a
            class without one; None where the task does not know them. A checkpoint holds them, too.
    """

    output_name: ClassVar[str] = ""
    headline: ClassVar[str] = ""
    det_scores: ClassVar[Mapping[str, str]] = {}
    has_threshold: ClassVar[bool] = False

    settings: Any  # the task's own `TaskSettings`
    key: str = "tasks"  # ``FILE: dotted.key`` for messages
    speaker_calibration: Calibration | None = None  # of a speaker task

    @property
    def filling(self) -> Filling:
        """What happens with an utterance shorter than those that the head is trained on, everywhere the same.

        Training applies it in `TrainingData.item`, evaluations in `EvaluationLoader`, devices and streams as
        `JointModel` does.
        """
        return Filling(SHORTEST)

    def __init__(self, settings: Any, features: int, output_size: int) -> None:
        super().__init__()
        self.head = make_head(settings, features, output_size)
        self.class_names: list[str] | None = settings.class_names()
        self.recordings: list[str] | None = None

    def forward(self, features: Tensor, lengths: Tensor) -> Tensor:
        """``(batch, frames, features)`` and lengths ``(batch,)`` in frames -> the head's ``(batch, outputs)``."""
        return self.head(features.float(), lengths)

    def check_classes(self, saved: Sequence[str]) -> None:
        """Raise UserError if a checkpoint's classes have other names, or another order, than those of this task."""
        names_here, names_saved = ([normalize("NFC", n) for n in names] for names in (self.class_names or saved, saved))
        for number, (here, there) in enumerate(zip_longest(names_here, names_saved)):
            if here != there:
                names = [f"'{name}'" if name is not None else "missing" for name in (here, there)]
                settings = self.settings.classes_from
                reason = (
                    f"class {number} is {names[0]}, but {names[1]} in the checkpoint, whose classes cannot be replaced"
                )
                raise UserError(f"{self.key}.{settings[0]}: {reason}: use the {', '.join(settings)} of its training")

    def check_recordings(self, saved: Sequence[str]) -> list[int]:
        """The numbers of the classes that have other recordings than those of a checkpoint.

        Args:
            saved: `recordings` in the checkpoint.

        Raises:
            UserError: a class has the recordings that another class had.
        """
        known, changed = {fingerprint: number for number, fingerprint in enumerate(saved) if fingerprint}, []
        for number, (here, there) in enumerate(zip(self.recordings or (), saved, strict=False)):
            if here == there:
                continue
            changed.append(number)
            if (other := known.get(here, number)) != number:
                names = [f"'{self.class_names[i]}'" if self.class_names else "it" for i in (number, other)]
                settings = self.settings.classes_from
                reason = (
                    f"class {number}, {names[0]}, has the recordings that class {other}, {names[1]}, was trained on"
                )
                remedy = f"give back the folders, and their order, of its training ({', '.join(settings)})"
                raise UserError(f"{self.key}.{settings[0]}: {reason}: {remedy}")
        return changed

    def changed_setting(self, saved: Any, names: Sequence[str]) -> str | None:
        """The first of the settings ``names`` that a checkpoint, with the settings ``saved``, has another value of.

        As ``FILE: dotted.key: VALUE, but VALUE in the checkpoint``, for messages.
        """
        for name in names:
            here, there = getattr(self.settings, name), getattr(saved, name)
            if here != there:
                return f"{self.key}.{name}: {here}, but {there} in the checkpoint"
        return None

    def check_settings(self, saved: Any) -> None:
        """Raise UserError if a checkpoint, with the settings ``saved``, cannot be continued or evaluated with these."""
        remedy = f"use the value of its training ({OTHER_SETTINGS})"
        if changed := self.changed_setting(saved, self.settings.held_out_by):
            raise UserError(f"{changed}: utterances that were trained on would be tested: {remedy}")
        if changed := self.changed_setting(saved, self.settings.inputs_from):
            raise UserError(f"{changed}: its head was trained on other inputs: {remedy}")

    # Training
    def prepare_training(self) -> None:
        """Read, check and build what only training needs; called before the optimizer is made."""

    def training_data(self) -> TrainingData:
        raise NotImplementedError

    def loss(self, outputs: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a training batch, and further values for the log (detached scalars).

        ``outputs (batch, outputs)`` of the head, ``labels (batch,)``. A task with soft targets gets them as a third
        argument.
        """
        raise NotImplementedError

    def soft_targets(self, waveforms: Sequence[Tensor]) -> Tensor | None:
        """What a teacher answers to the waveforms ``(samples,)`` of a training batch; None without a teacher."""
        return None

    def teachers(self) -> Mapping[str, Any]:
        """What ``provenance.json`` says about the teacher, by its name there; empty without one."""
        return {}

    # Evaluation
    def evaluation_data(self, split: str) -> EvaluationData:
        """The data of ``dev`` or ``test``.

        Raises:
            UserError: there are none.
        """
        raise NotImplementedError

    def collect(self, outputs: Tensor, labels: Sequence[int], keys: Sequence[str]) -> list[Any]:
        """What `metrics` needs of each utterance of an evaluation batch, on the CPU.

        ``outputs (batch, outputs)`` come from the head or from `device_output`: the metrics must not differ.
        """
        raise NotImplementedError

    def metrics(self, split: str, collected: list[Any]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """The results of a split, which JSON can hold, and arrays such as scores for plots and intervals.

        An evaluation and the model card show the interval ``HEADLINE_interval``, two bounds, where the results have it.
        """
        raise NotImplementedError

    def speaker_groups(self, split: str) -> SpeakerGroups | None:
        """The groups of a split's speakers; None if the data do not say them.

        Raises:
            UserError: see `find_speaker_groups`.
        """
        folder = self.settings.evaluated_folder(split)
        return None if folder is None else find_speaker_groups(folder)

    def figures_by_group(
        self, split: str, groups: SpeakerGroups, collected: list[Any], arrays: Mapping[str, np.ndarray]
    ) -> Figures:
        """`headline` for each group of speakers, from what `metrics` was called with and the arrays it returned."""
        return {}

    def score(self, results: Mapping[str, Any]) -> float:
        """One number from the results, in percent, larger is better: the sum over tasks chooses the best checkpoint."""
        return float(results[self.headline])

    def summary(self, results: Mapping[str, Any]) -> str:
        """The results in one line for the terminal; the most important number comes first."""
        return ", ".join(f"{k} {v:.4g}" for k, v in results.items() if isinstance(v, int | float))

    @classmethod
    def interval(cls, runs: Sequence[Mapping[str, np.ndarray]]) -> tuple[float, float] | None:
        """A 95 % interval of the mean of `headline` over runs (seeds), from the arrays of their `metrics`, or None."""
        return None

    # The owner-and-word trials of a run with a keyword task and a speaker task
    def spoken_clips(self, split: str) -> list[SpokenClip]:
        """Of a keyword task: the clips of `evaluation_data` that hold speech, and whose speakers are known."""
        return []

    def owner_ratios(self, trials: Trials) -> np.ndarray | None:
        """Of a speaker task: log-likelihood ratios ``(trials,)`` of the cosines with an owner; None if not fitted."""
        return None

    def development_recordings(self) -> list[Recording]:
        """Speech of development speakers, which the calibration of a speaker task is fitted on.

        Raises:
            UserError: the data are missing.
        """
        return []

    def trained_speakers(self, names: Sequence[str]) -> list[str]:
        """Of a speaker task: those of these names of speakers that were trained on, as far as a checkpoint says it."""
        return []

    # Inference
    def describe(self, output: Tensor) -> str:
        """One line about one utterance, ``output (outputs,)`` of the head, for s3prl's inference mode."""
        return f"{output.numel()} outputs"

    def device_output(self, outputs: Tensor) -> Tensor:
        """The head's outputs ``(batch, outputs)`` -> what a device gets, such as probabilities."""
        return outputs

    def device_threshold(self, outputs: Tensor, labels: Sequence[int]) -> float | None:
        """The threshold of the decision on a device, from its outputs ``(utterances, outputs)`` on development data.

        None if the data do not determine it. Called if `has_threshold`.
        """
        raise NotImplementedError

    def device_metadata(self, threshold: float | None) -> dict[str, Any]:
        """What an exported file needs to say about the task's output, by key; values of None are left out.

        ``threshold``: of `device_threshold`; None without development data.
        """
        return {}


def square_root_order(labels: np.ndarray, rng: np.random.Generator) -> list[int]:
    """About as many indices as ``labels (items,)``, in random order: a class of four times the size twice as often.

    The items of a class are drawn equally often, up to one more or less.
    """
    members = [rng.permutation(np.flatnonzero(labels == label)) for label in np.unique(labels)]
    roots = np.sqrt([len(items) for items in members])
    shares = np.maximum(1, np.rint(len(labels) * roots / roots.sum())).astype(int)
    drawn = np.concatenate([np.resize(items, share) for items, share in zip(members, shares, strict=True)])
    return rng.permutation(drawn).tolist()


def balanced_order(labels: np.ndarray, rng: np.random.Generator) -> list[int]:
    """As many indices as there are ``labels (items,)``, in random order, each class equally often."""
    _, classes, counts = np.unique(labels, return_inverse=True, return_counts=True)
    by_class = np.argsort(classes, kind="stable")
    first_of_class = np.cumsum(counts) - counts
    drawn = rng.permutation(np.resize(np.arange(len(counts)), len(classes)))
    return by_class[first_of_class[drawn] + rng.integers(counts[drawn])].tolist()


def grouped_order(labels: np.ndarray, clips: int, balanced: bool, rng: np.random.Generator) -> list[int]:
    """Indices in groups of ``clips`` of the same class, the groups in random order.

    The clips of a group are different ones, as far as the class has so many; further ones are drawn again.

    Args:
        labels: ``(items,)`` class of each item.
        balanced: Whether each class has as many groups (about ``items / clips`` in all). Otherwise every item is used
            once, but for those that are left over when a class is divided into groups.
    """
    members = [rng.permutation(np.flatnonzero(labels == label)) for label in np.unique(labels)]
    if balanced:
        drawn = rng.permutation(np.resize(np.arange(len(members)), max(1, len(labels) // clips)))
        groups = [np.resize(rng.permutation(members[number]), clips) for number in drawn]
    else:
        whole = [np.resize(items, max(1, len(items) // clips) * clips) for items in members]
        groups = [group for items in whole for group in items.reshape(-1, clips)]
    return np.concatenate([groups[number] for number in rng.permutation(len(groups))]).tolist()


@functools.lru_cache(maxsize=1024)
def _warn_of_no_speech(path: str, reason: str) -> None:
    """Log a recording that holds no speech, once."""
    log.warning("%s: %s, but it is used as speech: remove the file", path, reason)


def load_speech(path: Any, start: float = 0.0, duration: float | None = None) -> Tensor:
    """`audio.load`. Logs a file without speech: shorter than 0.1 s, or of zeros only.

    It is used all the same, as results on published lists of files must be comparable.
    """
    waveform = audio.load(path, start, duration)
    if len(waveform) < SHORTEST and audio_reading.seconds(path) < SHORTEST / SAMPLE_RATE:
        _warn_of_no_speech(str(path), f"holds {audio_reading.seconds(path):g} s of audio, less than 0.1 s")
    elif not waveform.any() and (duration is None or not audio.load(path).any()):
        _warn_of_no_speech(str(path), "holds zeros only")
    return waveform


def samples_of(path: Any) -> int:
    """The length that `audio.load` and padding to `SHORTEST` give a file, from its header alone.

    Raises:
        UserError: the file is not audio, or holds none.
    """
    frames, rate, _ = audio_reading.header(path)
    if frames == 0:
        raise UserError(f"{path}: holds no audio")
    resampled = -(-frames * SAMPLE_RATE // rate)  # rounded up
    return max(resampled, SHORTEST)
