"""Streams: what a chunk costs on one thread, from its last sample to its scores."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from distilled_student import build_student
from distilled_student.frontend import SAMPLE_RATE
from distilled_student.multitask.joint import Features, JointModel
from distilled_student.speed.measure import interleaved, threads
from distilled_student.streaming import Stream
from distilled_student.streaming_onnx import export_stream

SIZES = ("edge", "tiny")


def measure(model: JointModel, chunk_ms: Sequence[int] = (20, 40, 100), seconds: float = 10.0) -> dict[str, Any]:
    """PyTorch and ONNX on the same chunks in turns, ``seconds`` of audio for each length.

    Returns:
        For each of ``chunk_ms``, as text, and ``PyTorch`` and ``ONNX``: ``median_ms`` and ``p99_ms`` of a chunk, and
        ``cpu_share``, seconds of work per second of audio.
    """
    from distilled_student.onnx import Stream as OnnxStream  # here: its imports are an extra's

    figures: dict[str, Any] = {}
    with TemporaryDirectory() as folder, threads(1):
        file = Path(folder) / "stream.onnx"
        export_stream(model, file)
        for length in chunk_ms:
            samples = 0.1 * torch.randn(SAMPLE_RATE * length // 1000, generator=torch.Generator().manual_seed(0))
            calls = {
                "PyTorch": partial(Stream(model).feed, samples),
                "ONNX": partial(OnnxStream(file).feed, samples.numpy()),
            }
            times = interleaved(calls, rounds=round(1000 * seconds / length), warmup=10)
            figures[str(length)] = {
                form: {
                    "median_ms": 1000 * float(np.median(of)),
                    "p99_ms": 1000 * float(np.quantile(of, 0.99)),
                    "cpu_share": 1000 * float(np.mean(of)) / length,
                }
                for form, of in times.items()
            }
    return figures


def compare_streaming(seconds: float = 10.0) -> dict[str, Any]:
    """`measure` of the named sizes that stream, with random weights and without heads, which cost next to nothing."""
    return {
        size: measure(JointModel(build_student(size), Features("last_hidden_state")).eval(), seconds=seconds)
        for size in SIZES
    }
