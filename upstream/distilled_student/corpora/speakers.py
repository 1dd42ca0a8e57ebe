"""VoxCeleb1's layout, ``SPEAKER/SESSION/*.wav``, and its trial lists."""

from __future__ import annotations

import logging
import os
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from distilled_student.common.audio_folders import AudioFolders
from distilled_student.common.errors import UserError
from distilled_student.common.files import read_utf8
from distilled_student.common.untrusted import leads_outside
from distilled_student.corpora.speaker_names import (
    COMMON_PATTERNS,
    match_speaker,
    merged_names,
    speaker_by_pattern,
)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Trials:
    """A trial list.

    Attributes:
        paths: The utterances.
        left, right: ``(trials,)`` indices into ``paths``: the two sides of each trial.
        labels: ``(trials,)``, 1 for a target trial (both sides are of one speaker), else 0.
        speakers: ``(utterances,)`` index of the speaker of each path.
        groups: Further columns of the list: ``column N`` (from 4) -> ``(trials,)`` values.
        speaker_names: The name of each speaker that ``speakers`` counts.
    """

    paths: list[Path]
    left: np.ndarray
    right: np.ndarray
    labels: np.ndarray
    speakers: np.ndarray
    groups: dict[str, np.ndarray] = field(default_factory=dict)
    speaker_names: list[str] = field(default_factory=list)


MAX_GROUPS = 200  # different values in a further column of a trial list; more are scores or names of utterances


def read_trials(
    path: Path, roots: Sequence[Path], key: str = "", pattern: str | None = None
) -> tuple[Trials, set[str]]:
    """Read lines of ``1|0 FILE FILE``; files are relative to one of ``roots``. Also returns the names of the speakers.

    VoxCeleb1's lists O, E and H have this format. The first folder of a file, below the innermost of the roots that
    hold it, is its speaker; with ``pattern`` it is what that finds in this path. Further columns, the same number in
    each line, become groups. White space separates columns, so file names cannot contain any. Names of speakers that
    differ only in case or Unicode normal form are one speaker; all of them are returned.

    Args:
        key: ``FILE: dotted.key`` of the task, for messages; empty where there is no setting ``speaker_pattern``.

    Raises:
        UserError: no such list, a malformed line, a file that does not exist or is outside the roots, a list without
            target or without non-target trials, labels that contradict the speakers, or a further column with more than
            `MAX_GROUPS` values.
    """
    lines = read_utf8(path, "a trial list").splitlines()
    found: dict[str, int] = {}
    utterances: dict[str, int] = {}  # the paths of the files -> their indices
    labels, pairs, further, numbers = [], [], [], []
    for number, line in enumerate(lines, start=1):
        if not (fields := line.split()):
            continue
        if len(fields) < 3 or fields[0] not in ("0", "1"):
            raise UserError(f"{path}: line {number}: {_malformed(fields, line, is_first=not further)}")
        further.append(fields[3:])
        if len(further[-1]) != len(further[0]):
            columns = f"{len(fields)} columns, but the first line has {len(further[0]) + 3}"
            raise UserError(f"{path}: line {number}: {columns}; file names cannot contain white space")
        for name in fields[1:3]:
            if name not in found:
                file = _find_file(name, roots, f"{path}: line {number}", len(fields) > 3)
                found[name] = utterances.setdefault(file, len(utterances))
        if found[fields[1]] == found[fields[2]]:
            raise UserError(f"{path}: line {number}: both sides are one recording, {fields[1]}: remove the line")
        labels.append(int(fields[0]))
        pairs.append((found[fields[1]], found[fields[2]]))
        numbers.append(number)
    if len(set(labels)) != 2:
        raise UserError(f"{path}: needs both target (1) and non-target (0) trials")
    relative = relative_to_roots(utterances, roots)
    of_files = [name.split("/")[0] if pattern is None else speaker_by_pattern(pattern, name, key) for name in relative]
    merged = merged_names(of_files, str(path))
    names, speakers = np.unique([merged[name] for name in of_files], return_inverse=True)
    left, right = np.array(pairs).T
    groups = {f"column {4 + i}": values for i, values in enumerate(np.array(further).T)}
    for column, values in groups.items():
        _check_group(f"{path}: {column}", values)
    trials = Trials(list(map(Path, utterances)), left, right, np.array(labels), speakers, groups, names.tolist())
    _check_labels(path, trials, relative, numbers, key)
    _warn_of_repeated_trials(path, pairs, numbers)
    return trials, {unicodedata.normalize("NFC", name) for name in of_files}


