"""The index of keyword spotting: the utterances of each set, as in TensorFlow's classic index or as in SUPERB."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distilled_student.common import audio
from distilled_student.common.errors import UserError
from distilled_student.corpora.keywords import BACKGROUND, SILENCE, UNKNOWN, which_set

if TYPE_CHECKING:
    from distilled_student.multitask.tasks.kws import Settings


@dataclass(frozen=True)
class KeywordClip:
    """An utterance with its class and its name.

    Attributes:
        start, volume: Of silence, which is cut from background noise: where it starts in the file, in seconds, and what
            it is multiplied by. ``volume`` is None for speech, which is a whole file.
    """

    path: Path
    label: int
    key: str
    start: float = 0.0
    volume: float | None = None


def class_index(settings: Settings, seed: int, key: str) -> tuple[dict[str, list[KeywordClip]], list[Path]]:
    """The clips of the sets ``validation``, ``testing`` and ``training``, and the background noises.

    A set has its keyword utterances, then unknown and silent ones, each as many as a percentage of the keyword
    utterances. The numbers are those of ``prepare_data_index`` in TensorFlow's speech_commands/input_data.py; the seed
    chooses the unknown utterances. Training cuts its silence again in each pass. With None for both percentages the
    index is SUPERB's (s3prl, downstream/speech_commands): every word and each noise file.

    Raises:
        UserError: no folder, a keyword without files, or no background noise to cut silence from.
    """
    root = Path(settings.train_root)
    if not root.is_dir():
        raise UserError(f"{key}.train_root: {root}: no such folder")
    labels = {word: i for i, word in enumerate([SILENCE, UNKNOWN, *settings.keywords])}
    sets, unknown = _read_words(root, settings, labels)
    found = {clip.label for clips in sets.values() for clip in clips}
    for word in settings.keywords:
        if labels[word] not in found:
            raise UserError(f"{key}.keywords: {root / word}: class '{word}' has no files")
    if settings.unknown_percentage != 0 and not any(unknown.values()):
        reason = f"class '{UNKNOWN}' has no files: all words are keywords"
        raise UserError(f"{key}.unknown_percentage: {root}: {reason}")
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
            noise, start, volume = cut_silence(files, settings, rng)
            clips.append(KeywordClip(noise, labels[SILENCE], f"{SILENCE}/{i:05d}", start, volume))
    return sets, noises


def _read_words(
    root: Path, settings: Settings, labels: Mapping[str, int]
) -> tuple[dict[str, list[KeywordClip]], dict[str, list[KeywordClip]]]:
    """The keyword utterances of each set, and the utterances of all other words of each set."""
    sets: dict[str, list[KeywordClip]] = {"validation": [], "testing": [], "training": []}
    unknown: dict[str, list[KeywordClip]] = {name: [] for name in sets}
    for path in sorted(p for p in root.glob("*/*") if p.suffix.lower() in audio.SUFFIXES):
        word = path.parent.name.lower()
        if word == BACKGROUND:
            continue
        part = which_set(path.name, settings.validation_percentage, settings.testing_percentage)
        known = word in settings.keywords
        clip = KeywordClip(path, labels[word if known else UNKNOWN], f"{path.parent.name}/{path.name}")
        (sets if known else unknown)[part].append(clip)
    return sets, unknown


def _share(size: int, percentage: float | None) -> int | None:
    """``percentage`` of ``size``, rounded up; None stands for all."""
    return None if percentage is None else math.ceil(size * percentage / 100)


def cut_silence(noises: Sequence[Path], settings: Settings, rng: Any) -> tuple[Path, float, float]:
    """A random file, start in seconds and volume; ``rng`` is a generator of Python or numpy."""
    path = noises[int(rng.random() * len(noises))]
    spare = max(0.0, audio.seconds(path) - settings.crop_seconds)
    return path, rng.uniform(0.0, spare), rng.uniform(*settings.silence_volume)


def test_index(settings: Settings, key: str) -> list[KeywordClip]:
    """The clips of the test archive, which has a folder per class. Raises UserError naming a class without files."""
    root = Path(str(settings.test_root))
    if not root.is_dir():
        raise UserError(f"{key}.test_root: {root}: no such folder")
    clips = []
    for label, word in enumerate([SILENCE, UNKNOWN, *settings.keywords]):
        files = sorted(p for p in (root / word).glob("*") if p.suffix.lower() in audio.SUFFIXES)
        if not files:
            raise UserError(f"{key}.test_root: {root / word}: class '{word}' has no files")
        clips += [KeywordClip(path, label, f"{word}/{path.name}") for path in files]
    return clips


test_index.__test__ = False  # type: ignore[attr-defined]  # pytest must not collect it as a test
