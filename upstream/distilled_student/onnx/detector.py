"""Decides from the scores of a model which keyword was said, in an utterance or at which time of a stream."""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

KEY = "detector"  # of a file's metadata
HOP_SECONDS = 0.08  # a stream is scored after each hop of this length, however its samples arrive
TAIL_SECONDS = 0.5  # of silence behind the end of a recording: smoothing delays a keyword by about this time
ACCEPTED = 0.5  # the score from which on a word of one's own counts as said
LONGEST_SECONDS = 3600  # of the smoothing and of the hold-off
SPEAKER_SECONDS = 0.24  # after a hit, in which a window that accepts a speaker decides who said it
GATE_SECONDS = 1.0  # the loudest hop of this time counts for the energy gate
STREAM_ODDS = 10.0  # times the odds of the threshold of utterances: the default threshold of a stream


class Spotted(NamedTuple):
    """``label``: the keyword, or None if none was said. ``score``: the probability of the most likely keyword."""

    label: str | None
    score: float


class Hit(NamedTuple):
    """A keyword in a stream.

    Attributes:
        seconds: The time of the decision: the end of the hop that completed the keyword, from the stream's beginning.
        label: The keyword.
        score: Its smoothed probability; with an owner, the probability that the owner said it, see `owner_said`.
        speaker: Who said it: one of the enrolled speakers; None if it was nobody of them, or if nobody was asked for.
        ratio: The log-likelihood ratio of this speaker, or of the most similar one, in the window that decided; None if
            nobody was asked for.
        needed_ratio: The smallest ratio of this speaker that is accepted; None if nobody was asked for.
    """

    seconds: float
    label: str
    score: float
    speaker: str | None = None
    ratio: float | None = None
    needed_ratio: float | None = None


def decide(scores: Mapping[str, float], threshold: float | None) -> Spotted:
    """The keyword, if one is said.

    Args:
        scores: The probability of each label; labels that begin with ``_`` are not keywords.
        threshold: See `Model`.
    """
    keyword = max((label for label in scores if not label.startswith("_")), key=scores.__getitem__, default=None)
    if keyword is None:
        return Spotted(None, 0.0)
    needed = max(scores.values()) if threshold is None else threshold
    return Spotted(keyword if scores[keyword] >= needed else None, scores[keyword])


def stream_threshold(threshold: float | None) -> float:
    """The threshold of a stream for which no false alarms were measured, from the threshold of utterances.

    With the threshold of utterances, misses and false alarms are equally frequent where every second word is a keyword.
    In running speech keywords are rare. So the odds that a stream asks for are `STREAM_ODDS` times as large.

    Args:
        threshold: None, if it was not measured, counts as 0.5.
    """
    odds = STREAM_ODDS * (1.0 if threshold is None else threshold / max(1 - threshold, 1e-9))
    return odds / (1 + odds)


def decide_words(keyword: Spotted, own_words: Mapping[str, float], threshold: float = ACCEPTED) -> Spotted:
    """The word of one's own with the largest score if it counts as said, else the keyword.

    The two scores are not comparable: that of a keyword is a probability among the classes of the model, which do not
    include this word. The threshold of a word of one's own admits a small share of other words, so it decides alone.

    Args:
        own_words: The score of each word of one's own.
        threshold: The score from which on a word of one's own counts as said.
    """
    best = max(own_words, key=own_words.__getitem__, default=None)
    if best is None or own_words[best] < threshold:
        return keyword
    return Spotted(best, own_words[best])


def owner_said(score: float, ratio: float, prior: float = 0.5) -> float:
    """The probability that the owner said the keyword: that of the keyword times that of the owner.

    It is not larger than either of the two, so that a high one cannot make up for a low one.

    Args:
        score: The probability of the keyword.
        ratio: The natural log-likelihood ratio of the owner to another speaker.
        prior: The share of the owner in all that is said to the device.
    """
    log_odds = ratio + math.log(prior / (1 - prior))
    return score / (1 + math.exp(-log_odds)) if log_odds > -700 else 0.0


@dataclass(frozen=True)
class DetectorSettings:
    """How a `Detector` decides.

    Attributes:
        threshold: Smoothed probability from which on a keyword counts as said; None: if it is the most likely class.
        smoothing: Seconds over which the scores of the hops are averaged.
        hold_off: Seconds after a hit in which no other one is reported.
        level: Energy gate: the smallest level of the loudest hop of the last `GATE_SECONDS`, in dB relative to a full
            scale of 1; None: no gate.
        word_threshold: Score from which on a word of one's own counts as said.
    """

    threshold: float | None = None
    smoothing: float = 0.56  # chosen on development speakers: fewest misses at equal alarms on running speech
    hold_off: float = 1.0
    level: float | None = None
    word_threshold: float = ACCEPTED

    def __post_init__(self) -> None:
        for name in ("smoothing", "hold_off"):
            if not 0 <= getattr(self, name) <= LONGEST_SECONDS:
                raise ValueError(f"{name}: must be 0 to {LONGEST_SECONDS} seconds, found {getattr(self, name)}")
        for name in ("threshold", "level", "word_threshold"):
            value, is_optional = getattr(self, name), name != "word_threshold"
            if not (is_optional and value is None) and not math.isfinite(value):
                raise ValueError(f"{name}: must be a number, found {value}")

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> DetectorSettings:
        """The settings in a file's metadata; those of older files are the defaults with the threshold of utterances.

        Raises:
            ValueError: they are damaged.
        """
        if KEY not in metadata:
            return cls(float(metadata["keyword_threshold"]) if "keyword_threshold" in metadata else None)
        try:
            return cls(**json.loads(metadata[KEY]))
        except (TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"{KEY}: damaged, or of a later version ({error})") from None

    def to_json(self) -> str:
        """``word_threshold`` is left out if it is the default: earlier versions do not know it."""
        values = asdict(self)
        if self.word_threshold == ACCEPTED:
            del values["word_threshold"]
        return json.dumps(values)


