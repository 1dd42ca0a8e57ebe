"""Mixes keyword clips into running audio at a stated level, with the times at which they were spoken."""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from distilled_student.common.audio_folders import audio_files, subfolders
from distilled_student.common.errors import UserError
from distilled_student.common.sample_rate import SAMPLE_RATE
from distilled_student.device.recordings import check_readable, read_recording

GAP_SECONDS = 2.5  # of the audio before each keyword: longer than the window and the hold-off together
LATE_SECONDS = 1.0  # a hit may come as late as this after the end of the clip
FADE_SECONDS = 0.5  # for a change of the audio's level between two keywords
LOUD_SECONDS = 0.5  # the level of a clip is that of its loudest stretch of this length


class Clip(NamedTuple):
    """A file with one keyword."""

    label: str
    file: Path


class Spoken(NamedTuple):
    """A keyword in a mixed stream, from ``begin`` to ``end`` in seconds."""

    label: str
    begin: float
    end: float


def keyword_clips(folder: Path, labels: Sequence[str], per_keyword: int) -> list[Clip]:
    """Clips in ``folder/KEYWORD``, evenly spaced in the order of their names, so that all speakers are among them.

    Raises:
        UserError: no folder has the name of a keyword, or a clip cannot be read.
    """
    keywords = [label for label in labels if not label.startswith("_")]
    folders = {unicodedata.normalize("NFC", path.name): path for path in subfolders(folder, "--keywords")}
    clips = []
    for label in keywords:
        files = audio_files(folders[label], "--keywords") if label in folders else []
        chosen = np.linspace(0, len(files) - 1, min(per_keyword, len(files))).astype(int)
        clips += [Clip(label, files[i]) for i in chosen]
    if not clips:
        found, wanted = ", ".join(sorted(folders)) or "none", ", ".join(keywords)
        raise UserError(f"--keywords {folder}: expected folders named as keywords ({wanted}), found: {found}")
    check_readable(clip.file for clip in clips)
    return clips


def mixed_seconds(clips: Sequence[Clip]) -> float:
    """The length of the stream of a `Mix` of these clips."""
    return check_readable(clip.file for clip in clips) + GAP_SECONDS * (len(clips) + 1)


@dataclass
class Mix:
    """A stream of running audio with keywords in it.

    Attributes:
        clips: What is spoken, in this order.
        level: Of the keywords in dB relative to the audio: the loudest half second of a clip against the mean power of
            the audio before and under it. The clips keep their level; the audio is made softer or louder. Digital
            silence stays.
        spoken: What the stream held so far.
    """

    clips: Sequence[Clip]
    level: float
    spoken: list[Spoken] = field(default_factory=list)

    def blocks(self, audio: Iterator[NDArray[np.float32]]) -> Iterator[NDArray[np.float32]]:
        """The stream ``(samples,)`` in blocks; ``audio`` is as long as it takes."""
        source, position, gain = _Source(audio), 0, None
        for clip in self.clips:
            samples = read_recording(clip.file)
            piece = source.take(round(GAP_SECONDS * SAMPLE_RATE) + len(samples))
            needed = self._gain(piece, samples, clip.file)
            piece, gain = piece * _fade(needed if gain is None else gain, needed, len(piece)), needed
            piece[len(piece) - len(samples) :] += samples
            begin, position = position + len(piece) - len(samples), position + len(piece)
            self.spoken.append(Spoken(clip.label, begin / SAMPLE_RATE, position / SAMPLE_RATE))
            yield piece.clip(-1, 1)
        yield source.take(round(GAP_SECONDS * SAMPLE_RATE)) * np.float32(gain)

    def _gain(self, piece: NDArray[np.float32], samples: NDArray[np.float32], file: Path) -> float:
        """What the audio is multiplied by."""
        of_clip, of_audio = loudest_power(samples), float(np.square(piece, dtype=np.float64).mean())
        if not of_clip:
            raise UserError(f"{file}: is silent")
        return float(np.sqrt(of_clip / of_audio / 10 ** (self.level / 10))) if of_audio > 1e-10 else 1.0

    def misses(self, hits: Iterable[tuple[float, str]], labels: Collection[str] | None = None) -> int:
        """How many of the keywords have no hit with their label, from their beginning to a second after their end.

        Args:
            labels: Count only these keywords; None: all.
        """
        times: dict[str, list[float]] = {}
        for seconds, label in hits:
            times.setdefault(label, []).append(seconds)
        return sum(
            not any(begin < seconds <= end + LATE_SECONDS for seconds in times.get(label, ()))
            for label, begin, end in self.spoken
            if labels is None or label in labels
        )


def loudest_power(samples: NDArray[np.float32]) -> float:
    """The mean square of the loudest `LOUD_SECONDS` of ``(samples,)``, of all samples if there are fewer."""
    length = min(len(samples), round(LOUD_SECONDS * SAMPLE_RATE))
    total = np.concatenate([[0.0], np.square(samples, dtype=np.float64).cumsum()])
    return float((total[length:] - total[:-length]).max()) / length


def _fade(before: float, after: float, count: int) -> NDArray[np.float32]:
    """Gains ``(count,)`` that reach ``after`` within `FADE_SECONDS`, so that the audio does not jump."""
    steps = np.arange(count) / (FADE_SECONDS * SAMPLE_RATE)
    return (before + (after - before) * steps.clip(max=1)).astype(np.float32)


class _Source:
    """Cuts blocks of audio into pieces of any length."""

    def __init__(self, blocks: Iterator[NDArray[np.float32]]) -> None:
        self._blocks, self._rest = blocks, np.zeros(0, np.float32)

    def take(self, count: int) -> NDArray[np.float32]:
        parts, missing = [self._rest], count - len(self._rest)
        while missing > 0:
            parts.append(next(self._blocks))
            missing -= len(parts[-1])
        joined = np.concatenate(parts)
        self._rest = joined[count:]
        return joined[:count]
