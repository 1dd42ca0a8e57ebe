"""Decides which keyword was said, from the scores of a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Spotted(NamedTuple):
    """``label``: the keyword, or None if none was said. ``score``: the probability of the most likely keyword."""

    label: str | None
    score: float


def decide(scores: Mapping[str, float], threshold: float | None) -> Spotted:
    """The keyword, if one is said.

    Args:
        scores: The probability of each label; labels that begin with ``_`` are not keywords.
        threshold: See `Model`.
    """
    keyword = max((label for label in scores if not label.startswith("_")), key=scores.__getitem__)
    needed = max(scores.values()) if threshold is None else threshold
    return Spotted(keyword if scores[keyword] >= needed else None, scores[keyword])
