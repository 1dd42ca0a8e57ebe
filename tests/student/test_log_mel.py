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
    torch.testing.assert_close(mel.transpose(1, 2), expected, atol=1e-5, rtol=0)
