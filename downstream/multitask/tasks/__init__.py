"""What a task is: it owns its data, head, loss and metrics. A new task is one new file with `Task` and `Settings`."""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from types import ModuleType
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from distilled_student.common import audio
from distilled_student.common.audio import SAMPLE_RATE
from distilled_student.common.errors import UserError
from distilled_student.multitask.augment import AugmentSettings
from distilled_student.multitask.heads import HEADS, WEIGHTED, make_head
from distilled_student.multitask.pooling import POOLINGS

# what every upstream's front end needs at least (a window of 25 ms and some): shorter utterances are zero-padded to it
SHORTEST = SAMPLE_RATE // 10


class Item(NamedTuple):
    """One utterance: ``waveform (samples,)``, its class (-1 where there is none) and a name that tells it apart."""

    waveform: Tensor
    label: int
    key: str


class TrainingData(Protocol):
    """Utterances to train on; all randomness comes from the generators handed in.

    Where it also has ``files() -> Sequence[Path]``, all that items are cut from, ``provenance.json`` tells of them.
    """

    def order(self, rng: np.random.Generator) -> Sequence[int]:
        """The items of one pass, shuffled."""

    def item(self, index: int, rng: np.random.Generator) -> Item:
        """One crop, augmented."""


class EvaluationData(Protocol):
    """Whole utterances, the same at every call. With ``path(index) -> Path`` too, provenance tells of them."""

    def __len__(self) -> int: ...

    def samples(self, index: int) -> int:
        """Length at 16 kHz without decoding, so that utterances of one length can share a batch."""

    def item(self, index: int) -> Item: ...


def need_finite(values: Any, key: str = "") -> None:
    """Raise ValueError naming the key of a NaN or an infinite number in settings (nested groups and lists too)."""
    if isinstance(values, float) and not math.isfinite(values):
        raise ValueError(f"{key}: needs a finite number, not {values}")
    items = values.items() if isinstance(values, Mapping) else enumerate(values) if isinstance(values, list) else ()
    for name, value in items:
        need_finite(value, f"{key}.{name}".lstrip("."))


@dataclass
class TaskSettings:
    """Settings that every task has; a task's ``Settings`` may add to them.

    Attributes:
        batch_size: Utterances in a training batch.
        eval_batch_size: At most so many utterances, all of one length, in an evaluation batch.
        head: ``linear`` (the paper's), ``projection`` (SUPERB's for keywords) or ``xvector`` (SUPERB's for speakers).
        pooling: ``mean``, ``mean_std`` or ``attentive``.
        layer: The one of the expert's ``layers`` that this task hears; ``weighted``: their sum with weights that it
            learns; None: all features. Early layers know the speaker best, late ones the word.
        standardize: Bring each pooled feature to zero mean and unit variance (batch norm without weights) before the
            linear layer of the ``linear`` head, which then learns in a tenth of the steps: what tells classes apart is
            small beside what all utterances share.
    """

    heads: ClassVar[tuple[str, ...]] = ("linear", "projection")  # an x-vector is not what the loss sees

    batch_size: int = 32
    eval_batch_size: int = 16
    head: str = "linear"
    pooling: str = "mean"
    layer: int | str | None = None
    standardize: bool = False
    augment: AugmentSettings = field(default_factory=AugmentSettings)

    def __post_init__(self) -> None:
        need_finite(asdict(self))
        for name in ("batch_size", "eval_batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: needs at least 1, not {getattr(self, name)}")
        if self.standardize and self.batch_size < 2:
            raise ValueError("standardize: needs a batch_size of at least 2")
        if self.pooling not in POOLINGS:
            raise ValueError(f"pooling: '{self.pooling}' is not one of {', '.join(POOLINGS)}")
        if self.head not in self.heads:
            known = "a head of other tasks" if self.head in HEADS else "no head"
            raise ValueError(f"head: '{self.head}' is {known}; choose from {', '.join(self.heads)}")
        if self.standardize and self.head != "linear":
            raise ValueError(f"standardize: is of the linear head, not of {self.head}")
        if isinstance(self.layer, str) and self.layer != WEIGHTED:
            raise ValueError(f"layer: '{self.layer}' is neither a number nor {WEIGHTED}")


