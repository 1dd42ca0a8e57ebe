"""Reads .wav files and checks samples."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

MAX_PEAK = 8.0  # of floats: 18 dB above full scale; speech of 16 bits that is not divided by 32768 has more

Wav: TypeAlias = "str | Path | NDArray"  # a PCM or float .wav file, or samples (samples,): floats in [-1, 1] or int16


class _WavFormat(NamedTuple):
    """What the ``fmt`` chunk says: 1 for integers or 3 for floats, channels, Hz, and bytes of a sample."""

    tag: int
    channels: int
    rate: int
    width: int


def _read_format(chunk: bytes) -> _WavFormat:
    tag, channels, rate, _, block, bits = struct.unpack("<HHIIHH", chunk[:16])
    if tag == 0xFFFE:  # WAVE_FORMAT_EXTENSIBLE: the format is at the beginning of a longer field
        (tag,) = struct.unpack("<H", chunk[24:26])
    width = (bits + 7) // 8
    is_known = (tag == 1 and width in (1, 2, 3, 4)) or (tag == 3 and width in (4, 8))
    if not is_known or not channels or block != channels * width:
        raise ValueError(f"format {tag} with {bits} bits and {channels} channels is not supported")
    return _WavFormat(tag, channels, rate, width)


def _parse_wav(content: bytes) -> tuple[_WavFormat, bytes]:
    """The format and the samples of a .wav file. Raises ValueError or struct.error."""
    if content[:4] != b"RIFF" or content[8:12] != b"WAVE":
        raise ValueError("does not begin as a .wav file")
    form, start = None, 12
    while start + 8 <= len(content):
        name, size = struct.unpack("<4sI", content[start : start + 8])
        start += 8
        if name == b"fmt ":
            form = _read_format(content[start : start + size])
        if name == b"data":
            break
        start += size + size % 2
    else:
        raise ValueError("holds no samples")
    if form is None:
        raise ValueError("does not say its format")
    found = len(content) - start
    # sizes from 0x7FFFF000 on mean "unknown"; some recorders declare the size of the whole file, 44 or more too many
    if size < 0x7FFFF000 and size > found + max(44, min(start, 128)):
        raise ValueError(f"truncated: {found} bytes of audio, but the header says {size}")
    return form, content[start : start + size]


def read_wav(path: str | Path, rate: int) -> NDArray[np.float32]:
    """The samples ``(samples,)`` of a .wav file with PCM or float samples, averaged over its channels.

    Raises:
        ValueError: the file is truncated or of another format, or its sample rate is not ``rate`` (Hz).
    """
    try:
        form, data = _parse_wav(Path(path).read_bytes())
    except (OSError, ValueError, struct.error) as error:
        raise ValueError(f"{path}: not readable as a PCM or float .wav ({error})") from None
    if form.rate != rate:
        raise ValueError(f"{path}: has a sample rate of {form.rate} Hz; the model needs {rate} Hz")
    whole_frames = len(data) // (form.width * form.channels)
    data = data[: whole_frames * form.width * form.channels]
    if form.tag == 3:
        return _average(path, np.frombuffer(data, f"<f{form.width}").astype(np.float32).reshape(-1, form.channels))
    return _average(path, pcm_samples(data, form.width).reshape(-1, form.channels))


def pcm_samples(data: bytes, width: int) -> NDArray[np.float32]:
    """Integers of 1 to 4 bytes, little-endian -> floats in [-1, 1], ``(samples,)``; of one byte they are unsigned."""
    rows = np.frombuffer(data, np.uint8).reshape(-1, width)  # one sample a row
    if width == 1:
        rows = rows ^ 128
    wide = np.zeros((len(rows), 4), np.uint8)  # the sample's bytes become the most significant ones of 32 bits
    wide[:, 4 - width :] = rows
    return (wide.view("<i4")[:, 0] / 2**31).astype(np.float32)


def _average(path: str | Path, samples: NDArray[np.float32]) -> NDArray[np.float32]:
    """``(frames, channels)`` -> ``(frames,)``. Raises ValueError for channels of opposite phase."""
    average, channels = samples.mean(axis=1), samples.shape[1]
    if channels > 1 and len(samples):
        energy = np.square(samples, dtype=np.float64).mean()
        # without correlation the average has 1 / channels of the energy
        if energy > 1e-8 and np.square(average, dtype=np.float64).mean() * channels < 0.02 * energy:
            reason = f"its {channels} channels cancel each other, as in opposite phase"
            raise ValueError(f"{path}: {reason}: keep one of them, or invert one")
    return average


def read_samples(wav: Wav, rate: int) -> NDArray[np.float32]:
    """The checked samples ``(samples,)`` of a file or an array. Raises ValueError."""
    name = f"{wav}" if isinstance(wav, str | Path) else "samples"
    if hasattr(wav, "requires_grad"):  # a tensor of torch
        wav = wav.detach().cpu()
    samples = read_wav(wav, rate) if isinstance(wav, str | Path) else np.asarray(wav)
    if samples.ndim != 1 or not len(samples):
        raise ValueError(f"{name}: expected one channel (samples,), found shape {samples.shape}")
    if samples.dtype == np.int16:
        samples = samples / 32768
    if not np.issubdtype(samples.dtype, np.floating):
        raise ValueError(f"{name}: expected floats in [-1, 1] or int16, found {samples.dtype}: convert them")
    if not np.isfinite(samples).all():
        raise ValueError(f"{name}: contains NaN or infinity")
    if (peak := np.abs(samples).max()) > MAX_PEAK:
        remedy = "divide samples of 16 bits by 32768"
        raise ValueError(f"{name}: a peak of {peak:g}, but samples are in [-1, 1]: {remedy}")
    return samples.astype(np.float32)
