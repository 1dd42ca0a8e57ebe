"""Enrols a person: says what is wrong with each clip, and enrols the good ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from distilled_student.common.errors import UserError
from distilled_student.device.clip_checks import (
    ClipSound,
    Likeness,
    mark_copies,
    mark_unlike,
    measure_sound,
    sound_problems,
)
from distilled_student.device.model_files import one_line_errors
from distilled_student.device.named_files import checked_name, note_of_case, note_of_few
from distilled_student.device.profiles import Profile, Profiles
from distilled_student.device.recordings import read_recording

if TYPE_CHECKING:
    from distilled_student.onnx import Calibration, Model

# Smallest natural log-likelihood ratio of a clip and the other clips of its person: not rather of another person.
UNLIKE_RATIO = 0.0
# Clips are compared with so many that were enrolled first: those of another person would draw the mean to themselves.
COMPARED_CLIPS = 3
COPY_COSINE = 0.999  # of two clips of one recording; those of two recordings have less


@dataclass
class Clip:
    """A clip that a person is to be enrolled with.

    Attributes:
        file: Its file.
        sound: What was measured on its samples.
        vector: Its embedding ``(embedding,)``, of length 1.
        problems: What is wrong with it, in words; empty for a good one.
        cosine: Its cosine similarity to the mean of the enrolled or of the other clips; None for a single one.
    """

    file: str
    sound: ClipSound
    vector: NDArray[np.float32]
    problems: list[str]
    cosine: float | None = None


@dataclass(frozen=True)
class Enrolled:
    """What an enrolment has done.

    Attributes:
        name: The person.
        enrolled, refused: The clips that are in the profile now, and the others.
        profile: The profile as it is now; None if the person has none of this model.
        notes: What was not checked, and what to do better, a sentence each.
    """

    name: str
    enrolled: list[Clip]
    refused: list[Clip]
    profile: Profile | None
    notes: tuple[str, ...] = ()


def enrol(
    model: Model,
    profiles: Profiles,
    name: str,
    files: Sequence[str | Path],
    force: bool = False,
    replace: bool = False,
) -> Enrolled:
    """Enrol the good clips of ``files``, in addition to those that the person has.

    Args:
        force: Enrol clips with problems too.
        replace: Forget what was enrolled before.

    Raises:
        UserError: a file cannot be read, or the person is enrolled with another model: then nobody is enrolled.
    """
    name = checked_name(name)
    if not replace:
        profiles.find(name)  # of another model, or damaged: said before clips are read
    clips = [read_clip(model, file) for file in files]
    if not clips:
        raise UserError("FILES: none given")
    with profiles.lock():  # another process may enrol the same clips
        profile = None if replace else profiles.find(name)
        before = np.zeros((0, 0), np.float32) if profile is None else profile.matrix
        mark_copies(clips, before, COPY_COSINE, "enrolled already")
        if model.calibration is not None:
            mark_other_people(clips, before, model.calibration)
        good = [clip for clip in clips if force or not clip.problems]
        if good:
            seconds = sum(clip.sound.seconds for clip in good)
            profile = profiles.write(name, np.stack([clip.vector for clip in good]), seconds, replace)
        elif replace:  # nothing was replaced
            profile = profiles.find(name)
    refused = [clip for clip in clips if clip.problems and not force]
    return Enrolled(name, good, refused, profile, _notes(model, profiles, name, profile))


def _notes(model: Model, profiles: Profiles, name: str, profile: Profile | None) -> tuple[str, ...]:
    unchecked = "the model has no calibration of speakers: whether the clips are of one person was not checked"
    few = note_of_few(profile.count if profile else 0, "clips: people are recognised less reliably")
    return (*([unchecked] if model.calibration is None else []), *note_of_case(name, profiles.names, "people"), *few)


def read_clip(model: Model, file: str | Path) -> Clip:
    """Read, measure and embed a clip. Raises UserError for a file that cannot be read, or a model without speakers."""
    samples = read_recording(file)
    sound = measure_sound(samples)
    with one_line_errors():
        vector = model.embed(samples)
    return Clip(str(file), sound, vector, sound_problems(sound))


def mark_other_people(clips: Sequence[Clip], before: NDArray[np.float32], calibration: Calibration) -> None:
    """Add a problem to the clips that are more likely of another person than the others, and set each ``cosine``.

    The others are the first `COMPARED_CLIPS` of those that are enrolled, ``before (clips, embedding)``: several clips
    of another person would be like each other. Without enrolled ones they are the clips without problems.
    """
    from distilled_student.onnx.speakers import unit_length

    def likeness(clip: Clip, others: Sequence[Clip]) -> Likeness:
        vectors = before[:COMPARED_CLIPS] if len(before) else np.stack([other.vector for other in others])
        clip.cosine = float(clip.vector @ unit_length(np.mean(vectors, axis=0)))
        return Likeness(typical_ratio(clip, vectors, calibration), f" (cosine {clip.cosine:.2f})")

    good = [clip for clip in clips if not clip.problems]
    if not good and not len(before):
        return
    for clip in clips:
        if clip.problems:
            likeness(clip, good)
    mark_unlike(clips, len(before), likeness, UNLIKE_RATIO, "person")


def typical_ratio(clip: Clip, vectors: NDArray[np.float32], calibration: Calibration) -> float:
    """The median log-likelihood ratio of a clip and each of ``vectors (clips, embedding)``, other clips.

    Not that of their mean, which is like all of them where they are of two people.
    """
    seconds = clip.sound.seconds  # the length of an enrolled clip is not known: as long as this one
    ratios = []
    for vector in vectors:
        condition = calibration.condition(clip.vector, vector, 1, seconds, seconds)
        ratios.append(calibration.ratio(float(clip.vector @ vector), condition))
    return float(np.median(ratios))
