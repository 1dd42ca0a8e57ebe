"""Settings that tasks share. Imports neither torch nor s3prl: a wrong setting is answered before those are loaded."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, ClassVar

from distilled_student.common.effect_settings import EffectSettings

WEIGHTED = "weighted"  # a task's `layer`: the sum of all layers with learned weights
HEADS = ("linear", "projection", "xvector", "pooled")
POOLINGS = ("mean", "mean_std", "attentive", "attentive_std")
LOSSES = ("softmax", "angular", "am", "aam")
CONTRASTIVE = ("ge2e", "prototypical")
NO_TEST_PEOPLE = "nobody is held out for test: a share (test_speakers) of fewer than ten people is nobody"


def need_finite(values: Any, key: str = "") -> None:
    """Raise ValueError naming the key of a NaN or an infinite number in settings (nested groups and lists too)."""
    if isinstance(values, float) and not math.isfinite(values):
        raise ValueError(f"{key}: needs a finite number, not {values}")
    items = values.items() if isinstance(values, Mapping) else enumerate(values) if isinstance(values, list) else ()
    for name, value in items:
        need_finite(value, f"{key}.{name}".lstrip("."))


def speed_ratio(factor: float) -> Fraction:
    """The ratio of sampling rates that stands for a factor of speed; its denominator is at most 20."""
    return Fraction(factor).limit_denominator(20)


def nearby_folder(root: Path, fits: Callable[[Path], bool]) -> str:
    """``; did you mean FOLDER?`` for a folder that ``fits``, in ``root``, next to it or above it; empty without one."""
    near: list[Path] = []
    for folder in (root, root.parent):
        with contextlib.suppress(OSError):  # it cannot be opened
            near += sorted(folder / entry.name for entry in os.scandir(folder) if entry.is_dir())
    found = next(filter(fits, [*near, *list(root.absolute().parents)[:2]]), None)
    return "" if found is None else f"; did you mean {found}?"


def first_clip(root: Path) -> Path | None:
    """An audio file below ``root``, or None; for checks of names before `AudioFolders`, which imports soundfile.

    Follows no links, knows the usual formats only, and leaves out all folders whose names may be an operating system's.
    """
    for folder, names, files in os.walk(root):
        names[:] = sorted(name for name in names if name.replace("_", "").replace("-", "").isalnum())
        for name in sorted(files):
            if name[0].isalnum() and name.lower().endswith((".wav", ".flac", ".ogg", ".mp3")):
                return Path(folder, name)
    return None


@dataclass
class AugmentSettings(EffectSettings):
    """Augmentation of a task's training data: the effects of `EffectSettings`, and speed. All are off by default.

    Attributes:
        noise_root: Folder of noise recordings; None: the task's background noises, or white noise if it has none.
        speed: Probability that an utterance is played faster or slower; the pitch changes too, as in Kaldi. In speaker
            verification a speaker at another speed is a class of its own.
        speed_factors: The speeds, of which one is drawn; 1.1 is 10 % faster.
        past: Probability that other speech goes before an utterance, as in a stream: the upstream gets both, the head
            gets the frames of the utterance only.
        past_seconds: Shortest and longest length of it.
        past_db: Its lowest and highest loudness in dB above the utterance.
        past_root: Folder of its recordings, of people who say none of the classes there.
    """

    speed: float = 0.0
    speed_factors: list[float] = field(default_factory=lambda: [0.9, 1.1])
    past: float = 0.0
    past_seconds: list[float] = field(default_factory=lambda: [0.5, 2.0])
    past_db: list[float] = field(default_factory=lambda: [-6.0, 6.0])
    past_root: str | None = None

    group: ClassVar[str] = "augment"
    probabilities: ClassVar[tuple[str, ...]] = (*EffectSettings.probabilities, "speed", "past")
    ranges: ClassVar[tuple[str, ...]] = (*EffectSettings.ranges, "past_seconds", "past_db")
    folders: ClassVar[tuple[str, ...]] = (*EffectSettings.folders, "past_root")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.speed_factors or not all(0.5 <= f <= 2.0 for f in self.speed_factors):
            raise ValueError(f"augment.speed_factors: need numbers in [0.5, 2], not {self.speed_factors}")
        if not 0.1 <= self.past_seconds[0] <= self.past_seconds[1] <= 10:
            raise ValueError(f"augment.past_seconds: needs seconds from 0.1 to 10, not {self.past_seconds}")
        if self.past and self.past_root is None:
            raise ValueError("augment.past_root: past needs a folder of speech")


@dataclass
class LossSettings:
    """``tasks.sv.loss`` in the YAML file.

    Attributes:
        name: ``softmax``, ``angular`` (the paper's), ``am`` or ``aam``.
        margin: ``angular``: a whole number from 1 to 4 that multiplies the angle; ``am``: subtracted from the cosine;
            ``aam``: added to the angle, in radians. ``softmax`` has no margin. None: 4 for ``angular`` (as published),
            0.4 for ``am``, 0.2 for ``aam``.
        scale: Factor of the cosines. None: the norm of the embedding for ``angular`` (SphereFace), 30 for ``am`` and
            ``aam``. ``softmax`` multiplies its outputs by it; None: by 1.
        margin_warmup: Steps of this task in which the margin of ``am`` or ``aam`` rises linearly from 0 (wespeaker's
            schedule).
        contrastive: A further loss that compares the clips of a batch: ``ge2e`` or ``prototypical`` (angular
            prototypical); it needs ``clips_per_speaker``. None: no such loss.
        contrastive_weight: Factor of the further loss.
        anneal_start: Only for ``angular``: weight lambda of the cosine without margin, at the first step. At each step
            lambda = max(``anneal_stop``, ``anneal_start`` / (1 + ``anneal_decay`` * step)).
        anneal_decay: Only for ``angular``: how fast lambda falls, see ``anneal_start``.
        anneal_stop: Only for ``angular``: the smallest lambda, see ``anneal_start``. With 5, the published value, the
            logit of the speaker ends at (5 cos(theta) + psi(theta)) / 6 of its scale: a sixth of the margin stays.
    """

    name: str = "angular"
    margin: float | None = None
    scale: float | None = None
    margin_warmup: int = 0
    contrastive: str | None = None
    contrastive_weight: float = 1.0
    anneal_start: float = 1000.0
    anneal_decay: float = 0.12
    anneal_stop: float = 5.0

    def __post_init__(self) -> None:
        if self.name not in LOSSES:
            raise ValueError(f"loss.name: '{self.name}' is not one of {', '.join(LOSSES)}")
        if self.name == "angular" and self.full_margin not in (1, 2, 3, 4):
            raise ValueError(f"loss.margin: angular softmax needs 1, 2, 3 or 4, not {self.margin}")
        if self.name in ("am", "aam") and not 0.0 <= self.full_margin < 1.5:
            raise ValueError(f"loss.margin: needs a number in [0, 1.5), not {self.margin}")
        if self.margin_warmup < 0 or (self.margin_warmup and self.name not in ("am", "aam")):
            raise ValueError(f"loss.margin_warmup: needs 0 or more steps, of am or aam, not {self.margin_warmup}")
        if self.contrastive is not None and self.contrastive not in CONTRASTIVE:
            raise ValueError(f"loss.contrastive: '{self.contrastive}' is not one of {', '.join(CONTRASTIVE)}")
        if not self.contrastive_weight > 0:
            raise ValueError(f"loss.contrastive_weight: needs a positive number, not {self.contrastive_weight}")
        if self.scale is not None and self.scale <= 0:
            raise ValueError(f"loss.scale: needs a positive number, not {self.scale}")

    # Not stored in `margin` and `scale`: a file that names another loss must not inherit those of the default one.
    @property
    def full_margin(self) -> float:
        """``margin``, or the one that the loss has by default."""
        default = {"softmax": 0.0, "angular": 4.0, "am": 0.4, "aam": 0.2}[self.name]
        return default if self.margin is None else self.margin

    @property
    def factor(self) -> float | None:
        """``scale``, or the one that the loss has by default; None stands for the norm of the embedding."""
        default = {"softmax": 1.0, "angular": None, "am": 30.0, "aam": 30.0}[self.name]
        return default if self.scale is None else self.scale


@dataclass
class TaskSettings:
    """Settings of every task; a task's ``Settings`` may add more.

    Attributes:
        batch_size: Utterances in a training batch.
        eval_batch_size: Largest number of utterances in an evaluation batch; all of a batch have the same length.
        head: ``linear`` (the paper's), ``projection`` (SUPERB's for keywords), ``xvector`` (SUPERB's for speakers) or
            ``pooled`` (for speakers: the pooled features are the embedding, and the weights of the loss are the only
            linear layer).
        pooling: How frames become one vector: ``mean``, ``mean_std`` (mean and standard deviation), ``attentive`` (a
            mean weighted by learned attention) or ``attentive_std`` (with the standard deviation weighted alike).
        layer: With ``-s concatenated`` or ``-s all``, and ``layers``: the number of the layer that this task uses,
            counted from 0 (the front end), or ``weighted``, their sum with learned weights. None: all features. Early
            layers describe the speaker best, late layers the word.
        branch: A copy of the student's last layer for this task, trained with it, whose output the task uses instead of
            a ``layer``; with ``-u distilled_student -f -s concatenated`` and ``layers``. One task of two needs it: the
            other one then has the student's own last layer.
        standardize: Bring each pooled feature to zero mean and unit variance (batch norm without weights): before the
            linear layer of the ``linear`` head, or as the embedding of the ``pooled`` head. The head then needs a tenth
            of the steps: the differences between classes are small compared with what all utterances have in common.
        augment: Augmentation of the training data; these keys have a table of their own.
        data: Set by ``downstream_expert.data``: the folder of own recordings.
        layout: Set by ``downstream_expert.data``: how its files lie there.
        dev_people: Set by ``downstream_expert.data``: the names of the people who are held out for development.
        test_people: Set by ``downstream_expert.data``: the names of the people who are held out for a test.
    """

    # `head` must be one of these. In evaluation an x-vector head has another output than the one that the loss gets in
    # training: only speaker verification can use it.
    heads: ClassVar[tuple[str, ...]] = ("linear", "projection")
    # the settings that determine the classes and their order, for messages
    classes_from: ClassVar[tuple[str, ...]] = ("settings",)
    # the settings that choose which utterances training leaves out; a checkpoint is refused with other values
    held_out_by: ClassVar[tuple[str, ...]] = ()
    # the settings that determine what the head gets of an utterance; a checkpoint is refused with other values
    inputs_from: ClassVar[tuple[str, ...]] = ("layer",)

    batch_size: int = 32
    eval_batch_size: int = 16
    head: str = "linear"
    pooling: str = "mean"
    layer: int | str | None = None
    branch: bool = False
    standardize: bool = False
    augment: AugmentSettings = field(default_factory=AugmentSettings)
    data: str | None = None
    layout: str | None = None
    dev_people: list[str] | None = None
    test_people: list[str] | None = None

    def __post_init__(self) -> None:
        need_finite(asdict(self))
        if self.data is not None and self.dev_people is None:
            raise ValueError("data: set downstream_expert.data instead, for all tasks")
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
        if self.standardize and self.head not in ("linear", "pooled"):
            raise ValueError(f"standardize: works with the heads linear and pooled only, not with {self.head}")
        if isinstance(self.layer, str) and self.layer != WEIGHTED:
            raise ValueError(f"layer: '{self.layer}' is neither a number nor {WEIGHTED}")
        if self.branch and self.layer is not None:
            raise ValueError(f"branch: the task uses its branch, which excludes layer: {self.layer}; set layer to null")

    def class_names(self) -> list[str] | None:
        """The names of the classes in the order of their numbers; None where the settings alone do not name them."""
        return None

    def data_folders(self) -> list[str]:
        """The folders of the training data, for the model card."""
        return []

    def evaluated_folder(self, split: str) -> str | None:
        """The folder of the data of ``dev`` or ``test``, which may have a ``speakers.csv``; None without one."""
        return None

    def check_folders(self, key: str) -> None:
        """Check that the files and folders that training needs exist, as far as that takes no time.

        Args:
            key: ``FILE: dotted.key`` of the task, for messages.

        Raises:
            UserError: one of them does not.
        """
        self.augment.check_folders(f"{key}.augment")

    def check_splits(self, key: str, splits: Sequence[str]) -> None:
        """Check that there are data of the ``splits``, ``dev`` and ``test``, that training evaluates.

        Args:
            key: ``FILE: dotted.key`` of the task, for messages.

        Raises:
            UserError: the settings leave one of them without data.
        """