def _warn_of_repeated_trials(path: Path, pairs: Sequence[tuple[int, int]], numbers: Sequence[int]) -> None:
    """Log trials that are in a list more than once, in either order of their sides. Lists may be so on purpose."""
    first: dict[tuple[int, int], int] = {}
    repeated = []
    for pair, number in zip(pairs, numbers, strict=True):
        earlier = first.setdefault((min(pair), max(pair)), number)
        if earlier != number:
            repeated.append((number, earlier))
    if repeated:
        (number, earlier), times = repeated[0], f"{len(repeated)} of {len(pairs)} lines repeat a trial"
        log.warning(
            "%s: %s, such as line %d that of line %d, and each counts: remove them unless the list is published so",
            *(path, times, number, earlier),
        )


def _malformed(fields: Sequence[str], line: str, is_first: bool) -> str:
    """What is wrong with a line that does not begin with 1 or 0 and two files, and the remedy."""
    expected = f"expected '1|0 FILE FILE', found '{line[:80]}'"
    if re.search("[\"'\u2018-\u201d]", fields[0] + fields[-1]):
        return f"{expected}: remove the quotes: tr -d '\"' < LIST"
    if fields[0] == "-1":
        return f"{expected}: 0 must mark a trial of two speakers, not -1: awk '{{if ($1 == -1) $1 = 0; print}}' LIST"
    if re.fullmatch(r"[-+]?[01](\.0*)?", fields[0]):
        return f"{expected}: write the label as a whole number: awk '{{$1 = ($1 > 0) + 0; print}}' LIST"
    if len(fields) >= 3 and fields[1] in ("0", "1"):
        return f"{expected}: the label is in the middle; reorder the columns: awk '{{print $2, $1, $3}}' LIST"
    if len(fields) >= 3 and (fields[2] in ("0", "1") or fields[2].lower() in ("target", "nontarget", "imposter")):
        label = "$3" if fields[2] in ("0", "1") else '($3 == "target")'
        return f"{expected}: the label is last; reorder the columns: awk '{{print {label}, $1, $2}}' LIST"
    if is_first and not re.search(r"[/\\]|\.[a-z\d]{2,4}\b", line.lower()):
        return f"{expected}: looks like a header: remove it: tail -n +2 LIST"
    if fields[0].lower() in ("target", "nontarget", "imposter", "true", "false", "same", "different"):
        return f"{expected}: write 1 for a trial of one speaker and 0 for one of two"
    if len(fields) < 3 and (separator := next((mark for mark in ",;|" if mark in line), None)):
        name = {",": "commas", ";": "semicolons", "|": "bars"}[separator]
        return f"{expected}: columns are separated by white space, not by {name}: tr '{separator}' ' ' < LIST"
    if len(fields) == 2:
        return f"{expected}: the label is missing"
    return expected


def _find_file(name: str, roots: Sequence[Path], where: str, has_further: bool) -> str:
    """The path of a file of a trial list, under the first of the roots that holds it.

    Reads absolute paths into a root too, and names with Windows' separators or in another Unicode normal form.
    """
    inside = next(
        (name[len(f"{root}/") :] for root in map(os.path.abspath, roots) if name.startswith(f"{root}/")), name
    )
    if leads_outside(inside):
        remedy = ""
        if os.path.isabs(name):
            remedy = f"; give a path relative to {' or '.join(map(str, roots))}, or another folder (--trials-root)"
        raise UserError(f"{where}: {name}: leads out of the folder of the files: refused{remedy}")
    forms = [inside, inside.replace("\\", "/")]
    forms += [unicodedata.normalize(form, forms[1]) for form in ("NFC", "NFD")]
    for form in dict.fromkeys(forms):
        if leads_outside(form):
            continue
        for root in roots:
            if os.path.isfile(file := f"{root}/{form}"):
                return os.path.normpath(file)
    hint = "; file names cannot contain white space" if has_further else ""
    if re.search("[\"'\u2018-\u201d]", name[0] + name[-1]):
        hint = ": remove the quotes: tr -d '\"' < LIST"
    raise UserError(f"{where}: no file {name} under {' or '.join(map(str, roots))}{hint}")


def relative_to_roots(files: Iterable[str | Path], roots: Sequence[Path]) -> list[str]:
    """The path of each file below the innermost of ``roots`` that holds it, with ``/``."""
    prefixes = sorted((f"{os.path.abspath(root)}/" for root in roots), key=len, reverse=True)
    absolute = map(os.path.abspath, files)
    return [next(file[len(prefix) :] for prefix in prefixes if file.startswith(prefix)) for file in absolute]


def _check_group(where: str, values: np.ndarray) -> None:
    found = np.unique(values)
    remedy = "remove a column of scores or names: cut -d' ' -f1-3 LIST"
    if len(found) > MAX_GROUPS or (len(found) > 10 and 2 * len(found) > len(values)):
        reason = f"{len(found)} different values in {len(values)} trials, but groups are few (at most {MAX_GROUPS})"
        raise UserError(f"{where}: {reason}: {remedy}")
    if all(re.fullmatch(r"[-+]?\d*\.\d+(e[-+]?\d+)?", value) for value in found):
        raise UserError(f"{where}: decimal fractions are no groups: {remedy}")


