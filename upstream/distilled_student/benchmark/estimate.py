"""Estimates the cost of a suite before it runs, from multiply-accumulates and seconds of audio. Measures nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from distilled_student.benchmark.commands import Bench
from distilled_student.benchmark.suite import Run
from distilled_student.checkpoints.folder import load_student
from distilled_student.common.audio import SAMPLE_RATE
from distilled_student.common.settings import typed
from distilled_student.common.shipped_models import ASSETS
from distilled_student.distillation.config import student_config_for
from distilled_student.host.upstreams import StudentUpstream
from distilled_student.multitask.tasks import task_module
from distilled_student.student.config import StudentConfig
from distilled_student.student.cost import macs_per_second
from distilled_student.student.network import Student

OVERHEAD = 0.03  # seconds of a step in addition to its arithmetic (reading, launching kernels, optimiser): a guess
# Assumed speed of half precision relative to float32. The peaks of an A100 differ by a factor of 16 (312 and 19.5
# TFLOP/s, NVIDIA A100 data sheet); training reaches a small part of it.
HALF = 4
# Seconds of audio in one evaluation on the public corpora, (development, test). A clip of a keyword has one second.
# VoxCeleb1's utterances have 8.2 s on average (Nagrani et al. 2017, table 2); about 5,000 of them are for development.
# Other tasks of the joint expert count as zero, since their data are not known.
EVALUATION = {"kws": (3093, 3081), "sv": (41_000, 40_000), "speech_commands": (6804 + 3081, 3081)}
VOXCELEB_TEST = 40_000


@dataclass(frozen=True)
class Estimate:
    """Cost of one run, or of several added up.

    Attributes:
        steps: Number of updates.
        audio_hours: Hours of audio that go through the models.
        operations: Floating-point operations, two for a multiply-accumulate. Those in half precision are divided by
            `HALF`, so that the sum can be divided by a speed in float32.
    """

    steps: int = 0
    audio_hours: float = 0.0
    operations: float = 0.0

    def hours(self, tflops: float) -> float:
        """Hours at ``tflops`` * 1e12 operations per second in float32, with `OVERHEAD` for every step."""
        return (self.operations / (tflops * 1e12) + self.steps * OVERHEAD) / 3600

    def __add__(self, other: Estimate) -> Estimate:
        audio = self.audio_hours + other.audio_hours
        return Estimate(self.steps + other.steps, audio, self.operations + other.operations)


class Estimator:
    """Estimates the runs of a bench; builds each size of model once, with random weights, to count its operations."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self._macs: dict[str, int] = {}

    def macs(self, config: StudentConfig) -> int:
        """Multiply-accumulates per second of audio."""
        if str(config) not in self._macs:
            self._macs[str(config)] = macs_per_second(StudentUpstream(Student(config)))
        return self._macs[str(config)]

    def _shape(self, name: str | None) -> StudentConfig:
        """Configuration with the size of published weights, by a name in `SHAPES`; None: the paper's student."""
        if name == "shipped":
            return load_student(ASSETS / "teacher").config
        return StudentConfig(layers=12, targets=[]) if name == "hubert-base" else StudentConfig()

    def _student(self, run: Run) -> StudentConfig:
        config, path = self.bench.distillation(run)
        return student_config_for(config, self._shape(self.bench.suite.models[run.model].shape).hidden_size, path)

    def distillation(self, run: Run) -> Estimate:
        """Cost of distilling the student that a run starts from; its forward and backward pass count three times."""
        config, _ = self.bench.distillation(run)
        seconds = config.steps * config.data.batch_seconds
        teacher = self.macs(self._shape(self.bench.suite.models[run.model].shape))
        operations = 2 * seconds * (teacher + 3 * self.macs(self._student(run)))
        return Estimate(config.steps, seconds / 3600, operations / (1 if config.precision == "fp32" else HALF))

    def training(self, run: Run) -> Estimate:
        """Cost of a training and its evaluations, without heads, whose share is small."""
        model, setting = self.bench.suite.models[run.model], self.bench.suite.settings[run.setting]
        macs = self.macs(self._student(run) if model.distill else self._shape(model.shape))
        macs = macs if model.distill or model.shape else 0  # filter banks: hardly any operations
        steps, trained, evaluated = _audio(self.bench.settings(run), setting.downstream)
        evaluated = evaluated if self.bench.suite.results else 0.0  # a small corpus: the figures above do not hold
        passes = 3 if setting.trainable else 1
        return Estimate(steps, (trained + evaluated) / 3600, 2 * macs * (passes * trained + evaluated))


def _audio(config: dict[str, Any], downstream: str) -> tuple[int, float, float]:
    """Number of updates, seconds of audio in training, seconds of audio in all evaluations."""
    runner, expert = config["runner"], config["downstream_expert"]
    steps = int(runner["total_steps"])
    evaluations = steps // int(runner["eval_step"]) * len(runner["eval_dataloaders"] or ())
    batches = steps * int(runner["gradient_accumulate_steps"])
    if downstream == "multitask":
        schedule = expert.get("schedule") or dict.fromkeys(expert["tasks"], 1)
        cycle = sum(schedule.values())
        trained = sum(batches * times / cycle * _batch(name, expert["tasks"][name]) for name, times in schedule.items())
        development, test = (sum(EVALUATION.get(name, (0, 0))[split] for name in schedule) for split in (0, 1))
        return steps, trained, evaluations * development + test
    if downstream == "speech_commands":
        per_evaluation, test = EVALUATION[downstream]
        seconds = batches * float(expert["datarc"]["batch_size"])
        return steps, seconds, steps // int(runner["eval_step"]) * per_evaluation + test
    data = expert["datarc"]
    seconds = batches * data["train_batch_size"] * data["max_timestep"] / SAMPLE_RATE
    saved = min(steps // int(runner["save_step"]), int(runner["max_keep"]))
    return steps, seconds, (evaluations + saved) * VOXCELEB_TEST


def _batch(name: str, values: dict[str, Any] | None) -> float:
    """Mean seconds of audio in a training batch of one task of the joint expert."""
    values = values or {}
    module = task_module(name, values.get("module"), name)
    settings = typed(module.Settings, {key: value for key, value in values.items() if key != "module"}, name)
    shortest = float(getattr(settings, "crop_seconds", 1.0))
    return settings.batch_size * (shortest + float(getattr(settings, "longest_crop_seconds", None) or shortest)) / 2
