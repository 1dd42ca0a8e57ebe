"""Whether the spectrum of a recording ends early: found after lower sampling rates, and not in good recordings."""

from __future__ import annotations

import numpy as np
import pytest
import soxr

from distilled_student.corpora.shipped import read_index, read_voice
from distilled_student.onnx.band import band_limit

VOICES = sorted({clip.voice for clip in read_index()})[:12]


@pytest.mark.parametrize("bits", [16, 32])
@pytest.mark.parametrize("rate", [8_000, 11_025, 12_000, 14_000])
@pytest.mark.parametrize("level", [0.5, 0.05, 0.005])
def test_the_end_of_a_spectrum_is_found_in_loud_and_quiet_recordings(rate: int, bits: int, level: float) -> None:
    noise = np.random.default_rng(rate).standard_normal(16_000) * np.hanning(16_000)
    low = soxr.resample(soxr.resample(level / 4 * noise, 16_000, rate), rate, 16_000)
    low = np.round(low * 32768) / 32768 if bits == 16 else low
    found = band_limit(low.astype(np.float32))
    assert found is not None and abs(found - min(rate / 2, 7_000)) < 700


def test_recordings_with_upper_frequencies_and_silence_and_single_samples_have_no_end() -> None:
    speech = [read_voice(voice)[:48_000] for voice in VOICES]
    assert sum(band_limit(samples) is not None for samples in speech) == 0
    rng = np.random.default_rng(0)
    for samples in (np.zeros(16_000), np.zeros(1), 1e-5 * rng.standard_normal(16_000), rng.standard_normal(300)):
        assert band_limit(samples.astype(np.float32)) is None


def test_a_clip_with_rounding_errors_alone_has_no_end() -> None:
    quiet = np.round(2e-5 * np.random.default_rng(1).standard_normal(16_000) * 32768) / 32768
    assert band_limit(quiet.astype(np.float32)) is None