class BaseTask(nn.Module):
    """A head; a task gives the data, the loss, the metrics and what `score` is.

    Args of a task: its settings, the upstream's features, the seed, and ``key``: ``FILE: dotted.key`` for messages.
    """

    output_size: int

    def __init__(self, settings: Any, features: int, output_size: int) -> None:
        super().__init__()
        self.head = make_head(settings, features, output_size)

    def forward(self, features: Tensor, lengths: Tensor) -> Tensor:
        """``(batch, frames, features)`` + lengths in frames -> ``(batch, output_size)``."""
        return self.head(features.float(), lengths)

    def prepare_training(self) -> None:
        """Read, check and build what training alone needs, before the optimiser is made: an evaluation does without."""

    def training_data(self) -> TrainingData:
        raise NotImplementedError

    def evaluation_data(self, split: str) -> EvaluationData:
        """Data of ``dev`` or ``test``."""
        raise NotImplementedError

    def loss(self, outputs: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of a training batch, and what else to log about it (detached scalars)."""
        raise NotImplementedError

    def collect(self, outputs: Tensor, labels: Sequence[int], keys: Sequence[str]) -> list[Any]:
        """What `metrics` needs of each utterance of an evaluation batch, on the CPU."""
        raise NotImplementedError

    def metrics(self, split: str, collected: list[Any]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Results of a split that JSON can hold, and arrays for plots."""
        raise NotImplementedError

    def score(self, results: Mapping[str, Any]) -> float:
        """One number, larger is better, in percent: its sum over the tasks chooses the best checkpoint."""
        raise NotImplementedError

    def summary(self, results: Mapping[str, Any]) -> str:
        """One line for the terminal."""
        return ", ".join(f"{k} {v:.4g}" for k, v in results.items() if isinstance(v, int | float))

    def describe(self, output: Tensor) -> str:
        """One line about one utterance, ``output (output_size,)``, for s3prl's inference mode."""
        return f"{output.numel()} outputs"


def task_module(name: str, module: str | None, where: str) -> ModuleType:
    """The module of a task: ``tasks/NAME.py`` here, or any importable ``module`` that the settings name."""
    path = module or f"{__name__}.{name}"
    try:
        found = importlib.import_module(path)
    except ModuleNotFoundError as error:
        if error.name is None or not path.startswith(error.name):
            raise  # the task's file is there; something that it imports is not
        raise UserError(f"{where}: no task of this name: there is no module {path}") from None
    for needed in ("Task", "Settings"):
        if not hasattr(found, needed):
            raise UserError(f"{where}: module {path} has no class {needed}")
    return found


def balanced_order(labels: np.ndarray, rng: np.random.Generator) -> list[int]:
    """As many items as there are, drawn so that each class is as frequent as any other, in random order."""
    _, labels, counts = np.unique(labels, return_inverse=True, return_counts=True)
    by_class, starts = np.argsort(labels, kind="stable"), np.cumsum(counts) - counts
    drawn = rng.permutation(np.resize(np.arange(len(counts)), len(labels)))
    return by_class[starts[drawn] + rng.integers(counts[drawn])].tolist()


def pad_to(waveform: Tensor, samples: int) -> Tensor:
    """Zero-padded at the end to at least ``samples``."""
    missing = samples - len(waveform)
    return torch.nn.functional.pad(waveform, (0, missing)) if missing > 0 else waveform


def samples_of(path: Any) -> int:
    """Samples that `audio.load` makes of a file, from the header alone; at least `SHORTEST`.

    Raises:
        UserError: not audio, or none in it.
    """
    frames, rate, _ = audio.header(path)
    if frames == 0:
        raise UserError(f"{path}: holds no audio")
    return max(-(-frames * SAMPLE_RATE // rate), SHORTEST)
