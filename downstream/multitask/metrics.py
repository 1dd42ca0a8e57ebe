"""Metrics of scores and predictions: EER, detection costs, accuracy, confusion, and bootstrap intervals."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from distilled_student.common.error_rates import equal_error_rate

PRIORS = (0.01, 0.05)  # prior probabilities of a target trial in the detection costs; papers on VoxCeleb1 use either


def det_curve(
    scores: ArrayLike, labels: ArrayLike, weights: ArrayLike | None = None
) -> tuple[NDArray, NDArray, NDArray]:
    """Error rates at every different score, from one sort; memory is linear in the number of trials.

    Args:
        scores: ``(trials,)``, larger for more similar sides.
        labels: ``(trials,)``, 1 for target trials and 0 for non-target trials.
        weights: ``(trials,)``, how often each trial counts; None: once.

    Returns:
        False alarm rates (rising), miss rates (falling) and thresholds (falling, the first is infinity). A trial is
        accepted if its score is at least the threshold. Equal scores share one threshold.

    Raises:
        ValueError: shapes differ, a score is not finite, or there are no target or no non-target trials.
    """
    order, last_of_ties = _by_score(scores, labels)
    labels, weights = np.asarray(labels)[order], np.ones(len(order)) if weights is None else np.asarray(weights)[order]
    hits, false_alarms = _accepted(labels, weights, last_of_ties)
    if hits[-1] == 0 or false_alarms[-1] == 0:
        raise ValueError("weights: leave no target or no non-target trials")
    return *_rates(hits, false_alarms), np.append(np.inf, np.asarray(scores)[order][last_of_ties])


def _by_score(scores: ArrayLike, labels: ArrayLike) -> tuple[NDArray, NDArray]:
    """The order of trials by falling score, and the last place of each group of equal scores; raises as `det_curve`."""
    scores, labels = np.asarray(scores), np.asarray(labels).astype(bool)
    if scores.ndim != 1 or scores.shape != labels.shape:
        raise ValueError(f"scores {scores.shape} and labels {labels.shape}: need two vectors of one length")
    if not np.isfinite(scores).all():
        raise ValueError("scores: NaN or infinite")
    targets = int(labels.sum())
    if targets in (0, len(labels)):
        raise ValueError(f"labels: {targets} target trials of {len(labels)}; need both target and non-target trials")
    order = np.argsort(-scores, kind="stable")
    ordered = scores[order]
    return order, np.append(np.flatnonzero(ordered[1:] != ordered[:-1]), len(scores) - 1)


def _accepted(labels: NDArray, weights: NDArray, last_of_ties: NDArray) -> tuple[NDArray, NDArray]:
    """The numbers of accepted target and non-target trials at each threshold; trials are sorted by falling score."""
    hits = np.where(labels, weights, 0)
    return np.cumsum(hits)[last_of_ties], np.cumsum(weights - hits)[last_of_ties]


def _rates(hits: NDArray, false_alarms: NDArray) -> tuple[NDArray, NDArray]:
    """False alarm and miss rates, from no accepted trial to all."""
    return np.append(0.0, false_alarms / false_alarms[-1]), np.append(1.0, 1.0 - hits / hits[-1])


def eer(scores: ArrayLike, labels: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Equal error rate in [0, 1]: the crossing of the two error rates, which are linear between thresholds."""
    false_alarm, miss, _ = det_curve(scores, labels, weights)
    return equal_error_rate(false_alarm, miss)


def equal_error_threshold(scores: ArrayLike, labels: ArrayLike) -> float | None:
    """The threshold where the two error rates are nearest, halfway to the next score; None if one kind is missing.

    ``scores (trials,)`` and ``labels (trials,)`` as in `det_curve`.
    """
    if len(set(labels)) < 2:
        return None
    false_alarm, miss, at = det_curve(scores, labels)
    nearest = int(np.argmax(false_alarm >= miss))
    return float(at[nearest : nearest + 2].mean())


def last_at_most(false_alarm: NDArray, rate: float) -> int:
    """The place of the lowest threshold with at most this false alarm rate; ``false_alarm`` of `det_curve`."""
    return int(np.searchsorted(false_alarm, rate * (1 + 1e-9), side="right")) - 1  # the sums of weights are not exact


def min_dcf(scores: ArrayLike, labels: ArrayLike, p_target: float, c_miss: float = 1.0, c_fa: float = 1.0) -> float:
    """Minimum detection cost, divided by the cost of accepting all trials or of rejecting all (NIST SRE).

    The smaller of these two costs is used. ``p_target`` is the prior probability of a target trial.
    """
    false_alarm, miss, _ = det_curve(scores, labels)
    cost = c_miss * p_target * miss + c_fa * (1 - p_target) * false_alarm
    return float(cost.min() / min(c_miss * p_target, c_fa * (1 - p_target)))


