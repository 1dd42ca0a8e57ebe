"""Recordings in two places are found by links and by their bytes, without reading more than needed."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import soundfile
from helpers.trees import write_tone

from distilled_student.common import recordings
from distilled_student.common.recordings import Copy, find_copies, recordings_fingerprint


def test_links_and_copies_under_two_keys_are_found_and_others_are_not(tmp_path: Path) -> None:
    a, b, c, d = (write_tone(tmp_path / f"{name}.wav", 200, 0.5, seed) for seed, name in enumerate("abcd"))
    (tmp_path / "soft.wav").symlink_to(a)
    os.link(b, tmp_path / "hard.wav")
    (tmp_path / "copy.wav").write_bytes(c.read_bytes())
    keys = {a: 1, b: 1, c: 1, d: 2, tmp_path / "soft.wav": 2, tmp_path / "hard.wav": 3, tmp_path / "copy.wav": 2}
    expected = [Copy(a, tmp_path / "soft.wav", (1, 2), True), Copy(b, tmp_path / "hard.wav", (1, 3), True)]
    expected += [Copy(c, tmp_path / "copy.wav", (1, 2), False)]
    assert find_copies(keys.items()) == expected
    assert find_copies((path, 1) for path in keys) == []


def test_files_of_one_size_that_agree_in_a_part_are_not_copies(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    wave = rng.integers(-3000, 3000, 16_000, dtype=np.int16)
    soundfile.write(tmp_path / "a.wav", wave, 16_000)
    wave[100] += 1
    soundfile.write(tmp_path / "b.wav", wave, 16_000)
    assert find_copies([(tmp_path / "a.wav", 1), (tmp_path / "b.wav", 2)]) == []


def test_digital_silence_empty_files_and_broken_links_have_no_copies(tmp_path: Path) -> None:
    for name in "ab":
        soundfile.write(tmp_path / f"{name}.wav", np.zeros(16_000), 16_000)
        (tmp_path / f"{name}0.wav").touch()
        (tmp_path / f"{name}1.wav").symlink_to(tmp_path / "gone")
    assert find_copies((path, path.name) for path in sorted(tmp_path.iterdir())) == []


def test_only_files_that_agree_in_size_and_samples_are_read_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng, digested, original = np.random.default_rng(0), [], recordings._digest
    monkeypatch.setattr(recordings, "_digest", lambda file: digested.append(file.path.name) or original(file))
    data = [rng.bytes(2000) for _ in range(2000)]
    for i, content in enumerate([*data, data[7]]):
        (tmp_path / f"{i}.wav").write_bytes(content)
    copies = find_copies((tmp_path / f"{i}.wav", i) for i in range(2001))
    assert [(copy.first.name, copy.second.name) for copy in copies] == [("7.wav", "2000.wav")]
    assert sorted(digested) == ["2000.wav", "7.wav"]


def test_a_fingerprint_tells_the_recordings_of_classes_apart_wherever_their_folders_are(tmp_path: Path) -> None:
    files = {name: [write_tone(tmp_path / name / f"{i}.wav", 200, 0.5, seed) for i in range(2)]
             for seed, name in enumerate(("a", "b"))}  # fmt: skip
    one, two = map(recordings_fingerprint, files.values())
    assert one != two and len(one) == 16 and recordings_fingerprint([]) == ""
    (tmp_path / "a").rename(tmp_path / "moved")
    assert recordings_fingerprint([tmp_path / "moved/0.wav", tmp_path / "moved/1.wav"]) == one
    assert recordings_fingerprint([tmp_path / "moved/0.wav"]) not in (one, two)
