"""Calibrates the decisions about speakers on the recordings of a household, and says what errors to expect."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import NormalDist
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from distilled_student.common.audio_folders import audio_files, subfolders
from distilled_student.common.errors import UserError
from distilled_student.common.files import read_json, write_files
from distilled_student.device.clip_checks import mark_copies
from distilled_student.device.enrolment import COPY_COSINE, Clip, read_clip
from distilled_student.onnx.speakers import FALSE_ACCEPTS

if TYPE_CHECKING:
    from distilled_student.onnx import Calibration, Condition, Model

FORMAT = 1
MIN_PEOPLE, MIN_CLIPS = 2, 3
# Two voices overlap if this share of one person's clips is as much like the other as all but this share of their own,
OVERLAP = 0.1
# or if this share of them is accepted as the other at `FALSE_ACCEPTS`, since a person's two folders may have different
# words. Of development speakers, `edge` and `tiny` find 99 and 98 % of 85 pairs of folders with one word each of one
# person (24 and 34 % by `OVERLAP` alone), all of 723 pairs that divide all words of one person, and 1.9 and 2.0 % of
# the 1,596 pairs of two people.
ACCEPTED = 0.5
SAME_COSINE = 1e-4  # cosines that differ by less are equal: those of one recording in two formats
# Two people differ in their mean cosine by this share of the spread of all cosines (63 development speakers).
PAIR_SPREAD = 0.8
MAX_MISSES = 0.5  # an offset that raises the misses above this share is not stored
STRANGERS = "people who are not in this folder were not measured: how many of them are accepted is not known"
QUANTILE = NormalDist().inv_cdf


class Rate(NamedTuple):
    """``errors`` of ``trials``, as a share with its 95 % interval (Wilson's)."""

    errors: int
    trials: int
    share: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.share:.1%} [{self.low:.1%}, {self.high:.1%}] ({self.errors} of {self.trials})"


def rate(errors: int, trials: int) -> Rate:
    """A share with its interval, as if the trials were independent."""
    z = QUANTILE(0.975)
    share = errors / trials
    if errors in (0, trials):  # rounding errors would leave 1e-17 instead of 0
        end = z**2 / (trials + z**2)
        return Rate(errors, trials, share, *((0.0, end) if errors == 0 else (1 - end, 1.0)))
    centre, spread = share + z**2 / (2 * trials), z * math.sqrt(share * (1 - share) / trials + (z / (2 * trials)) ** 2)
    low, high = ((centre + sign * spread) / (1 + z**2 / trials) for sign in (-1, 1))
    return Rate(errors, trials, share, low, high)


class Trial(NamedTuple):
    """One clip against one enrolled person; a person's own clips are compared with their other clips."""

    enrolled: str
    speaker: str
    cosine: float
    condition: Condition


@dataclass(frozen=True)
class Household:
    """What is kept of a calibration; the fields of the dataclass are the keys of the JSON.

    Attributes:
        fingerprint: `Model.fingerprint`.
        model: The model's name or file, for messages.
        offset: What is added to every threshold of a cosine.
        people, clips: The number of people and of their clips.
    """

    fingerprint: str
    model: str
    offset: float
    people: int
    clips: int
    format: int = FORMAT


@dataclass(frozen=True)
class Expected:
    """What to expect at an operating point, after the calibration.

    Attributes:
        false_accepts: The operating point.
        misses: Of the clips of the enrolled person.
        accepted: Of the clips of the other people in the household.
    """

    false_accepts: float
    misses: Rate
    accepted: Rate


class Fit(NamedTuple):
    """An offset of the thresholds.

    Attributes:
        offset: What is added to them.
        note: Why it is not that of the clips; empty if it is.
        is_usable: Whether it is a calibration: if not, nothing is to be stored.
    """

    offset: float
    note: str = ""
    is_usable: bool = True


