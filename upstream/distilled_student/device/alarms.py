"""Measures the false alarms of a keyword spotter per hour of audio, and its misses, at each threshold."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from distilled_student.common.audio_folders import audio_files
from distilled_student.common.errors import UserError
from distilled_student.common.shipped_models import MODELS
from distilled_student.device.keyword_mix import Clip, Mix
from distilled_student.device.recordings import recording_blocks
from distilled_student.device.traces import Trace, poisson_interval, record
from distilled_student.onnx.detector import KEY as DETECTOR

if TYPE_CHECKING:
    from distilled_student.onnx import Enrolment, Stream

RATES = (0.1, 0.5, 1.0)  # alarms per hour of the table
LOWEST_LOG_ODDS, HIGHEST_LOG_ODDS, STEPS = -2.0, 16.0, 241  # of the thresholds that are tried


def thresholds() -> list[float]:
    """Probabilities from 0.12 to 1, evenly spaced in their log odds: models are mostly certain."""
    log_odds = np.linspace(LOWEST_LOG_ODDS, HIGHEST_LOG_ODDS, STEPS)
    return [*(1 / (1 + np.exp(-log_odds))).tolist(), 1.0]


@dataclass(frozen=True)
class Point:
    """One threshold.

    Attributes:
        threshold: Smallest smoothed probability of a hit.
        alarms: Hits in audio without keywords.
        per_hour: Alarms per hour.
        interval: Its 95 % interval, see `poisson_interval`.
        misses: Share of the keywords without a hit, by their level in dB.
    """

    threshold: float
    alarms: int
    per_hour: float
    interval: tuple[float, float]
    misses: dict[str, float]


@dataclass(frozen=True)
class Alarms:
    """A measurement.

    Attributes:
        hours: Of the audio.
        points: From the smallest threshold to the largest.
        keywords: The number of keywords that were mixed into the audio, at each level.
        labels: The alarms of each keyword at the threshold for the largest of `RATES` that is reached.
        speed: Hours of audio in an hour of one core.
    """

    hours: float
    points: list[Point]
    keywords: int
    labels: dict[str, int]
    speed: float

    def at(self, rate: float) -> Point | None:
        """The smallest threshold from which on there are at most ``rate`` alarms per hour; None: there is none."""
        return _point_at(self.points, rate)

    def to_json(self) -> dict[str, Any]:
        def row(point: Point | None) -> dict[str, Any] | None:
            return None if point is None else {**vars(point), "interval": list(point.interval)}

        table = {f"{rate:g}": row(self.at(rate)) for rate in RATES}
        rest = {"keywords": self.keywords, "labels": self.labels, "speed": round(self.speed, 1)}
        return {"hours": self.hours, "table": table, **rest, "curve": [row(point) for point in self.points]}


def _point_at(points: Sequence[Point], rate: float) -> Point | None:
    chosen = None
    for point in reversed(points):
        if point.per_hour > rate:
            break
        chosen = point
    return chosen


def audio_of(path: Path) -> list[Path]:
    """The file, or all audio files of a folder and its subfolders. Raises UserError if there is none."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise UserError(f"--audio {path}: no such file or folder")
    if not (files := audio_files(path, "--audio")):
        raise UserError(f"--audio {path}: holds no audio files")
    return files


def blocks_of(files: Sequence[Path]) -> Iterator[NDArray[np.float32]]:
    """The files, one after another, as one stream: blocks ``(samples,)`` at 16 kHz."""
    for file in files:
        yield from recording_blocks(file)


def _endless(files: Sequence[Path]) -> Iterator[NDArray[np.float32]]:
    while True:
        yield from blocks_of(files)


def measure(
    stream: Stream,
    files: Sequence[Path],
    clips: Sequence[Clip] = (),
    levels: Sequence[float] = (),
    owner: Enrolment | None = None,
    false_accepts: float = 0.01,
) -> Alarms:
    """Run a stream once over audio without keywords, and once for each level over audio with keywords.

    The scores of each hop are recorded, and the thresholds applied to them: `Stream.listen` with such a threshold
    reports the same hits.

    Args:
        files: Audio in which the keywords are not said; each hit in it is an alarm.
        clips: Keywords that are mixed into the audio.
        levels: In dB, see `Mix`.
        owner, false_accepts: See `Stream.listen`.
    """
    of_audio = record(stream, blocks_of(files), owner, false_accepts, "audio")
    if not of_audio.seconds:
        raise UserError(f"--audio: is shorter than {of_audio.hop} s")
    mixes: dict[str, tuple[Mix, Trace]] = {}
    for level in levels if clips else ():
        mix = Mix(clips, level)
        trace = record(stream, mix.blocks(_endless(files)), owner, false_accepts, f"keywords at {level:g} dB")
        mixes[f"{level:g}"] = mix, trace
    points = [_point(threshold, of_audio, mixes) for threshold in thresholds()]
    reached = next((point for rate in reversed(RATES) if (point := _point_at(points, rate)) is not None), points[-1])
    labels = Counter(label for _, label in of_audio.hits(reached.threshold))
    speed = of_audio.seconds / max(of_audio.cpu_seconds, 1e-9)
    return Alarms(of_audio.seconds / 3600, points, len(clips), dict(labels.most_common()), speed)


def _point(threshold: float, of_audio: Trace, mixes: Mapping[str, tuple[Mix, Trace]]) -> Point:
    alarms, hours = len(of_audio.hits(threshold)), of_audio.seconds / 3600
    low, high = poisson_interval(alarms)
    misses = {level: mix.misses(trace.hits(threshold)) / len(mix.spoken) for level, (mix, trace) in mixes.items()}
    return Point(threshold, alarms, alarms / hours, (low / hours, high / hours), misses)


def check_writable(stream: Stream) -> None:
    """Raise UserError if a stream's file is part of the installed package."""
    file = stream.model.file
    if MODELS in file.resolve().parents:
        name = file.parent.name
        copy = f"`distilled-student export {name} --int8 --streaming -o {name}-stream.onnx`"
        raise UserError(f"--write: {name} is part of the package; make a copy of it, and give this file: {copy}")


def write_threshold(stream: Stream, threshold: float) -> None:
    """Put a threshold, and the detector's settings that it was measured with, into the stream's file.

    Raises:
        UserError: the file cannot be written.
    """
    from distilled_student.onnx import write_metadata

    settings = replace(stream.detector.settings, threshold=threshold)
    try:
        write_metadata(stream.model.file, {DETECTOR: settings.to_json()})
    except (OSError, ValueError) as error:
        raise UserError(f"--write {stream.model.file}: {error}") from None


def needed_hours(rate: float) -> float:
    """Hours without an alarm that show, with 95 %, that there are at most ``rate`` per hour."""
    return -math.log(0.05) / rate
