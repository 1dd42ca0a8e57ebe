"""Compares the speed of our distillation with that of s3prl's recipe: same audio, same sizes, both precisions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from itertools import count
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import soundfile
import torch

from distilled_student.common.audio import SAMPLE_RATE
from distilled_student.corpora.shipped import read_index, read_voice
from distilled_student.distillation.config import DistillConfig
from distilled_student.distillation.data.cuts import DataConfig, make_loader, read_cuts
from distilled_student.distillation.targets import HALF_PRECISIONS
from distilled_student.distillation.throughput import measure_workload
from distilled_student.distillation.trainer import Distillation
from distilled_student.speed.measure import interleaved, ratio
from distilled_student.speed.s3prl_recipe import Recipe, Sizes, write_teacher
from distilled_student.student.config import StudentConfig
from distilled_student.student.cost import has_fast_bf16, peak_flops

SECONDS = tuple(half / 2 for half in range(4, 20))  # 2.0 to 9.5: enough files for buckets by duration


def write_utterances(folder: Path, seconds: Sequence[float]) -> list[Path]:
    """Write one file for each of the lengths, with speech of the embedded corpus; each file has one voice."""
    folder.mkdir()
    voices = sorted({clip.voice for clip in read_index()})
    files = [folder / f"{number:03d}.flac" for number in range(len(seconds))]
    for number, (file, length) in enumerate(zip(files, seconds, strict=True)):
        soundfile.write(file, read_voice(voices[number % len(voices)])[: round(length * SAMPLE_RATE)], SAMPLE_RATE)
    return files


def padding(batches: Iterable[Sequence[int]]) -> float:
    """Share of padding in batches whose utterances have these lengths."""
    sizes = [(sum(lengths), max(lengths) * len(lengths)) for lengths in batches]
    return 1 - sum(valid for valid, _ in sizes) / sum(padded for _, padded in sizes)


class Ours:
    """`Distillation` as ``distilled-student distill`` runs it, one epoch per call."""

    def __init__(self, config: DistillConfig) -> None:
        self.run, self.data = Distillation(config, "speed"), config.data
        self.run.model.train()
        self.precision, self.teacher_precision = self.run.config.precision, self.run.config.teacher_precision
        self.cuts, _ = read_cuts(config.data)
        self.epochs = count()
        self.lengths: list[list[int]] = []  # samples of each utterance, by batch

    def epoch(self) -> None:
        """Train on every file once."""
        for batch in make_loader(self.cuts, self.data, 0, next(self.epochs)):
            meters = self.run.step(batch)
            self.lengths.append(batch.lengths.tolist())
        meters["loss"].item()  # waits until a GPU has finished


def open_ours(folder: Path, seconds: Sequence[float], utterances: int, sizes: Sizes, precision: str) -> Ours:
    """Our distillation of the files in ``folder/audio`` from ``folder/teacher.pt``.

    Accelerate keeps the precision of the last run for the whole process. It asks for it only where a run is not in
    fp32: open the run in fp32 first.

    Args:
        seconds: Lengths of the files.
        utterances: In a batch of s3prl's recipe. A batch of ours holds as many seconds of audio.
        precision: ``fp32`` or ``bf16``, of student and teacher.
    """
    batch_seconds = max(max(seconds), utterances * sum(seconds) / len(seconds))
    data = DataConfig([str(folder / "audio")], max_seconds=max(seconds), batch_seconds=batch_seconds)
    form = {"hidden_size": sizes.width, "heads": sizes.heads, "feed_forward": sizes.feed_forward}
    form |= {"conv_dim": [sizes.conv] * 7, "layers": sizes.student_layers, "prediction_size": sizes.width}
    student = {key: value for key, value in asdict(StudentConfig(**form)).items() if key in form}
    precisions = {"precision": precision, "teacher_precision": precision}
    teacher, output = str(folder / "teacher.pt"), str(folder / "out")
    return Ours(DistillConfig(teacher, output, data, list(sizes.targets), student, **precisions))


def compare_distillation(
    rounds: int = 3, seconds: Sequence[float] = SECONDS, utterances: int = 4, sizes: Sizes | None = None
) -> dict[str, Any]:
    """Train on the same files with s3prl's recipe and with ours, an epoch of each in turn.

    Args:
        seconds: Lengths of the files.
        utterances: In a batch of s3prl's recipe, whose own setting is 24. Ours holds as many seconds of audio.

    Returns:
        ``s3prl``: its recipe in its own precision, fp32 on a CPU, fp16 for the student on a GPU. ``ours``: our
        distillation in bf16, or in fp32 where bf16 is not fast. ``s3prl_fp32`` and ``ours_fp32``: the same in fp32,
        unless ``s3prl`` or ``ours`` is in fp32 itself. Each has: seconds of audio trained per second (median of the
        rounds), share of padding, precision of student and teacher, FLOP/s on valid audio, and their share of the
        device's peak in these precisions.
        ``ratio``: speed of ``ours`` relative to ``s3prl``; ``ratio_fp32``: the same with both in fp32. Median and
        quartiles over the rounds.
    """
    sizes = sizes or Sizes()
    with TemporaryDirectory() as name:
        folder = Path(name)
        files = write_utterances(folder / "audio", seconds)
        write_teacher(folder / "teacher.pt", sizes)
        settings = (folder, seconds, utterances, sizes)
        sides: dict[str, Ours | Recipe] = {"ours_fp32": open_ours(*settings, "fp32")}
        sides["ours"] = open_ours(*settings, "bf16") if has_fast_bf16() else sides.pop("ours_fp32")
        device = sides["ours"].run.accelerator.device
        recipe = (folder / "teacher.pt", sizes, files, utterances, device)
        sides["s3prl"] = Recipe(*recipe)
        if sides["s3prl"].precision != "fp32":
            sides["s3prl_fp32"] = Recipe(*recipe, precision="fp32")
        sides = {side: sides[side] for side in ("s3prl", "s3prl_fp32", "ours_fp32", "ours") if side in sides}
        times = interleaved({side: trainer.epoch for side, trainer in sides.items()}, rounds, what="distillation")
        recipe_lengths = [[soundfile.info(file).frames for file in batch] for batch in sides["s3prl"].batches]
    run = sides["ours"].run
    workload = measure_workload(run.student, run.teachers, run.config.precision, device)
    result: dict[str, Any] = {"device": device.type, "threads": torch.get_num_threads(), "seconds": sum(seconds)}
    result["rounds"] = rounds
    for side, trainer in sides.items():
        precisions = (trainer.precision, trainer.teacher_precision)
        dtypes = [HALF_PRECISIONS.get(name, torch.float32) for name in precisions]
        student_peak, teacher_peak = (peak_flops(device, dtype) for dtype in dtypes)
        speed = replace(workload, student_peak=student_peak, teacher_peak=teacher_peak).throughput(
            sum(seconds), sum(seconds), median(times[side])
        )
        result[side] = {
            "audio_seconds_per_second": speed.audio,
            "padding": padding(trainer.lengths if isinstance(trainer, Ours) else recipe_lengths),
            "precision": trainer.precision,
            "teacher_precision": trainer.teacher_precision,
            "flops": speed.flops,
            "share_of_peak": speed.share,
        }
    result["ratio"] = ratio(times["s3prl"], times["ours"])._asdict()
    in_fp32 = times.get("s3prl_fp32", times["s3prl"]), times.get("ours_fp32", times["ours"])
    return {**result, "ratio_fp32": ratio(*in_fp32)._asdict()}
