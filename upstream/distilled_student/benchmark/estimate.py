"""What a suite will cost before it runs: worked out from multiply-accumulates and audio, not measured."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distilled_student.benchmark.commands import Bench
from distilled_student.benchmark.suite import Run
from distilled_student.checkpoints.folder import load_student
from distilled_student.common.audio import SAMPLE_RATE
from distilled_student.common.settings import typed
from distilled_student.distillation.config import student_config_for
from distilled_student.host.upstreams import StudentUpstream
from distilled_student.multitask.tasks import task_module
from distilled_student.student.config import StudentConfig
from distilled_student.student.cost import macs_per_second
from distilled_student.student.network import Student

OVERHEAD = 0.03  # seconds of a step beside its arithmetic (reading, launching kernels, the optimiser): a guess
# How much faster half precision is taken to be. An A100's peak is 16 times that of float32 (312 and 19.5 TFLOP/s,
# NVIDIA A100 data sheet), of which little is reached.
HALF = 4
# Seconds of audio in one evaluation on the public corpora, development and test: clips of a second; VoxCeleb1's
# utterances of 8.2 s on average (Nagrani et al. 2017, table 2), of which about 5,000 are held out for development.
# Other tasks of the joint expert count as none: their data are not known.
EVALUATION = {"kws": (3093, 3081), "sv": (41_000, 40_000), "speech_commands": (6804 + 3081, 3081)}
VOXCELEB_TEST = 40_000


@dataclass(frozen=True)
class Estimate:
    """``audio_hours`` that models hear; ``operations`` on them, two for a multiply-accumulate, in float32's measure."""

    steps: int = 0
    audio_hours: float = 0.0
    operations: float = 0.0

    def hours(self, tflops: float) -> float:
        """At ``tflops`` * 1e12 operations of float32 a second, with some overhead for every step."""
        return (self.operations / (tflops * 1e12) + self.steps * OVERHEAD) / 3600

    def __add__(self, other: Estimate) -> Estimate:
        audio = self.audio_hours + other.audio_hours
        return Estimate(self.steps + other.steps, audio, self.operations + other.operations)


class Estimator:
    """Estimates of a bench's runs; builds each size of model once, with random weights, to count its operations."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self._macs: dict[str, int] = {}

    def macs(self, config: StudentConfig) -> int:
        """Multiply-accumulates per second of audio."""
        if str(config) not in self._macs:
            self._macs[str(config)] = macs_per_second(StudentUpstream(Student(config)))
        return self._macs[str(config)]

    def _shape(self, name: str | None) -> StudentConfig:
        """Of published weights, or of the teacher."""
        if name == "shipped":
            return load_student(Path(__file__).parents[1] / "assets" / "teacher").config
        return StudentConfig(layers=12, targets=[]) if name == "hubert-base" else StudentConfig()

    def _student(self, run: Run) -> StudentConfig:
        config, path = self.bench.distillation(run)
        return student_config_for(config, self._shape(self.bench.suite.models[run.model].shape).hidden_size, path)

    def distillation(self, run: Run) -> Estimate:
        """Of the student that a run starts from; the student's pass counts three times, there and back."""
        config, _ = self.bench.distillation(run)
        seconds = config.steps * config.data.batch_seconds
        teacher = self.macs(self._shape(self.bench.suite.models[run.model].shape))
        operations = 2 * seconds * (teacher + 3 * self.macs(self._student(run)))
        return Estimate(config.steps, seconds / 3600, operations / (1 if config.precision == "fp32" else HALF))

    def run(self, run: Run) -> Estimate:
        """Of a training and its evaluations; without heads, whose part is small."""
        model, setting = self.bench.suite.models[run.model], self.bench.suite.settings[run.setting]
        macs = self.macs(self._student(run) if model.distill else self._shape(model.shape))
        macs = macs if model.distill or model.shape else 0  # fbank and its like
        steps, trained, evaluated = _audio(self.bench.settings(run), setting.downstream)
        evaluated = evaluated if self.bench.suite.results else 0.0  # of a small corpus of the user's own
        passes = 3 if setting.trainable else 1
        return Estimate(steps, (trained + evaluated) / 3600, 2 * macs * (passes * trained + evaluated))


def _audio(config: dict[str, Any], downstream: str) -> tuple[int, float, float]:
    """Updates, and seconds of audio in training and in all evaluations."""
    runner, expert = config["runner"], config["downstream_expert"]
    steps = int(runner["total_steps"])
    evaluations = steps // int(runner["eval_step"]) * len(runner["eval_dataloaders"] or ())
    batches = steps * int(runner["gradient_accumulate_steps"])
    if downstream == "multitask":
        schedule = expert.get("schedule") or dict.fromkeys(expert["tasks"], 1)
        cycle = sum(schedule.values())
        trained = sum(batches * times / cycle * _batch(name, expert["tasks"][name]) for name, times in schedule.items())
        sums = [sum(EVALUATION.get(name, (0, 0))[split] for name in schedule) for split in (0, 1)]
        return steps, trained, evaluations * sums[0] + sums[1]
    if downstream == "speech_commands":
        per_evaluation, test = EVALUATION[downstream]
        seconds = batches * float(expert["datarc"]["batch_size"])
        return steps, seconds, steps // int(runner["eval_step"]) * per_evaluation + test
    data = expert["datarc"]
    seconds = batches * data["train_batch_size"] * data["max_timestep"] / SAMPLE_RATE
    saved = min(steps // int(runner["save_step"]), int(runner["max_keep"]))
    return steps, seconds, (evaluations + saved) * VOXCELEB_TEST


def _batch(name: str, values: dict[str, Any] | None) -> float:
    """Seconds of audio in a training batch of a task of the joint expert."""
    values = values or {}
    module = task_module(name, values.get("module"), name)
    settings = typed(module.Settings, {key: value for key, value in values.items() if key != "module"}, name)
    shortest = float(getattr(settings, "crop_seconds", 1.0))
    return settings.batch_size * (shortest + float(getattr(settings, "longest_crop_seconds", None) or shortest)) / 2
