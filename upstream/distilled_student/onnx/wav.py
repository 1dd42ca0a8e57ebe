"""Reads recordings, .wav files without another library, and checks samples."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

MAX_PEAK = 8.0  # of floats: 18 dB above full scale; speech of 16 bits that is not divided by 32768 has more

MIN_RATE, MAX_RATE = 1_000, 768_000  # Hz of a file; a header with another rate is wrong

Wav: TypeAlias = (
    "str | Path | NDArray"  # an audio file, see `read_wav`, or samples (samples,): floats in [-1, 1] or int16
)


class _OtherFormatError(ValueError):
    """A file is no .wav file, or one in a coding that is not read here."""


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
        raise _OtherFormatError(f"format {tag} with {bits} bits and {channels} channels is not supported")
    return _WavFormat(tag, channels, rate, width)


def _parse_wav(content: bytes) -> tuple[_WavFormat, bytes]:
    """The format and the samples of a .wav file. Raises ValueError or struct.error."""
    if content[:4] != b"RIFF" or content[8:12] != b"WAVE":
        raise _OtherFormatError("does not begin as a .wav file")
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
    """The samples ``(samples,)`` of an audio file at ``rate`` (Hz), averaged over its channels.

    A .wav file with PCM or float samples of this rate needs no other library. Other formats are read by soundfile, and
    other rates are converted by soxr, if they are installed.

    Raises:
        ValueError: the file is missing, truncated or not audio, or a library is missing; the message names it.
    """
    if Path(path).is_dir():
        raise ValueError(f"{path}: is a folder; give an audio file")
    try:
        content = Path(path).read_bytes()
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from None
    try:
        samples, found = _pcm_of_wav(content)
    except _OtherFormatError as error:
        samples, found = _decoded(path, content, str(error))
    except (ValueError, struct.error) as error:
        raise ValueError(f"{path}: not readable as a PCM or float .wav ({error})") from None
    return _resampled(path, _average(path, samples), found, rate)


def _pcm_of_wav(content: bytes) -> tuple[NDArray[np.float32], int]:
    """The samples ``(frames, channels)`` and the rate of a .wav file. Raises ValueError or struct.error."""
    form, data = _parse_wav(content)
    whole_frames = len(data) // (form.width * form.channels)
    data = data[: whole_frames * form.width * form.channels]
    if form.tag == 3:
        return np.frombuffer(data, f"<f{form.width}").astype(np.float32).reshape(-1, form.channels), form.rate
    return pcm_samples(data, form.width).reshape(-1, form.channels), form.rate


def _decoded(path: str | Path, content: bytes, reason: str) -> tuple[NDArray[np.float32], int]:
    """The samples ``(frames, channels)`` and the rate of a file of another format, read by soundfile.

    Args:
        reason: Why it is not read here.
    """
    try:
        import soundfile  # here: devices without it read .wav files
    except (ImportError, OSError):  # OSError: libsndfile is missing
        remedy = "other formats need soundfile (`pip install soundfile`)"
        raise ValueError(f"{path}: not readable as a PCM or float .wav ({reason}); {remedy}") from None
    try:
        with soundfile.SoundFile(io.BytesIO(content)) as file:
            samples = file.read(dtype="float32", always_2d=True)
            if len(samples) < file.frames:
                raise ValueError(f"truncated: {len(samples)} samples, but the header says {file.frames}")
            return samples, file.samplerate
    except (OSError, RuntimeError, TypeError, ValueError) as error:
        said = getattr(error, "error_string", error)  # of libsndfile, without the name of the buffer
        raise ValueError(f"{path}: not readable as audio ({said})") from None


def _resampled(path: str | Path, samples: NDArray[np.float32], found: int, rate: int) -> NDArray[np.float32]:
    """``(samples,)`` at ``found`` Hz -> ``(samples,)`` at ``rate`` Hz."""
    if found == rate:
        return samples
    if not MIN_RATE <= found <= MAX_RATE:
        raise ValueError(f"{path}: a rate of {found} Hz, which is not within {MIN_RATE} to {MAX_RATE}")
    try:
        import soxr  # here: as above
    except (ImportError, OSError):
        remedy = "other rates need soxr (`pip install soxr`)"
        raise ValueError(f"{path}: has a sample rate of {found} Hz; the model needs {rate} Hz; {remedy}") from None
    return soxr.resample(samples, found, rate).astype(np.float32, copy=False)


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
    if samples.dtype.newbyteorder("=") == np.int16:
        samples = samples / 32768
    if not np.issubdtype(samples.dtype, np.floating):
        raise ValueError(f"{name}: expected floats in [-1, 1] or int16, found {samples.dtype}: convert them")
    if not np.isfinite(samples).all():
        raise ValueError(f"{name}: contains NaN or infinity")
    if (peak := np.abs(samples).max()) > MAX_PEAK:
        remedy = "divide samples of 16 bits by 32768"
        raise ValueError(f"{name}: a peak of {peak:g}, but samples are in [-1, 1]: {remedy}")
    return samples.astype(np.float32)
