"""Reads the recordings of a user, in any format that soundfile reads, to 16 kHz mono. Needs no torch."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

from distilled_student.common.audio_reading import (
    SAMPLES_PER_BLOCK,
    check_header,
    read_blocks,
    soundfile_path,
    unreadable,
)
from distilled_student.common.declared_length import check_last_sample
from distilled_student.common.errors import UserError
from distilled_student.common.sample_range import cancelling_channels, wrong_peak
from distilled_student.common.sample_rate import SAMPLE_RATE

MAX_SECONDS = 600  # of one recording: a model encodes it at once, in memory that grows with its length


def read_recording(path: str | Path) -> NDArray[np.float32]:
    """The whole file, its channels averaged, resampled to 16 kHz: ``(samples,)``.

    Raises:
        UserError: missing, truncated, empty, not audio, longer than `MAX_SECONDS`, with channels that cancel each
            other, with NaN or infinite samples or with samples far outside [-1, 1]; names the file.
    """
    try:
        with soundfile.SoundFile(soundfile_path(path)) as file:
            check_header(file)
            check_last_sample(file)
            rate = file.samplerate
            if file.frames > MAX_SECONDS * rate:
                raise ValueError(f"{file.frames / rate:.0f} s, longer than the {MAX_SECONDS} s of a recording: cut it")
            samples = _read_mono(file)
    except (OSError, RuntimeError, ValueError) as error:
        raise unreadable(path, error) from None
    if not len(samples):
        raise UserError(f"{path}: holds no audio")
    if reason := wrong_peak(float(np.abs(samples).max())):
        raise UserError(f"{path}: {reason}")
    return resample(samples, rate)


def read_joined(paths: Iterable[str | Path]) -> NDArray[np.float32]:
    """Several files, one after the other, as one recording ``(samples,)``. Raises UserError as `read_recording`."""
    return np.concatenate([read_recording(path) for path in paths])


def resample(samples: NDArray[np.float32], rate: float) -> NDArray[np.float32]:
    """``(samples,)`` at ``rate`` Hz -> ``(samples * 16000 / rate,)`` at 16 kHz, by soxr's filter of high quality."""
    if rate == SAMPLE_RATE:
        return samples
    import soxr  # here: most recordings have 16 kHz

    return soxr.resample(samples, rate, SAMPLE_RATE).astype(np.float32, copy=False)


def _read_mono(file: soundfile.SoundFile) -> NDArray[np.float32]:
    """All samples with the channels averaged. Raises ValueError for channels that cancel each other."""
    blocks, energy = [np.zeros(0, np.float32)], 0.0
    for data in read_blocks(file, file.frames, max(1, SAMPLES_PER_BLOCK // file.channels)):
        blocks.append(data.mean(axis=1))
        energy += float(np.square(data, dtype=np.float64).mean(axis=1).sum()) if file.channels > 1 else 0.0
    samples = np.concatenate(blocks)
    if file.channels > 1 and len(samples):
        of_average = float(np.square(samples, dtype=np.float64).mean())
        if reason := cancelling_channels(file.channels, energy / len(samples), of_average):
            raise ValueError(reason)
    return samples
