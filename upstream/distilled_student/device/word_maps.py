"""Makes the file of a model that words of one's own need: linear maps of hidden states, other words, thresholds.

    python -m distilled_student.device.word_maps MODEL FOLDER... -o words.npz

MODEL is a packed folder with a stream, or ``edge`` or ``tiny``. Each FOLDER is of one language and holds
``WORD/SPEAKER_*.wav``, as Speech Commands does; ``_unknown_`` holds clips of any other words. Two linear discriminant
analyses are fitted: one of the parts of words, which are segments of equal length, and one of whole words, which are
these segments in order. Thresholds are measured on a third of the words with maps of the others, since words of one's
own are unseen too. The maps that are written are fitted to all words.
"""

from __future__ import annotations

import argparse
import copy
import os
import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from distilled_student.onnx import Model, Stream, load
from distilled_student.onnx.speakers import unit_length
from distilled_student.onnx.words import (
    CONTEXT_SECONDS,
    LEAST_WORDS,
    PAUSE_SECONDS,
    STEP,
    WORDS,
    Word,
    WordClip,
    WordMaps,
    quiet_noise,
    word_clip,
)

SEGMENTS = 8
PROJECTED = 40  # features of a projected frame
SIZE = 96  # of a word's vector
SHIFT = 0.12  # largest shift of the bounds of a clip's second copy, times its length
MOST_CLIPS = 36  # of a word
MOST_UNKNOWN = 250  # clips of unknown words
UNKNOWN_OTHERS = 200  # of them that the file holds
SHRINKAGE = (0.05, 0.1)  # of the covariance within a segment and within a word
RATES = (0.001, 0.01, 0.05, 0.2)
ENROLLED = (1, 3, 5)
CONTEXTS = 5  # pairs of utterances that clips follow; as many clips follow noise
UNKNOWN = "_unknown_"


class Clip(NamedTuple):
    """A recording of a word: its hidden states ``(frames, features)``, and where speech begins and ends, in frames."""

    word: str
    speaker: str
    hidden: NDArray
    start: float
    end: float

    @property
    def recording(self) -> WordClip:
        return WordClip(self.hidden, self.start, self.end)


def read_clips(
    model: Model, languages: Sequence[Sequence[Path]], without: Sequence[str] = (), seed: int = 0
) -> list[Clip]:
    """The clips of all words but ``without``.

    Args:
        languages: The folders of each language, with files ``WORD/SPEAKER_*.wav``. A word of the second language is
            another one than that of the first.
        without: Words to leave out, as ``NUMBER:WORD``; 0 is the first language.
    """
    import soundfile

    rng, files = random.Random(seed), []
    for number, same_language in enumerate(languages):
        by_word = defaultdict(list)
        for file in sorted(file for folder in same_language for file in folder.glob("*/*.wav")):
            by_word[file.parent.name].append(file)
        for word, found in by_word.items():
            name = word if word == UNKNOWN else f"{number}:{word}"
            if word in ("_silence_", "_background_noise_") or name in without:
                continue
            most = MOST_UNKNOWN if word == UNKNOWN else MOST_CLIPS
            files += [(name, file) for file in (found if len(found) <= most else rng.sample(found, most))]
    speech = [soundfile.read(file, dtype="float32")[0] for _, file in rng.sample(files, min(2 * CONTEXTS, len(files)))]
    contexts = after_contexts(model, speech)
    clips = []
    for name, file in files:
        samples, _ = soundfile.read(file, dtype="float32")
        clips.append(read_clip(rng.choice(contexts), samples, name, file.name.split("_")[0]))
    return clips


def after_contexts(model: Model, speech: Sequence[NDArray[np.float32]]) -> list[Stream]:
    """Streams that have had quiet noise, louder noise, or two utterances of ``speech`` and a pause."""
    stream, length = model.stream(), round(CONTEXT_SECONDS * model.rate)
    pairs = [
        np.concatenate([*speech[at : at + 2], quiet_noise(round(PAUSE_SECONDS * model.rate))])
        for at in range(0, len(speech) - 1, 2)
    ]
    streams = []
    for context in [quiet_noise(length)] * len(pairs) + [quiet_noise(length, 0.003), *pairs]:
        fork = copy.copy(stream)
        fork.reset()
        fork.feed(context)
        streams.append(fork)
    return streams


