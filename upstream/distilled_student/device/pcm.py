"""Converts integer PCM that arrives in pieces, of any rate, width and number of channels, to 16 kHz mono."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from distilled_student.common.sample_rate import SAMPLE_RATE
from distilled_student.onnx.wav import pcm_samples

MIN_RATE, MAX_RATE = 8_000, 192_000  # Hz
MAX_CHANNELS = 8


class PcmFormat(NamedTuple):
    """Of PCM: ``rate`` in Hz, ``width`` in bytes of a sample, and the number of interleaved ``channels``."""

    rate: int
    width: int
    channels: int

    @property
    def frame(self) -> int:
        """Bytes of one sample of all channels."""
        return self.width * self.channels

    def check(self) -> None:
        """Raise ValueError for a format that `PcmStream` does not convert."""
        limits = {"rate": (MIN_RATE, MAX_RATE), "width": (1, 4), "channels": (1, MAX_CHANNELS)}
        for name, (low, high) in limits.items():
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
                raise ValueError(f"{name}: expected a whole number from {low} to {high}")


class PcmStream:
    """Converts the bytes of one recording or microphone; the result does not depend on how they are cut.

    Args:
        form: Their format.

    Raises:
        ValueError: see `PcmFormat.check`.
    """

    def __init__(self, form: PcmFormat) -> None:
        form.check()
        self.form, self.received = form, 0
        self._rest = b""  # the beginning of a frame
        self._resampler = None
        if form.rate != SAMPLE_RATE:
            import soxr  # here: most microphones have 16 kHz

            self._resampler = soxr.ResampleStream(form.rate, SAMPLE_RATE, 1, dtype="float32")

    @property
    def seconds(self) -> float:
        """The length of what was fed."""
        return self.received / self.form.frame / self.form.rate

    def feed(self, data: bytes, is_last: bool = False) -> NDArray[np.float32]:
        """The next bytes -> samples at 16 kHz, channels averaged, ``(samples,)``; some wait inside for later bytes.

        Args:
            is_last: Nothing follows: the samples that wait are returned too.
        """
        self.received += len(data)
        data = self._rest + data
        whole = len(data) // self.form.frame * self.form.frame
        data, self._rest = data[:whole], data[whole:]
        samples = pcm_samples(data, self.form.width).reshape(-1, self.form.channels)
        mono = samples[:, 0] if self.form.channels == 1 else samples.mean(axis=1)
        if self._resampler is None:
            return mono
        return self._resampler.resample_chunk(np.ascontiguousarray(mono), last=is_last)
