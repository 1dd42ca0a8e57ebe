"""Audio files in, 16 kHz mono float32 out: soundfile reads, torchaudio resamples."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
import torch
import torch.nn.functional as F
from torch import Tensor

from distilled_student.common.arithmetic import ceil_div
from distilled_student.common.audio_folders import convert_command, how_to_convert, is_foreign_audio
from distilled_student.common.declared_length import check_last_sample, check_length
from distilled_student.common.errors import UserError
from distilled_student.common.sample_range import cancelling_channels, wrong_range
from distilled_student.common.sample_rate import SAMPLE_RATE

MIN_RATE, MAX_RATE = 1_000, 768_000  # Hz; a header with another rate is wrong
MAX_FILE_SECONDS = 24 * 3600  # longest file that is accepted
MAX_SAMPLES_PER_READ = 2**28  # longest excerpt that is decoded at once, in samples of each channel: 1 GiB of float32
SAMPLES_PER_BLOCK = 2**20  # samples of all channels that are decoded before the channels are averaged
# Weights of the table that torchaudio keeps for resampling: 44.1 kHz needs 76,000 of them, 44,101 Hz 700 million.
MAX_RESAMPLING_WEIGHTS = 2**22
# longest excerpt that an upstream encodes at once; the longest utterance of VoxCeleb1 has 145 s
MAX_ENCODED_SECONDS = 240


class Header(NamedTuple):
    """What the header of a file says: ``frames`` per channel at ``rate`` Hz, and the number of ``channels``."""

    frames: int
    rate: int
    channels: int


def soundfile_path(path: str | Path) -> str | bytes:
    """A path in the type that soundfile can open: bytes for a file name that is not valid UTF-8."""
    return str(path) if str(path).isprintable() else os.fsencode(path)


def check_rate(rate: float) -> None:
    """Raise ValueError for a sampling rate outside `MIN_RATE` to `MAX_RATE`."""
    if not MIN_RATE <= rate <= MAX_RATE:
        raise ValueError(f"a rate of {rate} Hz, which is not within {MIN_RATE} to {MAX_RATE}")


def check_header(file: soundfile.SoundFile) -> None:
    """Raise ValueError, RuntimeError or OSError for an impossible header or a truncated file, see `check_length`."""
    check_rate(file.samplerate)
    if file.frames > MAX_FILE_SECONDS * file.samplerate:
        raise ValueError(f"{file.frames} samples in its header, more than {MAX_FILE_SECONDS // 3600} hours")
    check_length(file)


def header(path: str | Path) -> Header:
    """Length, rate and channels, without decoding. Raises UserError naming a file that is truncated or not audio."""
    try:
        with soundfile.SoundFile(soundfile_path(path)) as file:
            check_header(file)
            return Header(file.frames, file.samplerate, file.channels)
    except (OSError, RuntimeError, ValueError) as error:
        raise unreadable(path, error) from None


def unreadable(path: str | Path, error: Exception) -> UserError:
    """What is raised for a file that cannot be read: names the file, the reason and the remedy, if there is one."""
    remedy = ""
    if is_foreign_audio(Path(path).name):
        remedy = f"; {how_to_convert(str(path))}"
    elif isinstance(error, soundfile.LibsndfileError) and os.path.isfile(path):
        remedy = f"; if another program plays it, convert it: {convert_command(str(path))}"
    return UserError(f"{path}: not readable as audio ({error}){remedy}")


def seconds(path: str | Path) -> float:
    """Duration, from the header alone. Raises UserError as `header` does."""
    frames, rate, _ = header(path)
    return frames / rate


def go_to(file: soundfile.SoundFile, frame: int) -> int:
    """Make ``frame`` the next one to be read; in formats that cannot seek, by decoding those before it.

    Raises:
        soundfile.LibsndfileError: there is no such frame.
    """
    if file.seekable():
        return file.seek(frame)
    for position in range(0, min(frame, file.frames), SAMPLES_PER_BLOCK):
        file.read(min(SAMPLES_PER_BLOCK, frame - position))
    return min(frame, file.frames)


def read_blocks(file: soundfile.SoundFile, frames: int, size: int) -> Iterator[np.ndarray]:
    """The next ``frames`` of a file in blocks of at most ``size``, ``(frames, channels)`` float32.

    Raises:
        RuntimeError: the file ends earlier, although its header says that it has them.
    """
    missing = frames
    while missing > 0 and len(data := file.read(min(size, missing), dtype="float32", always_2d=True)):
        yield data
        missing -= len(data)
    if missing > 0:
        raise RuntimeError(f"truncated: it has {frames - missing} of {frames} samples that its header declares")


def _read_mono(file: soundfile.SoundFile, frames: int) -> Tensor:
    """``frames`` from the file's current position, channels averaged: ``(samples,)`` float32.

    Decodes block by block, so that memory depends on the audio in the file and not on what its header says.
    """
    blocks, energy = [], 0.0
    for data in read_blocks(file, frames, max(1, SAMPLES_PER_BLOCK // file.channels)):
        samples = torch.from_numpy(data)
        blocks.append(samples.mean(dim=1))
        energy += float(samples.square().mean(dim=1).sum()) if file.channels > 1 else 0.0
    waveform = torch.cat(blocks) if blocks else torch.zeros(0)
    if file.channels > 1 and frames > 0:
        check_channels(file.channels, energy / frames, waveform)
    return waveform


def check_channels(channels: int, mean_square: float, average: Tensor) -> None:
    """Raise ValueError if the average ``(samples,)`` of channels has lost their energy: they are of opposite phase."""
    if reason := cancelling_channels(channels, mean_square, float(average.square().mean())):
        raise ValueError(reason)


def resample(waveform: Tensor, rate: int) -> Tensor:
    """``(samples,)`` at ``rate`` Hz -> ``(ceil(samples * 16000 / rate),)`` at 16 kHz: torchaudio's windowed sinc.

    Raises:
        ValueError: a rate outside `MIN_RATE` to `MAX_RATE`.
    """
    check_rate(rate)
    if rate == SAMPLE_RATE:
        return waveform
    common = math.gcd(rate, SAMPLE_RATE)
    if rate * SAMPLE_RATE // common**2 <= MAX_RESAMPLING_WEIGHTS:
        from torchaudio.functional import resample

        return resample(waveform, rate, SAMPLE_RATE)
    return _resample_without_table(waveform, rate)


def _resample_without_table(waveform: Tensor, rate: int) -> Tensor:
    """The result of torchaudio's ``resample``, with the weights of each output sample computed when it is needed.

    torchaudio computes all weights first: for a rate such as 44,101 Hz they take gigabytes.
    """
    cutoff, zero_crossings = 0.99 * min(rate, SAMPLE_RATE) / rate, 6  # torchaudio's rolloff and lowpass_filter_width
    width = math.ceil(zero_crossings / cutoff)
    taps, padded = torch.arange(2 * width + 1) - width, F.pad(waveform, (width, width + 1))
    output_length = ceil_div(len(waveform) * SAMPLE_RATE, rate)
    parts = []
    for outputs in torch.arange(output_length).split(max(1, SAMPLES_PER_BLOCK // len(taps))):
        # the time of each output sample, in input samples: a whole number and a fraction
        whole = outputs * rate // SAMPLE_RATE
        fraction = (outputs * rate % SAMPLE_RATE).double()[:, None] / SAMPLE_RATE
        times = ((taps - fraction) * cutoff).clamp(-zero_crossings, zero_crossings)
        weights = torch.sinc(times) * torch.cos(times * math.pi / zero_crossings / 2) ** 2 * cutoff
        parts.append((padded[whole[:, None] + taps + width] * weights.float()).sum(dim=1))
    return torch.cat(parts) if parts else waveform[:0]


def load(path: str | Path, start: float = 0.0, duration: float | None = None, any_range: bool = False) -> Tensor:
    """Read ``duration`` seconds from ``start`` (the whole file by default).

    Any number of channels and rates of 1 to 768 kHz: channels are averaged, other rates are resampled to 16 kHz.
    Memory is bounded by the audio in the file, whatever its header says, and by a few GiB.

    Args:
        any_range: Whether samples far outside [-1, 1] are accepted, as in an impulse response.

    Returns:
        ``(samples,)`` float32 at 16 kHz.

    Raises:
        UserError: missing, truncated, empty, not audio, too long to be read at once, with channels that cancel each
            other, with NaN or infinite samples or with samples far outside [-1, 1]; names the file.
    """
    try:
        with soundfile.SoundFile(soundfile_path(path)) as file:
            check_header(file)
            check_last_sample(file)
            rate = file.samplerate
            first = go_to(file, int(start * rate))
            frames = max(0, file.frames - first)
            frames = frames if duration is None else min(frames, int(duration * rate))
            if frames > MAX_SAMPLES_PER_READ:
                limit = f"more than the {MAX_SAMPLES_PER_READ} that can be read at once"
                raise ValueError(f"{frames} samples, {limit}: cut the file into pieces")
            waveform = _read_mono(file, frames)
    except (OSError, RuntimeError, ValueError) as error:
        raise unreadable(path, error) from None
    if waveform.numel() == 0:
        raise UserError(f"{path}: holds no audio")
    if not torch.isfinite(waveform).all():
        raise UserError(f"{path}: holds NaN or infinite samples")
    if not any_range and (reason := wrong_range(waveform)):
        raise UserError(f"{path}: {reason}")
    return resample(waveform, rate)