def read_clip(stream: Stream, samples: NDArray[np.float32], word: str, speaker: str) -> Clip:
    """A recording that follows what the stream has had."""
    hidden, start, end = word_clip(stream, samples)
    return Clip(word, speaker, hidden.astype(np.float16), start, end)


def fit(clips: Sequence[Clip], fingerprint: str, seed: int = 0) -> WordMaps:
    """The maps, the other words and the thresholds.

    Args:
        clips: Of labelled words, and of `UNKNOWN`.
        fingerprint: Of the model.

    Raises:
        ValueError: there are too few words, or too few speakers.
    """
    words = sorted({clip.word for clip in clips} - {UNKNOWN})
    if len(words) < LEAST_WORDS:
        raise ValueError(f"{len(words)} words; the maps need at least {LEAST_WORDS}, better hundreds")
    random.Random(seed).shuffle(words)
    unseen = set(words[::3])
    maps = fit_maps([clip for clip in clips if clip.word not in unseen], fingerprint, seed)
    labelled = [clip for clip in clips if clip.word != UNKNOWN]
    of_many = trial_scores(maps, labelled, unseen, seed)
    of_one = trial_scores(maps, labelled, unseen, seed, is_one_speaker=True)
    return replace(fit_maps(clips, fingerprint, seed), **fit_thresholds(of_many, of_one))


def fit_maps(clips: Sequence[Clip], fingerprint: str, seed: int = 0) -> WordMaps:
    """The maps and the other words, with thresholds of zero."""
    rng = np.random.default_rng(seed)
    labelled = [clip for clip in clips if clip.word != UNKNOWN]
    frames = np.concatenate([clip.hidden[int(clip.start) : int(clip.end)] for clip in labelled]).astype(np.float32)
    mean, scale = frames.mean(axis=0), frames.std(axis=0) + 1e-6
    joined = np.concatenate(
        [[segment_means(clip, mean, scale, rng, shift) for clip in labelled] for shift in (0, SHIFT)]
    ).astype(np.float32)
    words = np.tile(np.unique([clip.word for clip in labelled], return_inverse=True)[1], 2)
    parts = (words[:, None] * SEGMENTS + np.arange(SEGMENTS)).ravel()
    of_parts, projection, _ = discriminants(joined.reshape(-1, len(mean)), parts, PROJECTED, SHRINKAGE[0])
    joined = ((joined - of_parts) @ projection).reshape(len(joined), -1)
    offset, mapping, ratios = discriminants(joined, words, SIZE, SHRINKAGE[1])
    mapping = mapping * np.sqrt(np.clip(1 - 1 / ratios, 0, 1))  # less weight for what varies as much within words
    maps = WordMaps(
        fingerprint=fingerprint,
        segments=SEGMENTS,
        mean=(mean + of_parts * scale).astype(np.float32),
        projection=(projection / scale[:, None]).astype(np.float32),
        offset=offset.astype(np.float32),
        mapping=mapping.astype(np.float32),
        others=np.zeros((0, SIZE), np.float32),
        rates=np.array(RATES, np.float32),
        clips=np.array(ENROLLED, np.float32),
        thresholds=np.zeros((2, len(RATES), len(ENROLLED)), np.float32),
        agreements=np.ones((2, len(ENROLLED)), np.float32),
        slope=1.0,
    )
    return replace(maps, others=other_words(maps, clips, seed))


