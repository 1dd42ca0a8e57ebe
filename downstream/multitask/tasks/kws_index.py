"""The index behind keyword spotting: which utterance is in which set, TensorFlow's classic one or SUPERB's."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distilled_student.common import audio
from distilled_student.common.errors import UserError
from distilled_student.corpora.keywords import BACKGROUND, SILENCE, UNKNOWN, which_set

if TYPE_CHECKING:
    from distilled_student.multitask.tasks.kws import Settings


@dataclass(frozen=True)
class Clip:
    """An utterance; ``volume`` is None for speech, and for silence what a second from ``start`` is multiplied by."""

    path: Path
    label: int
    key: str
    start: float = 0.0
    volume: float | None = None


def class_index(settings: Settings, seed: int, key: str) -> tuple[dict[str, list[Clip]], list[Path]]:
    """The classic index: keyword utterances of each set, then unknown and silence, each a percentage of them.

    Follows ``prepare_data_index`` of TensorFlow's speech_commands/input_data.py in what it counts; the draw of unknown
    utterances is seeded. Silent clips of training are cut afresh at each pass, so theirs have no place yet. With None
    for both percentages the index is SUPERB's (s3prl, downstream/speech_commands): every word and each noise file.

    Raises:
        UserError: no folder, a keyword without files, or no background noise to cut silence from.
    """
    root = Path(settings.train_root)
    if not root.is_dir():
        raise UserError(f"{key}.train_root: {root}: no such folder")
    labels = {word: i for i, word in enumerate([SILENCE, UNKNOWN, *settings.keywords])}
    sets: dict[str, list[Clip]] = {"validation": [], "testing": [], "training": []}
    unknown: dict[str, list[Clip]] = {name: [] for name in sets}
    for path in sorted(p for p in root.glob("*/*") if p.suffix.lower() in audio.SUFFIXES):
        word = path.parent.name.lower()
        if word == BACKGROUND:
            continue
        part = which_set(path.name, settings.validation_percentage, settings.testing_percentage)
        known = word in settings.keywords
        clip = Clip(path, labels[word if known else UNKNOWN], f"{path.parent.name}/{path.name}")
        (sets if known else unknown)[part].append(clip)
    found = {clip.label for clips in sets.values() for clip in clips}
    for word in settings.keywords:
        if labels[word] not in found:
            raise UserError(f"{key}.keywords: {root / word}: class '{word}' has no files")
    if settings.unknown_percentage != 0 and not any(unknown.values()):
        raise UserError(
            f"{key}.unknown_percentage: {root}: class '{UNKNOWN}' has no files: no word beside the keywords"
        )
    noises = sorted(p for p in (root / BACKGROUND).glob("*") if p.suffix.lower() in audio.SUFFIXES)
    if settings.silence_percentage != 0 and not noises:
        raise UserError(f"{key}.silence_percentage: {root / BACKGROUND}: no files to cut silence from")
    for part, clips in sets.items():
        rng = random.Random(f"{seed} {part}")
        size = len(clips)
        rng.shuffle(unknown[part])
        clips += unknown[part][: _share(size, settings.unknown_percentage)]
        silent = _share(size, settings.silence_percentage)
        for i, files in enumerate([[noise] for noise in noises] if silent is None else [noises] * silent):
            place = cut_silence(files, settings, rng)
            clips.append(Clip(place[0], labels[SILENCE], f"{SILENCE}/{i:05d}", place[1], place[2]))
    return sets, noises


def _share(size: int, percentage: float | None) -> int | None:
    """``percentage`` of ``size``, rounded up; None for all that there are."""
    return None if percentage is None else math.ceil(size * percentage / 100)


def cut_silence(noises: Sequence[Path], settings: Settings, rng: Any) -> tuple[Path, float, float]:
    """A random file, start in seconds and volume; ``rng`` is Python's or numpy's generator."""
    path = noises[int(rng.random() * len(noises))]
    spare = max(0.0, audio.seconds(path) - settings.crop_seconds)
    return path, rng.uniform(0.0, spare), rng.uniform(*settings.silence_volume)


def test_index(settings: Settings, key: str) -> list[Clip]:
    """The test archive's layout: a folder per class. Raises UserError naming a class without files."""
    root = Path(str(settings.test_root))
    if not root.is_dir():
        raise UserError(f"{key}.test_root: {root}: no such folder")
    clips = []
    for label, word in enumerate([SILENCE, UNKNOWN, *settings.keywords]):
        files = sorted(p for p in (root / word).glob("*") if p.suffix.lower() in audio.SUFFIXES)
        if not files:
            raise UserError(f"{key}.test_root: {root / word}: class '{word}' has no files")
        clips += [Clip(path, label, f"{word}/{path.name}") for path in files]
    return clips


test_index.__test__ = False  # type: ignore[attr-defined]  # its name is the field's; pytest must not collect it
