"""Manifests that disagree with their files: sampling rate, length, channels, cuts beyond the end."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from conftest import tone
from lhotse import CutSet, Recording

from distilled_student import UserError
from distilled_student.distillation.data.config import DataConfig
from distilled_student.distillation.data.cuts import CutDataset, read_cuts
from distilled_student.distillation.data.shards import open_units
from distilled_student.distillation.data.stream import make_stream

Change = Callable[[dict[str, Any]], None]


def manifest(folder: Path, change: Change | None = None, count: int = 3, only: int | None = None) -> Path:
    """Cuts of files of 2 s, in each of which ``change`` changes the values; or in number ``only``."""
    lines = []
    for i in range(count):
        path = folder / f"{i}.wav"
        soundfile.write(path, tone(2.0, seed=i).numpy(), 16_000)
        values = Recording.from_file(path, recording_id=str(i)).to_cut().to_dict()
        if change is not None and only in (None, i):
            change(values)
        lines.append(json.dumps(values))
    (folder / "cuts.jsonl").write_text("\n".join(lines))
    return folder / "cuts.jsonl"


def longer(seconds: float) -> Change:
    def change(cut: dict[str, Any]) -> None:
        cut["duration"] += seconds
        cut["recording"]["duration"] += seconds
        cut["recording"]["num_samples"] += round(16_000 * seconds)

    return change


def other_rate(rate: int) -> Change:
    """The same duration at another rate."""

    def change(cut: dict[str, Any]) -> None:
        cut["recording"] |= {"sampling_rate": rate, "num_samples": 2 * rate}

    return change


def beyond_the_end(cut: dict[str, Any]) -> None:
    cut["duration"] += 0.3


def other_samples(cut: dict[str, Any]) -> None:
    cut["recording"]["num_samples"] = 20_000


def two_channels(cut: dict[str, Any]) -> None:
    cut["recording"]["sources"][0]["channels"] = [0, 1]
    cut["recording"]["channel_ids"] = [0, 1]


WRONG: dict[str, tuple[Change, str]] = {
    "8 kHz file": (other_rate(8_000), r"0\.wav: a sampling rate of 16000 Hz, but 8000 Hz in the manifest"),
    "48 kHz file": (other_rate(48_000), r"0\.wav: a sampling rate of 16000 Hz, but 48000 Hz in the manifest"),
    "0.3 s too long": (longer(0.3), r"0\.wav: 2\.000 s long, but 2\.300 s in the manifest"),
    "0.05 s too long": (longer(0.05), r"0\.wav: 2\.000 s long, but 2\.050 s in the manifest"),
    "0.3 s too short": (longer(-0.3), r"0\.wav: 2\.000 s long, but 1\.700 s in the manifest"),
    "cut too long": (beyond_the_end, r"0: ends at 2\.300 s, but its recording is 2\.000 s long"),
    "number of samples": (other_samples, r"20000 samples at 16000 Hz are not 2\.000 s"),
    "channels": (two_channels, r"0\.wav: 1 channels, but 2 in the manifest"),
}


@pytest.mark.parametrize("limit", [0, 1 << 20], ids=["streamed", "read at once"])
@pytest.mark.parametrize("name", WRONG)
def test_a_manifest_that_disagrees_with_its_files_is_refused_before_the_training(
    name: str, limit: int, tmp_path: Path
) -> None:
    change, message = WRONG[name]
    config = DataConfig([str(manifest(tmp_path, change))], workers=0, streams=1)
    with pytest.raises(UserError, match=message) as error:
        open_units(config, limit=limit) or read_cuts(config)
    assert "cuts.jsonl" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["8 kHz file", "0.3 s too long", "0.3 s too short", "channels"])
def test_one_wrong_file_of_a_manifest_is_named_and_left_out(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    change, _ = WRONG[name]
    config = DataConfig([str(manifest(tmp_path, change, only=1))], workers=0, streams=1)
    with caplog.at_level(logging.WARNING):
        cuts, _ = read_cuts(config)
    batch = CutDataset()[cuts]
    assert batch.names == ["0", "2"] and list(batch.failed) == ["1"]
    assert batch.failed["1"].startswith(str(tmp_path / "1.wav")) and "in the manifest" in batch.failed["1"]
    streamed = next(make_stream(config, open_units(config, limit=0), 0))
    assert sorted(streamed.names) == ["0", "2"] and list(streamed.failed) == ["1"]


def test_small_differences_and_transforms_are_no_disagreement(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, tone(2.0, 8_000).numpy(), 8_000)
    recording = Recording.from_file(path, recording_id="a")
    rounded = recording.to_dict() | {"duration": 2.004, "num_samples": 16_032}
    recordings = [
        recording,
        recording.resample(16_000),
        recording.perturb_speed(0.9),
        recording.resample(16_000).perturb_speed(1.1),
        recording.perturb_speed(1.1).resample(22_050),
        Recording.from_dict(rounded),
    ]
    cuts = CutSet.from_cuts(found.to_cut().with_id(str(i)) for i, found in enumerate(recordings))
    cuts.to_file(tmp_path / "cuts.jsonl")
    read, skipped = read_cuts(DataConfig([str(tmp_path / "cuts.jsonl")]))
    batch = CutDataset()[read]
    assert not batch.failed and not len(skipped)
    seconds = [2.0, 2.0, 2 / 0.9, 2 / 1.1, 2 / 1.1, 2.004]
    assert [length / 16_000 for length in batch.lengths.tolist()] == pytest.approx(seconds, abs=1e-3)


def test_the_samples_of_a_manifest_are_those_of_the_file(tmp_path: Path) -> None:
    cuts, _ = read_cuts(DataConfig([str(manifest(tmp_path))], max_seconds=0.7))
    for cut in cuts:
        first, count = round(cut.start * 16_000), round(cut.duration * 16_000)
        expected, _ = soundfile.read(tmp_path / f"{cut.recording_id}.wav", count, first, dtype="float32")
        batch = CutDataset()[[cut]]
        np.testing.assert_array_equal(batch.waveforms[0].numpy(), expected)
        assert torch.equal(batch.lengths, torch.tensor([count]))
