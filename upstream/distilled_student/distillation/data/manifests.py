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
from lhotse import AudioSource, Recording
from lhotse.audio.backend import LibsndfileBackend, get_current_audio_backend, set_current_audio_backend
from lhotse.augmentation import AudioTransform
from lhotse.cut import Cut
from lhotse.serialization import deserialize_item
from lhotse.utils import compute_num_samples

from distilled_student.common.audio_reading import (
    MAX_FILE_SECONDS,
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
# seconds by which a file's length may differ from the manifest's: of other decoders the lengths of MP3 and OGG files do
TOLERANCE, LOSSY_TOLERANCE = 0.025, 0.1
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
        recording = getattr(part, "recording", None)
        if recording is None:
            continue
        if part.start + part.duration > recording.duration + TOLERANCE:
            ends = f"ends at {part.start + part.duration:.3f} s"
            raise ValueError(f"{cut.id}: {ends}, but its recording is {recording.duration:.3f} s long")
        if abs(recording.num_samples / recording.sampling_rate - recording.duration) > TOLERANCE:
            samples = f"{recording.num_samples} samples at {recording.sampling_rate} Hz"
            raise ValueError(f"{cut.id}: {samples} are not {recording.duration:.3f} s")


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


class Mismatch(ValueError):
    """A manifest and a file differ in sampling rate, length or number of channels."""


def recordings_of(cut: Cut) -> list[Recording]:
    """The recordings that a cut is made of."""
    parts = [track.cut for track in getattr(cut, "tracks", [])] or [cut]
    return [part.recording for part in parts if getattr(part, "recording", None)]


def _as_recorded(recording: Recording) -> tuple[int, float]:
    """Sampling rate in Hz and duration in seconds of a recording's file: before the transforms of the manifest."""
    rate, duration = recording.sampling_rate, recording.duration
    for transform in reversed(recording.transforms or []):
        found = AudioTransform.from_dict(transform) if isinstance(transform, dict) else transform
        if type(found).__name__ in ("Speed", "Tempo"):
            duration *= found.factor
        elif type(found).__name__ == "Resample":
            rate = found.source_sampling_rate
    return rate, duration


def check_recording(recording: Recording, source: AudioSource, file: soundfile.SoundFile) -> None:
    """Raise Mismatch if a file is not what the manifest says: lhotse would fill up with mirrored speech, or cut it."""
    rate, duration = _as_recorded(recording)
    found = file.frames / file.samplerate
    tolerance = LOSSY_TOLERANCE if file.format in ("MP3", "OGG") else TOLERANCE
    if file.samplerate != rate:
        reason = f"a sampling rate of {file.samplerate} Hz, but {rate} Hz in the manifest"
    elif abs(found - duration) > tolerance:
        reason = f"{found:.3f} s long, but {duration:.3f} s in the manifest"
    elif file.channels != len(source.channels):
        reason = f"{file.channels} channels, but {len(source.channels)} in the manifest"
    else:
        return
    name = source.source if source.type != "memory" else recording.id
    raise Mismatch(f"{name}: {reason}: make the manifest again")


def check_files(cut: Cut) -> None:
    """Raise Mismatch if a local file is not what the manifest says. Files that cannot be opened are not reported."""
    for recording in recordings_of(cut):
        for source in recording.sources:
            if source.type == "file":
                try:
                    with soundfile.SoundFile(soundfile_path(source.source)) as file:
                        check_recording(recording, source, file)
                except (OSError, RuntimeError):
                    pass


class _CheckedBackend(LibsndfileBackend):
    """lhotse's reader, with the checks of `distilled_student.common.audio`; also for formats that cannot seek.

    ``recordings``: what the manifest says about the files that will be read.
    """

    def __init__(self, recordings: list[Recording]) -> None:
        self.recordings = recordings

    def _check(self, path: Any, file: soundfile.SoundFile) -> None:
        pairs = [(recording, source) for recording in self.recordings for source in recording.sources]
        if isinstance(path, str | Path):
            pairs = [(recording, source) for recording, source in pairs if str(source.source) == str(path)]
        elif len(pairs) > 1:  # downloaded or in memory: which of several it is, is not known
            return
        for recording, source in pairs:
            check_recording(recording, source, file)

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
            self._check(path_or_fd, file)
            check_last_sample(file)
            rate = file.samplerate
            first = go_to(file, compute_num_samples(offset, rate))
            frames = file.frames - first
            frames = frames if duration is None else min(frames, compute_num_samples(duration, rate))
            blocks = read_blocks(file, frames)
            samples = np.concatenate([np.zeros((0, file.channels), np.float32), *blocks])
        return samples.T, rate


def load_audio(cut: Cut) -> np.ndarray:
    """``(channels, samples)`` of a cut at its own rate, decoded by libsndfile: lhotse's other readers run programs.

    Raises any exception: for a truncated file too, and `Mismatch` for a file that is not what the manifest says.
    """
    before = get_current_audio_backend()
    set_current_audio_backend(_CheckedBackend(recordings_of(cut)))
    try:
        return cut.load_audio()
    finally:  # lhotse's own context manager does not restore the reader after an error
        set_current_audio_backend(before)