class Overlap(NamedTuple):
    """Two people whose voices overlap, or one person in two folders.

    Attributes:
        enrolled, speaker: Whose voice ``clips`` clips of whom were compared with.
        alike: How many of them are as much like the enrolled person as the person's own clips.
        accepted: How many of them are accepted as the enrolled person at `FALSE_ACCEPTS`.
    """

    enrolled: str
    speaker: str
    alike: int
    accepted: int
    clips: int


@dataclass(frozen=True)
class Report:
    """A calibration, what to expect of it, pairs of overlapping voices, and clips that were left out.

    ``is_usable``: see `Fit`; ``notes``: what was not applied or not measured, a sentence each.
    """

    household: Household
    expected: list[Expected]
    overlaps: list[Overlap]
    left_out: list[Clip]
    is_usable: bool = True
    notes: tuple[str, ...] = ()


def calibrate(model: Model, folder: Path, model_name: str) -> Report:
    """Fit the offset of the thresholds on a folder with a folder of clips for each person.

    Raises:
        UserError: fewer than 2 people with 3 good clips each, a file that cannot be read, or a model whose calibration
            has no thresholds.
    """
    if model.calibration is None or not model.calibration.shares:
        raise UserError(f"--model {model_name}: has no thresholds for shares of false accepts: export it again")
    people, left_out = read_people(model, folder)
    trials = all_trials(people, model.calibration)
    overlaps = find_overlaps(trials, model.calibration)
    fit = _fit(trials, overlaps, model.calibration)
    fitted = shifted(model.calibration, fit.offset)
    count = sum(map(len, people.values()))
    household = Household(model.fingerprint, model_name, round(fit.offset, 4), len(people), count)
    points = [expect(trials, fitted, share) for share in sorted(fitted.shares, reverse=True)]
    notes = ([fit.note] if fit.note else []) + (exceeded(points) if fit.is_usable else []) + [STRANGERS]
    return Report(household, points, overlaps, left_out, fit.is_usable, tuple(notes))


def read_people(model: Model, folder: Path) -> tuple[dict[str, list[Clip]], list[Clip]]:
    """The good clips of each person, and the clips with problems."""
    people: dict[str, list[Clip]] = {}
    left_out: list[Clip] = []
    for person in subfolders(folder, str(folder)):
        clips = [read_clip(model, file) for file in audio_files(person, str(person))]
        mark_copies(clips, np.zeros((0, 0), np.float32), COPY_COSINE, "")
        people[person.name] = [clip for clip in clips if not clip.problems]
        left_out += [clip for clip in clips if clip.problems]
    short = {name: clips for name, clips in people.items() if len(people) < MIN_PEOPLE or len(clips) < MIN_CLIPS}
    if short or not people:
        counts = ", ".join(f"{name} {len(clips)}" for name, clips in short.items()) or "no folders"
        needed = f"{MIN_PEOPLE} people or more, a folder each, with {MIN_CLIPS} good clips or more each"
        raise UserError(f"{folder}: needs {needed}; found {counts} ({len(left_out)} clips with problems)")
    return people, left_out


def all_trials(people: Mapping[str, Sequence[Clip]], calibration: Calibration) -> list[Trial]:
    """Each clip against each person; the person is enrolled with all their clips, without the clip itself."""
    from distilled_student.onnx.speakers import unit_length

    trials = []
    for name, enrolled in people.items():
        total = np.sum([clip.vector for clip in enrolled], axis=0)
        seconds = sum(clip.sound.seconds for clip in enrolled)
        for speaker, clips in people.items():
            for clip in clips:
                is_own = speaker == name
                vector = unit_length(total - clip.vector) if is_own else unit_length(total)
                length = clip.sound.seconds
                enrolled_seconds = seconds - is_own * length
                condition = calibration.condition(clip.vector, vector, len(enrolled) - is_own, enrolled_seconds, length)
                trials.append(Trial(name, speaker, float(clip.vector @ vector), condition))
    return trials


