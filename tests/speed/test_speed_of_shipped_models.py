"""The speed of the models that ship: each is measured as a whole and in chunks."""

from __future__ import annotations

import pytest

pytest.importorskip("onnxruntime")
from distilled_student.common.shipped_models import shipped_models
from distilled_student.speed.shipped import compare_shipped


def test_each_model_that_ships_is_timed() -> None:
    figures = compare_shipped(rounds=2)
    assert list(figures) == shipped_models()
    for times in figures.values():
        assert 0 < times["chunk_ms"] <= times["chunk_p99_ms"]
        assert times["utterance_ms"] > 0 and times["utterance_mb"] > 0 and times["stream_mb"] > 0
