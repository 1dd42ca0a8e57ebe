"""Figures by group of speakers: keyword accuracy and EER of each group that a ``speakers.csv`` names."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from distilled_student.common.errors import one_line
from distilled_student.corpora.speaker_groups import SpeakerGroups
from distilled_student.corpora.speaker_names import identity
from distilled_student.corpora.speakers import Trials
from distilled_student.multitask import metrics as M

log = logging.getLogger(__name__)

GROUPS = "speaker_groups"  # the key in a task's results
FEWEST = 5  # speakers of a group with a figure; that of fewer says more about them than about their group
LISTED = 6  # groups of a line; of more the line has the lowest and the highest

Figures = dict[str, dict[str, dict[str, Any]]]  # column -> group -> key -> value


def _by_group(
    groups: SpeakerGroups,
    speakers: Sequence[str],
    metric: str,
    figure: Callable[[np.ndarray], Mapping[str, Any]],
    counts: Callable[[np.ndarray], Mapping[str, int]],
) -> Figures:
    """The figures of each group of the ``speakers`` of an evaluation.

    A group with fewer than `FEWEST` speakers has None for the metric, and ``too_few_speakers``.

    Args:
        figure: ``(speakers,)``, whether each is in the group -> the metric, and its interval.
        counts: The same -> numbers of utterances or trials.
    """
    if not speakers:
        _warn_once(f"{groups.file}: is not used: the names of the evaluated files do not say the speakers")
    elif missing := groups.without_row(speakers):
        reason = f"has no row of {len(missing)} of the {len(speakers)} speakers who are evaluated"
        _warn_once(f"{groups.file}: {reason}, such as '{one_line(missing[0])}': they are in no group")
    results: Figures = {}
    for column, group_of in groups.columns.items():
        values = np.array([group_of.get(identity(name), "") for name in speakers])
        of_column = {}
        for value in sorted(set(values.tolist()) - {""}):
            members = values == value
            is_enough = members.sum() >= FEWEST
            found = dict(figure(members)) if is_enough else {metric: None, "too_few_speakers": True}
            of_column[value] = found | {"speakers": int(members.sum())} | counts(members)
        if of_column:
            results[column] = of_column
    return results


@functools.lru_cache(maxsize=64)
def _warn_once(message: str) -> None:
    """Log what each evaluation of a training would say again."""
    log.warning("%s", message)


def accuracy_by_group(groups: SpeakerGroups, speakers: Sequence[str], correct: np.ndarray) -> Figures:
    """Keyword accuracy in percent over the clips of each group's speakers.

    Args:
        speakers: The speaker of each clip; clips without speech are left out.
        correct: ``(clips,)``, whether each was recognised.
    """
    names, speaker = np.unique(np.array(speakers, dtype=object), return_inverse=True)

    def figure(members: np.ndarray) -> dict[str, Any]:
        chosen = members[speaker]
        low, high = M.share_interval(correct[chosen], speaker[chosen])
        return {"accuracy": 100 * float(correct[chosen].mean()), "accuracy_interval": [100 * low, 100 * high]}

    return _by_group(
        groups, names.tolist(), "accuracy", figure, lambda members: {"utterances": int(members[speaker].sum())}
    )


def eer_by_group(groups: SpeakerGroups, trials: Trials, scores: np.ndarray) -> Figures:
    """EER in percent over the trials whose enrolled speaker is in the group, whoever the other speaker is.

    The score of a trial is the same whichever side is enrolled, so each trial counts twice: once with each of its
    speakers as the enrolled one. Otherwise a group would depend on the order of the sides, which may be arbitrary.

    Args:
        scores: ``(trials,)`` cosines.
    """
    used, speaker = np.unique(trials.speakers, return_inverse=True)
    left, right = speaker[trials.left], speaker[trials.right]
    enrolled, other = np.concatenate([left, right]), np.concatenate([right, left])
    labels, both = np.tile(trials.labels, 2), np.tile(scores, 2)

    def figure(members: np.ndarray) -> dict[str, Any]:
        chosen = members[enrolled]
        if len(set(labels[chosen].tolist())) < 2:
            return {"eer": None}
        _, sides = np.unique(np.stack([enrolled[chosen], other[chosen]]), return_inverse=True)
        interval = M.eer_interval(both[chosen], labels[chosen], *sides.reshape(2, -1))
        found = {"eer": 100 * M.eer(both[chosen], labels[chosen])}
        return found | {"eer_interval": None if interval is None else [100 * bound for bound in interval]}

    def counts(members: np.ndarray) -> dict[str, int]:
        involved, is_target = members[left] | members[right], trials.labels == 1
        return {"targets": int((involved & is_target).sum()), "non_targets": int((involved & ~is_target).sum())}

    return _by_group(groups, [trials.speaker_names[number] for number in used], "eer", figure, counts)


def figure_lines(figures: Figures, metric: str) -> list[str]:
    """A line for each column, for the terminal."""
    return [f"by {one_line(column)}: {_line(of_column, metric)}" for column, of_column in figures.items()]


def _line(of_column: Mapping[str, Mapping[str, Any]], metric: str) -> str:
    def stated(group: str) -> str:
        found = of_column[group]
        return f"{one_line(group)} {figure_text(found, metric)} ({counts_text({'speakers': found['speakers']})})"

    if len(of_column) <= LISTED:
        return ", ".join(map(stated, of_column))
    ranked = sorted((found[metric], group) for group, found in of_column.items() if found[metric] is not None)
    rest = f"{len(of_column) - len(ranked)} of {len(of_column)} groups without a figure"
    return f"from {stated(ranked[0][1])} to {stated(ranked[-1][1])}, {rest}" if ranked else rest


def counts_text(figure: Mapping[str, Any]) -> str:
    """A group's numbers of speakers, utterances and trials, such as ``1 speaker, 12 utterances``."""
    numbers = {key: figure[key] for key in ("speakers", "utterances", "targets", "non_targets") if key in figure}
    nouns = {
        key: key.replace("_", "-") if number != 1 else key[:-1].replace("_", "-") for key, number in numbers.items()
    }
    return ", ".join(f"{number:,} {nouns[key]}" for key, number in numbers.items())


def figure_text(figure: Mapping[str, Any], metric: str) -> str:
    """A group's figure with its interval, or why it has none."""
    if figure[metric] is None:
        few = f"too few speakers (at least {FEWEST})"
        return few if figure.get("too_few_speakers") else "no target or no non-target trials"
    return M.with_interval(figure, metric)
