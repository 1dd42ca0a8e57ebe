"""Scores to numbers: EER and minDCF from one sort, accuracy and confusion."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def det_curve(scores: ArrayLike, labels: ArrayLike) -> tuple[NDArray, NDArray, NDArray]:
    """Errors at every threshold that matters, from one sort; memory linear in trials.

    Args:
        scores: ``(trials,)``, larger for more alike. labels: ``(trials,)``, 1 for target trials and 0 for others.

    Returns:
        false alarm rates (rising), miss rates (falling), thresholds (falling, the first is infinity): a trial is
        accepted when its score is at least the threshold. Equal scores share one threshold.

    Raises:
        ValueError: shapes differ, a score is not finite, or one of the two kinds of trials is missing.
    """
    scores, labels = np.asarray(scores), np.asarray(labels).astype(bool)
    if scores.ndim != 1 or scores.shape != labels.shape:
        raise ValueError(f"scores {scores.shape} and labels {labels.shape}: need two vectors of one length")
    if not np.isfinite(scores).all():
        raise ValueError("scores: NaN or infinite")
    targets = int(labels.sum())
    if targets in (0, len(labels)):
        raise ValueError(f"labels: {targets} target trials of {len(labels)}; need both target and non-target trials")
    order = np.argsort(-scores, kind="stable")
    scores, labels = scores[order], labels[order]
    last_of_ties = np.append(np.flatnonzero(np.diff(scores)), len(scores) - 1)
    hits = np.cumsum(labels)[last_of_ties]
    false_alarms = last_of_ties + 1 - hits
    return (
        np.append(0.0, false_alarms / (len(labels) - targets)),
        np.append(1.0, 1.0 - hits / targets),
        np.append(np.inf, scores[last_of_ties]),
    )


def eer(scores: ArrayLike, labels: ArrayLike) -> float:
    """Equal error rate in [0, 1]: where the two error rates cross, on straight lines between thresholds."""
    false_alarm, miss, _ = det_curve(scores, labels)
    difference = miss - false_alarm  # from 1 down to -1, never rising
    i = int(np.argmax(difference <= 0))
    step = difference[i - 1] - difference[i]
    fraction = difference[i - 1] / step
    return float(false_alarm[i - 1] + fraction * (false_alarm[i] - false_alarm[i - 1]))


def min_dcf(scores: ArrayLike, labels: ArrayLike, p_target: float, c_miss: float = 1.0, c_fa: float = 1.0) -> float:
    """Minimum detection cost, divided by that of the better of accepting all and rejecting all (NIST SRE)."""
    false_alarm, miss, _ = det_curve(scores, labels)
    cost = c_miss * p_target * miss + c_fa * (1 - p_target) * false_alarm
    return float(cost.min() / min(c_miss * p_target, c_fa * (1 - p_target)))


def confusion_matrix(labels: ArrayLike, predicted: ArrayLike, classes: int) -> NDArray:
    """``(classes, classes)`` counts; row: true class, column: predicted class."""
    pairs = np.asarray(labels, dtype=np.int64) * classes + np.asarray(predicted, dtype=np.int64)
    return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)


def accuracy(confusion: NDArray) -> float:
    """Share of correct answers in [0, 1]."""
    return float(np.trace(confusion) / confusion.sum())


def per_class_accuracy(confusion: NDArray) -> list[float | None]:
    """Share of each true class that is answered correctly, in [0, 1]; None for a class without utterances."""
    totals = confusion.sum(axis=1)
    return [float(c / t) if t else None for c, t in zip(np.diag(confusion), totals, strict=True)]
