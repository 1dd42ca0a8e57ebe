"""Audio files in, 16 kHz mono float32 out: soundfile reads, torchaudio resamples."""

from __future__ import annotations

import math
import os
import re
from pathlib import Path
from typing import NamedTuple

import soundfile
import torch
import torch.nn.functional as F
from torch import Tensor

from distilled_student.common.errors import UserError
from distilled_student.common.sample_rate import SAMPLE_RATE

RATES = 1_000, 768_000  # Hz; beyond them a header is wrong, and a second of audio would become hours or nothing
LONGEST = 24 * 3600  # seconds of a file
AT_ONCE = 2**28  # samples of each channel that are read at once: a GiB
BLOCK = 2**20  # samples of all channels that are read before they are made one
TABLE = 2**22  # weights that torchaudio's resampling may keep, of which 44.1 kHz needs 76,000 and 44,101 Hz 700 million
# an upstream encodes at most this much audio at once; the longest utterance of VoxCeleb1 has 145 s
MAX_ENCODED_SECONDS = 240
SUFFIXES = {".wav", ".flac", ".ogg", ".opus", ".mp3", ".aiff", ".aif", ".au", ".w64", ".caf"}


class Header(NamedTuple):
    """What a file says of itself: ``frames`` per channel at ``rate`` Hz, and the number of ``channels``."""

    frames: int
    rate: int
    channels: int


def openable(path: str | Path) -> str | bytes:
    """A file's name as soundfile takes it, which cannot encode the bytes of a name in another encoding than UTF-8."""
    return str(path) if str(path).isprintable() else os.fsencode(path)


def check_rate(rate: float) -> None:
    """Raise ValueError for a rate outside `RATES`."""
    if not RATES[0] <= rate <= RATES[1]:
        raise ValueError(f"a rate of {rate} Hz, which is not within {RATES[0]} to {RATES[1]}")


def check(file: soundfile.SoundFile) -> None:
    """Raise ValueError or RuntimeError for a header that cannot be true, or a WAV file that ends early.

    Of the latter libsndfile reads what there is, and says so only in its log.
    """
    check_rate(file.samplerate)
    if file.frames > LONGEST * file.samplerate:
        raise ValueError(f"{file.frames} samples in its header, more than {LONGEST // 3600} hours")
    found = re.search(r"^data : (\d+) \(should be (\d+)\)", file.extra_info, re.MULTILINE)
    # a program that writes into a pipe cannot know the length and declares the largest one
    if found and int(found[2]) < int(found[1]) < 0x7FFFF000:
        raise RuntimeError(f"truncated: {found[2]} bytes of audio where the header says {found[1]}")


def header(path: str | Path) -> Header:
    """Length, rate and channels without decoding. Raises UserError naming a file that is no audio or ends early."""
    try:
        with soundfile.SoundFile(openable(path)) as file:
            check(file)
            return Header(file.frames, file.samplerate, file.channels)
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(f"{path}: not readable as audio ({error})") from None


def seconds(path: str | Path) -> float:
    """Duration from the header alone. Raises UserError as `header` does."""
    frames, rate, _ = header(path)
    return frames / rate


def _read(file: soundfile.SoundFile, frames: int) -> Tensor:
    """Up to ``frames`` from where the file stands, channels averaged: ``(samples,)`` float32.

    Block by block, so that memory follows what is in the file and not what its header or its channels promise.
    """
    blocks, missing, size = [], frames, max(1, BLOCK // file.channels)
    while missing > 0 and len(data := file.read(min(size, missing), dtype="float32", always_2d=True)):
        blocks.append(torch.from_numpy(data).mean(dim=1))
        missing -= len(data)
    return torch.cat(blocks) if blocks else torch.zeros(0)


def resample(waveform: Tensor, rate: int) -> Tensor:
    """``(samples,)`` at ``rate`` Hz -> ``(ceil(samples * 16000 / rate),)`` at 16 kHz: torchaudio's windowed sinc.

    torchaudio keeps a table of its weights, which of a rate like 44,101 Hz would take gigabytes: those are computed
    here as they are needed, to the same result.

    Raises:
        ValueError: a rate outside `RATES`.
    """
    check_rate(rate)
    if rate == SAMPLE_RATE:
        return waveform
    common = math.gcd(rate, SAMPLE_RATE)
    if rate * SAMPLE_RATE // common**2 <= TABLE:
        from torchaudio.functional import resample

        return resample(waveform, rate, SAMPLE_RATE)
    cutoff, zeros = 0.99 * min(rate, SAMPLE_RATE) / rate, 6  # torchaudio's rolloff and width
    width = math.ceil(zeros / cutoff)
    taps, padded = torch.arange(2 * width + 1) - width, F.pad(waveform, (width, width + 1))
    parts = []
    for places in torch.arange(-(-len(waveform) * SAMPLE_RATE // rate)).split(max(1, BLOCK // len(taps))):
        whole = places * rate // SAMPLE_RATE
        part = (places * rate % SAMPLE_RATE).double()[:, None] / SAMPLE_RATE
        times = ((taps - part) * cutoff).clamp(-zeros, zeros)
        weights = torch.sinc(times) * torch.cos(times * math.pi / zeros / 2) ** 2 * cutoff
        parts.append((padded[whole[:, None] + taps + width] * weights.float()).sum(dim=1))
    return torch.cat(parts) if parts else waveform[:0]


def load(path: str | Path, start: float = 0.0, duration: float | None = None) -> Tensor:
    """Read ``duration`` seconds from ``start`` (the whole file by default).

    Any channel count, and rates of 1 to 768 kHz: channels are averaged, other rates resampled to 16 kHz. What it takes
    of memory is bounded by what is in the file, not by what its header says, and by a few times a GiB.

    Returns:
        ``(samples,)`` float32 at 16 kHz.

    Raises:
        UserError: missing, truncated, empty, not audio, too long to be read at once, or with NaN or infinite samples;
            names the file.
    """
    try:
        with soundfile.SoundFile(openable(path)) as file:
            check(file)
            rate = file.samplerate
            first = file.seek(int(start * rate))
            frames = max(0, file.frames - first)
            frames = frames if duration is None else min(frames, int(duration * rate))
            if frames > AT_ONCE:
                raise ValueError(f"{frames} samples, more than the {AT_ONCE} that are read at once: cut it into pieces")
            waveform = _read(file, frames)
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(f"{path}: not readable as audio ({error})") from None
    if waveform.numel() == 0:
        raise UserError(f"{path}: holds no audio")
    if not torch.isfinite(waveform).all():
        raise UserError(f"{path}: holds NaN or infinite samples")
    return resample(waveform, rate)
