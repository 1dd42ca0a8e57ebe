"""Scores of verification trials: cosine, adaptive s-norm, and calibration to log-likelihood ratios."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.nn import functional as F

ROWS_AT_ONCE = 4096  # trials or utterances: the embeddings of a million trials need too much memory
CALIBRATION_C = 1000.0  # the inverse strength of the ridge, as ``C`` in scikit-learn


def _blocks(count: int) -> Iterator[slice]:
    """``count`` rows in blocks of at most `ROWS_AT_ONCE`."""
    return (slice(start, start + ROWS_AT_ONCE) for start in range(0, count, ROWS_AT_ONCE))


def cosine_scores(embeddings: Tensor, left: NDArray, right: NDArray) -> NDArray:
    """``(trials,)`` cosines of the sides; ``left, right (trials,)`` are rows of ``embeddings (utterances, size)``."""
    scores = np.empty(len(left))
    norms = torch.linalg.vector_norm(embeddings, dim=1, dtype=torch.float64).clamp(min=1e-12).numpy()
    for part in _blocks(len(scores)):
        scores[part] = (embeddings[left[part]] * embeddings[right[part]]).sum(dim=1, dtype=torch.float64)
    return scores / (norms[left] * norms[right])


def as_norm(
    scores: NDArray, embeddings: Tensor, left: NDArray, right: NDArray, cohort: Tensor, top: int = 100
) -> NDArray:
    """Adaptive s-norm: scores normalised by mean and deviation of each side's scores with its nearest impostors.

    The score of a trial is the average of the scores that its two sides give. Matejka et al., "Analysis of score
    normalization in multilingual speaker recognition", Interspeech 2017, AS-norm1.

    Args:
        scores: ``(trials,)`` cosines.
        embeddings: ``(utterances, size)``.
        left, right: ``(trials,)``, the rows of the two sides.
        cohort: ``(speakers, size)``, one vector per impostor.
        top: Number of nearest impostors; all if there are fewer.

    Returns:
        ``(trials,)``.

    Raises:
        ValueError: fewer than two impostors: a deviation needs two.
    """
    top = min(top, len(cohort))
    if top < 2:
        raise ValueError(f"as_norm: needs a cohort of at least 2, not {top}")
    impostors = F.normalize(cohort.float(), dim=1).T
    mean, deviation = np.empty((2, len(embeddings)))
    for part in _blocks(len(embeddings)):
        nearest = (F.normalize(embeddings[part].float(), dim=1) @ impostors).topk(top, dim=1).values.double()
        mean[part], deviation[part] = nearest.mean(dim=1), nearest.std(dim=1).clamp(min=1e-6)
    return 0.5 * ((scores - mean[left]) / deviation[left] + (scores - mean[right]) / deviation[right])


def fit_calibration(scores: ArrayLike, labels: ArrayLike) -> tuple[float, float]:
    """Slope and offset that make ``slope * score + offset`` a log-likelihood ratio: logistic regression.

    All target trials together have the same weight as all non-target trials: the ratio does not depend on the share of
    targets. Brummer and du Preez, "Application-independent evaluation of speaker detection", 2006. A ridge on the slope
    (of scores with deviation 1) keeps it finite if the trials can be separated without error. Its strength falls with
    the number of trials; a constant ridge would make the ratios of a good system too small.

    Args:
        scores: ``(trials,)``. labels: ``(trials,)``, 1 for target trials.
    """
    s, y = torch.as_tensor(np.asarray(scores), dtype=torch.float64), torch.as_tensor(np.asarray(labels)).bool()
    mean, deviation = s.mean(), s.std().clamp(min=1e-12)
    s = (s - mean) / deviation
    ridge = 0.5 / (CALIBRATION_C * len(s))
    line = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([line], max_iter=200, tolerance_grad=1e-9, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        ratio = line[0] * s + line[1]
        value = F.softplus(-ratio[y]).mean() / 2 + F.softplus(ratio[~y]).mean() / 2 + ridge * line[0].square()
        value.backward()
        return value

    optimizer.step(loss)
    slope = line[0].item() / deviation.item()
    return slope, line[1].item() - slope * mean.item()


def cllr(ratios: ArrayLike, labels: ArrayLike) -> float:
    """Cost of log-likelihood ratios ``(trials,)`` in bits: 0 for perfect ratios, 1 for ratios without information.

    Brummer and du Preez, "Application-independent evaluation of speaker detection", 2006.
    """
    ratios, labels = np.asarray(ratios), np.asarray(labels).astype(bool)
    targets, others = np.logaddexp(0, -ratios[labels]).mean(), np.logaddexp(0, ratios[~labels]).mean()
    return float((targets + others) / 2 / np.log(2))
