"""Opens, checks and decodes audio files block by block with soundfile. Needs no torch: devices use it too."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import soundfile

from distilled_student.common.audio_folders import convert_command, how_to_convert, is_foreign_audio
from distilled_student.common.declared_length import check_last_sample, check_length
from distilled_student.common.errors import UserError

MIN_RATE, MAX_RATE = 1_000, 768_000  # Hz; a header with another rate is wrong
MAX_FILE_SECONDS = 24 * 3600  # longest file that is accepted
SAMPLES_PER_BLOCK = 2**20  # samples of all channels that are decoded before the channels are averaged


class Header(NamedTuple):
    """What the header of a file says: ``frames`` per channel at ``rate`` Hz, and the number of ``channels``."""

    frames: int
    rate: int
    channels: int


def soundfile_path(path: str | Path) -> str | bytes:
    """A path in the type that soundfile can open: bytes for a file name that is not valid UTF-8."""
    return str(path) if str(path).isprintable() else os.fsencode(path)


def check_rate(rate: float) -> None:
    """Raise ValueError for a sampling rate outside `MIN_RATE` to `MAX_RATE`."""
    if not MIN_RATE <= rate <= MAX_RATE:
        raise ValueError(f"a rate of {rate} Hz, which is not within {MIN_RATE} to {MAX_RATE}")


def check_header(file: soundfile.SoundFile) -> None:
    """Raise ValueError, RuntimeError or OSError for an impossible header or a truncated file, see `check_length`."""
    check_rate(file.samplerate)
    if file.frames > MAX_FILE_SECONDS * file.samplerate:
        raise ValueError(f"{file.frames} samples in its header, more than {MAX_FILE_SECONDS // 3600} hours")
    check_length(file)


def _open(source: Any) -> soundfile.SoundFile:
    """Open a path or an open file. Raises ValueError, RuntimeError or OSError."""
    if not hasattr(source, "read") and os.path.exists(source) and not os.path.isfile(source):
        raise ValueError("it is no regular file")  # a pipe, whose end a reader would wait for
    try:
        return soundfile.SoundFile(source if hasattr(source, "read") else soundfile_path(source))
    except TypeError as error:  # soundfile's for .raw, which has neither rate nor format
        raise ValueError(f"no header: {error}") from None


def header(path: str | Path) -> Header:
    """Length, rate and channels, without decoding. Raises UserError naming a file that is truncated or not audio."""
    try:
        with _open(path) as file:
            check_header(file)
            return Header(file.frames, file.samplerate, file.channels)
    except (OSError, RuntimeError, ValueError) as error:
        raise unreadable(path, error) from None


@contextmanager
def open_to_decode(source: Any) -> Iterator[soundfile.SoundFile]:
    """A file whose header and end are checked, at its first sample. ``source``: a path, or an open file.

    Raises:
        UserError: for an error of soundfile, an impossible header or a ValueError, also of the code that decodes: see
            `unreadable`.
    """
    try:
        with _open(source) as file:
            check_header(file)
            check_last_sample(file)
            yield file
    except (OSError, RuntimeError, ValueError) as error:
        raise unreadable(source, error) from None


def unreadable(path: str | Path, error: Exception) -> UserError:
    """What is raised for a file that cannot be read: names the file, the reason and the remedy, if there is one."""
    if not os.path.lexists(path):
        return UserError(f"{path}: no such file")
    if os.path.isdir(path):
        return UserError(f"{path}: is a folder; give audio files")
    remedy = ""
    if is_foreign_audio(Path(path).name):
        remedy = f"; {how_to_convert(str(path))}"
    elif isinstance(error, soundfile.LibsndfileError) and os.path.isfile(path):
        remedy = f"; if another program plays it, convert it: {convert_command(str(path))}"
    return UserError(f"{path}: not readable as audio ({error}){remedy}")


def seconds(path: str | Path) -> float:
    """Duration, from the header alone. Raises UserError as `header` does."""
    frames, rate, _ = header(path)
    return frames / rate


def go_to(file: soundfile.SoundFile, frame: int) -> int:
    """Make ``frame`` the next one to be read; in formats that cannot seek, by decoding those before it.

    Raises:
        soundfile.LibsndfileError: there is no such frame.
    """
    if file.seekable():
        return file.seek(frame)
    for position in range(0, min(frame, file.frames), SAMPLES_PER_BLOCK):
        file.read(min(SAMPLES_PER_BLOCK, frame - position))
    return min(frame, file.frames)


def read_blocks(file: soundfile.SoundFile, frames: int) -> Iterator[np.ndarray]:
    """The next ``frames`` of a file in blocks of `SAMPLES_PER_BLOCK` at most, ``(frames, channels)`` float32.

    Raises:
        RuntimeError: the file ends earlier, although its header says that it has them.
    """
    missing, size = frames, max(1, SAMPLES_PER_BLOCK // file.channels)
    while missing > 0 and len(data := file.read(min(size, missing), dtype="float32", always_2d=True)):
        yield data
        missing -= len(data)
    if missing > 0:
        raise RuntimeError(f"truncated: it has {frames - missing} of {frames} samples that its header declares")
