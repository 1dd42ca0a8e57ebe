"""Measures the false alarms of a keyword spotter per hour of audio, and its misses, at each threshold."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from distilled_student.common.audio_folders import audio_files
from distilled_student.common.errors import UserError
from distilled_student.common.shipped_models import MODELS
from distilled_student.device.keyword_mix import Clip, Mix, mixed_seconds
from distilled_student.device.recordings import check_readable, recording_blocks
from distilled_student.device.traces import Trace, poisson_interval, record
from distilled_student.onnx.detector import HOP_SECONDS
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
class Curve:
    """Alarms and misses at each threshold, of the model's keywords or of the words of one's own.

    Attributes:
        points: From the smallest threshold to the largest.
        keywords: The number of them that were mixed into the audio, at each level.
        labels: The alarms of each at the threshold for the largest of `RATES` that is reached.
    """

    points: list[Point]
    keywords: int
    labels: dict[str, int]

    def at(self, rate: float) -> Point | None:
        """The smallest threshold from which on there are at most ``rate`` alarms per hour; None: there is none.

        If keywords were mixed in, a larger one with fewer misses is taken. With an owner there is one: at a low
        threshold a keyword is decided when it has just begun, and too little of it is there to tell who speaks.
        """
        kept = []
        for point in reversed(self.points):
            if point.per_hour > rate:
                break
            kept.append(point)
        return min(reversed(kept), key=lambda point: sum(point.misses.values()), default=None)

    @property
    def rate_of_labels(self) -> float | None:
        """The largest of `RATES` that is reached, which ``labels`` are counted at; None: the largest threshold."""
        return next((rate for rate in reversed(RATES) if self.at(rate) is not None), None)

    def to_json(self) -> dict[str, Any]:
        def row(point: Point | None) -> dict[str, Any] | None:
            return None if point is None else {**vars(point), "interval": list(point.interval)}

        table = {f"{rate:g}": row(self.at(rate)) for rate in RATES}
        curve = [row(point) for point in self.points]
        return {"table": table, "keywords": self.keywords, "labels": self.labels, "curve": curve}


@dataclass(frozen=True)
class Alarms:
    """A measurement.

    Attributes:
        hours: Of the audio.
        of_keywords: Of the model's keywords; words of one's own are not reported then.
        of_words: Of the words of one's own; keywords are not reported then. None: the stream watches for none.
        speed: Hours of audio in an hour of one core.
    """

    hours: float
    of_keywords: Curve
    of_words: Curve | None
    speed: float

    def allows(self, threshold: float, rate: float, now: float | None) -> bool:
        """Whether there is enough audio for this threshold of keywords instead of that of ``now``.

        A lower one needs as many hours as one alarm at ``rate`` per hour takes.
        """
        return now is None or threshold >= now or self.hours * rate >= 1

    def to_json(self) -> dict[str, Any]:
        found = {"hours": self.hours, **self.of_keywords.to_json(), "speed": round(self.speed, 1)}
        return found if self.of_words is None else found | {"own_words": self.of_words.to_json()}


def audio_of(path: Path, option: str = "--audio") -> tuple[list[Path], float]:
    """The file, or all audio files of a folder and its subfolders, and their seconds.

    Raises:
        UserError: there is none, one of them cannot be read, or they are shorter than a hop of a stream.
    """
    if not path.exists():
        raise UserError(f"{option} {path}: no such file or folder")
    files = [path] if path.is_file() else audio_files(path, option)
    if not files:
        raise UserError(f"{option} {path}: holds no audio files")
    if (seconds := check_readable(files)) < HOP_SECONDS:
        raise UserError(f"{option} {path}: is shorter than {HOP_SECONDS} s: give hours of audio")
    return files, seconds


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
    where: str = "--audio",
    seconds: float | None = None,
) -> Alarms:
    """Run a stream once over audio without keywords, and once for each level over audio with keywords.

    The scores of each hop are recorded, and the thresholds applied to them: `Stream.listen` with such a threshold
    reports the same hits.

    Args:
        stream: Words of one's own that it watches for are counted apart from the keywords.
        files: Audio in which the keywords are not said; each hit in it is an alarm.
        clips: Keywords and words of one's own that are mixed into the audio.
        levels: In dB, see `Mix`.
        owner, false_accepts: See `Stream.listen`.
        where: The option that ``files`` come from, for messages.
        seconds: Of ``files``, for the progress; None: not known.
    """
    of_audio = record(stream, blocks_of(files), owner, false_accepts, "audio", seconds)
    if not of_audio.seconds:
        raise UserError(f"{where}: is shorter than {of_audio.hop} s: give hours of audio")
    mixes: dict[str, tuple[Mix, Trace]] = {}
    of_mix = mixed_seconds(clips)
    for level in levels if clips else ():
        mix = Mix(clips, level)
        name = f"keywords at {level:g} dB"
        trace = record(stream, mix.blocks(_endless(files)), owner, false_accepts, name, of_mix)
        mixes[f"{level:g}"] = mix, trace
    keywords = {label for label in stream.detector.labels if not label.startswith("_")}
    words = {clip.label for clip in clips} - keywords
    recorded = _Recorded(of_audio, mixes)
    speed = of_audio.seconds / max(of_audio.cpu_seconds, 1e-9)
    now = stream.detector.settings
    of_words = None if of_audio.word_labels is None else recorded.curve(words, now.word_threshold, is_of_words=True)
    return Alarms(of_audio.seconds / 3600, recorded.curve(keywords, now.threshold), of_words, speed)


class _Recorded(NamedTuple):
    """The streams of `measure`: the audio alone, and by level in dB the audio with keywords in it."""

    of_audio: Trace
    mixes: Mapping[str, tuple[Mix, Trace]]

    def curve(self, labels: Collection[str], now: float | None, is_of_words: bool = False) -> Curve:
        """Alarms of keywords or of words of one's own, and misses of those that have these labels.

        Args:
            now: The present threshold, which is tried too; None: there is none.
        """
        tried = thresholds()
        if now is not None and tried[0] <= now <= 1:
            tried = sorted({*tried, now})
        points = [self._point(threshold, labels, is_of_words) for threshold in tried]
        curve = Curve(points, 0, {})
        rate = curve.rate_of_labels
        reached = points[-1] if rate is None else curve.at(rate)
        counts = Counter(label for _, label in _hits(self.of_audio, reached.threshold, is_of_words))
        spoken = max((_count(mix, labels) for mix, _ in self.mixes.values()), default=0)
        return Curve(points, spoken, dict(counts.most_common()))

    def _point(self, threshold: float, labels: Collection[str], is_of_words: bool) -> Point:
        alarms, hours = len(_hits(self.of_audio, threshold, is_of_words)), self.of_audio.seconds / 3600
        low, high = poisson_interval(alarms)
        misses = {
            level: mix.misses(_hits(trace, threshold, is_of_words), labels) / count
            for level, (mix, trace) in self.mixes.items()
            if (count := _count(mix, labels))
        }
        return Point(threshold, alarms, alarms / hours, (low / hours, high / hours), misses)


def _hits(trace: Trace, threshold: float, is_of_words: bool) -> list[tuple[float, str]]:
    return trace.hits(math.inf, threshold) if is_of_words else trace.hits(threshold)


def _count(mix: Mix, labels: Collection[str]) -> int:
    return sum(spoken.label in labels for spoken in mix.spoken)


def check_writable(stream: Stream) -> None:
    """Raise UserError if a stream's file is part of the installed package."""
    file = stream.model.file
    if MODELS in file.resolve().parents:
        name = file.parent.name
        copy = f"`distilled-student export {name} --int8 --streaming -o {name}-stream.onnx`"
        raise UserError(f"--write: {name} is part of the package; make a copy of it, and give this file: {copy}")