def _fit(trials: Sequence[Trial], overlaps: Sequence[Overlap], calibration: Calibration) -> Fit:
    """The offset of the pairs whose voices do not overlap, which say something about other people's voices."""
    overlapping = {frozenset((overlap.enrolled, overlap.speaker)) for overlap in overlaps}
    names = {trial.enrolled for trial in trials}
    pairs = len(names) * (len(names) - 1) / 2
    if len(overlapping) >= pairs / 2:
        reason = "the voices of most pairs overlap, or one person is in two folders"
        return Fit(0.0, f"{reason}: the thresholds were not moved, and nothing is stored", is_usable=False)
    fit = fit_offset(
        [trial for trial in trials if frozenset((trial.enrolled, trial.speaker)) not in overlapping], calibration
    )
    share = _default_share(calibration)
    before = expect(trials, calibration, share).misses.share
    after = expect(trials, shifted(calibration, fit.offset), share).misses.share
    if after > max(before, MAX_MISSES):
        of_clips = f"with the offset of these clips' cosines, {fit.offset:+.3f}"
        reason = f"{of_clips}, {after:.0%} of the people's own clips are refused"
        return Fit(0.0, f"{reason}: the thresholds were not moved, and nothing is stored", is_usable=False)
    return fit


def fit_offset(trials: Sequence[Trial], calibration: Calibration) -> Fit:
    """What to add to the thresholds so that they have their shares of false accepts in this household.

    The cosines of other people's clips have about a normal distribution. Two thresholds of the calibration give the
    distribution that it was fitted on, the trials give that of the household; the offset is the difference of their
    1 % points. The spread of few pairs of people is too small, so it is averaged with the calibration's. An offset
    below its standard error becomes 0, a larger one is reduced (a James-Stein estimate).

    A negative offset becomes 0. It would accept more strangers, whom a household says little about: in households of 2
    to 12 development speakers it raised the share of accepted strangers, up to three times.
    """
    low, high = calibration.shares[0], calibration.shares[-1]
    scores, spreads = [], []
    for trial in (trial for trial in trials if trial.speaker != trial.enrolled):
        at_low, at_high = (calibration.threshold(share, trial.condition) for share in (low, high))
        spread = max((at_low - at_high) / (QUANTILE(1 - low) - QUANTILE(1 - high)), 1e-3)
        scores.append((trial.cosine - at_high) / spread + QUANTILE(1 - high))
        spreads.append(spread)
    pairs = len({frozenset(trial[:2]) for trial in trials if trial.speaker != trial.enrolled})
    weight = pairs / (pairs + 1)
    spread_here = math.sqrt(weight * np.var(scores) + 1 - weight)
    unit = float(np.mean(spreads))
    offset = unit * (float(np.mean(scores)) + QUANTILE(0.99) * (spread_here - 1))
    error = unit * PAIR_SPREAD / math.sqrt(pairs)
    of_clips = f"the offset of these clips' cosines, {offset:+.3f}, was not applied"
    if abs(offset) <= error:
        return Fit(0.0, f"{of_clips}: it is below its standard error, {error:.3f}")
    if offset < 0:
        return Fit(0.0, f"{of_clips}: lower thresholds may accept more strangers")
    return Fit(offset * (1 - (error / offset) ** 2))


def shifted(calibration: Calibration, offset: float) -> Calibration:
    """A calibration for which a cosine means what ``cosine - offset`` meant before."""
    thresholds = {
        share: {**weights, "bias": weights.get("bias", 0.0) + offset}
        for share, weights in calibration.threshold_weights.items()
    }
    ratio = dict(calibration.ratio_weights)
    for term, weight in calibration.ratio_weights.items():
        if "cosine" in (factors := term.split("*")):
            factors.remove("cosine")
            rest = "*".join(factors) or "bias"
            ratio[rest] = ratio.get(rest, 0.0) - offset * weight
    return replace(calibration, ratio_weights=ratio, threshold_weights=thresholds)


