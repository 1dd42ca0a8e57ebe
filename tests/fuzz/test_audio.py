"""Audio files of any content: they give a waveform or an error in one line that names the file, in little memory."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from conftest import tone
from fuzz.mutations import MANY, at_most, damaged, ends_well
from hypothesis import given
from hypothesis import strategies as st
from torchaudio.functional import resample

from distilled_student import UserError
from distilled_student.common import audio, audio_reading
from distilled_student.multitask.tasks.base import samples_of

BOUND = 64  # MiB, for a file of less than a second
FORMATS = {
    ".wav": ("WAV", ["PCM_16", "PCM_24", "DOUBLE", "FLOAT", "ULAW", "MS_ADPCM"]),
    ".w64": ("W64", ["PCM_16", "FLOAT"]),
    ".au": ("AU", ["PCM_16", "DOUBLE"]),
    ".caf": ("CAF", ["PCM_24", "ALAC_16"]),
    ".aiff": ("AIFF", ["PCM_16"]),
    ".flac": ("FLAC", ["PCM_24"]),
    ".ogg": ("OGG", ["VORBIS", "OPUS"]),
    ".mp3": ("MP3", ["MPEG_LAYER_III"]),
}


def encoded(kind: str, subtype: str, rate: int = 16_000, channels: int = 1) -> bytes:
    out = io.BytesIO()
    samples = np.stack([tone(0.1).numpy()] * channels, axis=1)
    soundfile.write(out, samples, rate, format=kind, subtype=subtype)
    return out.getvalue()


VALID = [(suffix, encoded(kind, name)) for suffix, (kind, names) in FORMATS.items() for name in names]
VALID += [(".wav", encoded("WAV", "PCM_16", rate, count)) for rate in (8_000, 44_101, 96_000) for count in (1, 3)]


@st.composite
def files(draw: st.DrawFn) -> tuple[str, bytes]:
    suffix, valid = draw(st.sampled_from(VALID))
    return suffix, draw(damaged(valid))


def test_no_audio_file_causes_a_traceback_or_takes_more_memory_than_allowed(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("audio")
    audio.load(write(folder / "warm.wav", encoded("WAV", "PCM_16", 8_000)))

    @MANY
    @given(files())
    def check(made: tuple[str, bytes]) -> None:
        path = write(folder / f"a{made[0]}", made[1])
        waveform = ends_well(lambda: audio.load(path), path)
        if isinstance(waveform, torch.Tensor):
            assert waveform.dim() == 1 and waveform.isfinite().all()
        ends_well(lambda: audio_reading.seconds(path), path)
        ends_well(lambda: samples_of(path), path)
        ends_well(lambda: audio.load(path, 0.05, 0.02), path)

    with at_most(BOUND):
        check()


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def riff(frames: int = 2**31 - 1, channels: int = 1, rate: int = 16_000, bits: int = 16) -> bytes:
    """A WAV file with this header and a hundred bytes of audio."""
    size = min(frames * channels * bits // 8, 2**32 - 1)
    form = struct.pack(
        "<HHIIHH", 1, channels, rate, rate * channels * bits // 8 % 2**32, channels * bits // 8 % 2**16, bits
    )
    return (
        b"RIFF"
        + struct.pack("<I", min(size + 36, 2**32 - 1))
        + b"WAVEfmt \x10\0\0\0"
        + form
        + b"data"
        + (struct.pack("<I", size) + bytes(100))
    )


def sun(frames: int = 2**31 - 1, channels: int = 1, rate: int = 16_000) -> bytes:
    """A Sun AU file with this header and a hundred bytes of audio."""
    return b".snd" + struct.pack(">IIIII", 24, min(2 * frames, 2**32 - 1), 3, rate, channels) + bytes(100)


def patched(valid: bytes, old: bytes, new: bytes) -> bytes:
    assert old in valid
    return valid.replace(old, new, 1)


def flac_of(frames: int) -> bytes:
    """A FLAC file whose header says ``frames``: 36 bits, after 20 bits of rate, 3 of channels and 5 of sample size."""
    content = bytearray(encoded("FLAC", "PCM_16"))
    head = int.from_bytes(content[18:26], "big")
    content[18:26] = (head >> 36 << 36 | frames).to_bytes(8, "big")
    return bytes(content)


CAF = encoded("CAF", "PCM_16")
W64 = encoded("W64", "PCM_16")
HUGE: dict[str, bytes] = {
    "frames.wav": riff(),
    "all.wav": riff(2**32, 65_535),
    "channels.wav": riff(100, 65_535),
    "none.wav": riff(100, 0),
    "channels.au": sun(100, 65_535),
    "frames.au": sun(),
    "frames.caf": patched(CAF, b"data" + struct.pack(">Q", 3204), b"data" + struct.pack(">Q", 2**40)),
    "frames.w64": patched(W64, struct.pack("<Q", 3200 + 24), struct.pack("<Q", 2**40)),
    "frames.flac": flac_of(2**36 - 1),
    "day.flac": flac_of(24 * 3600 * 16_000),
    "hour.flac": flac_of(3600 * 16_000),
}


@pytest.mark.parametrize("name", HUGE)
def test_a_header_that_declares_gigabytes_does_not_allocate_them(name: str, tmp_path: Path) -> None:
    audio.load(write(tmp_path / "warm.wav", encoded("WAV", "PCM_16")))
    path = write(tmp_path / name, HUGE[name])
    with at_most(BOUND):
        for read in (audio.load, audio_reading.header, samples_of, lambda path: audio.load(path, 0.0, 1e9)):
            ends_well(lambda read=read: read(path), path)


@pytest.mark.parametrize("rate", [1, 999, 768_001, 2**31 - 1])
def test_a_rate_outside_one_to_768_kilohertz_is_refused(rate: int, tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav", riff(50, rate=rate))
    for read in (audio.load, audio_reading.seconds, samples_of):
        with pytest.raises(UserError, match=rf"a\.wav: .*a rate of {rate} Hz, which is not within 1000 to 768000"):
            read(path)


@pytest.mark.parametrize("rate", [1_000, 44_101, 767_999, 768_000])
def test_any_other_rate_gives_the_length_that_the_index_expects(rate: int, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", tone(0.5, rate).numpy(), rate)
    audio.load(tmp_path / "a.wav")
    with at_most(256):
        assert len(audio.load(tmp_path / "a.wav")) == samples_of(tmp_path / "a.wav")


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100, 768_000])
def test_resampling_without_a_table_equals_torchaudios(rate: int, monkeypatch: pytest.MonkeyPatch) -> None:
    wave = tone(0.3, rate)
    monkeypatch.setattr(audio, "MAX_RESAMPLING_WEIGHTS", 0)
    torch.testing.assert_close(audio.resample(wave, rate), resample(wave, rate, 16_000), atol=1e-5, rtol=0)


@pytest.mark.parametrize("subtype", ["PCM_24", "DOUBLE", "FLOAT", "PCM_U8"])
def test_every_sample_format_is_read(subtype: str, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", tone(0.2).numpy(), 16_000, subtype=subtype)
    torch.testing.assert_close(audio.load(tmp_path / "a.wav"), tone(0.2), atol=1e-2, rtol=0)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
def test_nan_and_infinite_samples_are_refused(value: float, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.array([0.0, value, 0.0]), 16_000, subtype="DOUBLE")
    with pytest.raises(UserError, match=r"a\.wav: holds NaN or infinite samples"):
        audio.load(tmp_path / "a.wav")


@pytest.mark.parametrize("content", [b"", riff(0)[:44], b"RIFF", bytes(100)])
def test_an_empty_file_is_refused(content: bytes, tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav", content)
    assert isinstance(ends_well(lambda: audio.load(path), path), UserError)


def test_a_file_too_long_to_be_read_at_once_is_refused_and_can_be_read_in_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audio, "MAX_SAMPLES_PER_READ", 8_000)
    soundfile.write(tmp_path / "a.wav", tone(1.0).numpy(), 16_000, subtype="FLOAT")
    with pytest.raises(UserError, match=r"a\.wav: .*16000 samples, more than the 8000 that can be read at once"):
        audio.load(tmp_path / "a.wav")
    torch.testing.assert_close(audio.load(tmp_path / "a.wav", 0.5, 0.5), tone(1.0)[8_000:])


def test_averaging_channels_in_blocks_does_not_change_the_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = np.stack([tone(1.0, seed=i).numpy() for i in range(5)], axis=1)
    soundfile.write(tmp_path / "a.wav", samples, 16_000, subtype="FLOAT")
    whole = audio.load(tmp_path / "a.wav")
    for module in (audio, audio_reading):
        monkeypatch.setattr(module, "SAMPLES_PER_BLOCK", 1_000)
    torch.testing.assert_close(audio.load(tmp_path / "a.wav"), whole, atol=0, rtol=0)


NAMES = ["a b.wav", "ключ 語.wav", "a\nb.wav", "a\r\x85\u2028b.wav", "[bold].wav", "\udcff.wav", "${x}.wav", "'; x.wav"]


@pytest.mark.parametrize("name", NAMES)
def test_a_file_of_any_name_is_read_or_refused_in_one_line(name: str, tmp_path: Path) -> None:
    write(tmp_path / name, encoded("WAV", "PCM_16"))
    assert len(audio.load(tmp_path / name)) == 1600
    write(tmp_path / name, b"text")
    for read in (audio.load, audio_reading.header, samples_of):
        _refused_in_one_line(read, tmp_path / name)


def _refused_in_one_line(read: Callable[[Path], object], path: Path) -> None:
    with pytest.raises(UserError) as error:
        read(path)
    assert str(error.value).isprintable()
    assert len(str(error.value).splitlines()) == 1
    shown = path.name.encode("unicode_escape").decode() if not path.name.isprintable() else path.name
    assert shown in str(error.value)