def act_dcf(ratios: ArrayLike, labels: ArrayLike, p_target: float, c_miss: float = 1.0, c_fa: float = 1.0) -> float:
    """Detection cost of log-likelihood ratios at the Bayes threshold, divided as in `min_dcf` (NIST SRE)."""
    ratios, labels = np.asarray(ratios), np.asarray(labels).astype(bool)
    accepted = ratios >= np.log(c_fa * (1 - p_target) / (c_miss * p_target))
    cost = c_miss * p_target * (~accepted[labels]).mean() + c_fa * (1 - p_target) * accepted[~labels].mean()
    return float(cost / min(c_miss * p_target, c_fa * (1 - p_target)))


def eer_interval(
    scores: ArrayLike,
    labels: ArrayLike,
    left: NDArray,
    right: NDArray,
    resamples: int = 200,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[float, float] | None:
    """Bootstrap interval of the EER over speakers: speakers are independent, trials of one speaker are not.

    If a speaker is drawn n times, a target trial of this speaker counts n times, and a non-target trial counts the
    product of the numbers of its two speakers. A draw without target or without non-target trials is skipped.

    Args:
        scores: ``(trials,)``, or ``(systems, trials)`` for the interval of the systems' mean EER.
        labels: ``(trials,)``.
        left, right: ``(trials,)``, the speakers of the two sides, counted from 0.

    Returns:
        Its bounds in [0, 1]; None for fewer than three speakers, whose draws vary too little, or if all draws are
        skipped.
    """
    systems, left, right = [], np.asarray(left), np.asarray(right)
    if len(np.union1d(left, right)) < 3:
        return None
    for of_system in np.atleast_2d(np.asarray(scores)):
        order, last_of_ties = _by_score(of_system, labels)  # once, because no draw changes the order
        systems.append((np.asarray(labels)[order] == 1, left[order], right[order], last_of_ties))
    speakers, rng, found = int(max(left.max(), right.max())) + 1, np.random.default_rng(seed), []
    for _ in range(resamples):
        counts, errors = rng.multinomial(speakers, np.full(speakers, 1 / speakers)), []
        for is_target, a, b, last_of_ties in systems:
            weights = counts[a] * np.where(is_target, 1, counts[b])
            hits, false_alarms = _accepted(is_target, weights, last_of_ties)
            if hits[-1] and false_alarms[-1]:
                errors.append(equal_error_rate(*_rates(hits, false_alarms)))
        if errors:
            found.append(np.mean(errors))
    return quantile_interval(found, level) if found else None


def share_interval(
    values: ArrayLike, speakers: ArrayLike, resamples: int = 1000, level: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Bootstrap interval over speakers of the mean of ``values (clips,)``; ``speakers (clips,)`` are their numbers."""
    _, speakers = np.unique(speakers, return_inverse=True)
    correct, clips = np.bincount(speakers, weights=np.asarray(values, dtype=float)), np.bincount(speakers)
    drawn = np.random.default_rng(seed).multinomial(len(clips), np.full(len(clips), 1 / len(clips)), size=resamples)
    return quantile_interval(drawn @ correct / (drawn @ clips), level)


def quantile_interval(found: ArrayLike, level: float = 0.95) -> tuple[float, float]:
    """The bounds that leave out equal shares of the values ``found`` of a bootstrap, ``1 - level`` in all."""
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def with_interval(results: Mapping[str, Any], metric: str, digits: int = 2) -> str:
    """The text ``VALUE [LOW, HIGH]`` of a metric and its ``METRIC_interval``; ``VALUE`` alone if there is none."""
    text, interval = f"{results[metric]:.{digits}f}", results.get(f"{metric}_interval")
    return text if interval is None else f"{text} [{interval[0]:.{digits}f}, {interval[1]:.{digits}f}]"


def confusion_matrix(labels: ArrayLike, predicted: ArrayLike, classes: int) -> NDArray:
    """``(classes, classes)`` counts; row: true class, column: predicted class."""
    pairs = np.asarray(labels, dtype=np.int64) * classes + np.asarray(predicted, dtype=np.int64)
    return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)


def accuracy(confusion: NDArray) -> float:
    """Share of correct predictions in [0, 1]."""
    return float(np.trace(confusion) / confusion.sum())


def per_class_accuracy(confusion: NDArray) -> list[float | None]:
    """Share of correct predictions of each true class, in [0, 1]; None for a class without utterances."""
    totals = confusion.sum(axis=1)
    return [float(c / t) if t else None for c, t in zip(np.diag(confusion), totals, strict=True)]
