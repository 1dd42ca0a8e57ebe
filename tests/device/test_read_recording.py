"""Recordings of any format, rate and channels become 16 kHz mono; what cannot be read is one line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from scipy.signal import resample_poly
from stress import golden

from distilled_student import UserError
from distilled_student.common.audio_reading import header
from distilled_student.device.recordings import read_joined, read_recording, recording_blocks

TIME = np.arange(16_000) / 16_000
UNNEEDED = {"torch", "s3prl", "scipy", "pandas", "soxr", "tqdm", "filelock"}
SPEECH = (0.3 * np.sin(2 * np.pi * 220 * TIME) + 0.1 * np.sin(2 * np.pi * 1_000 * TIME)).astype(np.float32)


def test_a_recording_at_16_khz_is_the_samples_of_the_file(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", SPEECH, 16_000, subtype="FLOAT")
    np.testing.assert_array_equal(read_recording(tmp_path / "a.wav"), SPEECH)


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100, 48_000])
def test_another_rate_is_resampled_as_scipy_does_it(rate: int, tmp_path: Path) -> None:
    there = resample_poly(SPEECH, rate // 50, 16_000 // 50)
    soundfile.write(tmp_path / "a.flac", there, rate)
    found = read_recording(tmp_path / "a.flac")
    assert found.dtype == np.float32 and abs(len(found) - 16_000) <= 1
    np.testing.assert_allclose(found[1_000:15_000], SPEECH[1_000:15_000], atol=2e-3)


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3", "aiff"])
def test_channels_of_any_format_are_averaged(suffix: str, tmp_path: Path) -> None:
    file = tmp_path / f"a.{suffix}"
    soundfile.write(file, np.stack([SPEECH, 0.5 * SPEECH], axis=1), 16_000)
    expected = soundfile.read(file, dtype="float32")[0].mean(axis=1)
    np.testing.assert_allclose(read_recording(file), expected, atol=1e-6)


def test_several_files_are_joined_in_their_order(tmp_path: Path) -> None:
    for name, part in (("a", SPEECH), ("b", SPEECH[:5_000])):
        soundfile.write(tmp_path / f"{name}.wav", part, 16_000, subtype="FLOAT")
    joined = read_joined([tmp_path / "b.wav", tmp_path / "a.wav"])
    np.testing.assert_array_equal(joined, np.concatenate([SPEECH[:5_000], SPEECH]))


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (np.zeros(0), "holds no audio"),
        (np.stack([SPEECH, -SPEECH], axis=1), "its 2 channels cancel each other"),
        (20_000 * SPEECH, "a peak of .* divide samples of 16 bits by 32768"),
        (np.where(TIME > 0.5, np.nan, SPEECH), "NaN"),
    ],
)
def test_samples_that_are_no_speech_are_refused(samples: np.ndarray, message: str, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", samples, 16_000, subtype="FLOAT")
    for attempt in (read_recording, lambda file: list(recording_blocks(file))):
        with pytest.raises(UserError, match=rf"a\.wav: .*{message}"):
            attempt(tmp_path / "a.wav")


def test_a_missing_a_truncated_and_a_foreign_file_are_refused_with_the_remedy(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "cut.wav", SPEECH, 16_000)
    (tmp_path / "cut.wav").write_bytes((tmp_path / "cut.wav").read_bytes()[:9_000])
    (tmp_path / "phone.m4a").write_bytes(b"\0\0\0 ftypM4A ")
    for name, message in (
        ("none.wav", "none.wav: no such file"),
        ("cut.wav", "truncated"),
        ("phone.m4a", "`ffmpeg -i phone.m4a phone.wav`"),
    ):
        with pytest.raises(UserError, match=message) as error:
            read_recording(tmp_path / name)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["a.raw", "A.RAW", "a.pcm"])
def test_samples_without_a_header_are_refused_with_the_remedy(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"\0\1" * 8_000)
    remedy = f"convert it, as in `ffmpeg -f s16le -ar 16000 -ac 1 -i {name} {name[0]}.wav`"
    for attempt in (read_recording, header):
        with pytest.raises(UserError, match=rf"{name}: not readable as audio .*; .*{remedy}") as error:
            attempt(tmp_path / name)
        assert "\n" not in str(error.value)


def test_a_recording_of_more_than_60_seconds_is_refused_by_its_header_with_what_to_do(tmp_path: Path) -> None:
    rate = 1_000  # a small file
    for name, seconds in (("long", 60.5), ("longest", 60), ("a", 31), ("b", 30)):
        soundfile.write(tmp_path / f"{name}.wav", np.full(round(seconds * rate), 0.1), rate)
    assert len(read_recording(tmp_path / "longest.wav")) == 960_000
    with pytest.raises(UserError, match=r"long\.wav: 60\.5 s: .* at most 60 s: cut it, or use `listen` for keywords"):
        read_recording(tmp_path / "long.wav")
    with pytest.raises(UserError, match=r"b\.wav: 61\.0 s together with the files before it: .* at most 60 s: cut it"):
        read_joined([tmp_path / "a.wav", tmp_path / "b.wav"])


def test_the_table_of_all_paths_reads_files_of_any_length(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "long.wav", np.full(60_500, 0.5), 1_000)
    samples = golden.read_audio([tmp_path / "long.wav", tmp_path / "long.wav"])
    assert samples.shape == (2 * 968_000,) and samples.dtype == np.int16


def test_a_command_on_a_wav_file_imports_neither_torch_nor_what_it_does_not_need(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", SPEECH, 16_000)
    code = (
        "import sys\nfrom distilled_student.cli import main\n"
        "try: main(['spot', 'a.wav'])\nexcept SystemExit: pass\n"
        f"print(sorted({UNNEEDED!r} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr
