"""Log-likelihood ratios in words, as people read them: how many times as likely."""

from __future__ import annotations

import math


def _odds(ratio: float) -> str:
    """How many times as likely a natural log-likelihood ratio of this size makes one of the two."""
    odds = math.exp(min(abs(ratio), math.log(1e6)))
    return "over a million" if odds >= 999_999 else f"{odds:,.0f}" if odds >= 10 else f"{odds:.1f}"


def as_odds(ratio: float) -> str:
    """A natural log-likelihood ratio in words."""
    return f"{_odds(ratio)} times as likely of {'the same person' if ratio >= 0 else 'another person'}"


def with_needed(ratio: float, needed_ratio: float) -> str:
    """The ratio of a decision in words, and the one that was needed for a yes; both natural logarithms."""
    if needed_ratio < 0:
        return f"{as_odds(ratio)}; accepted up to {as_odds(needed_ratio)}"
    needed = f"{_odds(needed_ratio)} times" if ratio >= 0 else as_odds(needed_ratio)
    return f"{as_odds(ratio)}; needed: {needed}"
