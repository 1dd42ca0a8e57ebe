"""Reads the recordings of a user, in any format that soundfile reads, to 16 kHz mono. Needs no torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

from distilled_student.common.audio_reading import open_to_decode, read_blocks
from distilled_student.common.errors import UserError
from distilled_student.common.sample_range import cancelling_channels, wrong_peak
from distilled_student.common.sample_rate import SAMPLE_RATE
from distilled_student.onnx import MAX_SECONDS

TOO_LONG = f"a recording that is encoded as a whole has at most {MAX_SECONDS} s: cut it, or use `listen` for keywords"


def read_recording(path: str | Path) -> NDArray[np.float32]:
    """The whole file, its channels averaged, resampled to 16 kHz: ``(samples,)``.

    Raises:
        UserError: missing, truncated, empty, not audio, longer than `MAX_SECONDS`, with channels that cancel each
            other, with NaN or infinite samples or with samples far outside [-1, 1]; names the file.
    """
    with open_to_decode(path) as file:
        rate = file.samplerate
        if file.frames > MAX_SECONDS * rate:
            raise UserError(f"{path}: {file.frames / rate:.1f} s: {TOO_LONG}")
        samples = _read_mono(file)
    if not len(samples):
        raise UserError(f"{path}: holds no audio")
    if reason := wrong_peak(float(np.abs(samples).max())):
        raise UserError(f"{path}: {reason}")
    return resample(samples, rate)


def recording_blocks(path: str | Path) -> Iterator[NDArray[np.float32]]:
    """A file of up to 24 hours as `read_recording` reads it, in blocks ``(samples,)``, without holding all of it.

    Raises:
        UserError: see `read_recording`; for channels that cancel each other after the last block.
    """
    with open_to_decode(path) as file:
        if not file.frames:
            raise UserError(f"{path}: holds no audio")
        resampler = _Resampler(file.samplerate)
        for samples in _mono_blocks(file):
            if len(samples) and (reason := wrong_peak(float(np.abs(samples).max()))):
                raise ValueError(reason)
            yield resampler.resample(samples)
        yield resampler.resample(np.zeros(0, np.float32), is_last=True)


def check_readable(files: Iterable[str | Path]) -> float:
    """The seconds of all files together, from their headers; nothing but the end of each is decoded.

    Raises:
        UserError: one of them is missing, truncated, empty or not audio; names the file.
    """
    seconds = 0.0
    for path in files:
        with open_to_decode(path) as file:
            if not file.frames:
                raise UserError(f"{path}: holds no audio")
            seconds += file.frames / file.samplerate
    return seconds


class _Resampler:
    """`resample` for blocks of one recording."""

    def __init__(self, rate: float) -> None:
        self._stream = None
        if rate != SAMPLE_RATE:
            import soxr  # here: most recordings have 16 kHz

            self._stream = soxr.ResampleStream(rate, SAMPLE_RATE, 1, dtype="float32")

    def resample(self, samples: NDArray[np.float32], is_last: bool = False) -> NDArray[np.float32]:
        return samples if self._stream is None else self._stream.resample_chunk(samples, last=is_last)


def read_joined(paths: Iterable[str | Path]) -> NDArray[np.float32]:
    """Several files, one after the other, as one recording ``(samples,)``.

    Raises:
        UserError: see `read_recording`; or they are longer than `MAX_SECONDS` together.
    """
    parts: list[NDArray[np.float32]] = []
    for path in paths:
        parts.append(read_recording(path))
        if (seconds := sum(map(len, parts)) / SAMPLE_RATE) > MAX_SECONDS:
            raise UserError(f"{path}: {seconds:.1f} s together with the files before it: {TOO_LONG}")
    return np.concatenate(parts)


def resample(samples: NDArray[np.float32], rate: float) -> NDArray[np.float32]:
    """``(samples,)`` at ``rate`` Hz -> ``(samples * 16000 / rate,)`` at 16 kHz, by soxr's filter of high quality."""
    if rate == SAMPLE_RATE:
        return samples
    import soxr  # here: most recordings have 16 kHz

    return soxr.resample(samples, rate, SAMPLE_RATE).astype(np.float32, copy=False)


def _read_mono(file: soundfile.SoundFile) -> NDArray[np.float32]:
    """All samples with the channels averaged. Raises ValueError for channels that cancel each other."""
    return np.concatenate([np.zeros(0, np.float32), *_mono_blocks(file)])


def _mono_blocks(file: soundfile.SoundFile) -> Iterator[NDArray[np.float32]]:
    """All samples with the channels averaged, in blocks ``(samples,)``. Raises ValueError as `_read_mono`."""
    energy, of_average, count = 0.0, 0.0, 0
    for data in read_blocks(file, file.frames):
        samples = data.mean(axis=1)
        if file.channels > 1:
            energy += float(np.square(data, dtype=np.float64).mean(axis=1).sum())
            of_average += float(np.square(samples, dtype=np.float64).sum())
        count += len(samples)
        yield samples
    if file.channels > 1 and count:
        reason = cancelling_channels(file.channels, energy / count, of_average / count)
        if reason:
            raise ValueError(reason)
