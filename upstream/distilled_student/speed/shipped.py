"""Times the int8 graphs of the models that ship: a second of audio at once, and chunks of a stream; on one thread."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from distilled_student.common.sample_rate import SAMPLE_RATE
from distilled_student.common.shipped_models import MODELS, shipped_models
from distilled_student.export.stream import DEVICE_CHUNK
from distilled_student.onnx import load
from distilled_student.speed.streaming import call_in_turn


def compare_shipped(rounds: int = 100) -> dict[str, Any]:
    """Milliseconds of all outputs of each model: ``utterance``, one second, and ``chunk``, 40 ms; and megabytes."""
    samples = 0.1 * np.random.default_rng(0).standard_normal(SAMPLE_RATE).astype(np.float32)
    figures = {}
    for name in shipped_models():
        model = load(MODELS / name)
        stream, inputs = model.stream(), {"waveforms": samples[None], "lengths": np.array([len(samples)])}
        feed = partial(stream.feed, samples[:DEVICE_CHUNK])
        calls = {"utterance": partial(model.session.run, None, inputs), "chunk": feed}
        times = {of: wall for of, (wall, _) in call_in_turn(calls, rounds).items()}
        figures[name] = {
            "utterance_ms": 1000 * float(np.median(times["utterance"])),
            "chunk_ms": 1000 * float(np.median(times["chunk"])),
            "chunk_p99_ms": 1000 * float(np.quantile(times["chunk"], 0.99)),
            "utterance_mb": model.file.stat().st_size / 1e6,
            "stream_mb": stream.model.file.stat().st_size / 1e6,
        }
    return figures