def expect(trials: Sequence[Trial], calibration: Calibration, false_accepts: float) -> Expected:
    """Misses and false accepts of the trials at an operating point."""
    own = [_accepts(trial, calibration, false_accepts) for trial in trials if trial.speaker == trial.enrolled]
    others = [_accepts(trial, calibration, false_accepts) for trial in trials if trial.speaker != trial.enrolled]
    return Expected(false_accepts, rate(own.count(False), len(own)), rate(others.count(True), len(others)))


def exceeded(points: Sequence[Expected]) -> list[str]:
    """A sentence for each operating point whose share of accepted clips lies above it with its whole interval.

    Args:
        points: From the largest share to the smallest.
    """
    notes = []
    for point in (point for point in points if point.accepted.low > point.false_accepts):
        stated = f"{point.false_accepts:.1%}"
        found = f"at {stated} false accepts {point.accepted} of the other people's clips are accepted, more than stated"
        smaller = next((at for at in points if at.accepted.share <= point.false_accepts), None)
        if smaller is None:
            notes.append(f"{found}, and no smaller --false-accepts helps")
        else:
            notes.append(
                f"{found}: use --false-accepts {smaller.false_accepts:g}, which accepts {smaller.accepted.share:.1%}"
            )
    return notes


def find_overlaps(trials: Sequence[Trial], calibration: Calibration) -> list[Overlap]:
    """The pairs whose voices overlap, see `OVERLAP` and `ACCEPTED`."""
    pairs: dict[tuple[str, str], list[Trial]] = {}
    for trial in trials:
        pairs.setdefault((trial.enrolled, trial.speaker), []).append(trial)
    share, found = _default_share(calibration), []
    for (enrolled, speaker), clips in pairs.items():
        own = float(np.quantile([trial.cosine for trial in pairs[enrolled, enrolled]], OVERLAP))
        alike = sum(trial.cosine >= own - SAME_COSINE for trial in clips)
        accepted = sum(_accepts(trial, calibration, share) for trial in clips)
        if speaker != enrolled and (alike >= OVERLAP * len(clips) or accepted >= ACCEPTED * len(clips)):
            found.append(Overlap(enrolled, speaker, alike, accepted, len(clips)))
    return found


def _default_share(calibration: Calibration) -> float:
    """`FALSE_ACCEPTS`, or the nearest share that the calibration has thresholds for."""
    return min(max(FALSE_ACCEPTS, calibration.shares[0]), calibration.shares[-1])


def _accepts(trial: Trial, calibration: Calibration, false_accepts: float) -> bool:
    return trial.cosine >= calibration.threshold(false_accepts, trial.condition)


def household_file(folder: Path, fingerprint: str) -> Path:
    """The file of a model's calibration in the folder of the profiles."""
    return folder / f"calibration-{fingerprint}.json"


def save_household(folder: Path, household: Household) -> Path:
    """Write a calibration into the folder of the profiles, where only the user may read it."""
    import json

    file = household_file(folder, household.fingerprint)
    write_files(folder, {file.name: (json.dumps(asdict(household), indent=2) + "\n").encode()}, is_private=True)
    return file


def apply_household(model: Model, folder: Path) -> Household | None:
    """Let a model decide by the household's calibration, if there is one for it in the folder of the profiles.

    Raises:
        UserError: the file is damaged.
    """
    file = household_file(folder, model.fingerprint)
    if not file.is_file():
        return None
    remedy = "`distilled-student calibrate FOLDER` writes it again"
    content = read_json(file, remedy)
    try:
        household = Household(**content)
        offset = float(household.offset)
        if household.format != FORMAT or not abs(offset) <= 2:
            raise ValueError("format or offset")
        if household.fingerprint != model.fingerprint:
            raise ValueError(f"fingerprint: of another model, {household.model}")
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{file}: is not a calibration ({error}); {remedy}") from None
    if model.calibration is not None:
        model.calibration = shifted(model.calibration, offset)
    return household
