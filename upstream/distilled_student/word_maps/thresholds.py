"""The other words and the thresholds of `WordMaps`, measured on clips of many words and on running speech."""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from distilled_student.common.sample_rate import SAMPLE_RATE
from distilled_student.corpora.keywords import UNKNOWN
from distilled_student.onnx import Model
from distilled_student.onnx.speakers import unit_length
from distilled_student.onnx.words import ALARM_SECONDS, CONCATENATED, LARGEST, SPEECH_FRAMES, WordMaps
from distilled_student.word_maps.clips import Clip
from distilled_student.word_maps.network import SECONDS, STRIP

UNKNOWN_OTHERS = 200  # clips of unknown words that the file holds
RUNNING_OTHERS = 2500  # parts of running speech that the file holds; with fewer, alarms in streams are more frequent
RATES = (0.001, 0.01, 0.05, 0.2)
RUNNING_STRIPS = 345  # that are read: 46 minutes
KEPT_STRIPS = 60  # of running speech in the file, for the levels of words
ALARMS = (0.5, 1.0, 2.0, 5.0, 15.0, 50.0)  # in an hour
ENROLLED = (1, 3, 5)


class Running(NamedTuple):
    """Running speech: the network's features of strips ``(frames, width)``, and frames in a second."""

    strips: Sequence[NDArray]
    rate: float


def encode_running(model: Model, maps: WordMaps, strips: Sequence[NDArray[np.float32]]) -> Running:
    """The features of strips ``(STRIP,)`` of samples, of equal length."""
    stream, found = model.stream(), []
    for strip in strips:
        stream.reset()
        found.append(maps.encode(stream.advance(strip)[CONCATENATED])[0])
    return Running(found, len(found[0]) * SAMPLE_RATE / STRIP)


def with_thresholds(maps: WordMaps, clips: Sequence[Clip], running: Running, seed: int = 0) -> WordMaps:
    """The maps with other words, running speech and thresholds.

    Args:
        clips: Of labelled words, and of `UNKNOWN`.
        running: At least three strips. Parts of the first and every third one after it become other words, the second
            and so on are kept in the file, and the others give the margins of streams.

    Raises:
        ValueError: there are too few speakers.
    """
    labelled = [clip for clip in clips if clip.word != UNKNOWN]
    words = sorted({clip.word for clip in labelled})
    shuffled = list(words)
    random.Random(seed).shuffle(shuffled)
    tested = set(shuffled[::3])
    parts = parts_of_speech(maps, running._replace(strips=running.strips[::3]), seed)
    speech = np.stack([mean_frames(strip) for strip in running.strips[1::3][:KEPT_STRIPS]])
    others = np.concatenate([other_words(maps, clips, seed), parts])
    # a word is compared with other words of the file, which a word of one's own is not one of
    same = [row for row, word in enumerate(words) if word in tested]
    rest = replace(maps, others=np.delete(others, same, axis=0), speech=speech, rate=running.rate)
    groups = [list(draw_groups(labelled, tested, seed, is_one_speaker)) for is_one_speaker in (False, True)]
    if not groups[0]:
        raise ValueError("too few clips: thresholds need words with clips of six speakers")
    of_many, of_one = (trial_scores(rest, labelled, some, seed) for some in groups)
    alarms = fit_margins(rest, [group for some in groups for group in some], running.strips[2::3])
    return replace(rest, others=others, **fit_thresholds(of_many, of_one), **alarms)


