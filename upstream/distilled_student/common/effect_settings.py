"""The settings of effects on audio. Does not import torch: wrong settings are reported quickly."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from distilled_student.common.errors import UserError
from distilled_student.common.sample_rate import SAMPLE_RATE


@dataclass
class EffectSettings:
    """Each effect has a probability (0 turns it off) and a range. All are off by default.

    Attributes:
        reverb: Probability that reverberation is added.
        rt60: Lowest and highest reverberation time in seconds of a generated impulse response, which is decaying noise.
        drr: Lowest and highest ratio of direct to reverberant sound in dB, of a generated impulse response.
        rir_root: Folder of recorded impulse responses; None: they are generated, see ``rt60`` and ``drr``.
        noise: Probability that noise is added.
        snr: Lowest and highest signal-to-noise ratio in dB.
        noise_root: Folder of noise recordings; None: white noise.
        band: Probability that frequencies outside a band are removed, as by a telephone or a cheap microphone.
        band_low: Lowest and highest lower limit of the band in Hz.
        band_high: Lowest and highest upper limit of the band in Hz.
        low_rate: Probability that all above half a lower sampling rate is removed, as from a resampled recording of a
            telephone. In half of the cases samples are then rounded to 16 bits.
        rates: Lowest and highest of these sampling rates in Hz.
        gain: Probability that the loudness is changed.
        gain_db: Lowest and highest gain in dB.
    """

    group: ClassVar[str] = "data.augment"  # the name of this group of settings, for messages
    # the keys that are probabilities, ranges and folders
    probabilities: ClassVar[tuple[str, ...]] = ("reverb", "noise", "band", "low_rate", "gain")
    ranges: ClassVar[tuple[str, ...]] = ("rt60", "drr", "snr", "band_low", "band_high", "rates", "gain_db")
    folders: ClassVar[tuple[str, ...]] = ("rir_root", "noise_root")

    reverb: float = 0.0
    rt60: list[float] = field(default_factory=lambda: [0.1, 0.6])
    drr: list[float] = field(default_factory=lambda: [0.0, 15.0])
    rir_root: str | None = None
    noise: float = 0.0
    snr: list[float] = field(default_factory=lambda: [0.0, 20.0])
    noise_root: str | None = None
    band: float = 0.0
    band_low: list[float] = field(default_factory=lambda: [50.0, 400.0])
    band_high: list[float] = field(default_factory=lambda: [3000.0, 7000.0])
    low_rate: float = 0.0
    rates: list[float] = field(default_factory=lambda: [8000.0, 14000.0])
    gain: float = 0.0
    gain_db: list[float] = field(default_factory=lambda: [-10.0, 6.0])

    def __post_init__(self) -> None:
        for name in self.probabilities:
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{self.group}.{name}: needs a probability in [0, 1], not {getattr(self, name)}")
        for name in self.ranges:
            value = getattr(self, name)
            if len(value) != 2 or value[0] > value[1]:
                raise ValueError(f"{self.group}.{name}: needs [lowest, highest], not {value}")
        if self.rt60[0] <= 0:
            raise ValueError(f"{self.group}.rt60: needs positive seconds")
        if not 0 <= self.band_low[0] <= self.band_low[1] < self.band_high[0] <= self.band_high[1] <= SAMPLE_RATE / 2:
            limits = f"{self.band_low} and {self.band_high}"
            reason = f"need 0 <= band_low < band_high <= 8000 Hz, not {limits}"
            raise ValueError(f"{self.group}.band_low, band_high: {reason}")

        if not 2000 <= self.rates[0] <= self.rates[1] < SAMPLE_RATE:
            raise ValueError(f"{self.group}.rates: need Hz from 2000 to below {SAMPLE_RATE}, not {self.rates}")

    @property
    def any(self) -> bool:
        """Whether an effect is on."""
        return any(getattr(self, name) for name in EffectSettings.probabilities)

    def check_folders(self, key: str) -> None:
        """Raise UserError for a folder that does not exist; ``key``: ``FILE: dotted.key`` of this group."""
        for name in self.folders:
            folder = getattr(self, name)
            if folder is not None and not Path(folder).is_dir():
                raise UserError(f"{key}.{name}: {folder}: no such folder")