def write_threshold(stream: Stream, threshold: float, word_threshold: float | None = None) -> None:
    """Put a threshold, and the detector's settings that it was measured with, into the stream's file.

    Args:
        word_threshold: Of words of one's own; None: it stays.

    Raises:
        UserError: the file cannot be written.
    """
    from distilled_student.onnx import write_metadata

    settings = replace(stream.detector.settings, threshold=threshold)
    if word_threshold is not None:
        settings = replace(settings, word_threshold=word_threshold)
    try:
        write_metadata(stream.model.file, {DETECTOR: settings.to_json()})
    except (OSError, ValueError) as error:
        raise UserError(f"--write {stream.model.file}: {error}") from None


def needed_hours(rate: float) -> float:
    """Hours without an alarm that show, with 95 %, that there are at most ``rate`` per hour."""
    return -math.log(0.05) / rate


def choose_threshold(file: Path, audio: Path, rate: float) -> str:
    """Measure the false alarms of a new stream and put the threshold for ``rate`` per hour into its file.

    Less audio than one alarm at this rate takes says nothing of lower thresholds than that of the file, which is kept
    then, unless the audio asks for a higher one.

    Returns:
        What was measured and chosen, for a message.

    Raises:
        UserError: see `measure`; or no threshold has so few alarms.
    """
    from distilled_student.onnx import Stream

    stream = Stream(file)
    files, seconds = audio_of(audio, "--alarms")
    found = measure(stream, files, where=f"--alarms {audio}", seconds=seconds)
    point, default = found.of_keywords.at(rate), stream.detector.settings.threshold
    if point is None:
        raise UserError(
            f"--alarms {audio}: no threshold has at most {rate:g} alarms per hour; the file has the default"
        )
    threshold = point.threshold if found.allows(point.threshold, rate, default) else default
    write_threshold(stream, threshold)
    text = f"{file}: threshold of streams {threshold:.6g}: {point.alarms} alarms in {found.hours:.2f} h of {audio}"
    if threshold > point.threshold:
        text += f" from {point.threshold:.6g} on, too little audio for a threshold below the default"
    return f"{text}; to show {rate:g} per hour takes {needed_hours(rate):.0f} h without an alarm"