def _check_labels(path: Path, trials: Trials, relative: Sequence[str], numbers: Sequence[int], key: str) -> None:
    """Raise UserError for a target trial of two speakers, or a non-target trial of one; names the first such line."""
    agreement = _agreement(trials, trials.speakers)
    if agreement.all():
        return
    i = int(np.flatnonzero(~agreement)[0])
    sides = [trials.speaker_names[trials.speakers[side[i]]] for side in (trials.left, trials.right)]
    if trials.labels[i]:
        reason = f"1 marks a trial of one speaker, but its files are of two, '{sides[0]}' and '{sides[1]}'"
    else:
        reason = f"0 marks a trial of two speakers, but both files are of one, '{sides[0]}'"
    remedy, agreeing = "", find_agreeing_pattern(trials, relative)
    if not agreement.any() or (agreeing is not None and agreeing[1]):
        remedy = "; all labels are reversed: 1 must mark a trial of one speaker, and 0 of two"
    elif key:
        example = f", such as '{agreeing[0]}', which agrees with all lines" if agreeing else ""
        remedy = f"; if the speaker is another part of the path, set {key}.speaker_pattern{example}"
        remedy += "; for `evaluate --trials`: --speaker-pattern"
    raise UserError(f"{path}: line {numbers[i]}: {reason}{remedy}")


def _agreement(trials: Trials, speakers: np.ndarray) -> np.ndarray:
    """Whether each trial's label agrees with ``speakers (utterances,)``: ``(trials,)``."""
    return (speakers[trials.left] == speakers[trials.right]) == (trials.labels == 1)


def find_agreeing_pattern(trials: Trials, relative: Sequence[str]) -> tuple[str, bool, list[str]] | None:
    """The first of `COMMON_PATTERNS` whose speakers agree with all labels, or with all labels reversed.

    Args:
        relative: The path of each utterance as `relative_to_roots` gives it.

    Returns:
        The pattern, whether labels are reversed, and the speaker of each utterance; None if no pattern agrees.
    """
    for pattern in COMMON_PATTERNS:
        speakers = [match_speaker(pattern, name) for name in relative]
        if None in speakers:
            continue
        agreement = _agreement(trials, np.unique(speakers, return_inverse=True)[1])
        if agreement.all() or not agreement.any():
            return pattern, not agreement.any(), [str(name) for name in speakers]
    return None


def speaker_files(
    root: Path, key: str, pattern: str | None = None, folders: AudioFolders | None = None
) -> dict[str, list[Path]]:
    """Speaker -> audio files, of each folder in ``root``; with ``pattern``: of what it finds in each path below it.

    Args:
        key: ``FILE: dotted.key`` of the setting that names ``root``, for messages.
        folders: Those of earlier calls: what one of them has read is left out, with a warning.

    Raises:
        UserError: no such folder, one that cannot be opened, a folder without files, or a file in which the pattern
            finds no speaker.
    """
    if not root.is_dir():
        raise UserError(f"{key}: {root}: no such folder")
    folders, speakers = folders or AudioFolders(), dict[str, list[Path]]()
    if pattern is not None:
        for file in folders.files(root):
            name = speaker_by_pattern(pattern, file.relative_to(root).as_posix(), key.rpartition(".")[0])
            speakers.setdefault(name, []).append(file)
        folders.check(key)
        return dict(sorted(speakers.items()))
    if loose := AudioFolders().files(root, depth=0):
        reason = (
            f"{len(loose)} audio files in it are in no speaker's folder and are not used, the first is {loose[0].name}"
        )
        log.warning("%s: %s: %s", key, root, reason)
        if not any(path.is_dir() for path in root.iterdir()):
            pattern = (
                f"set {key.rpartition('.')[0]}.speaker_pattern, such as '([^/_-]+)[_-][^/]*$' for SPEAKER_TAKE.wav"
            )
            raise UserError(f"{key}: {root}: has files, but no folder of a speaker: {pattern}")
    # links last: of two paths to the same folder, the one without a link is used
    for folder in sorted(folders.subfolders(root), key=lambda path: (path.is_symlink(), path)):
        if folders.walked(folder):
            log.warning("%s: %s: left out, because another path leads to the same folder", key, folder)
        elif files := folders.files(folder):
            speakers[folder.name] = files
        else:
            reason = f" ({folders.problems()})" if folders.problems() else ""
            raise UserError(f"{key}: {folder}: speaker '{folder.name}' has no files{reason}")
    folders.check(key)
    return dict(sorted(speakers.items()))
