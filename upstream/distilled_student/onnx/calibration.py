"""Makes the cosine of two speaker embeddings a log-likelihood ratio, and a share of false accepts a threshold."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from numbers import Real
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

KEY = "speaker_calibration"  # of a file's metadata
RANGES = {  # of a condition, and how a message names it
    "clips": ("number of enrolled clips", "{:.0f}"),
    "enrolled_seconds": ("length of the enrolled clips together", "{:.2f} s"),
    "seconds": ("length of the utterance", "{:.2f} s"),
    "typicality": ("cosine of the utterance and the mean voice", "{:.2f}"),
    "enrolled_typicality": ("cosine of the enrolled speaker and the mean voice", "{:.2f}"),
}


def check_above_zero(name: str, value: Any, most: float = math.inf) -> None:
    """Raise ValueError, which names the argument, unless it is a number above 0 and not above ``most``."""
    if not isinstance(value, Real) or not 0 < value <= most:
        limit = "" if most == math.inf else f" and up to {most:g}"
        raise ValueError(f"{name}: {value}: expected a number above 0{limit}")


class Condition(NamedTuple):
    """What the comparison of an utterance with an enrolled speaker is made from.

    Attributes:
        clips: The number of enrolled utterances.
        enrolled_seconds: Their length together; NaN if it is not known.
        seconds: The length of the utterance.
        same_word: Whether the utterance has the words of the enrolled ones; None if it is not known.
        typicality, enrolled_typicality: The cosines of the utterance and of the enrolled speaker with
            `Calibration.mean_voice`; 0 if they are not known.
    """

    clips: int
    enrolled_seconds: float
    seconds: float
    same_word: bool | None = None
    typicality: float = 0.0
    enrolled_typicality: float = 0.0


def _variables(condition: Condition, cosine: float) -> dict[str, float]:
    return {
        "bias": 1.0,
        "cosine": cosine,
        "log_clips": math.log(max(condition.clips, 1)),
        "log_enrolled_seconds": math.log(max(condition.enrolled_seconds, 1e-3)),
        "log_seconds": math.log(max(condition.seconds, 1e-3)),
        "same_word": 0.5 if condition.same_word is None else float(condition.same_word),
        "typicality": condition.typicality,
        "enrolled_typicality": condition.enrolled_typicality,
    }


VARIABLES = tuple(_variables(Condition(1, 1.0, 1.0), 0.0))


def _sum_of_terms(weights: Mapping[str, float], condition: Condition, cosine: float = 0.0) -> float:
    """The sum of each weight times its variable, or the product of its variables, such as ``cosine*log_clips``."""
    values = _variables(condition, cosine)
    return math.fsum(weight * math.prod(values[name] for name in term.split("*")) for term, weight in weights.items())


@dataclass(frozen=True)
class Calibration:
    """What the cosine of an utterance and an enrolled speaker means, in the conditions that it was fitted on.

    Attributes:
        ratio_weights: The weight of each term of the log-likelihood ratio. A term is ``bias``, ``cosine``,
            ``log_clips``, ``log_enrolled_seconds``, ``log_seconds``, ``same_word`` (1, 0, or 0.5 if it is not known),
            ``typicality``, ``enrolled_typicality``, or a product of them, such as ``cosine*log_clips``. Logarithms are
            natural.
        threshold_weights: For each fitted share of false accepts, the weight of each term of the cosine that this
            share of other speakers' utterances reaches. Empty in files of version 0.1.0.
        seen: The smallest and largest ``clips``, ``enrolled_seconds``, ``seconds`` and typicalities of the fit. Outside
            of them the values are those of the nearest condition inside.
        mean_voice: ``(embedding,)``, of length 1: the direction of the mean embedding of the speech of the fit. Other
            people's embeddings near it have larger cosines. Empty if it is not known: a typicality is then 0.

    Raises:
        ValueError: from all methods.
    """

    ratio_weights: Mapping[str, float]
    threshold_weights: Mapping[float, Mapping[str, float]] = field(default_factory=dict)
    seen: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    mean_voice: tuple[float, ...] = ()

    @classmethod
    def from_json(cls, text: str) -> Calibration:
        """Read what `to_json` wrote: ``ratio``, ``thresholds``, ``seen`` and, if it is known, ``mean_voice``."""
        try:
            content = json.loads(text)
            ratio, thresholds, seen = content["ratio"], content["thresholds"], content["seen"]
            by_share = {_checked_share(share): _checked_weights(weights) for share, weights in thresholds.items()}
            ranges = {name: _checked_range(name, ends) for name, ends in seen.items()}
            voice = _checked_vector(content.get("mean_voice", ()))
            return cls(_checked_weights(ratio), dict(sorted(by_share.items())), ranges, voice)
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            reason = f"has no {error}" if isinstance(error, KeyError) else str(error)
            raise ValueError(f"{KEY}: damaged, or of a later version ({reason})") from None

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> Calibration | None:
        """The calibration in a file's metadata; that of older files is a line through the cosine."""
        if KEY in metadata:
            return cls.from_json(metadata[KEY])
        if "sv_slope" in metadata:
            return cls({"cosine": float(metadata["sv_slope"]), "bias": float(metadata["sv_offset"])})
        return None

    def to_json(self) -> str:
        """``{"ratio": {TERM: WEIGHT}, "thresholds": {"0.01": {TERM: WEIGHT}}, "seen": {"clips": [1, 5]}}``.

        With a mean voice also ``"mean_voice": [NUMBER, ...]``.
        """
        thresholds = {f"{share:g}": dict(weights) for share, weights in self.threshold_weights.items()}
        seen = {name: list(ends) for name, ends in self.seen.items()}
        voice = {"mean_voice": list(self.mean_voice)} if self.mean_voice else {}
        return json.dumps({"ratio": dict(self.ratio_weights), "thresholds": thresholds, "seen": seen} | voice)

    @property
    def shares(self) -> tuple[float, ...]:
        """The shares of false accepts that thresholds were fitted for, from the smallest to the largest."""
        return tuple(sorted(self.threshold_weights))

    def condition(
        self,
        embedding: NDArray,
        enrolled: NDArray,
        clips: int,
        enrolled_seconds: float,
        seconds: float,
        same_word: bool | None = None,
    ) -> Condition:
        """The condition of a comparison of two embeddings ``(embedding,)`` of length 1; see `Condition`."""
        typical = (self._typicality(embedding), self._typicality(enrolled))
        return Condition(clips, enrolled_seconds, seconds, same_word, *typical)

    def _typicality(self, vector: NDArray) -> float:
        return float(np.asarray(vector, np.float64) @ np.array(self.mean_voice)) if self.mean_voice else 0.0

    def ratio(self, cosine: float, condition: Condition) -> float:
        """The natural log-likelihood ratio of "the same speaker" to "another speaker"."""
        return _sum_of_terms(self.ratio_weights, self._nearest(condition), cosine)

    def threshold(self, false_accepts: float, condition: Condition) -> float:
        """The cosine that a share ``false_accepts`` of other speakers' utterances reaches.

        Between two fitted shares it is interpolated as if these cosines had a normal distribution.

        Raises:
            ValueError: the share is smaller or larger than all fitted ones, or none was fitted.
        """
        condition, shares = self._nearest(condition), self.shares
        if not shares or not shares[0] <= false_accepts <= shares[-1]:
            fitted = f"for shares from {shares[0]:g} to {shares[-1]:g} only" if shares else "for no share"
            raise ValueError(f"false_accepts: {false_accepts:g}: this model has thresholds {fitted}")
        upper = next(share for share in shares if share >= false_accepts)
        lower = max(share for share in shares if share <= false_accepts)
        at_lower, at_upper = (_sum_of_terms(self.threshold_weights[share], condition) for share in (lower, upper))
        if lower == upper:
            return at_lower
        quantile = NormalDist().inv_cdf
        part = (quantile(false_accepts) - quantile(lower)) / (quantile(upper) - quantile(lower))
        return at_lower + part * (at_upper - at_lower)

    def unseen(self, condition: Condition) -> list[str]:
        """A sentence for each part of a condition that is outside of what the calibration was fitted on."""
        notes = []
        for name, (low, high) in self.seen.items():
            value, used = getattr(condition, name), getattr(self._nearest(condition), name)
            if value != used:
                title, form = RANGES[name]
                is_one = "is not known" if math.isnan(value) else f"is {form.format(value)}"
                fitted = f"the calibration was fitted with {form.format(low)} to {form.format(high)}"
                notes.append(f"the {title} {is_one}: {fitted}, and the values for {form.format(used)} are used")
        return notes

    def _nearest(self, condition: Condition) -> Condition:
        """The nearest condition that was seen; for a length that is not known, the shortest one."""
        inside = {}
        for name, (low, high) in self.seen.items():
            value = getattr(condition, name)
            inside[name] = low if math.isnan(value) else min(max(value, low), high)
        return condition._replace(**inside)


def _checked_weights(weights: Mapping[str, Any]) -> dict[str, float]:
    for term, weight in weights.items():
        if not set(term.split("*")) <= set(VARIABLES):
            raise ValueError(f"unknown term {term}")
        if not math.isfinite(float(weight)):
            raise ValueError(f"{term} is {weight}")
    return {term: float(weight) for term, weight in weights.items()}


def _checked_share(text: str) -> float:
    if not 0 < float(text) < 1:
        raise ValueError(f"{text} is not a share between 0 and 1")
    return float(text)


def _checked_range(name: str, ends: Any) -> tuple[float, float]:
    low, high = map(float, ends)
    if name not in RANGES or not low <= high:
        raise ValueError(f"seen: {name} from {low:g} to {high:g}")
    return low, high


def _checked_vector(numbers: Any) -> tuple[float, ...]:
    vector = tuple(map(float, numbers))
    if vector and not abs(math.hypot(*vector) - 1) < 1e-3:
        raise ValueError("mean_voice: is not of length 1")
    return vector
