"""Reads lhotse's manifests of cuts and recordings safely: a line can neither run a program nor exhaust memory.

lhotse itself runs a source of type ``command``, and the path of an ``.sph`` file, as shell commands.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from lhotse import Recording
from lhotse.audio.backend import LibsndfileBackend, get_current_audio_backend, set_current_audio_backend
from lhotse.cut import Cut
from lhotse.serialization import deserialize_item
from lhotse.utils import compute_num_samples

from distilled_student.common.audio import (
    MAX_FILE_SECONDS,
    SAMPLES_PER_BLOCK,
    check_header,
    check_rate,
    go_to,
    read_blocks,
    soundfile_path,
)
from distilled_student.common.declared_length import check_last_sample
from distilled_student.common.errors import UserError, short_reason

MAX_LINE_BYTES = 2**20
SOURCES = ("file", "url")
TRANSFORMS = ("Speed", "Tempo", "Volume", "Resample")
MIN_FACTOR, MAX_FACTOR = 0.1, 10.0  # of speed, tempo and volume


def _check_transform(transform: Any) -> None:
    name, values = transform["name"], transform.get("kwargs", {})
    if name not in TRANSFORMS:
        raise ValueError(f"transforms: {name}: is not one of {', '.join(TRANSFORMS)}")
    for key, value in values.items():
        if key == "factor" and not MIN_FACTOR <= value <= MAX_FACTOR:
            raise ValueError(
                f"transforms: {name}: a factor of {value}, which is not within {MIN_FACTOR} to {MAX_FACTOR}"
            )
        if key.endswith("sampling_rate"):
            check_rate(value)


def _check_values(values: dict[str, Any]) -> None:
    """Raise ValueError for a source that is not in `SOURCES` or a transform not in `TRANSFORMS`, at any depth."""
    unchecked: list[Any] = [values]
    while unchecked:
        value = unchecked.pop()
        if isinstance(value, dict):
            kind = value.get("type")
            if "source" in value and kind not in SOURCES:
                raise ValueError(f"a source of type '{kind}', not {' or '.join(SOURCES)}: refused")
            for transform in value.get("transforms") or ():
                _check_transform(transform)
            unchecked += value.values()
        elif isinstance(value, list):
            unchecked += value


def _check_times(cut: Cut) -> None:
    """Raise ValueError for a rate, a duration or a start that no file has."""
    for part in (cut, *(track.cut for track in getattr(cut, "tracks", ()))):
        check_rate(part.sampling_rate)
        if not 0 < part.duration <= MAX_FILE_SECONDS:
            raise ValueError(f"{cut.id}: a duration of {part.duration} s, which is not within 0 to {MAX_FILE_SECONDS}")
        if not 0 <= getattr(part, "start", 0) <= MAX_FILE_SECONDS:
            raise ValueError(f"{cut.id}: a start of {part.start} s, which is not within 0 to {MAX_FILE_SECONDS}")


def parse_cut(line: str | bytes) -> Cut:
    """The cut that a line of a manifest describes; for a recording, a cut of all of it.

    Raises:
        ValueError: neither of these, damaged, or with a source, a rate, a duration or a transform that is refused.
    """
    try:
        values = json.loads(line)
        _check_values(values)
        found = deserialize_item(values)
        cut = found.to_cut() if isinstance(found, Recording) else found
        if not isinstance(cut, Cut) or not cut.has_recording:
            raise ValueError(f"holds {type(found).__name__}; expected cuts or recordings")
        _check_times(cut)
    except ValueError:
        raise
    except Exception as error:  # lhotse can raise any exception; nesting that is too deep is a RecursionError
        raise ValueError(short_reason(error)) from None
    return cut


def read_manifest(path: Path) -> Iterator[Cut]:
    """The cuts of a manifest, ``.jsonl`` or ``.jsonl.gz``, in order. Memory does not depend on its length.

    Raises:
        UserError: damaged, or a line that `parse_cut` refuses; names file and line.
    """
    number = 0
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            while line := file.readline(MAX_LINE_BYTES + 1):
                number += 1
                if len(line) > MAX_LINE_BYTES:
                    raise ValueError(f"is longer than {MAX_LINE_BYTES} bytes")
                if line.strip():
                    yield parse_cut(line)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read as a lhotse manifest ({error})") from None
    except ValueError as error:
        raise UserError(f"{path}: line {number}: cannot be read as a lhotse manifest ({error})") from None


class _CheckedBackend(LibsndfileBackend):
    """lhotse's reader, with the checks of `distilled_student.common.audio`; also for formats that cannot seek."""

    def read_audio(
        self,
        path_or_fd: Any,
        offset: float = 0.0,
        duration: float | None = None,
        force_opus_sampling_rate: int | None = None,
    ) -> tuple[np.ndarray, int]:
        is_path = isinstance(path_or_fd, str | Path)
        with soundfile.SoundFile(soundfile_path(path_or_fd) if is_path else path_or_fd) as file:
            check_header(file)
            check_last_sample(file)
            rate = file.samplerate
            first = go_to(file, compute_num_samples(offset, rate))
            frames = file.frames - first
            frames = frames if duration is None else min(frames, compute_num_samples(duration, rate))
            blocks = read_blocks(file, frames, max(1, SAMPLES_PER_BLOCK // file.channels))
            samples = np.concatenate([np.zeros((0, file.channels), np.float32), *blocks])
        return samples.T, rate


def load_audio(cut: Cut) -> np.ndarray:
    """``(channels, samples)`` of a cut at its own rate, decoded by libsndfile: lhotse's other readers run programs.

    Raises any exception, for a truncated file too.
    """
    before = get_current_audio_backend()
    set_current_audio_backend(_CheckedBackend())
    try:
        return cut.load_audio()
    finally:  # lhotse's own context manager does not restore the reader after an error
        set_current_audio_backend(before)
