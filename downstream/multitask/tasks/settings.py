"""Settings that tasks share. Imports neither torch nor s3prl: a wrong setting is answered before those are loaded."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

WEIGHTED = "weighted"  # a task's `layer`: the sum of all layers with learned weights
HEADS = ("linear", "projection", "xvector")
POOLINGS = ("mean", "mean_std", "attentive")
LOSSES = ("softmax", "angular", "am", "aam")


def need_finite(values: Any, key: str = "") -> None:
    """Raise ValueError naming the key of a NaN or an infinite number in settings (nested groups and lists too)."""
    if isinstance(values, float) and not math.isfinite(values):
        raise ValueError(f"{key}: needs a finite number, not {values}")
    items = values.items() if isinstance(values, Mapping) else enumerate(values) if isinstance(values, list) else ()
    for name, value in items:
        need_finite(value, f"{key}.{name}".lstrip("."))


@dataclass
class AugmentSettings:
    """Each effect has a probability (0 turns it off) and a range. All are off by default.

    Attributes:
        speed: Probability of a change of speed by one of ``speed_factors`` (the pitch changes too, as in Kaldi).
        reverb: Probability of reverberation: an impulse response from ``rir_root``, or without it decaying noise with a
            reverberation time in the range ``rt60`` (seconds) and a direct-to-reverberant ratio in ``drr`` (dB).
        noise: Probability of noise at a signal-to-noise ratio in the range ``snr`` (dB): a random cut of a file in
            ``noise_root``; without it of the task's background noises; without these white noise.
        gain: Probability of a gain in the range ``gain_db`` (dB).
    """

    speed: float = 0.0
    speed_factors: list[float] = field(default_factory=lambda: [0.9, 1.1])
    reverb: float = 0.0
    rt60: list[float] = field(default_factory=lambda: [0.1, 0.6])
    drr: list[float] = field(default_factory=lambda: [0.0, 15.0])
    rir_root: str | None = None
    noise: float = 0.0
    snr: list[float] = field(default_factory=lambda: [0.0, 20.0])
    noise_root: str | None = None
    gain: float = 0.0
    gain_db: list[float] = field(default_factory=lambda: [-10.0, 6.0])

    def __post_init__(self) -> None:
        for name in ("speed", "reverb", "noise", "gain"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"augment.{name}: needs a probability in [0, 1], not {getattr(self, name)}")
        for name in ("rt60", "drr", "snr", "gain_db"):
            value = getattr(self, name)
            if len(value) != 2 or value[0] > value[1]:
                raise ValueError(f"augment.{name}: needs [lowest, highest], not {value}")
        if self.rt60[0] <= 0:
            raise ValueError("augment.rt60: needs positive seconds")
        if not self.speed_factors or not all(0.5 <= f <= 2.0 for f in self.speed_factors):
            raise ValueError(f"augment.speed_factors: need numbers in [0.5, 2], not {self.speed_factors}")


@dataclass
class LossSettings:
    """``tasks.sv.loss`` in the YAML file.

    Attributes:
        name: ``softmax``, ``angular`` (the paper's), ``am`` or ``aam``.
        margin: ``angular``: a whole number from 1 to 4 that multiplies the angle; ``am``: subtracted from the cosine;
            ``aam``: added to the angle, in radians. None: 4 (as published), 0.4 and 0.2.
        scale: What cosines are multiplied by. None: the norm of the embedding for ``angular`` (SphereFace), 30 for
            ``am`` and ``aam``.
        anneal_start, anneal_decay, anneal_stop: ``angular`` only: lambda = max(stop, start / (1 + decay * step)).
    """

    name: str = "angular"
    margin: float | None = None
    scale: float | None = None
    anneal_start: float = 1000.0
    anneal_decay: float = 0.12
    anneal_stop: float = 5.0

    def __post_init__(self) -> None:
        if self.name not in LOSSES:
            raise ValueError(f"loss.name: '{self.name}' is not one of {', '.join(LOSSES)}")
        if self.margin is None:
            self.margin = {"softmax": 0.0, "angular": 4.0, "am": 0.4, "aam": 0.2}[self.name]
        if self.name == "angular" and self.margin not in (1, 2, 3, 4):
            raise ValueError(f"loss.margin: angular softmax needs 1, 2, 3 or 4, not {self.margin}")
        if self.name in ("am", "aam") and not 0.0 <= self.margin < 1.5:
            raise ValueError(f"loss.margin: needs a number in [0, 1.5), not {self.margin}")
        if self.scale is None and self.name in ("am", "aam"):
            self.scale = 30.0
        if self.scale is not None and self.scale <= 0:
            raise ValueError(f"loss.scale: needs a positive number, not {self.scale}")


@dataclass
class TaskSettings:
    """Settings of every task; a task's ``Settings`` may add more.

    Attributes:
        batch_size: Utterances in a training batch.
        eval_batch_size: Most utterances in an evaluation batch; all have the same length.
        head: ``linear`` (the paper's), ``projection`` (SUPERB's for keywords) or ``xvector`` (SUPERB's for speakers).
        pooling: ``mean``, ``mean_std`` or ``attentive``.
        layer: The number of the layer that this task uses, of the expert's ``layers``; ``weighted``: the sum of all
            layers with learned weights; None: all features. Early layers describe the speaker best, late layers the
            word.
        standardize: Bring each pooled feature to zero mean and unit variance (batch norm without weights) before the
            linear layer of the ``linear`` head. The head then needs a tenth of the steps: the differences between
            classes are small compared with what all utterances have in common.
        augment: See `AugmentSettings`.
    """

    # `head` must be one of these. In evaluation an x-vector head has another output than the one that the loss gets in
    # training: only speaker verification can use it.
    heads: ClassVar[tuple[str, ...]] = ("linear", "projection")

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
            known = "a head of other tasks" if self.head in HEADS else "not a head"
            raise ValueError(f"head: '{self.head}' is {known}; choose from {', '.join(self.heads)}")
        if self.standardize and self.head != "linear":
            raise ValueError(f"standardize: works with the linear head only, not with {self.head}")
        if isinstance(self.layer, str) and self.layer != WEIGHTED:
            raise ValueError(f"layer: '{self.layer}' is neither a number nor {WEIGHTED}")

    def check_folders(self, key: str) -> None:
        """Check that the folders that training needs exist.

        Args:
            key: ``FILE: dotted.key`` of the task, for messages.

        Raises:
            UserError: one of them does not.
        """
