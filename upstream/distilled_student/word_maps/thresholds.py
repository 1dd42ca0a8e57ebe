"""The other words and the thresholds of `WordMaps`, measured on clips of many words."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from distilled_student.corpora.keywords import UNKNOWN
from distilled_student.onnx.speakers import unit_length
from distilled_student.onnx.words import WordMaps
from distilled_student.word_maps.clips import Clip

UNKNOWN_OTHERS = 200  # clips of unknown words that the file holds
RATES = (0.001, 0.01, 0.05, 0.2)
ENROLLED = (1, 3, 5)


def with_thresholds(maps: WordMaps, clips: Sequence[Clip], seed: int = 0) -> WordMaps:
    """The maps with other words and thresholds.

    Args:
        clips: Of labelled words, and of `UNKNOWN`.

    Raises:
        ValueError: there are too few speakers.
    """
    labelled = [clip for clip in clips if clip.word != UNKNOWN]
    words = sorted({clip.word for clip in labelled})
    random.Random(seed).shuffle(words)
    tested = set(words[::3])
    # a word is compared with other words of the file, which a word of one's own is not one of
    rest = replace(maps, others=other_words(maps, [clip for clip in clips if clip.word not in tested], seed))
    of_many = trial_scores(rest, labelled, tested, seed)
    of_one = trial_scores(rest, labelled, tested, seed, is_one_speaker=True)
    return replace(maps, others=other_words(maps, clips, seed), **fit_thresholds(of_many, of_one))


def other_words(maps: WordMaps, clips: Sequence[Clip], seed: int) -> NDArray[np.float32]:
    """The mean vector of each word, and vectors of `UNKNOWN_OTHERS` unknown words."""
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


class Trials(NamedTuple):
    """By the number of enrolled clips: scores of clips of a word and of other words, and agreements of templates."""

    same: dict[int, NDArray]
    other: dict[int, NDArray]
    agreements: dict[int, NDArray]


def trial_scores(
    maps: WordMaps, clips: Sequence[Clip], words: set[str], seed: int, is_one_speaker: bool = False
) -> Trials:
    """Scores of templates of ``words``.

    Args:
        maps: Without ``words`` among its other words.
        is_one_speaker: Enrolment, other clips of the word and other words are of one speaker. Else a template is of
            clips of different speakers, and is compared with clips of others.
    """
    rng, (most_templates, most_others) = random.Random(seed), (24, 100) if is_one_speaker else (12, 250)
    groups = defaultdict(list)
    for clip in clips:
        groups[clip.word, clip.speaker if is_one_speaker else ""].append(clip)
    same, other, agreements = defaultdict(list), defaultdict(list), defaultdict(list)
    templates = 0
    for word, speaker in rng.sample(sorted(groups), len(groups)):
        group = rng.sample(groups[word, speaker], len(groups[word, speaker]))
        if not is_one_speaker:
            group = list({clip.speaker: clip for clip in group}.values())
        needed = 3 if is_one_speaker else max(ENROLLED) + 1
        if word not in words or len(group) < needed or templates == most_templates:
            continue
        templates += 1
        others = [clip for clip in clips if clip.word != word and (not is_one_speaker or clip.speaker == speaker)]
        enrolled, tested = group[: max(ENROLLED)], group[max(ENROLLED) :][:30]
        found = {count: maps.word([clip.recording for clip in enrolled[:count]]) for count in ENROLLED}
        found = {count: word._replace(frames=found[max(ENROLLED)].frames) for count, word in found.items()}
        for count, template in found.items():
            agreements[count].append(template.agreement)
        for target, tests in ((same, tested), (other, rng.sample(others, min(most_others, len(others))))):
            for clip in tests:
                for count, value in maps.best_differences(found, clip.hidden).items():
                    target[count].append(value)
    return Trials(*({count: np.array(values[count]) for count in ENROLLED} for values in (same, other, agreements)))


def fit_thresholds(of_many: Trials, of_one: Trials) -> dict[str, Any]:
    """The fields of `WordMaps` that say which score is accepted.

    The log-likelihood ratio of two normal distributions of the same variance is linear in the score: hence the slope.
    Without clips of one speaker the thresholds of many are taken. Else those of many are moved half of the way to those
    of one: other corpora have more similar words than those that the maps were fitted to.
    """
    if not len(of_many.other[1]):
        raise ValueError("too few clips: thresholds need words with clips of six speakers")
    found = [of_many, of_one if len(of_one.other[1]) else of_many]
    thresholds = [[[np.quantile(trials.other[n], 1 - rate) for n in ENROLLED] for rate in RATES] for trials in found]
    thresholds[0] = list(np.mean(thresholds, axis=0))
    same, other = of_many.same[max(ENROLLED)], of_many.other[max(ENROLLED)]
    return {
        "rates": np.array(RATES, np.float32),
        "clips": np.array(ENROLLED, np.float32),
        "thresholds": np.array(thresholds, np.float32),
        "agreements": np.array([[trials.agreements[n].mean() for n in ENROLLED] for trials in found], np.float32),
        "slope": float((same.mean() - other.mean()) / ((same.var() + other.var()) / 2)),
    }
