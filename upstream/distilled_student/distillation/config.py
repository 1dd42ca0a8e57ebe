"""The settings of one distillation run."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from distilled_student.common.base_configs import without_alternatives
from distilled_student.common.errors import UserError
from distilled_student.common.settings import typed
from distilled_student.distillation.data.config import DataConfig
from distilled_student.student.config import StudentConfig, named_size

UTTERANCE = "utterance"  # targets of a teacher: the embeddings of utterances
PAPER_LAYERS = (4, 8, 12)
MAX_CODES = 128  # bytes of a frame in codes: an eighth of half precision with 512 features


def check_distinct(layers: Sequence[Any]) -> None:
    """Raise ValueError for layers of which one is repeated: its loss would count twice."""
    if any(layer in layers[:number] for number, layer in enumerate(layers)):
        raise ValueError(f"targets: {layers} names a layer twice")


@dataclass
class TeacherConfig:
    """One teacher of several.

    Attributes:
        teacher: As ``teacher`` of the config, or a speaker encoder: ``resemblyzer`` (GE2E with the weights in that
            package), a ``.pt`` file of the same format, a ``...ForXVector`` folder or hub name of `transformers`, or an
            ``.onnx`` file that maps waveforms to an embedding.
        targets: The layers whose hidden states the student predicts, counted from 1, or ``utterance``: the speaker
            encoder's embedding of the whole utterance, scaled to a root mean square of 1.
        weight: What its loss is multiplied by.
    """

    teacher: str
    targets: Any
    weight: float = 1.0

    def __post_init__(self) -> None:
        layers = self.targets if isinstance(self.targets, list) else []
        check_distinct(layers)
        are_layers = bool(layers) and all(type(layer) is int and layer > 0 for layer in layers)
        if self.targets != UTTERANCE and not are_layers:
            raise ValueError(f"targets: '{self.targets}' is neither layers, as [4, 8], nor {UTTERANCE}")
        if not 0 < self.weight < math.inf:
            raise ValueError(f"weight: needs a positive number, not {self.weight}")

    @property
    def embeds_utterances(self) -> bool:
        """Whether the targets are embeddings of utterances, not hidden states of layers."""
        return self.targets == UTTERANCE


@dataclass
class DistillConfig:
    """One distillation run.

    More than one teacher is ours: the paper has one.

    Attributes:
        teacher: ``shipped`` (the small teacher of this package), a folder or file with a checkpoint, the name of an
            s3prl upstream, or a name on the hub of `transformers`.
        output: Folder for the student, its checkpoints and logs.
        data: The corpus and its batches; these keys have a table of their own.
        targets: The teacher's layers whose hidden states the student predicts, counted from 1.
        student: The name of a size, or a group of keys, which have a table of their own. ``targets`` and
            ``target_size`` of that group are not used: the keys above and the teacher determine them.
        teachers: Several teachers, instead of ``teacher`` and ``targets``, which an override ``teachers=[...]`` on the
            command line replaces; their keys have a table of their own. The
            first one needs layers: the student's prediction layers predict them, and ``initialize`` copies from it.
            Every other one has a head that is trained with the student and not saved with it.
        initialize: Copy the teacher's front end and first layers into the student where they are of the same kind. The
            log and the model card say what was copied, what not, and why.
        start_from: A student of the same configuration, as ``-k`` takes it, whose weights the run starts from instead
            of the teacher's: to distil a fine-tuned student further, with another teacher. Prediction layers that it
            does not have start at random.
        steps: Number of training steps; 0: the student is only initialised.
        learning_rate: Peak learning rate of the optimiser, AdamW.
        copied_learning_rate: Peak learning rate of the copied weights; None: ``learning_rate``. A short run needs a
            smaller one: the first gradients of the random prediction layers destroy the copied weights.
        warmup: Share of ``steps`` with a linearly rising learning rate; then it falls linearly to zero.
        weight_decay: AdamW's weight decay.
        betas: AdamW's decay rates of the running means of the gradient and of its square.
        eps: AdamW's epsilon, added to the denominator of the update.
        clip: Largest norm of the gradient; a larger gradient is scaled down to it.
        front_end_gradient: What the gradient of the front end is multiplied by before clipping; 0.1 in DistilHuBERT
            (``feature_grad_mult``). Adam's update does not change with it, only clipping and the logged norm do.
        align: The teacher's frame that a student's frame has to predict: the one of the same ``number`` (of the same
            number of samples where the frame rates differ), or the one with the nearest ``centre``. They differ if one
            front end is a CNN on the waveform, whose first frame is centred at 12.5 ms, and the other one is log-mel,
            centred at 0 ms, or if the student is causal.
        reduction: ``frame`` divides the paper's sum by the number of valid frames, ``mean`` also by the number of
            targets (DistilHuBERT's mean), ``sum`` by nothing. The choice changes gradient clipping, but not Adam's
            update.
        precision: ``fp32``, ``bf16`` or, on a GPU, ``fp16``.
        teacher_precision: Precision of the teacher, which is not trained. ``auto``: ``bf16`` where the device has
            instructions for it, else ``fp32``. It changes the loss by less than 0.1 % (see the tests).
        compile: Compile the student's transformer layers (`torch.compile`): takes a minute at the start; for GPUs.
        cache: Folder for the teachers' targets in half precision, for repeated epochs over a small set.
        cache_codes: Bytes for each frame and layer in the cache. Hidden states are then stored in codes, one byte for
            each of so many codebooks, and the student is trained on what these decode to. 0: half precision.
            Embeddings of utterances and targets of held-out audio are always in half precision.
        cache_codes_seconds: Seconds of the corpus that the codebooks are trained on, unless the cache has some.
        seed: Seed of the initial weights, of dropout and of the order of the data.
        log_every: Number of steps between two log lines.
        save_every: Number of steps between two checkpoints.
        held_out_every: Number of steps between two measurements of the loss on ``data.held_out``. The weights with the
            lowest loss become the student.
        keep: Number of checkpoints that are kept; older ones are deleted.
        max_skipped: Training stops after this many steps in a row whose loss or gradient is not finite. Such
            steps are skipped.
        weights: Type of the weights in the student folder, ``float32`` or ``float16``.
        description: A sentence for the model card.
    """

    teacher: str = ""
    output: str = MISSING
    data: DataConfig = MISSING
    targets: list[int] = field(default_factory=lambda: list(PAPER_LAYERS))
    student: Any = "paper"
    teachers: list[TeacherConfig] = field(default_factory=list)
    initialize: bool = True
    start_from: str = ""
    steps: int = 200_000
    learning_rate: float = 2.0e-4
    copied_learning_rate: float | None = None
    warmup: float = 0.07
    weight_decay: float = 0.0
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    eps: float = 1.0e-8
    clip: float = 5.0
    front_end_gradient: float = 1.0
    align: str = "number"
    reduction: str = "frame"
    precision: str = "fp32"
    teacher_precision: str = "auto"
    compile: bool = False
    cache: str | None = None
    cache_codes: int = 0
    cache_codes_seconds: float = 600.0
    seed: int = 0
    log_every: int = 50
    save_every: int = 1000
    held_out_every: int = 1000
    keep: int = 2
    max_skipped: int = 10
    weights: str = "float32"
    description: str = ""

    def __post_init__(self) -> None:
        for name in ("output", "data"):
            if getattr(self, name) == MISSING:
                raise ValueError(f"{name}: missing")
        check_distinct(self.targets)
        self._check_teachers()
        intervals = ("log_every", "save_every", "held_out_every")
        if self.steps < 0:
            raise ValueError("steps: needs 0 or more")
        for name in ("learning_rate", "eps", "clip", *intervals, "keep", "max_skipped", "cache_codes_seconds"):
            if not 0 < getattr(self, name) < math.inf:  # false for NaN too
                raise ValueError(f"{name}: needs a positive number")
        if not 0 <= (self.copied_learning_rate or 0) < math.inf:
            raise ValueError("copied_learning_rate: needs a number of 0 or more")
        if not 0 <= self.front_end_gradient <= 1:
            raise ValueError("front_end_gradient: needs a factor in [0, 1]")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError("weight_decay: needs a number of 0 or more")
        if not 0 <= self.cache_codes <= MAX_CODES:
            raise ValueError(f"cache_codes: needs 0 to {MAX_CODES} bytes, not {self.cache_codes}")
        if self.cache_codes and not self.cache:
            raise ValueError("cache_codes: needs cache, the folder of the codes")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas: needs two numbers in [0, 1), not {self.betas}")
        if not 0 <= self.warmup < 1:
            raise ValueError("warmup: needs a share in [0, 1)")
        choices = {
            "align": ("number", "centre"),
            "reduction": ("frame", "mean", "sum"),
            "precision": ("fp32", "bf16", "fp16"),
            "teacher_precision": ("auto", "fp32", "bf16", "fp16"),
            "weights": ("float32", "float16"),
        }
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name}: '{getattr(self, name)}' is not one of {', '.join(known)}")

    def _check_teachers(self) -> None:
        """Check ``teachers``; ``teacher`` and ``targets`` become those of the first of them."""
        if not self.teachers:
            if not self.teacher:
                raise ValueError("teacher: missing")
            return
        for number, one in enumerate(self.teachers):
            if (one.teacher, one.targets) in [(before.teacher, before.targets) for before in self.teachers[:number]]:
                raise ValueError(f"teachers: {one.teacher} with targets {one.targets} is there twice: set its weight")
        first = self.teachers[0]
        if first.embeds_utterances:
            raise ValueError("teachers: the first one needs layers as targets, for the student's prediction layers")
        if self.teacher not in ("", first.teacher) or self.targets not in (list(PAPER_LAYERS), first.targets):
            raise ValueError("teachers: give either teachers, or teacher and targets: remove the others")
        self.teacher, self.targets = first.teacher, first.targets

    def all_teachers(self) -> list[TeacherConfig]:
        """The teachers; one for the short form, ``teacher`` and ``targets``."""
        return self.teachers or [TeacherConfig(self.teacher, self.targets)]


def read_config(values: Mapping[str, Any], where: str | Path, overrides: Sequence[str] = ()) -> DistillConfig:
    """The settings in ``values``, then ``key=value`` ``overrides``: see `typed`.

    An override of ``teachers`` replaces ``teacher`` and ``targets`` of ``values``, and overrides of these two together
    replace ``teachers``.

    Raises:
        UserError: see `typed`; the settings are those of a joint training; or there are ``teachers``, and ``teacher``
            or ``targets`` too.
    """
    if "downstream_expert" in values:
        raise UserError(f"{where}: is a config of joint training: use run_downstream.py -m train -c {where}")
    pairs = [pair.partition("=")[::2] for pair in overrides]
    given = {key for key, value in pairs if key != "teachers" or value.strip() not in ("", "[]", "null")}
    values = without_alternatives(values, given)
    has_teachers = "teachers" in given or (values.get("teachers") and "teachers" not in dict(pairs))
    if has_teachers and (both := [key for key in ("teacher", "targets") if key in given or values.get(key)]):
        remedy = "give either teachers=[...], or both teacher and targets, which replace the list"
        raise UserError(f"{where}: {both[0]}: cannot be used with teachers: {remedy}")
    return typed(DistillConfig, values, where, overrides)


def student_config_for(
    config: DistillConfig, target_size: int, where: str | Path, normalization: Mapping[str, Any] | None = None
) -> StudentConfig:
    """The configuration of the student that ``config`` describes.

    Args:
        target_size: Features of the teacher's hidden states.
        where: The settings file, for error messages.
        normalization: How the teacher normalises waveforms. A student that starts from the teacher's front end does the
            same, unless its own settings differ.

    Raises:
        UserError: unknown size, unknown field or impossible value.
    """
    normalization = dict(normalization or {}) if config.initialize else {}
    if isinstance(config.student, str):
        try:
            fields = vars(named_size(config.student)) | normalization
        except ValueError as error:
            raise UserError(f"{where}: student: {error}") from None
    elif isinstance(config.student, dict):
        fields = normalization | config.student
    else:
        raise UserError(f"{where}: student: expected a size's name or a mapping")
    return typed(StudentConfig, {**fields, "targets": config.targets, "target_size": target_size}, f"{where}: student")


def settings_fixed_on_resume(config: DistillConfig) -> dict[str, Any]:
    """The settings that must not change when a run is resumed: the result depends on them. ``steps`` may change."""
    may_change = ("output", "steps", "log_every", "save_every", "keep", "max_skipped", "weights", "description", "data")
    may_change += ("cache_codes_seconds",)  # a run compares the codebooks themselves
    settings = asdict(config)
    data = {f"data.{key}": value for key, value in settings["data"].items() if key not in ("workers", "streams")}
    settings["cache"] = config.cache is not None  # cached targets are rounded; where they are stored may change
    return {key: value for key, value in settings.items() if key not in may_change} | data


def default_settings() -> dict[str, Any]:
    """The default of each setting that has one, by the keys of `settings_fixed_on_resume`."""
    found: dict[str, Any] = {}
    for prefix, schema in (("", DistillConfig), ("data.", DataConfig)):
        for one in fields(schema):
            if one.default_factory is not dataclasses.MISSING:
                value = one.default_factory()
                found[f"{prefix}{one.name}"] = asdict(value) if dataclasses.is_dataclass(value) else value
            elif one.default is not dataclasses.MISSING:
                found[f"{prefix}{one.name}"] = one.default
    return found
