"""Distillation beside s3prl's recipe: seconds of audio trained per second, on the same audio and sizes, in turns."""

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

SECONDS = tuple(half / 2 for half in range(4, 20))  # enough files for buckets by duration


def write_utterances(folder: Path, seconds: Sequence[float]) -> list[Path]:
    """Speech of the embedded corpus in files of these lengths, a voice each."""
    folder.mkdir()
    voices = sorted({clip.voice for clip in read_index()})
    files = [folder / f"{number:03d}.flac" for number in range(len(seconds))]
    for number, (file, length) in enumerate(zip(files, seconds, strict=True)):
        soundfile.write(file, read_voice(voices[number % len(voices)])[: round(length * SAMPLE_RATE)], SAMPLE_RATE)
    return files


def padding(batches: Iterable[Sequence[int]]) -> float:
    """Share of padding in batches of these lengths."""
    sizes = [(sum(lengths), max(lengths) * len(lengths)) for lengths in batches]
    return 1 - sum(valid for valid, _ in sizes) / sum(padded for _, padded in sizes)


class Ours:
    """`Distillation` as ``distilled-student distill`` runs it, an epoch at a time."""

    def __init__(self, config: DistillConfig) -> None:
        self.run, self.data = Distillation(config, "speed"), config.data
        self.run.model.train()
        self.cuts, _ = read_cuts(config.data)
        self.epochs, self.lengths = count(), []

    def epoch(self) -> None:
        """All files once."""
        for batch in make_loader(self.cuts, self.data, 0, next(self.epochs)):
            meters = self.run.step(batch)
            self.lengths.append(batch.lengths.tolist())
        meters["loss"].item()  # a GPU has done it all now


def _ours(folder: Path, seconds: Sequence[float], utterances: int, sizes: Sizes) -> Ours:
    batch = max(max(seconds), utterances * sum(seconds) / len(seconds))
    data = DataConfig([str(folder / "audio")], max_seconds=max(seconds), batch_seconds=batch)
    form = {"hidden_size": sizes.width, "heads": sizes.heads, "feed_forward": sizes.feed_forward}
    form |= {"conv_dim": [sizes.conv] * 7, "layers": sizes.student_layers, "prediction_size": sizes.width}
    student = {key: value for key, value in asdict(StudentConfig(**form)).items() if key in form}
    precision = "bf16" if has_fast_bf16() else "fp32"
    teacher, output = str(folder / "teacher.pt"), str(folder / "out")
    return Ours(DistillConfig(teacher, output, data, list(sizes.targets), student, precision=precision))


def compare_distillation(
    rounds: int = 3, seconds: Sequence[float] = SECONDS, utterances: int = 4, sizes: Sizes | None = None
) -> dict[str, Any]:
    """Epochs over the same files by s3prl's recipe and by ours, in turns.

    Args:
        seconds: Lengths of the files.
        utterances: In a batch of s3prl's, whose own setting is 24. Ours holds as many seconds of audio.

    Returns:
        ``s3prl`` and ``ours``: seconds of audio trained per second (median of the rounds), share of padding, precision
        of student and teacher, FLOP/s spent on valid audio and their share of the device's peak in these precisions.
        ``ratio``: how many times as fast ours is, median and quartiles over the rounds.
    """
    sizes = sizes or Sizes()
    with TemporaryDirectory() as name:
        folder = Path(name)
        files = write_utterances(folder / "audio", seconds)
        write_teacher(folder / "teacher.pt", sizes)
        ours = _ours(folder, seconds, utterances, sizes)
        device = ours.run.accelerator.device
        theirs = Recipe(folder / "teacher.pt", sizes, files, utterances, device)
        times = interleaved({"s3prl": theirs.epoch, "ours": ours.epoch}, rounds)
        frames = [[soundfile.info(file).frames for file in batch] for batch in theirs.batches]
    single = "fp16" if theirs.half else "fp32"
    precisions = {"s3prl": (single, "fp32"), "ours": (ours.run.config.precision, ours.run.config.teacher_precision)}
    lengths = {"s3prl": frames, "ours": ours.lengths}
    workload = measure_workload(ours.run.student, ours.run.teacher, ours.run.config.precision, device)
    result: dict[str, Any] = {"device": device.type, "threads": torch.get_num_threads(), "seconds": sum(seconds)}
    for name, (student, teacher) in precisions.items():
        peaks = [peak_flops(device, HALF_PRECISIONS.get(precision, torch.float32)) for precision in (student, teacher)]
        speed = replace(workload, student_peak=peaks[0], teacher_peak=peaks[1]).throughput(
            sum(seconds), sum(seconds), median(times[name])
        )
        result[name] = {
            "audio_seconds_per_second": speed.audio,
            "padding": padding(lengths[name]),
            "precision": student,
            "teacher_precision": teacher,
            "flops": speed.flops,
            "share_of_peak": speed.share,
        }
    return {**result, "ratio": ratio(times["s3prl"], times["ours"])._asdict()}