def mean_frames(strip: NDArray) -> NDArray[np.float32]:
    """The means of `SPEECH_FRAMES` successive frames each."""
    return strip[: len(strip) // SPEECH_FRAMES * SPEECH_FRAMES].reshape(-1, SPEECH_FRAMES, strip.shape[1]).mean(axis=1)


def parts_of_speech(maps: WordMaps, running: Running, seed: int) -> NDArray[np.float32]:
    """Vectors of `RUNNING_OTHERS` random parts of running speech, about as long as words."""
    rng, found = np.random.default_rng(seed), []
    for index in rng.integers(len(running.strips), size=RUNNING_OTHERS):
        strip, frames = running.strips[index], rng.uniform(*SECONDS) * running.rate
        start = rng.uniform(0, max(0.0, len(strip) - frames))
        found.append(maps.vectors(strip, np.array([start]), np.array([min(start + frames, len(strip))]))[0])
    return np.stack(found)


def other_words(maps: WordMaps, clips: Sequence[Clip], seed: int) -> NDArray[np.float32]:
    """The mean vector of each word, sorted by word, and vectors of `UNKNOWN_OTHERS` unknown words."""
    by_word = defaultdict(list)
    for clip in clips:
        by_word[clip.word].append(clip)
    unknown = by_word.pop(UNKNOWN, [])
    unknown = random.Random(seed).sample(unknown, min(UNKNOWN_OTHERS, len(unknown)))
    means = [
        unit_length(np.mean([maps.clip_vector(clip.recording) for clip in same], axis=0))
        for _, same in sorted(by_word.items())
    ]
    return np.stack([*means, *(maps.clip_vector(clip.recording) for clip in unknown)])


class Group(NamedTuple):
    """Clips of a word that are enrolled, and others of it that are tested; ``speaker``: of all of them, or empty."""

    word: str
    speaker: str
    enrolled: list[Clip]
    tested: list[Clip]


def draw_groups(clips: Sequence[Clip], words: set[str], seed: int, is_one_speaker: bool) -> Iterator[Group]:
    """Groups of clips of ``words``: each of one speaker, or of a clip of each of several, with others in the test."""
    rng, most = random.Random(seed), 24 if is_one_speaker else 12
    found = defaultdict(list)
    for clip in clips:
        found[clip.word, clip.speaker if is_one_speaker else ""].append(clip)
    needed = 3 if is_one_speaker else max(ENROLLED) + 1
    for word, speaker in rng.sample(sorted(found), len(found)):
        group = rng.sample(found[word, speaker], len(found[word, speaker]))
        if not is_one_speaker:
            group = list({clip.speaker: clip for clip in group}.values())
        if word in words and len(group) >= needed and most:
            most -= 1
            yield Group(word, speaker, group[: max(ENROLLED)], group[max(ENROLLED) :][:30])


class Trials(NamedTuple):
    """By the number of enrolled clips: scores of clips of a word and of other words, and agreements of templates."""

    same: dict[int, NDArray]
    other: dict[int, NDArray]
    agreements: dict[int, NDArray]


def trial_scores(maps: WordMaps, clips: Sequence[Clip], groups: Sequence[Group], seed: int) -> Trials:
    """Scores of the groups' templates for their tested clips, and for clips of other words, of the same speaker if
    that is said.

    Args:
        maps: Without the groups' words among its other words.
    """
    rng = random.Random(seed)
    same, other, agreements = defaultdict(list), defaultdict(list), defaultdict(list)
    for word, speaker, enrolled, tested in groups:
        others = [clip for clip in clips if clip.word != word and speaker in ("", clip.speaker)]
        found = {count: maps.word([clip.recording for clip in enrolled[:count]]) for count in ENROLLED}
        found = {count: word._replace(frames=found[max(ENROLLED)].frames) for count, word in found.items()}
        for count, template in found.items():
            agreements[count].append(template.agreement)
        most = 100 if speaker else 250
        for target, tests in ((same, tested), (other, rng.sample(others, min(most, len(others))))):
            for clip in tests:
                for count, value in maps.best_differences(found, clip.hidden).items():
                    target[count].append(value)
    return Trials(*({count: np.array(values[count]) for count in ENROLLED} for values in (same, other, agreements)))


def fit_margins(maps: WordMaps, groups: Sequence[Group], speech: Sequence[NDArray]) -> dict[str, Any]:
    """The fields of `WordMaps` for streams: what running speech reaches above the level of a word.

    The quarter of the words that reach most is left out: some of them occur in the speech.

    Args:
        speech: Features of other running speech than that of the maps.
    """
    by_word = []
    for group in groups:
        word = maps.word([clip.recording for clip in group.enrolled])
        found = np.concatenate([maps.largest_differences(word, strip) for strip in speech])
        by_word.append(np.sort(found)[::-1] - maps.level(word))
    by_word.sort(key=lambda differences: differences[:LARGEST].mean())
    shares = 1 - np.array(ALARMS) * ALARM_SECONDS / 3600
    margins = np.quantile(np.concatenate(by_word[: math.ceil(0.75 * len(by_word))]), shares)
    return {"alarms": np.array(ALARMS, np.float32), "margins": margins.astype(np.float32)}


def fit_thresholds(of_many: Trials, of_one: Trials) -> dict[str, Any]:
    """The fields of `WordMaps` that say which score is accepted.

    The log-likelihood ratio of two normal distributions of the same variance is linear in the score: hence the slope.
    Without clips of one speaker the thresholds of many are taken. Else those of many are moved half of the way to those
    of one: other corpora have more similar words than those that the maps were fitted to.
    """
    found = [of_many, of_one if len(of_one.other[1]) else of_many]
    thresholds = [[[np.quantile(trials.other[n], 1 - rate) for n in ENROLLED] for rate in RATES] for trials in found]
    thresholds[0] = list(np.mean(thresholds, axis=0))
    same, other = of_many.same[max(ENROLLED)], of_many.other[max(ENROLLED)]
    return {
        "clips": np.array(ENROLLED, np.float32),
        "rates": np.array(RATES, np.float32),
        "thresholds": np.array(thresholds, np.float32),
        "agreements": np.array([[trials.agreements[n].mean() for n in ENROLLED] for trials in found], np.float32),
        "slope": float((same.mean() - other.mean()) / ((same.var() + other.var()) / 2)),
    }
