"""Whether the spectrum of a recording ends early: the models that ship then take all voices for one another."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

FRAME, HOP = 400, 160  # samples: 25 ms, 10 ms
HIGHEST = 184  # of the bins of 40 Hz that are compared: 7.4 kHz
# dB. By one of the two limits 0.7 % of 583 keyword clips of development speakers have an end; after a sampling rate of
# 8, 11 and 14 kHz and rounding to 16 bits 100, 100 and 98 % of them.
MAX_DROP = 37.0
MAX_DROP_TO_ROUNDING = 12.0  # where nothing but rounding errors is left, of which a quiet clip has more
ROUNDING = 10 * np.log10(np.square(np.hanning(FRAME)).sum() / 12 / 32768**2) + 3  # power of a bin, with 3 dB to spare


def band_limit(samples: NDArray[np.float32]) -> float | None:
    """The frequency in Hz where the spectrum of ``samples (samples,)``, at 16 kHz, ends as cut off; None: it does not.

    It is between 3.2 and 7 kHz. The mean power from 120 to 600 Hz below it is `MAX_DROP` above that of everything from
    320 Hz above it to 7.4 kHz, or `MAX_DROP_TO_ROUNDING` if the latter is that of the rounding errors of 16 bits.
    Resampling ends a spectrum so, codecs do, and rounding in a very quiet recording; neither a voice nor a microphone.
    """
    frames = clip_frames(samples) * np.hanning(FRAME)
    power = np.square(np.abs(np.fft.rfft(frames))).mean(axis=0) + 1e-14  # of 40 Hz each
    level, places = 10 * np.log10(power), np.arange(80, 176, 5)
    above = np.array([10 * np.log10(power[place + 8 : HIGHEST].mean()) for place in places])
    drops = np.array([level[place - 15 : place - 3].mean() for place in places]) - above
    ends = drops > np.where(above < ROUNDING, MAX_DROP_TO_ROUNDING, MAX_DROP)
    return 40.0 * int(places[np.argmax(np.where(ends, drops, -np.inf))]) if ends.any() else None


def clip_frames(samples: NDArray[np.float32]) -> NDArray[np.float64]:
    """``(frames, FRAME)``, one every `HOP`; a short clip is padded to one frame."""
    padded = np.pad(samples, (0, max(0, FRAME - len(samples)))).astype(np.float64)
    return np.lib.stride_tricks.sliding_window_view(padded, FRAME)[::HOP]


def band_fault(frequency: float) -> str:
    """Why a recording with this limit is of nobody, in words."""
    reason = f"nothing above {frequency / 1000:.1f} kHz, as in telephone calls, at low sampling rates or if too quiet"
    return f"{reason}. Such voices are too much alike: record louder, at 16 kHz or more"