def segment_means(clip: Clip, mean: NDArray, scale: NDArray, rng: np.random.Generator, shift: float) -> NDArray:
    """``(segments, features)`` of the standardised hidden states between the clip's bounds, which are shifted."""
    length = clip.end - clip.start
    start = min(max(0.0, clip.start + rng.uniform(-shift, shift) * length), clip.end - 3)
    end = min(max(start + 3, clip.end + rng.uniform(-shift, shift) * length), len(clip.hidden))
    start = max(0.0, start)
    bounds = start + (end - start) * np.arange(SEGMENTS + 1) / SEGMENTS
    times = np.arange(len(clip.hidden))
    weights = np.clip(np.minimum(times + 1, bounds[1:, None]) - np.maximum(times, bounds[:-1, None]), 0, None)
    weights /= weights.sum(axis=1, keepdims=True)
    return (weights @ clip.hidden.astype(np.float32) - mean) / scale


def discriminants(rows: NDArray, classes: NDArray, size: int, shrinkage: float) -> tuple[NDArray, NDArray, NDArray]:
    """Linear discriminant analysis in which a class of n rows counts as much as the square root of n.

    Args:
        rows: ``(rows, features)``.
        classes: ``(rows,)``, numbers from 0.
        size: Directions to keep.
        shrinkage: Of the covariance within classes to a multiple of the identity (Ledoit and Wolf, 2004).

    Returns:
        The mean ``(features,)``; the directions ``(features, size)``, in which the variance within classes is 1; the
        total variances in them.
    """
    mean = rows.mean(axis=0)
    centred = rows - mean
    counts = np.bincount(classes)
    sums = np.zeros((len(counts), rows.shape[1]))
    np.add.at(sums, classes, centred)
    within = centred - (sums / counts[:, None].clip(min=1)).astype(rows.dtype)[classes]
    weights = (1 / np.sqrt(counts[classes])).astype(rows.dtype)
    inside = (within * weights[:, None]).T @ within / weights.sum()
    total = (centred * weights[:, None]).T @ centred / weights.sum()
    inside = (1 - shrinkage) * inside + shrinkage * np.trace(inside) / len(inside) * np.eye(len(inside))
    values, vectors = np.linalg.eigh(inside)
    whitening = vectors / np.sqrt(values)
    ratios, rotation = np.linalg.eigh(whitening.T @ total @ whitening)
    return mean, (whitening @ rotation[:, ::-1])[:, :size], ratios[::-1][:size]


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
        maps: Not fitted to ``words``.
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
        score = scorer(maps, found)
        for target, tests in ((same, tested), (other, rng.sample(others, min(most_others, len(others))))):
            for clip in tests:
                for count, value in score(clip).items():
                    target[count].append(value)
    return Trials(*({count: np.array(values[count]) for count in ENROLLED} for values in (same, other, agreements)))


def scorer(maps: WordMaps, templates: dict[int, Word]) -> Callable[[Clip], dict[int, float]]:
    """The best score in a clip, of each of several templates of one length."""

    def score(clip: Clip) -> dict[int, float]:
        projected = maps.project(clip.hidden)
        ends = np.arange(len(projected), 0, -STEP)[::-1]
        return {count: float(maps.best(word, projected, ends)) for count, word in templates.items()}

    return score


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
        "thresholds": np.array(thresholds, np.float32),
        "agreements": np.array([[trials.agreements[n].mean() for n in ENROLLED] for trials in found], np.float32),
        "slope": float((same.mean() - other.mean()) / ((same.var() + other.var()) / 2)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="a packed folder, edge or tiny")
    parser.add_argument(
        "folders", nargs="+", help=f"WORD/SPEAKER_*.wav of a language; several are joined with {os.pathsep}"
    )
    parser.add_argument(
        "--without", nargs="*", default=[], help="words to leave out, as NUMBER:WORD; 0 is the first language"
    )
    parser.add_argument("-o", "--output", type=Path, help=f"default: {WORDS} in the model's folder")
    options = parser.parse_args()
    model = load(options.model)
    languages = [[Path(folder) for folder in folders.split(os.pathsep)] for folders in options.folders]
    clips = read_clips(model, languages, options.without)
    file = options.output or model.file.with_name(WORDS)
    try:
        fit(clips, model.fingerprint).write(file)
    except ValueError as error:
        parser.error(str(error))
    print(f"{file}: {len({clip.word for clip in clips})} words, {len(clips)} clips, {file.stat().st_size} bytes")


if __name__ == "__main__":
    main()
