"""Trials that ask which keyword was said and whether the owner said it: how they are made, scored and measured.

A trial has an owner, who is enrolled with one or several clips, and a clip. The verification trials ask whether the
clip is the owner's. The owner-and-word trials also have an expected keyword: a clip is accepted only if it holds this
keyword and is the owner's. This is the target-user-only keyword spotting of Yang et al., "Personal Keyword Spotting
through Multi-task Learning", Interspeech 2022 (arXiv 2206.13708).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from distilled_student.multitask import metrics as M
from distilled_student.multitask.scoring import cllr
from distilled_student.onnx.speakers import unit_length

ENROLLED = (1, 3, 5)  # numbers of enrolled clips
ENROLMENTS = 3  # of each owner, at most
OTHERS = 60  # clips of other speakers for each enrolment, at most
FALSE_ACCEPTS = (1, 0.1)  # percentages of false accepts at which misses are reported
RESAMPLES = 200  # of the speakers, for an interval
QUADRANTS = ("owner_keyword", "owner_other_word", "other_keyword", "other_other_word")  # the first is the target
OWNER_KEYWORD, OWNER_OTHER_WORD, OTHER_KEYWORD, OTHER_OTHER_WORD = range(len(QUADRANTS))


class SpokenClip(NamedTuple):
    """A clip of speech in a keyword task's evaluation data, whose speaker is known.

    Attributes:
        index, key: Its place and its name in the evaluation data.
        label: Its class.
        is_keyword: Whether its class is a keyword.
        word: What is said. Clips of one class have different words if the class is that of other words.
        samples: At 16 kHz, before the clip is filled.
    """

    index: int
    key: str
    label: int
    is_keyword: bool
    word: str
    speaker: str
    samples: int


@dataclass(frozen=True)
class OwnerTrials:
    """The trials with one number of enrolled clips. Clips and speakers are counted from 0.

    Attributes:
        enrolled: ``(enrolments, clips)``, the enrolled clips of each enrolment.
        enrolment, clip: ``(trials,)``, the sides of the verification trials.
        owner, speaker: ``(trials,)``, the speakers of the sides.
        same_word: ``(trials,)``, whether the clip's word is among the enrolled words.
        asked: ``(word_trials,)``, the verification trial of each owner-and-word trial.
        expected: ``(word_trials,)``, the class of the expected keyword.
        quadrant: ``(word_trials,)``, the place of its kind in `QUADRANTS`.
    """

    enrolled: NDArray
    enrolment: NDArray
    clip: NDArray
    owner: NDArray
    speaker: NDArray
    same_word: NDArray
    asked: NDArray
    expected: NDArray
    quadrant: NDArray

    @property
    def labels(self) -> NDArray:
        """``(trials,)``, 1 where the clip is the owner's, else 0."""
        return (self.owner == self.speaker).astype(int)


