"""The log-mel front end against Whisper's feature extractor."""

from __future__ import annotations

import torch
from conftest import tone

from distilled_student.student.log_mel import LogMel


def test_log_mel_equals_whispers_feature_extractor() -> None:
    from transformers import WhisperFeatureExtractor

    wave = tone(3.0)
    expected = WhisperFeatureExtractor()(wave.numpy(), sampling_rate=16_000, return_tensors="pt").input_features
    padded = torch.nn.functional.pad(wave, (0, 480_000 - len(wave)))[None]
    mel, lengths = LogMel(80)(padded, torch.tensor([480_000]))
    assert lengths.tolist() == [3000]
    # on an Intel Xeon with AMX one value of the tone's 240,000, in a band without energy, differs by 1.2e-5
    torch.testing.assert_close(mel.transpose(1, 2), expected, atol=2e-5, rtol=0)


def test_with_autocast_the_log_mel_is_of_single_precision_and_as_exact_as_half_precision_shows() -> None:
    wave, lengths = tone(1.0)[None], torch.tensor([16_000])
    front_end = LogMel(80, causal=True)
    exact, _ = front_end(wave, lengths)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mel, _ = front_end(wave, lengths)
    assert mel.dtype == torch.float32
    assert not mel.equal(exact)
    torch.testing.assert_close(mel, exact, atol=2**-9, rtol=0)
