"""Log-likelihood ratios in words, as people read them: how many times as likely."""

from __future__ import annotations

import math


def _odds(ratio: float) -> str:
    """How many times as likely the same person is, by a natural log-likelihood ratio."""
    odds = math.exp(min(ratio, math.log(1e6)))
    if odds < 1e-4:
        return "under 0.0001"
    if odds < 1:
        return f"{odds:.2g}"
    return "over a million" if odds >= 999_999 else f"{odds:,.0f}" if odds >= 10 else f"{odds:.1f}"


def as_odds(ratio: float) -> str:
    """A natural log-likelihood ratio in words."""
    return f"{_odds(abs(ratio))} times as likely of {'the same person' if ratio >= 0 else 'another person'}"


def with_needed(ratio: float, needed_ratio: float) -> str:
    """The ratio of a decision in words, and the one that was needed for a yes; both natural logarithms."""
    of_whom = "" if ratio >= 0 else " as likely of the same person"
    return f"{as_odds(ratio)}; needed: {_odds(needed_ratio)} times{of_whom}"
