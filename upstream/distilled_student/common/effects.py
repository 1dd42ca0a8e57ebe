"""Reverberation, noise, band limits and gain for single utterances when they are loaded, with a seeded generator."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from scipy.fft import next_fast_len
from torch import Tensor

from distilled_student.common import audio, audio_reading
from distilled_student.common.audio_folders import audio_files
from distilled_student.common.effect_settings import EffectSettings
from distilled_student.common.errors import UserError

SMALL_RIR = 1e-2  # peak of an impulse response, below which it is scaled: `reverberate` divides by its energy


def files_of(root: Path, key: str) -> list[Path]:
    """All audio files under ``root``, sorted. Raises UserError naming ``key`` if there are none."""
    if not root.is_dir():
        raise UserError(f"{key}: {root}: no such folder")
    if not (files := audio_files(root, key)):
        raise UserError(f"{key}: {root}: holds no audio files")
    return files


def gain_to(waveform: Tensor, other: Tensor, ratio: float) -> Tensor | None:
    """What ``other`` is multiplied by so that ``waveform`` is ``ratio`` dB louder; None if one of them is silent."""
    power, other_power = waveform.square().mean(), other.square().mean()
    if power == 0 or other_power == 0:
        return None
    return torch.sqrt(power / other_power / 10 ** (ratio / 10))


def add_noise(waveform: Tensor, noise: Tensor, snr: float) -> Tensor:
    """``waveform`` plus ``noise``, ``(samples,)`` each, at a ratio of ``snr`` dB; unchanged if one is silent."""
    gain = gain_to(waveform, noise, snr)
    return waveform if gain is None else waveform + noise * gain


def synthetic_rir(rng: np.random.Generator, rt60: float, drr: float) -> Tensor:
    """An impulse response ``(samples,)``: a direct path, and noise that decays exponentially.

    The noise has decayed by 60 dB after ``rt60`` seconds, and its energy is ``drr`` dB below that of the direct path.
    """
    samples = max(2, int(rt60 * audio.SAMPLE_RATE))
    tail = rng.standard_normal(samples) * 10 ** (-3 * np.arange(samples) / samples)
    tail[0] = 0.0
    tail *= np.sqrt(10 ** (-drr / 10) / np.square(tail).sum())
    tail[0] = 1.0
    return torch.from_numpy(tail.astype(np.float32))


def load_rir(path: Path) -> Tensor:
    """An impulse response ``(samples,)`` of any scale. Raises UserError if it is zero everywhere."""
    rir = audio.load(path, any_range=True)
    peak = rir.abs().max()
    if peak == 0:
        raise UserError(f"{path}: an impulse response of zeros, which silences the speech: remove the file")
    return rir if peak > SMALL_RIR else rir / peak


def reverberate(waveform: Tensor, rir: Tensor) -> Tensor:
    """``waveform`` convolved with an impulse response, ``(samples,)`` each; length and loudness stay the same.

    The direct path, the largest sample of the response, is not delayed.
    """
    size = next_fast_len(len(waveform) + len(rir) - 1, real=True)
    wet = torch.fft.irfft(torch.fft.rfft(waveform, size) * torch.fft.rfft(rir, size), size)
    delay = int(rir.abs().argmax())
    wet = wet[delay : delay + len(waveform)]
    return wet * torch.sqrt(waveform.square().mean() / wet.square().mean().clamp(min=1e-12))


def _filtered(waveform: Tensor, gain_at: Callable[[Tensor], Tensor]) -> Tensor:
    """``waveform (samples,)`` with the gain ``gain_at`` of frequencies in Hz, without a delay."""
    # zeros behind: the filter does not wrap around
    size = next_fast_len(len(waveform) + audio.SAMPLE_RATE // 10, real=True)
    gain = gain_at(torch.fft.rfftfreq(size, 1 / audio.SAMPLE_RATE))
    return torch.fft.irfft(torch.fft.rfft(waveform, size) * gain, size)[: len(waveform)]


def limit_band(waveform: Tensor, low: float, high: float) -> Tensor:
    """``waveform`` ``(samples,)`` without the frequencies below ``low`` and above ``high`` Hz.

    The gain is that of Butterworth filters of order 4, without their delay: ``1 / sqrt(1 + (f / high) ** 8)`` and the
    same with ``low / f``.
    """
    return _filtered(waveform, lambda f: (1 + (f / high) ** 8).rsqrt() * (1 + (low / f.clamp(min=1e-3)) ** 8).rsqrt())


def at_lower_rate(waveform: Tensor, rate: float) -> Tensor:
    """``waveform`` ``(samples,)`` as after a sampling rate of ``rate`` Hz: without the frequencies above half of it.

    The gain falls to 0 between 91 % of this frequency and all of it, as in the resampler of libsoxr.
    """
    return _filtered(waveform, lambda f: torch.cos(math.pi / 2 * ((2 * f / rate - 0.91) / 0.09).clamp(0, 1)).square())


def round_to_16_bits(waveform: Tensor) -> Tensor:
    """What a file of 16 bits keeps of ``waveform``."""
    return torch.round(waveform * 32768) / 32768


@functools.lru_cache(maxsize=64)
def _header_seconds(path: Path) -> float:
    return audio_reading.seconds(path)


def random_cut(path: Path, samples: int, rng: np.random.Generator) -> Tensor:
    """``samples`` of an audio file from a random position; a shorter file is repeated."""
    length = samples / audio.SAMPLE_RATE
    spare = max(0.0, _header_seconds(path) - length)
    cut = audio.load(path, start=rng.uniform(0.0, spare), duration=length + 0.01)
    return fill(cut, samples)


def fill(waveform: Tensor, samples: int) -> Tensor:
    """The first ``samples`` of a waveform; a shorter one is repeated."""
    times = math.ceil(samples / len(waveform))
    return waveform.repeat(times)[:samples]


class Effects:
    """The effects of the settings on one utterance; picklable, because it runs in the data workers.

    Args:
        key: ``FILE: dotted.key`` for messages.
        noises: Noise recordings where the settings name no folder of them.

    Raises:
        UserError: ``noise_root`` or ``rir_root`` is used and has no audio files.
    """

    def __init__(self, settings: EffectSettings, key: str, noises: list[Path] | None = None) -> None:
        self.settings = settings
        self.noises, self.rirs = list(noises or []), list[Path]()
        if settings.noise and settings.noise_root is not None:
            self.noises = files_of(Path(settings.noise_root), f"{key}.noise_root")
        if settings.reverb and settings.rir_root is not None:
            self.rirs = files_of(Path(settings.rir_root), f"{key}.rir_root")

    def __call__(self, waveform: Tensor, rng: np.random.Generator) -> Tensor:
        """``(samples,)`` -> ``(samples,)``: reverberation, noise, band limits and gain, as in a real recording."""
        s = self.settings
        if s.reverb and rng.random() < s.reverb:
            rir = (
                load_rir(self.rirs[rng.integers(len(self.rirs))])
                if self.rirs
                else synthetic_rir(rng, rng.uniform(*s.rt60), rng.uniform(*s.drr))
            )
            waveform = reverberate(waveform, rir)
        if s.noise and rng.random() < s.noise:
            snr = rng.uniform(*s.snr)
            if self.noises:
                noise = random_cut(self.noises[rng.integers(len(self.noises))], len(waveform), rng)
            else:
                noise = torch.from_numpy(rng.standard_normal(len(waveform), dtype=np.float32))
            waveform = add_noise(waveform, noise, snr)
        if s.band and rng.random() < s.band:
            waveform = limit_band(waveform, rng.uniform(*s.band_low), rng.uniform(*s.band_high))
        if s.low_rate and rng.random() < s.low_rate:
            waveform = at_lower_rate(waveform, rng.uniform(*s.rates))
            if rng.random() < 0.5:
                waveform = round_to_16_bits(waveform)
        if s.gain and rng.random() < s.gain:
            waveform = waveform * 10 ** (rng.uniform(*s.gain_db) / 20)
        return waveform
