"""Adds noise, reverberation, a channel and a level to clean speech: clean synthetic voices are too easy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.fft import irfft, next_fast_len, rfft
from scipy.signal import resample_poly

from distilled_student.common.audio import SAMPLE_RATE

Audio = NDArray[np.float32]


@dataclass(frozen=True)
class Conditions:
    """Ranges of the disturbances. Each item draws its own value from each range; all in dB except ``narrow_band``."""

    snr: tuple[float, float]
    direct_to_reverberant: tuple[float, float]
    equaliser: float  # standard deviation of the channel's gain
    narrow_band: float  # share of the items with the band of a telephone line


WORDS = Conditions(snr=(0, 20), direct_to_reverberant=(0, 18), equaliser=3, narrow_band=0.25)
# milder, because noise hides a speaker's identity earlier than it hides a word
SENTENCES = Conditions(snr=(15, 25), direct_to_reverberant=(5, 20), equaliser=1.5, narrow_band=0.1)


def make_noises(rng: np.random.Generator, voices: list[Audio], seconds: int = 25) -> dict[str, Audio]:
    """Six noises of unit power, ``(seconds * 16000,)`` each, by name. The babble is a mix of ``voices``."""
    size = seconds * SAMPLE_RATE
    time = np.arange(size) / SAMPLE_RATE
    frequency = np.fft.rfftfreq(size, 1 / SAMPLE_RATE)

    def coloured(gain: NDArray[np.float64]) -> NDArray[np.float64]:
        return irfft(rfft(rng.standard_normal(size)) * gain, size)

    hum = sum(rng.uniform(0.2, 1) / k * np.sin(2 * np.pi * 50 * k * time + rng.uniform(0, 6)) for k in range(1, 16))
    beat = 1 + 0.8 * np.sin(2 * np.pi * rng.uniform(2, 5) * time)  # an engine: band noise with a periodic amplitude
    noises = {
        "white_noise": rng.standard_normal(size),
        "pink_noise": coloured(1 / np.sqrt(np.maximum(frequency, 20))),
        "brown_noise": coloured(1 / np.maximum(frequency, 20)),
        "mains_hum": hum + 0.1 * rng.standard_normal(size),
        "running_engine": beat * coloured(np.exp(-(((frequency - 300) / 400) ** 2))),
        "babble": sum(np.roll(np.resize(voice, size), rng.integers(size)) for voice in voices),
    }
    return {name: (noise / noise.std()).astype(np.float32) for name, noise in noises.items()}


def _room(rng: np.random.Generator, conditions: Conditions) -> NDArray[np.float64]:
    """A room's impulse response ``(taps,)``: the direct sound, then noise that decays by 60 dB in RT60 seconds."""
    rt60 = rng.uniform(0.1, 0.6)
    time = np.arange(int(rt60 * SAMPLE_RATE)) / SAMPLE_RATE
    tail = rng.standard_normal(len(time)) * 10 ** (-3 * time / rt60)
    tail[: int(rng.uniform(0.001, 0.01) * SAMPLE_RATE)] = 0
    direct_to_reverberant = rng.uniform(*conditions.direct_to_reverberant)
    tail *= np.sqrt(10 ** (-direct_to_reverberant / 10) / np.square(tail).sum())
    tail[0] = 1
    return tail


def _channel(rng: np.random.Generator, conditions: Conditions, frequency: NDArray[np.float64]) -> NDArray[np.float64]:
    """Gain of microphone and line at each ``frequency`` (Hz): a random equaliser, for some items a narrow band."""
    knots = np.array([60, 150, 400, 1000, 2200, 4000, 8000])
    gain = np.interp(np.log(np.maximum(frequency, 60)), np.log(knots), rng.normal(0, conditions.equaliser, len(knots)))
    low, high = (
        (rng.uniform(100, 350), rng.uniform(3000, 4500))
        if rng.random() < conditions.narrow_band
        else (rng.uniform(20, 100), 7900)
    )
    slope = 24 / np.log(2)  # 24 dB per octave
    gain -= slope * np.log(np.maximum(low / np.maximum(frequency, 1), 1))
    gain -= slope * np.log(np.maximum(frequency / high, 1))
    return 10 ** (gain / 20)


def _distort(rng: np.random.Generator, audio: NDArray[np.float64]) -> NDArray[np.float64]:
    """Clip the peaks of some items, and code some items in 8-bit mu-law. The result has peak 1."""
    audio = audio / np.abs(audio).max()
    kind = rng.random()
    if kind < 0.15:
        limit = rng.uniform(0.3, 0.8)
        return np.clip(audio, -limit, limit) / limit
    if kind < 0.3:
        coded = np.round(np.sign(audio) * np.log1p(255 * np.abs(audio)) / np.log(256) * 127) / 127
        return np.sign(coded) * (256 ** np.abs(coded) - 1) / 255
    return audio


def augment(speech: Audio, noises: dict[str, Audio], rng: np.random.Generator, fixed: int | None = None) -> Audio:
    """Put clean speech into a random room, noise, channel and level.

    Args:
        speech: ``(samples,)`` at 16 kHz.
        noises: By name, each longer than the result.
        fixed: Length of the result in samples. The speech is put at a random position, and its speed is changed by up
            to a tenth. That also shifts pitch and formants: the word can still be recognised, the speaker could not.
            None: the result is as long as the speech, at its own speed.

    Returns:
        ``(samples,)`` or ``(fixed,)``, within -1..1.
    """
    conditions, start = SENTENCES if fixed is None else WORDS, 0
    if fixed is not None:
        speech = resample_poly(speech, 20, int(rng.integers(18, 23)))[:fixed]
        start = int(rng.integers(fixed - len(speech) + 1))
    length = fixed or len(speech)
    room = _room(rng, conditions)
    size = next_fast_len(length + len(room), real=True)

    placed = np.zeros(size)
    placed[start : start + len(speech)] = speech
    noise = noises[rng.choice(sorted(noises))]
    offset = int(rng.integers(len(noise) - size))
    spectrum = rfft(placed) * rfft(room, size)
    # mean power of the reverberant speech, from its spectrum (Parseval); the noise, of unit power, is scaled to it
    power = 2 * np.square(np.abs(spectrum)).sum() / size / len(speech)
    snr = rng.uniform(*conditions.snr)
    spectrum = spectrum / np.sqrt(power) + rfft(noise[offset : offset + size]) * 10 ** (-snr / 20)
    spectrum = spectrum * _channel(rng, conditions, np.arange(len(spectrum)) * SAMPLE_RATE / size)
    audio = _distort(rng, irfft(spectrum, size)[:length])
    return (audio * 10 ** (rng.uniform(-20, -1) / 20)).astype(np.float32)
