"""Audio files in, 16 kHz mono float32 out: soundfile reads, torchaudio resamples."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import soundfile
import torch
from torch import Tensor

from distilled_student.errors import UserError

SAMPLE_RATE = 16_000
SUFFIXES = {".wav", ".flac", ".ogg", ".opus", ".mp3", ".aiff", ".aif", ".au", ".w64", ".caf"}


class Header(NamedTuple):
    """What a file says of itself: ``frames`` per channel at ``rate`` Hz, and the number of ``channels``."""

    frames: int
    rate: int
    channels: int


def _check_whole(file: soundfile.SoundFile) -> None:
    """Raise RuntimeError for a WAV file that ends early: libsndfile reads what there is and says so only in its log."""
    found = re.search(r"^data : (\d+) \(should be (\d+)\)", file.extra_info, re.MULTILINE)
    # a program that writes into a pipe cannot know the length and declares the largest one
    if found and int(found[2]) < int(found[1]) < 0x7FFFF000:
        raise RuntimeError(f"truncated: {found[2]} bytes of audio where the header says {found[1]}")


def header(path: str | Path) -> Header:
    """Length, rate and channels without decoding. Raises UserError naming a file that is no audio or ends early."""
    try:
        with soundfile.SoundFile(str(path)) as file:
            _check_whole(file)
            if file.samplerate <= 0:
                raise RuntimeError("a rate of 0 Hz")
            return Header(file.frames, file.samplerate, file.channels)
    except (OSError, RuntimeError) as error:
        raise UserError(f"{path}: not readable as audio ({error})") from None


def seconds(path: str | Path) -> float:
    """Duration from the header alone. Raises UserError as `header` does."""
    frames, rate, _ = header(path)
    return frames / rate


def load(path: str | Path, start: float = 0.0, duration: float | None = None) -> Tensor:
    """Read ``duration`` seconds from ``start`` (the whole file by default).

    Any rate and channel count: channels are averaged, other rates resampled to 16 kHz.

    Returns:
        ``(samples,)`` float32 at 16 kHz.

    Raises:
        UserError: missing, truncated, empty, not audio, or with NaN or infinite samples; names the file.
    """
    try:
        with soundfile.SoundFile(str(path)) as file:
            _check_whole(file)
            rate = file.samplerate
            file.seek(int(start * rate))
            frames = -1 if duration is None else int(duration * rate)
            data = torch.from_numpy(file.read(frames, dtype="float32", always_2d=True))
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(f"{path}: not readable as audio ({error})") from None
    waveform = data.mean(dim=1)
    if waveform.numel() == 0:
        raise UserError(f"{path}: holds no audio")
    if not torch.isfinite(waveform).all():
        raise UserError(f"{path}: holds NaN or infinite samples")
    if rate != SAMPLE_RATE:
        from torchaudio.functional import resample

        waveform = resample(waveform, rate, SAMPLE_RATE)
    return waveform
