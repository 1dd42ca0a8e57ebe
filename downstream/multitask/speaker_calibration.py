"""Fits a `Calibration` of speaker verification on development speakers: a log-likelihood ratio, and thresholds.

The trials have 1, 3 and 5 enrolled pieces of speech, and pieces of about 1, 3 and 10 s on both sides. A piece is a part
of a recording, or several recordings in a row. Ratio and thresholds depend on these conditions: see
`distilled_student.onnx.calibration`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distilled_student.common import audio, audio_reading
from distilled_student.common.audio import SAMPLE_RATE
from distilled_student.common.operating_points import SHARES
from distilled_student.onnx.calibration import Calibration
from distilled_student.onnx.speakers import unit_length

CLIPS = (1, 3, 5)  # enrolled pieces
PIECES = {1.0: 8, 3.0: 6, 10.0: 3}  # length of a piece in seconds -> pieces of half of a speaker's recordings, at most
SPEAKERS = 64  # of each source, at most
ENROLMENTS, OTHERS = 2, 40  # of each half of a speaker, and pieces of other speakers for each enrolment, at most
CALIBRATION_SECONDS = 200  # of the development speech of each task, for a checkpoint and for a single export
MEAN_VOICE_SPEAKERS = 20  # fewer do not give a mean voice: it would be near each of them, and not near other people
TARGET_PRIOR = 0.05  # the decisions at which the ratio is to be right: rare targets, as few false accepts are wanted
SMOOTHED = (0.05, 0.02, 0.004)  # cosines over which the cost of quantile regression is smoothed, one after the other
UNKNOWN_WORD = 0.5  # the value of ``same_word`` of a trial whose words are not known
THRESHOLD_TERMS = (
    "bias",
    "log_clips",
    "log_enrolled_seconds",
    "log_seconds",
    "log_seconds*log_seconds",
    "log_enrolled_seconds*log_seconds",
    "same_word",
    "typicality",
    "enrolled_typicality",
)
RATIO_TERMS = (*THRESHOLD_TERMS, "cosine", *(f"cosine*{term}" for term in THRESHOLD_TERMS[1:]))


class Recording(NamedTuple):
    """A recording of a development speaker. ``word``: what is said, if that is one known word."""

    path: Path
    speaker: str
    word: str | None = None


class Piece(NamedTuple):
    """A piece of speech of one speaker.

    Attributes:
        source: Where its recordings are from. Speakers of different sources are not compared: they can be the same.
        half: 0 or 1, the half of the speaker's recordings that it is from.
        length: About how many seconds it has, a key of `PIECES`.
        paths: The recordings that are joined. first, samples: The part of them, at 16 kHz.
        words: What is said; empty if it is not known.
    """

    source: str
    speaker: str
    half: int
    length: float
    paths: tuple[Path, ...]
    first: int
    samples: int
    words: frozenset[str]

    def load(self) -> Tensor:
        """``(samples,)``."""
        joined = torch.cat([audio.load(path) for path in self.paths])
        return joined[self.first : self.first + self.samples]


def make_pieces(source: str, recordings: Iterable[Recording], seconds: float = math.inf) -> list[Piece]:
    """The pieces of each speaker with two recordings or more; the same for the same recordings.

    The halves of a speaker's recordings have no recording in common, so that no piece is compared with itself.

    Args:
        seconds: Speech of all pieces, at most: with less there are fewer speakers, but at least two.
    """
    by_speaker: dict[str, list[Recording]] = {}
    for recording in sorted(recordings, key=lambda recording: str(recording.path)):
        by_speaker.setdefault(recording.speaker, []).append(recording)
    rng, pieces = np.random.default_rng(0), []
    several = sorted(speaker for speaker, own in by_speaker.items() if len(own) >= 2)
    for speakers, number in enumerate(rng.permutation(len(several))[:SPEAKERS]):
        if speakers >= 2 and sum(piece.samples for piece in pieces) > seconds * SAMPLE_RATE:
            break
        own = by_speaker[several[number]]
        shuffled = [own[place] for place in rng.permutation(len(own))]
        for half in (0, 1):
            for length, most in PIECES.items():
                cut = _cut(shuffled[half::2], length, most, rng)
                pieces += [Piece(source, several[number], half, length, *part) for part in cut]
    return pieces


def _cut(
    recordings: Sequence[Recording], length: float, most: int, rng: np.random.Generator
) -> list[tuple[tuple[Path, ...], int, int, frozenset[str]]]:
    """Up to ``most`` pieces of about ``length`` seconds: paths, first sample, samples and words of each."""
    found, joined, samples, wanted = [], list[Recording](), 0, int(length * SAMPLE_RATE)
    for number, recording in enumerate(recordings, start=1):
        joined.append(recording)
        samples += int(audio_reading.seconds(recording.path) * SAMPLE_RATE)
        is_last_and_long_enough = number == len(recordings) and samples >= 0.4 * wanted
        if samples >= 0.95 * wanted or is_last_and_long_enough:
            used = min(samples, wanted)
            words = frozenset(part.word for part in joined if part.word is not None)
            paths = tuple(part.path for part in joined)
            found.append((paths, int(rng.integers(samples - used + 1)), used, words))
            joined, samples = [], 0
    return found[:most]


class Trials(NamedTuple):
    """Trials of enrolments of development speakers with pieces of speech; each array is ``(trials,)``.

    Attributes:
        cosine: target: Whether both are of one speaker.
        clips, enrolled_seconds, seconds, same_word: The condition; ``same_word`` is the share of the piece's words that
            are enrolled, or `UNKNOWN_WORD`.
        typicality, enrolled_typicality: Cosines with the mean voice; 0 if it is not known.
        weight: All targets together weigh 1, and so do all others; each source, and each condition in it, as much.
    """

    cosine: NDArray
    target: NDArray
    clips: NDArray
    enrolled_seconds: NDArray
    seconds: NDArray
    same_word: NDArray
    typicality: NDArray
    enrolled_typicality: NDArray
    weight: NDArray


def mean_voice(pieces: Sequence[Piece], embeddings: NDArray) -> NDArray | None:
    """`Calibration.mean_voice` ``(size,)``; None for fewer than `MEAN_VOICE_SPEAKERS` speakers.

    The mean of the pieces, in which each source weighs the same: where people of a source are alike, such as those who
    read sentences, it is nearer to them.

    Args:
        embeddings: ``(pieces, size)``.
    """
    if len({(piece.source, piece.speaker) for piece in pieces}) < MEAN_VOICE_SPEAKERS:
        return None
    unit, sources = unit_length(embeddings), np.array([piece.source for piece in pieces])
    mean = np.sum([unit[sources == source].mean(axis=0) for source in np.unique(sources)], axis=0)
    return np.round(unit_length(mean), 6)  # as it is written into files


def make_trials(pieces: Sequence[Piece], embeddings: NDArray, voice: NDArray | None = None) -> Trials | None:
    """All kinds of trials of ``pieces`` with ``embeddings (pieces, size)``; None without targets or without others.

    Where the words are known, a trial counts twice, half each: with ``same_word``, and as if they were not.

    Args:
        voice: See `mean_voice`.
    """
    unit = unit_length(embeddings)
    voice = np.zeros(unit.shape[1]) if voice is None else voice
    rng, rows = np.random.default_rng(0), []
    for source_number, source in enumerate(sorted({piece.source for piece in pieces})):
        places = [place for place, piece in enumerate(pieces) if piece.source == source]
        for cell, (clips, enrolled, spoken) in enumerate((n, a, b) for n in CLIPS for a in PIECES for b in PIECES):
            found = _cell_trials(pieces, unit, voice, places, (clips, enrolled, spoken), rng)
            rows += [(*row, source_number, cell) for row in found]
    table = np.array(rows, dtype=float).reshape(-1, 10)
    known = table[:, 5] != UNKNOWN_WORD
    unknown = table[known].copy()
    unknown[:, 5] = UNKNOWN_WORD
    weight = np.concatenate([np.where(known, 0.5, 1.0), np.full(len(unknown), 0.5)])
    table = np.concatenate([table, unknown])
    if set(table[:, 1]) != {0.0, 1.0}:
        return None
    return Trials(*table[:, :8].T, _balanced(weight, table[:, 1], table[:, 8], table[:, 9]))


def _cell_trials(
    pieces: Sequence[Piece],
    unit: NDArray,
    voice: NDArray,
    places: Sequence[int],
    condition: tuple[int, float, float],
    rng: np.random.Generator,
) -> list[tuple[float, ...]]:
    """Cosine, target and condition of the trials with one number of enrolled pieces and one pair of lengths."""
    clips, enrolled_length, length = condition
    spoken = [place for place in places if pieces[place].length == length]
    sides: dict[tuple[str, int], list[int]] = {}
    for place in places:
        if pieces[place].length == enrolled_length:
            sides.setdefault((pieces[place].speaker, pieces[place].half), []).append(place)
    rows = []
    for (speaker, half), own in sides.items():
        targets = [p for p in spoken if pieces[p].speaker == speaker and pieces[p].half != half]
        others = [p for p in spoken if pieces[p].speaker != speaker]
        count = min(ENROLMENTS, len(own) // clips)
        for group in rng.permutation(own)[: count * clips].reshape(count, clips):
            mean = unit_length(unit[group].mean(axis=0))
            seconds = sum(pieces[place].samples for place in group) / SAMPLE_RATE
            words = frozenset().union(*(pieces[place].words for place in group))
            drawn = [*targets, *rng.permutation(others)[:OTHERS].astype(int)]
            for place, cosine in zip(drawn, unit[drawn] @ mean, strict=True):
                own_words = pieces[place].words
                same = len(own_words & words) / len(own_words) if words and own_words else UNKNOWN_WORD
                is_target = float(pieces[place].speaker == speaker)
                typical = (unit[place] @ voice, mean @ voice)
                rows.append((cosine, is_target, clips, seconds, pieces[place].samples / SAMPLE_RATE, same, *typical))
    return rows


def _balanced(weight: NDArray, *groups: NDArray) -> NDArray:
    """``weight``, scaled so that each value of the first group weighs 1, and those of a further one the same in it."""
    keys = np.stack(groups, axis=1)
    for depth in range(len(groups), 0, -1):
        _, number = np.unique(keys[:, :depth], axis=0, return_inverse=True)
        weight = weight / np.bincount(number.reshape(-1), weight)[number.reshape(-1)]
    return weight


def term_values(terms: Sequence[str], trials: Trials) -> NDArray:
    """``(trials, terms)``: the values that the weights of a `Calibration` multiply."""
    values = {
        "bias": np.ones(len(trials.cosine)),
        "cosine": trials.cosine,
        "log_clips": np.log(trials.clips),
        "log_enrolled_seconds": np.log(trials.enrolled_seconds),
        "log_seconds": np.log(trials.seconds),
        "same_word": trials.same_word,
        "typicality": trials.typicality,
        "enrolled_typicality": trials.enrolled_typicality,
    }
    return np.stack([np.prod([values[name] for name in term.split("*")], axis=0) for term in terms], axis=1)


def ratios(calibration: Calibration, trials: Trials) -> NDArray:
    """``(trials,)``: `Calibration.ratio` of each trial."""
    seen = {name: np.clip(getattr(trials, name), *ends) for name, ends in calibration.seen.items()}
    weights = calibration.ratio_weights
    return term_values(tuple(weights), trials._replace(**seen)) @ np.array([*weights.values()])


def fit(trials: Trials, voice: NDArray | None = None) -> Calibration:
    """The calibration of ``trials``; ``voice``: that of `make_trials`.

    The ratio is a logistic regression. The thresholds are quantile regressions on the trials of other speakers; that of
    the smallest share, which few trials reach, is the one before it, shifted. Shares that fewer than two of these
    trials reach are left out, and all of them with fewer than 200 trials.
    """
    ratio = _logistic(trials)
    others = Trials(*(values[trials.target == 0] for values in trials))
    thresholds: dict[float, dict[str, float]] = {}
    if len(others.cosine) >= 200:
        thresholds = {share: _quantile(others, share) for share in SHARES[:-1]}
    if len(others.cosine) * SHARES[-1] >= 2 and thresholds:
        last = thresholds[SHARES[-2]]
        above = others._replace(cosine=others.cosine - term_values(tuple(last), others) @ np.array([*last.values()]))
        shift = _quantile(above, SHARES[-1], ("bias",))["bias"]
        thresholds[SHARES[-1]] = last | {"bias": last["bias"] + max(shift, 0.0)}
    names = ("clips", "enrolled_seconds", "seconds")
    names += () if voice is None else ("typicality", "enrolled_typicality")
    seen = {name: (float(getattr(trials, name).min()), float(getattr(trials, name).max())) for name in names}
    return Calibration(ratio, thresholds, seen, () if voice is None else tuple(map(float, voice)))


def _varying(terms: Sequence[str], trials: Trials) -> tuple[list[str], NDArray]:
    """The terms that are not the same in all trials, ``bias`` first, and their values ``(trials, terms)``."""
    values = term_values(terms, trials)
    kept = [place for place, term in enumerate(terms) if term == "bias" or np.ptp(values[:, place]) > 1e-6]
    for place in [p for p in kept if "*" in terms[p]]:  # of a factor that does not vary
        factors = terms[place].split("*")
        if any(name in terms and terms.index(name) not in kept for name in factors):
            kept.remove(place)
    return [terms[place] for place in kept], values[:, kept]


def _minimum(
    values: NDArray,
    names: Sequence[str],
    start: Mapping[str, float],
    function: Callable[[NDArray, NDArray], tuple[float, NDArray]],
) -> dict[str, float]:
    """The weights of the terms ``names`` that minimize ``function(values, weights) -> (cost, gradient)``.

    It gets the values ``(trials, terms)`` at mean 0 and deviation 1, but for the bias, which comes first.

    Args:
        start: The weights to begin with; 0 for a term that is not named.
    """
    from scipy.optimize import minimize

    mean, deviation = values[:, 1:].mean(axis=0), values[:, 1:].std(axis=0)
    scaled = np.concatenate([values[:, :1], (values[:, 1:] - mean) / deviation], axis=1)
    slopes = np.array([start.get(name, 0.0) for name in names[1:]])
    first = np.array([start.get(names[0], 0.0) + slopes @ mean, *(slopes * deviation)])
    options = {"maxiter": 500, "ftol": 1e-12, "gtol": 1e-9}
    found = minimize(lambda w: function(scaled, w), first, jac=True, method="L-BFGS-B", options=options).x
    weights = found[1:] / deviation
    return dict(zip(names, [float(found[0] - weights @ mean), *map(float, weights)], strict=True))


def _logistic(trials: Trials) -> dict[str, float]:
    """The weights of the log-likelihood ratio: logistic regression, in which targets have the prior `TARGET_PRIOR`.

    Brummer and du Preez, "Application-independent evaluation of speaker detection", 2006. A small ridge keeps the
    weights finite if the trials can be separated without error.
    """
    names, values = _varying(RATIO_TERMS, trials)
    is_target, prior_odds = trials.target == 1, np.log(TARGET_PRIOR / (1 - TARGET_PRIOR))
    sign = np.where(is_target, 1.0, -1.0)
    weight = trials.weight * np.where(is_target, TARGET_PRIOR, 1 - TARGET_PRIOR)

    def cost(x: NDArray, w: NDArray) -> tuple[float, NDArray]:
        margin = sign * (x @ w + prior_odds)
        wrong = np.exp(-np.logaddexp(0, margin))
        ridge = 1e-6 * np.array([0.0, *w[1:]])
        return float(weight @ np.logaddexp(0, -margin) + ridge @ w / 2), ridge - (weight * sign * wrong) @ x

    return _minimum(values, names, {}, cost)


def _quantile(others: Trials, share: float, terms: Sequence[str] = THRESHOLD_TERMS) -> dict[str, float]:
    """The weights of the cosine that ``share`` of these trials reach: quantile regression.

    Koenker and Bassett, "Regression quantiles", Econometrica 1978, with its cost smoothed over less and less.
    """
    names, values = _varying(terms, others)
    weight, found = others.weight / others.weight.sum(), {names[0]: float(np.quantile(others.cosine, 1 - share))}
    for width in SMOOTHED:

        def cost(x: NDArray, w: NDArray, width: float = width) -> tuple[float, NDArray]:
            above = others.cosine - x @ w
            below = np.exp(-np.logaddexp(0, above / width))
            value = weight @ ((1 - share) * above + width * np.logaddexp(0, -above / width))
            return float(value), -(weight * (1 - share - below)) @ x

        found = _minimum(values, names, found, cost)
    return found


def calibrate(pieces: Sequence[Piece], embed: Callable[[Piece], NDArray]) -> Calibration | None:
    """The calibration of the embeddings that ``embed`` computes of pieces, ``(size,)``; None without trials.

    The pieces are those of development speakers, see `make_pieces`.
    """
    if not pieces:
        return None
    embeddings = np.stack([embed(piece) for piece in pieces])
    voice = mean_voice(pieces, embeddings)
    trials = make_trials(pieces, embeddings, voice)
    return None if trials is None else fit(trials, voice)


def development_pieces(tasks: Mapping[str, Any], seconds: float = math.inf) -> list[Piece]:
    """The pieces of the development speakers of all tasks, by name; each task is a source of its own.

    Args:
        seconds: Of each source, at most.

    Raises:
        UserError: development data are missing.
    """
    return [p for name, task in tasks.items() for p in make_pieces(name, task.development_recordings(), seconds)]
