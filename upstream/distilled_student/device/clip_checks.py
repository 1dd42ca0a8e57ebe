"""What is wrong with a recording that a person is to be enrolled with, by its samples alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from distilled_student.common.sample_rate import SAMPLE_RATE
from distilled_student.onnx.band import HOP, band_fault, band_limit, clip_frames

# The limits below were chosen on 583 keyword clips of 63 development speakers: each refuses at most 3 % of them.
MIN_SPEECH_SECONDS = 0.15
SPEECH_RANGE = 20.0  # dB below the loudest frames: quieter frames are pauses
SILENT_LEVEL = -55.0  # dB of full scale of the loudest frames
# A clip of which this share of the loud samples lies in flat tops: 75 % of the clips that were recorded 6 dB too loud
# have more, 95 % of those 10 dB too loud.
MAX_CLIPPED = 0.02
MIN_SNR = 6.0  # dB; white noise at 5 dB is refused, at 10 dB accepted
# What is compared with enrolled people may be worse than what they are enrolled with, but must have speech. All of the
# clips above pass, and with white noise of their own level. Noise alone has -10 dB, a hum -33 dB.
MIN_COMPARED_SECONDS, MIN_COMPARED_SNR = 0.08, -5.0


class ClipSound(NamedTuple):
    """What was measured on a clip.

    Attributes:
        seconds: Its length.
        speech_seconds: The length of its frames that are not pauses.
        level: RMS level of its loudest frames in dB of full scale.
        snr: Estimated signal-to-noise ratio in dB, see `signal_to_noise`.
        clipped: Share of its loud samples that lie in flat tops, see `clipped_share`.
        band_limit: The frequency in Hz above which there is nothing, see `band_limit`; None: there is something.
    """

    seconds: float
    speech_seconds: float
    level: float
    snr: float
    clipped: float
    band_limit: float | None = None


def measure_sound(samples: NDArray[np.float32]) -> ClipSound:
    """Measure a clip ``(samples,)`` at 16 kHz."""
    levels = frame_levels(samples)
    loudest = float(np.quantile(levels, 0.95))
    speech = (levels > loudest - SPEECH_RANGE) & (levels > SILENT_LEVEL)
    return ClipSound(
        len(samples) / SAMPLE_RATE,
        float(speech.sum() * HOP / SAMPLE_RATE),
        loudest,
        signal_to_noise(levels),
        clipped_share(samples),
        band_limit(samples),
    )


def not_comparable(sound: ClipSound) -> str | None:
    """Why a recording cannot be compared with enrolled people, in words; None if it can."""
    if sound.level < SILENT_LEVEL:
        return _silent(sound)
    if sound.speech_seconds < MIN_COMPARED_SECONDS:
        return _too_short(sound, MIN_COMPARED_SECONDS)
    if sound.snr < MIN_COMPARED_SNR:
        return "no speech: its level does not change, as that of a hum or of noise"
    return None if sound.band_limit is None else band_fault(sound.band_limit)


def _silent(sound: ClipSound) -> str:
    return f"silent: its loudest part has {sound.level:.0f} dB of full scale"


def _too_short(sound: ClipSound, needed: float) -> str:
    return f"too short: {sound.speech_seconds:.2f} s of speech, at least {needed} s are needed"


def sound_problems(sound: ClipSound) -> list[str]:
    """What is wrong with a clip, in words; empty for a good one. A silent clip has no other fault."""
    if sound.level < SILENT_LEVEL:
        return [_silent(sound)]
    problems = []
    if sound.speech_seconds < MIN_SPEECH_SECONDS:
        problems.append(_too_short(sound, MIN_SPEECH_SECONDS))
    if sound.clipped > MAX_CLIPPED:
        problems.append(f"clipped: {sound.clipped:.0%} of the loud samples are cut off: record with less gain")
    if sound.snr < MIN_SNR:
        problems.append(
            f"noisy: speech about {max(sound.snr, 0):.0f} dB above the noise, at least {MIN_SNR:.0f} are needed"
        )
    if sound.band_limit is not None:
        problems.append(band_fault(sound.band_limit))
    return problems


def frame_levels(samples: NDArray[np.float32]) -> NDArray[np.float64]:
    """The RMS level of each frame in dB of full scale, ``(frames,)``."""
    return 10 * np.log10(np.square(clip_frames(samples)).mean(axis=1) + 1e-12)


def signal_to_noise(levels: NDArray[np.float64]) -> float:
    """Estimate the ratio of speech to noise in dB from frame levels ``(frames,)``.

    The noise is the level that a tenth of the frames stay below, so it needs pauses: of speech without any the estimate
    is lower. Frames of digital silence are left out. 3 dB are those by which the loudest frames exceed the speech's
    mean.
    """
    sounding = levels[levels > -90]
    if not len(sounding):
        return 0.0
    noise, loudest = np.quantile(sounding, [0.1, 0.95])
    return float(10 * np.log10(max(10 ** ((loudest - noise) / 10) - 1, 1e-3)) - 3)


def clipped_share(samples: NDArray[np.float32]) -> float:
    """The share of loud samples that are in flat tops: at least three neighbours within 1 % of the largest value.

    Loud samples are those above a tenth of the largest. It does not depend on the level, since a clipped recording may
    have been attenuated.
    """
    values = np.abs(samples)
    largest = values.max(initial=0.0)
    if largest == 0:
        return 0.0
    at_top = np.concatenate([[False], values >= 0.99 * largest, [False]]).astype(np.int8)
    edges = np.flatnonzero(np.diff(at_top))
    lengths = edges[1::2] - edges[::2]
    return float(lengths[lengths >= 3].sum() / (values > 0.1 * largest).sum())


class CheckedClip(Protocol):
    """A clip whose ``vector (size,)`` has length 1; ``problems``: what is wrong with it, in words."""

    file: str
    vector: NDArray[np.float32]
    problems: list[str]


def mark_copies(clips: Sequence[CheckedClip], before: NDArray[np.float32], limit: float, known: str) -> None:
    """Add a problem to each clip that is a copy of an earlier one or of a vector in ``before (clips, size)``.

    A copy adds nothing, but decisions would count it as a further clip.

    Args:
        limit: Copies have a larger cosine.
        known: The problem of a copy of a vector in ``before``.
    """
    for number, clip in enumerate(clips):
        first = next((other for other in clips[:number] if other.vector @ clip.vector > limit), None)
        if first is not None:
            clip.problems.append(f"a copy of {first.file}")
        elif len(before) and (before @ clip.vector).max() > limit:
            clip.problems.append(known)


class Likeness(NamedTuple):
    """How like the other clips of a person or a word one is: ``value``, and how a message states it after "others"."""

    value: float
    stated: str = ""


AnyClip = TypeVar("AnyClip", bound=CheckedClip)


def mark_unlike(
    clips: Sequence[AnyClip],
    earlier: int,
    likeness: Callable[[AnyClip, Sequence[AnyClip]], Likeness],
    limit: float,
    kind: str,
) -> None:
    """Add a problem to the clips that are unlike the others, the most unlike one first.

    Only clips without problems are compared. The one that is most unlike the rest is left out of the next comparisons,
    until none is unlike the rest.

    Args:
        earlier: The number of clips that were enrolled or added before.
        likeness: Of a clip, given the others; it also compares with the earlier ones.
        limit: Clips with a smaller `Likeness` are unlike the others.
        kind: ``person`` or ``word``, which all clips are to be of.
    """
    good = [clip for clip in clips if not clip.problems]
    while good and len(good) + earlier > 1:
        found = [likeness(clip, [other for other in good if other is not clip]) for clip in good]
        worst = int(np.argmin([of_clip.value for of_clip in found]))
        if found[worst].value >= limit:
            return
        if len(good) == 2 and not earlier:  # which of the two is wrong is not known
            for clip, of_clip, other in zip(good, found, good[::-1], strict=True):
                reason = f"one of the two is of another {kind}, or badly recorded"
                clip.problems.append(f"unlike {other.file}{of_clip.stated}: {reason}")
            return
        good[worst].problems.append(f"unlike the others{found[worst].stated}: of another {kind}, or badly recorded")
        del good[worst]