def make_trials(clips: Sequence[SpokenClip], keywords: Sequence[int], enrolled: int) -> OwnerTrials | None:
    """The trials with ``enrolled`` clips in each enrolment. They depend on the clips alone, not on a model.

    Each speaker with more than ``enrolled`` clips is an owner, with up to `ENROLMENTS` enrolments, which share no clip.
    An enrolment is compared with all other clips of the owner and with up to `OTHERS` clips of other speakers, drawn
    with a fixed seed. Each of these pairs makes an owner-and-word trial that expects another keyword than the clip
    holds, drawn likewise; a pair whose clip holds a keyword makes a second one, which expects this keyword.

    Args:
        keywords: The classes of the keywords.

    Returns:
        None without two speakers, or if no speaker has enough clips.
    """
    names = {name: number for number, name in enumerate(sorted({clip.speaker for clip in clips}))}
    speakers, rng = np.array([names[clip.speaker] for clip in clips]), np.random.default_rng([0, enrolled])
    groups, pairs = [], []
    for owner in range(len(names)):
        own, others = np.flatnonzero(speakers == owner), np.flatnonzero(speakers != owner)
        if len(own) <= enrolled or not len(others):
            continue
        count = min(ENROLMENTS, len(own) // enrolled)
        for group in rng.permutation(own)[: count * enrolled].reshape(count, enrolled):
            drawn = rng.permutation(others)[:OTHERS]
            pairs += [(len(groups), clip) for clip in [*np.setdiff1d(own, group), *drawn]]
            groups.append(group)
    if not groups:
        return None
    enrolment, clip = np.array(pairs).T
    words, enrolled_clips = np.array([clip.word for clip in clips]), np.array(groups)
    same_word = (words[enrolled_clips[enrolment]] == words[clip][:, None]).any(axis=1)
    owner, speaker = speakers[enrolled_clips[enrolment, 0]], speakers[clip]
    asked, expected, quadrant = _word_trials(clips, keywords, clip, owner == speaker, rng)
    return OwnerTrials(enrolled_clips, enrolment, clip, owner, speaker, same_word, asked, expected, quadrant)


def _word_trials(
    clips: Sequence[SpokenClip], keywords: Sequence[int], clip: NDArray, is_owner: NDArray, rng: np.random.Generator
) -> tuple[NDArray, NDArray, NDArray]:
    """`OwnerTrials.asked`, ``expected`` and ``quadrant`` for the verification trials of ``clip (trials,)``."""
    label = np.array([clip.label for clip in clips])[clip]
    said = np.flatnonzero(np.array([clip.is_keyword for clip in clips])[clip])
    drawn = np.array(keywords)[rng.integers(len(keywords), size=len(clip))]
    following = dict(zip(keywords, [*keywords[1:], keywords[0]], strict=True))
    other = np.array([following[k] if k == spoken else k for k, spoken in zip(drawn, label, strict=True)])
    wrong = np.flatnonzero(other != label)  # none of a keyword that is the only one
    quadrant_said = np.where(is_owner[said], OWNER_KEYWORD, OTHER_KEYWORD)
    quadrant_wrong = np.where(is_owner[wrong], OWNER_OTHER_WORD, OTHER_OTHER_WORD)
    expected = np.concatenate([label[said], other[wrong]])
    return np.concatenate([said, wrong]), expected, np.concatenate([quadrant_said, quadrant_wrong])


def owner_cosines(trials: OwnerTrials, embeddings: NDArray) -> NDArray:
    """``(trials,)`` cosines of clip and enrolment, which is the mean of its clips' embeddings at length 1.

    ``embeddings (clips, size)`` of any length.
    """
    unit, enrolled = unit_vectors(trials, embeddings)
    return np.einsum("ij,ij->i", enrolled[trials.enrolment], unit[trials.clip])


def unit_vectors(trials: OwnerTrials, embeddings: NDArray) -> tuple[NDArray, NDArray]:
    """``(clips, size)`` of the clips and ``(enrolments, size)`` of the enrolments, all of length 1."""
    unit = unit_length(embeddings)
    return unit, unit_length(unit[trials.enrolled].mean(axis=1))


def uncalibrated(cosines: NDArray) -> NDArray:
    """Log-odds of the probability ``(1 + cosine) / 2``: the owner's, where no calibration is fitted."""
    inner = np.clip(cosines, -1 + 1e-6, 1 - 1e-6)
    return np.log1p(inner) - np.log1p(-inner)


def owner_and_word_scores(trials: OwnerTrials, word_log_probabilities: NDArray, owner_ratios: NDArray) -> NDArray:
    """``(word_trials,)``: log of the probability of the expected keyword times that of the owner. Either can veto.

    Args:
        word_log_probabilities: ``(clips, classes)``.
        owner_ratios: ``(trials,)`` log-likelihood ratios of the owner against other speakers. The prior probability of
            the owner is a half, so that the probability is the ratio's logistic function.
    """
    words = word_log_probabilities[trials.clip[trials.asked], trials.expected]
    return words - np.logaddexp(0, -owner_ratios[trials.asked])


def verification(trials: OwnerTrials, scores: NDArray, ratios: NDArray | None) -> dict[str, Any]:
    """Metrics of the verification trials: EER in percent with its interval, detection costs, EER by `same_word`.

    Args:
        scores: ``(trials,)``. ratios: ``(trials,)`` log-likelihood ratios; None: no calibration, so no actual costs.
    """
    labels = trials.labels
    interval = M.eer_interval(scores, labels, trials.owner, trials.speaker, RESAMPLES)
    results: dict[str, Any] = {"eer": 100 * M.eer(scores, labels)}
    results["eer_interval"] = None if interval is None else [100 * bound for bound in interval]
    results |= {f"min_dcf_{p}": M.min_dcf(scores, labels, p) for p in M.PRIORS}
    if ratios is not None:
        results |= {f"act_dcf_{p}": M.act_dcf(ratios, labels, p) for p in M.PRIORS}
        results["cllr"] = cllr(ratios, labels)
    for name, chosen in (("same_word", trials.same_word), ("other_word", ~trials.same_word)):
        found: dict[str, Any] = {"eer": None}
        if len(set(labels[chosen])) == 2:
            found["eer"] = 100 * M.eer(scores[chosen], labels[chosen])
        found |= {"target_trials": int(labels[chosen].sum()), "other_trials": int((1 - labels[chosen]).sum())}
        results[name] = found
    return results


def target_only(trials: OwnerTrials, scores: NDArray) -> dict[str, Any]:
    """Metrics of the owner-and-word trials, in percent: EER, and misses at `FALSE_ACCEPTS`, with intervals.

    The rate of false accepts is the mean of those of the three kinds of other trials, however many trials each has.
    The misses are those at the lowest threshold with at most this rate. Intervals: 95 %, bootstrap over speakers; None
    for fewer than three.

    Args:
        scores: ``(word_trials,)``.
    """
    owners, speakers = trials.owner[trials.asked], trials.speaker[trials.asked]
    found = target_only_rates(scores, trials.quadrant, quadrant_weights(trials.quadrant))
    drawn = drawn_weights(trials.quadrant, owners, speakers)
    draws = [target_only_rates(scores, trials.quadrant, weights) for weights in drawn]
    results: dict[str, Any] = {}
    for name, value in found.items():
        results[name] = value
        results[f"{name}_interval"] = list(M.quantile_interval([d[name] for d in draws])) if draws else None
    threshold = threshold_at(scores, trials.quadrant, FALSE_ACCEPTS[0] / 100)
    kinds = {name: scores[trials.quadrant == number] for number, name in enumerate(QUADRANTS)}
    accepted = {name: 100 * float((of_kind >= threshold).mean()) for name, of_kind in kinds.items() if len(of_kind)}
    results[f"accepted_at_{FALSE_ACCEPTS[0]}"] = accepted
    results["trials"] = {name: len(of_kind) for name, of_kind in kinds.items()}
    return results


def drawn_weights(quadrant: NDArray, owners: NDArray, speakers: NDArray) -> Iterator[NDArray]:
    """`quadrant_weights` of each draw of speakers of a bootstrap; none for fewer than three speakers.

    If a speaker is drawn n times, a trial of the speaker with the own enrolment counts n times, and a trial with
    another one's counts the product of the two numbers.

    Args:
        quadrant, owners, speakers: ``(word_trials,)``.
    """
    count, rng = int(max(owners.max(), speakers.max())) + 1, np.random.default_rng(0)
    for _ in range(RESAMPLES if len(np.union1d(owners, speakers)) >= 3 else 0):
        drawn = rng.multinomial(count, np.full(count, 1 / count))
        weights = quadrant_weights(quadrant, drawn[owners] * np.where(owners == speakers, 1, drawn[speakers]))
        if weights[quadrant == OWNER_KEYWORD].any() and weights[quadrant != OWNER_KEYWORD].any():
            yield weights


def target_only_rates(scores: NDArray, quadrant: NDArray, weights: NDArray) -> dict[str, float]:
    """EER and misses of owner-and-word trials ``(word_trials,)``, in percent; see `target_only`."""
    false_alarm, miss, _ = M.det_curve(scores, quadrant == OWNER_KEYWORD, weights)
    found = {"eer": 100 * M.equal_error_rate(false_alarm, miss)}
    for percent in FALSE_ACCEPTS:
        found[f"miss_at_{percent}"] = 100 * float(miss[M.last_at_most(false_alarm, percent / 100)])
    return found


def quadrant_weights(quadrant: NDArray, times: NDArray | None = None) -> NDArray:
    """``(word_trials,)``: how much each trial counts so that each kind of trials counts 1 in all.

    ``times (word_trials,)``: how often each trial was drawn; None: once.
    """
    times = np.ones(len(quadrant)) if times is None else times.astype(float)
    totals = np.bincount(quadrant, times, minlength=len(QUADRANTS))
    return times / np.maximum(totals, 1e-12)[quadrant]


def threshold_at(scores: NDArray, quadrant: NDArray, false_accepts: float) -> float:
    """The lowest threshold with at most this rate of false accepts, of `owner_and_word_scores`."""
    false_alarm, _, thresholds = M.det_curve(scores, quadrant == OWNER_KEYWORD, quadrant_weights(quadrant))
    return float(thresholds[M.last_at_most(false_alarm, false_accepts)])
