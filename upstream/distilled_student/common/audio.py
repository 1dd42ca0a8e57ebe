"""Audio files in, 16 kHz mono float32 out: soundfile reads, torchaudio resamples."""

from __future__ import annotations

import math
from pathlib import Path

import soundfile
import torch
import torch.nn.functional as F
from torch import Tensor

from distilled_student.common.arithmetic import ceil_div
from distilled_student.common.audio_reading import (
    SAMPLES_PER_BLOCK,
    check_rate,
    go_to,
    open_to_decode,
    read_blocks,
)
from distilled_student.common.errors import UserError
from distilled_student.common.sample_range import cancelling_channels, wrong_range
from distilled_student.common.sample_rate import SAMPLE_RATE

MAX_SAMPLES_PER_READ = 2**28  # longest excerpt that is decoded at once, in samples of each channel: 1 GiB of float32
# Weights of the table that torchaudio keeps for resampling: 44.1 kHz needs 76,000 of them, 44,101 Hz 700 million.
MAX_RESAMPLING_WEIGHTS = 2**22
# longest excerpt that an upstream encodes at once; the longest utterance of VoxCeleb1 has 145 s
MAX_ENCODED_SECONDS = 240


def _read_mono(file: soundfile.SoundFile, frames: int) -> Tensor:
    """``frames`` from the file's current position, channels averaged: ``(samples,)`` float32.

    Decodes block by block, so that memory depends on the audio in the file and not on what its header says.
    """
    blocks, energy = [], 0.0
    for data in read_blocks(file, frames):
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
        ValueError: see `check_rate`.
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
    with open_to_decode(path) as file:
        rate = file.samplerate
        first = go_to(file, int(start * rate))
        frames = max(0, file.frames - first)
        frames = frames if duration is None else min(frames, int(duration * rate))
        if frames > MAX_SAMPLES_PER_READ:
            limit = f"more than the {MAX_SAMPLES_PER_READ} that can be read at once"
            raise ValueError(f"{frames} samples, {limit}: cut the file into pieces")
        waveform = _read_mono(file, frames)
    if waveform.numel() == 0:
        raise UserError(f"{path}: holds no audio")
    if not torch.isfinite(waveform).all():
        raise UserError(f"{path}: holds NaN or infinite samples")
    if not any_range and (reason := wrong_range(waveform)):
        raise UserError(f"{path}: {reason}")
    return resample(waveform, rate)
