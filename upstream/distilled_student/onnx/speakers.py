"""Enrolled speakers, and decisions whether an utterance is from one of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .band import band_fault
from .calibration import Calibration, check_above_zero

FALSE_ACCEPTS = 0.01  # the default share of other speakers' utterances that are accepted
UNSTATED = (
    "the model's calibration has no thresholds for stated shares of false accepts: a log-likelihood ratio of 0 or "
    "more is accepted; export the model again, or calibrate it"
)


class Enrolment(NamedTuple):
    """An enrolled speaker; ``numpy.asarray`` gives the vector.

    Attributes:
        vector: ``(embedding,)``, of length 1: the mean of the embeddings of all clips.
        clips: The number of clips.
        seconds: Their length together; NaN if embeddings were enrolled, whose length is not known.
        model: `Model.fingerprint` of the model of the embeddings; empty: not known.
        band_limit: The lowest `band.band_limit` of the clips; None: none of them has one, or it is not known.
    """

    vector: NDArray[np.float32]
    clips: int
    seconds: float
    model: str = ""
    band_limit: float | None = None

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray:
        vector = np.asarray(self.vector, dtype)
        return vector.copy() if copy else vector


class Verified(NamedTuple):
    """Whether two speakers are the same.

    Attributes:
        accepted: The decision.
        ratio: The natural log-likelihood ratio of "the same speaker" to "another speaker".
        cosine: The cosine similarity of the embeddings.
        notes: What the decision does not state or is uncertain of, a sentence each; often empty.
        needed_ratio: The smallest ratio that is accepted, with these clips and this length of the utterance.
    """

    accepted: bool
    ratio: float
    cosine: float
    notes: tuple[str, ...] = ()
    needed_ratio: float = 0.0


class Identified(NamedTuple):
    """Which of the enrolled speakers an utterance is from.

    Attributes:
        name: The speaker; None for nobody of them.
        ratio, cosine, notes, needed_ratio: See `Verified`; of the most similar speaker.
        nearest: The most similar speaker, also if the utterance is from nobody of them.
    """

    name: str | None
    ratio: float
    cosine: float
    notes: tuple[str, ...] = ()
    needed_ratio: float = 0.0
    nearest: str | None = None


def unit_length(vectors: NDArray) -> NDArray:
    """Vectors, in the last dimension, divided by their lengths."""
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True).clip(min=1e-12)


def mean_enrolment(parts: Sequence[Enrolment], model: str) -> Enrolment:
    """The enrolment of all clips of several, each weighing as many as it has; ``model``: see `Enrolment`."""
    clips = np.array([part.clips for part in parts], np.float32)
    vector = unit_length(np.average([part.vector for part in parts], axis=0, weights=clips))
    band = min((part.band_limit for part in parts if part.band_limit is not None), default=None)
    return Enrolment(vector, int(clips.sum()), math.fsum(part.seconds for part in parts), model, band)


def verify(
    calibration: Calibration,
    embedding: NDArray,
    seconds: float,
    enrolment: Enrolment,
    false_accepts: float = FALSE_ACCEPTS,
    same_word: bool | None = None,
    band_limit: float | None = None,
) -> Verified:
    """Whether an embedding ``(embedding,)`` of length 1 is from the enrolled speaker.

    Args:
        seconds: The length of the audio that the embedding was computed from.
        false_accepts: The share of other speakers' utterances that are accepted; not used by an older calibration.
        same_word: See `Condition`.
        band_limit: See `band.band_limit`. A recording that has one is not accepted, whatever its embedding is.

    Raises:
        ValueError: see `Calibration.threshold`; ``false_accepts`` is no share; or the enrolment is from another model.
    """
    check_above_zero("false_accepts", false_accepts, 1)
    if np.shape(enrolment.vector) != embedding.shape:
        sizes = f"{np.size(enrolment.vector)} numbers, the embeddings of this model have {embedding.size}"
        raise ValueError(f"enrolment: has {sizes}: enrol the speaker with this model")
    cosine = float(embedding @ enrolment.vector)
    condition = calibration.condition(
        embedding, enrolment.vector, enrolment.clips, enrolment.seconds, seconds, same_word
    )
    ratio = calibration.ratio(cosine, condition)
    faults = () if band_limit is None else (f"not accepted: {band_fault(band_limit)}",)
    if not calibration.shares:
        return Verified(ratio >= 0 and not faults, ratio, cosine, (UNSTATED, *faults))
    threshold = calibration.threshold(false_accepts, condition)
    needed = calibration.ratio(threshold, condition)
    notes = (*calibration.unseen(condition), *faults)
    return Verified(cosine >= threshold and not faults, ratio, cosine, notes, needed)


def identify(
    calibration: Calibration,
    embedding: NDArray,
    seconds: float,
    enrolments: Mapping[str, Enrolment],
    false_accepts: float = FALSE_ACCEPTS,
    same_word: bool | None = None,
    band_limit: float | None = None,
) -> Identified:
    """The enrolled speaker with the largest ratio, if `verify` accepts them; else nobody.

    Each of N speakers is verified with a share of ``false_accepts / N``, so that of the utterances of people who are
    not enrolled at most the share ``false_accepts`` gets any name.

    Raises:
        ValueError: see `verify`; or nobody is enrolled.
    """
    if not enrolments:
        raise ValueError("enrolments: nobody is enrolled; give at least one speaker")
    check_above_zero("false_accepts", false_accepts, 1)
    wanted = false_accepts / len(enrolments)
    share = max(wanted, min(calibration.shares, default=0.0))
    results = {
        name: verify(calibration, embedding, seconds, enrolment, share, same_word, band_limit)
        for name, enrolment in enrolments.items()
    }
    name = max(results, key=lambda name: results[name].ratio)
    accepted, ratio, cosine, notes, needed = results[name]
    if share > wanted:
        total = f"up to {share * len(enrolments):g} of other people's utterances may get a name"
        notes = (*notes, f"with {len(enrolments)} enrolled speakers {total}, not {false_accepts:g}")
    return Identified(name if accepted else None, ratio, cosine, notes, needed, name)