class HoldOff:
    """Reports a keyword once, however many hops it lasts.

    After a hit nothing is reported for ``hops`` hops. The same keyword is reported again only after it was below the
    threshold for at least one hop behind this time; another keyword that still lasts is reported when it is over.
    """

    def __init__(self, hops: int) -> None:
        self._hops, self._label = hops, ""
        self._of_hit, self._latest = -math.inf, -math.inf  # numbers of hops

    def is_hit(self, hop: int, label: str) -> bool:
        """Whether a keyword that reaches the threshold at the ``hop``-th hop is to be reported."""
        is_held = hop - self._of_hit < self._hops
        if label == self._label and (is_held or hop == self._latest + 1):
            self._latest = hop
            return False
        if is_held:
            return False
        self._label, self._of_hit, self._latest = label, hop, hop
        return True


class UndecidedHits:
    """Keeps hits until their speaker is decided: at the hop of a hit the window may hold only a part of the word."""

    def __init__(self) -> None:
        self._hop, self._hits = 0, list[tuple[int, Hit]]()  # the number of the latest hop, and those of the hits

    def step(self, hit: Hit | None) -> None:
        """Add the hit of the next hop, if there is one."""
        self._hop += 1
        if hit is not None:
            self._hits.append((self._hop, hit))

    def __len__(self) -> int:
        return len(self._hits)

    def due(self, hops: int) -> list[Hit]:
        """Remove and return the hits that are ``hops`` hops old or older."""
        due = [hit for hop, hit in self._hits if self._hop - hop >= hops]
        del self._hits[: len(due)]
        return due


class Detector:
    """Decides at each hop of a stream whether a keyword was said: smoothing, threshold, energy gate, hold-off.

    Args:
        labels: Classes of the scores; labels that begin with ``_`` are not keywords.
        settings: See `DetectorSettings`.
        hop: Seconds between two scores.
    """

    def __init__(self, labels: Sequence[str], settings: DetectorSettings, hop: float = HOP_SECONDS) -> None:
        self.labels, self.settings, self.hop = list(labels), settings, hop
        self.reset()

    def reset(self) -> None:
        """Forget all hops: the next one is the first of a new stream."""
        self._recent: deque[NDArray] = deque(maxlen=max(1, round(self.settings.smoothing / self.hop)))
        self._levels: deque[float] = deque(maxlen=max(1, round(GATE_SECONDS / self.hop)))
        self._hold_off = HoldOff(self.hold_off_hops)
        self._hops = 0

    @property
    def hold_off_hops(self) -> int:
        return math.ceil(self.settings.hold_off / self.hop - 1e-9)

    @property
    def speaker_hops(self) -> int:
        """The whole hops in `SPEAKER_SECONDS`."""
        return math.floor(SPEAKER_SECONDS / self.hop + 1e-9)

    def smooth(self, scores: NDArray) -> NDArray[np.float64]:
        """The mean ``(classes,)`` of these scores and those of the last hops; fewer at the beginning of a stream."""
        self._recent.append(np.asarray(scores, np.float64))
        return np.mean(self._recent, axis=0)

    def is_loud(self, samples: NDArray) -> bool:
        """Whether the energy gate is open at the end of a hop ``(samples,)``."""
        if self.settings.level is None:
            return True
        self._levels.append(level(samples))
        return max(self._levels) >= self.settings.level

    def step(
        self, scores: NDArray, samples: NDArray, own_words: Mapping[str, float] = MappingProxyType({})
    ) -> Hit | None:
        """The keyword that was completed by the next hop, if it is to be reported.

        Args:
            scores: ``(classes,)``, probabilities of the window that ends with the hop.
            samples: ``(samples,)`` of the hop.
            own_words: See `decide_words`; these scores are not smoothed.
        """
        smoothed, is_loud = self.smooth(scores), self.is_loud(samples)
        keyword = decide(dict(zip(self.labels, smoothed.tolist(), strict=True)), self.settings.threshold)
        label, score = decide_words(keyword, own_words, self.settings.word_threshold)
        self._hops += 1
        if label is None or not is_loud or not self._hold_off.is_hit(self._hops, label):
            return None
        return Hit(round(self._hops * self.hop, 6), label, score)


def level(samples: NDArray) -> float:
    """The root mean square of ``(samples,)`` in dB relative to a full scale of 1; -120 dB at least."""
    return 10 * math.log10(float(np.square(samples, dtype=np.float64).mean()) + 1e-12)


def hits_of_trace(labels: Iterable[str], hops: Iterable[int], hold_off_hops: int) -> list[int]:
    """Which hops of a recorded stream are hits, from the keyword at each hop that reaches the threshold."""
    hold_off = HoldOff(hold_off_hops)
    return [hop for hop, label in zip(hops, labels, strict=True) if hold_off.is_hit(hop, label)]
