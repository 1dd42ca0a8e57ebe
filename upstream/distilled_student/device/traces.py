"""Records what a detector decides from, at each hop of a stream, so that thresholds can be applied afterwards."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from distilled_student.common.progress import Progress
from distilled_student.onnx.detector import hits_of_trace

if TYPE_CHECKING:
    from distilled_student.onnx import Enrolment, Stream

LOWEST = 0.1  # smallest threshold: below it, it is not decided whether the owner speaks


@dataclass(frozen=True)
class Trace:
    """A recorded stream; the arrays have one entry for each hop, ``(hops,)``.

    Attributes:
        hop: Seconds between two hops.
        hold_off_hops, speaker_hops: See `distilled_student.onnx.Detector`.
        labels: The most likely keyword.
        scores: Its smoothed probability.
        is_loud: Whether the energy gate is open.
        is_owner: Whether the window that ends with the hop is accepted as the owner's; true without an owner. It is
            false where it cannot decide a hit, since all scores of the last hops are below `LOWEST`.
        cpu_seconds: The time that one core took.
        word_labels: The most likely word of one's own; None: the stream watches for none.
        word_scores: Its score.
    """

    hop: float
    hold_off_hops: int
    speaker_hops: int
    labels: NDArray[np.str_]
    scores: NDArray[np.float64]
    is_loud: NDArray[np.bool_]
    is_owner: NDArray[np.bool_]
    cpu_seconds: float
    word_labels: NDArray[np.str_] | None = None
    word_scores: NDArray[np.float64] | None = None

    @property
    def seconds(self) -> float:
        return len(self.scores) * self.hop

    def hits(self, threshold: float, word_threshold: float = math.inf) -> list[tuple[float, str]]:
        """The time in seconds and the label of each hit of `Stream.listen` with these thresholds.

        Args:
            threshold: Of keywords, `LOWEST` at least; infinite: none is reported.
            word_threshold: Of words of one's own, likewise.
        """
        is_said, labels = self.scores >= threshold, self.labels
        if self.word_labels is not None and self.word_scores is not None:
            is_word = self.word_scores >= word_threshold  # see `onnx.detector.decide_words`
            is_said, labels = is_said | is_word, np.where(is_word, self.word_labels, self.labels)
        (above,) = np.nonzero(is_said & self.is_loud)
        hops = hits_of_trace(labels[above].tolist(), above.tolist(), self.hold_off_hops)
        of_owner = [hop for hop in hops if self.is_owner[hop : hop + self.speaker_hops + 1].any()]
        return [((hop + 1) * self.hop, str(labels[hop])) for hop in of_owner]


def record(
    stream: Stream,
    blocks: Iterable[NDArray[np.float32]],
    owner: Enrolment | None = None,
    false_accepts: float = 0.01,
    name: str = "",
    seconds: float | None = None,
) -> Trace:
    """Run a stream on blocks of samples as a device does.

    Args:
        owner, false_accepts: See `Stream.listen`.
        name: Of what is recorded, for the progress on stderr; empty: none is shown.
        seconds: Of the blocks, for the progress; None: not known.

    Raises:
        ValueError: see `distilled_student.onnx.Model`.
    """
    stream.reset()
    detector = stream.detector
    keywords = [i for i, label in enumerate(detector.labels) if not label.startswith("_")]
    best, scores, is_loud, is_owner = [], [], [], []
    words, word_scores = [], []
    begin = time.process_time()
    with Progress(seconds and round(seconds), f"{name}: seconds of audio", shown=bool(name)) as progress:
        for hop, outputs in stream.hops(blocks):
            smoothed = detector.smooth(outputs["keyword_scores"])[keywords]
            best.append(int(smoothed.argmax()))
            scores.append(smoothed.max())
            is_loud.append(detector.is_loud(hop))
            if own := stream.word_scores(outputs):
                words.append(max(own, key=own.__getitem__))
                word_scores.append(own[words[-1]])
            recent = scores[-detector.speaker_hops - 1 :] + word_scores[-detector.speaker_hops - 1 :]
            is_owner.append(owner is None or (max(recent) >= LOWEST and stream.is_from(owner, false_accepts)))
            progress.update_to(int(len(scores) * detector.hop))
    labels = np.array([detector.labels[i] for i in keywords])[np.array(best, int)]
    cpu_seconds = time.process_time() - begin
    arrays = np.array(scores, float), np.array(is_loud, bool), np.array(is_owner, bool)
    of_words = (np.array(words), np.array(word_scores, float)) if words else (None, None)
    hops = detector.hop, detector.hold_off_hops, detector.speaker_hops
    return Trace(*hops, labels, *arrays, cpu_seconds, *of_words)


def poisson_interval(count: int) -> tuple[float, float]:
    """The 95 % interval of the expected number of events, of which ``count`` were observed.

    The exact one (Garwood, "Fiducial limits for the Poisson distribution", Biometrika 1936): 2.5 % lie on each side.
    Of no event it is one-sided: an expected number of more than 3 shows none in less than 5 %.
    """
    if count == 0:
        return 0.0, -math.log(0.05)
    return _expected(count - 1, 0.975), _expected(count, 0.025)


def _expected(count: int, probability: float) -> float:
    """The expected number of events with which at most ``count`` are observed with this probability."""
    low, high = 0.0, count + 10 * math.sqrt(count + 1) + 10
    for _ in range(100):
        middle = (low + high) / 2
        terms = (i * math.log(middle) - middle - math.lgamma(i + 1) for i in range(count + 1))
        low, high = (middle, high) if math.fsum(map(math.exp, terms)) > probability else (low, middle)
    return (low + high) / 2
