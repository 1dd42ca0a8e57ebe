"""Times streams: seconds from a chunk's last sample to its features, on one thread."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from distilled_student import build_student
from distilled_student.common.sample_rate import SAMPLE_RATE
from distilled_student.export.stream import export_stream
from distilled_student.multitask.device_model import Features, JointModel
from distilled_student.onnx import Stream as OnnxStream
from distilled_student.speed.measure import threads
from distilled_student.streaming import Stream

SIZES = ("edge", "tiny")
WARMUP = 10  # chunks that do not count
Array: TypeAlias = "NDArray[np.float64]"


def call_in_turn(calls: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, tuple[Array, Array]]:
    """Seconds of each call by the clock, and of this thread's CPU, which other processes do not increase."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    for _ in range(WARMUP + rounds):
        for name, call in calls.items():
            wall, cpu = time.perf_counter(), time.thread_time()
            call()
            times[name].append((time.perf_counter() - wall, time.thread_time() - cpu))
    return {name: tuple(np.array(pairs[WARMUP:]).T) for name, pairs in times.items()}


def time_chunks(model: JointModel, file: Path, chunk_ms: Sequence[int], seconds: float) -> dict[str, Any]:
    """As `time_streams`; ``file``: the exported stream of the model."""
    figures: dict[str, Any] = {}
    for length in chunk_ms:
        samples = 0.1 * torch.randn(SAMPLE_RATE * length // 1000, generator=torch.Generator().manual_seed(0))
        calls = {
            "PyTorch": partial(Stream(model).feed, samples),
            "ONNX": partial(OnnxStream(file).feed, samples.numpy()),
        }
        figures[str(length)] = {
            form: {
                "median_ms": 1000 * float(np.median(wall)),
                "p99_ms": 1000 * float(np.quantile(wall, 0.99)),
                "cpu_share": 1000 * float(np.mean(cpu)) / length,
            }
            for form, (wall, cpu) in call_in_turn(calls, round(1000 * seconds / length)).items()
        }
    return figures


def time_streams(model: JointModel, chunk_ms: Sequence[int] = (20, 40, 100), seconds: float = 10.0) -> dict[str, Any]:
    """Time PyTorch and ONNX on the same chunks in turn, on ``seconds`` of audio for each chunk length.

    Returns:
        For each of ``chunk_ms``, as text, and for ``PyTorch`` and ``ONNX``: ``median_ms`` and ``p99_ms`` of a chunk by
        the clock, and ``cpu_share``, seconds of CPU per second of audio.
    """
    with TemporaryDirectory() as folder, threads(1):
        file = Path(folder) / "stream.onnx"
        export_stream(model, file)
        return time_chunks(model, file, chunk_ms, seconds)


def compare_streaming(seconds: float = 10.0) -> dict[str, Any]:
    """`time_streams` of the causal sizes, with random weights and without heads, whose cost is negligible."""
    return {
        size: time_streams(JointModel(build_student(size), Features("last_hidden_state")).eval(), seconds=seconds)
        for size in SIZES
    }
