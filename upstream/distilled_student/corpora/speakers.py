"""VoxCeleb1's layout, ``SPEAKER/SESSION/*.wav``, and its trial lists."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from distilled_student.common import audio
from distilled_student.common.errors import UserError
from distilled_student.common.untrusted import leads_outside


@dataclass(frozen=True)
class Trials:
    """A trial list.

    Attributes:
        paths: The utterances.
        left, right: ``(trials,)`` indices into ``paths``: the two sides of each trial.
        labels: ``(trials,)``, 1 for a target trial (both sides are of one speaker), else 0.
        speakers: ``(utterances,)`` index of the speaker of each path.
        groups: Further columns of the list: ``column N`` (from 4) -> ``(trials,)`` values.
    """

    paths: list[Path]
    left: np.ndarray
    right: np.ndarray
    labels: np.ndarray
    speakers: np.ndarray
    groups: dict[str, np.ndarray] = field(default_factory=dict)


def read_trials(path: Path, roots: Sequence[Path]) -> tuple[Trials, set[str]]:
    """Read lines of ``1|0 FILE FILE``; files are relative to one of ``roots``. Also returns the names of the speakers.

    VoxCeleb1's lists O, E and H have this format. The first folder of a file is its speaker. Further columns, the same
    number in each line, become groups. White space separates columns, so file names cannot contain any.

    Raises:
        UserError: no such list, a malformed line, a file that does not exist or is outside the roots, or a list without
            target or without non-target trials.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as a trial list ({error})") from None
    found: dict[str, int] = {}
    paths, labels, pairs, further = [], [], [], []
    for number, line in enumerate(lines, start=1):
        if not (fields := line.split()):
            continue
        if len(fields) < 3 or fields[0] not in ("0", "1"):
            raise UserError(f"{path}: line {number}: expected '1|0 FILE FILE', found '{line[:80]}'")
        further.append(fields[3:])
        if len(further[-1]) != len(further[0]):
            columns = f"{len(fields)} columns, but the first line has {len(further[0]) + 3}"
            raise UserError(f"{path}: line {number}: {columns}; file names cannot contain white space")
        for name in fields[1:3]:
            if name in found:
                continue
            if leads_outside(name):
                raise UserError(f"{path}: line {number}: {name}: leads out of the folder of the files: refused")
            file = next(filter(os.path.isfile, (f"{root}/{name}" for root in roots)), None)
            if file is None:
                hint = "" if len(fields) == 3 else "; file names cannot contain white space"
                raise UserError(f"{path}: line {number}: no file {name} under {' or '.join(map(str, roots))}{hint}")
            found[name] = len(paths)
            paths.append(Path(file))
        labels.append(int(fields[0]))
        pairs.append((found[fields[1]], found[fields[2]]))
    if len(set(labels)) != 2:
        raise UserError(f"{path}: needs both target (1) and non-target (0) trials")
    names, speakers = np.unique([Path(name).parts[0] for name in found], return_inverse=True)
    left, right = np.array(pairs).T
    groups = {f"column {4 + i}": values for i, values in enumerate(np.array(further).T)}
    return Trials(paths, left, right, np.array(labels), speakers, groups), set(names.tolist())


def speaker_files(root: Path, key: str) -> dict[str, list[Path]]:
    """Speaker -> audio files, of each folder in ``root``. Raises UserError naming ``key`` and a folder without any."""
    if not root.is_dir():
        raise UserError(f"{key}: {root}: no such folder")
    speakers = {}
    for folder in sorted(p for p in root.iterdir() if p.is_dir()):
        files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in audio.SUFFIXES)
        if not files:
            raise UserError(f"{key}: {folder}: speaker '{folder.name}' has no files")
        speakers[folder.name] = files
    return speakers
