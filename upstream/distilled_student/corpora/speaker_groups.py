"""The file ``speakers.csv`` of a corpus: which groups its speakers belong to, such as sex, age or accent."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from distilled_student.common.errors import UserError, closest, one_line
from distilled_student.common.files import read_utf8
from distilled_student.corpora.speaker_names import identity

NAME = "speakers.csv"
SPEAKER = "speaker"  # the column of the speakers' names
SEPARATORS = ",;\t"  # of columns; a spreadsheet may write each of them
FOLDERS_ABOVE = 2  # of a corpus, in which its file may be
MAX_VALUES = 200  # of a column; more are names or measurements


@dataclass(frozen=True)
class SpeakerGroups:
    """What a ``speakers.csv`` says.

    Attributes:
        file: The file.
        columns: For each column of groups: `identity` of the speaker -> group. Speakers with an empty cell are missing.
        speakers: `identity` of each speaker who has a row.
    """

    file: Path
    columns: dict[str, dict[str, str]]
    speakers: frozenset[str]

    def without_row(self, names: Sequence[str]) -> list[str]:
        """Those of the speakers ``names`` who have no row."""
        return [name for name in names if identity(name) not in self.speakers]


def find_speaker_groups(root: str | Path) -> SpeakerGroups | None:
    """Read the ``speakers.csv`` in the folder of a corpus, or else in one of the two folders above; None without one.

    Raises:
        UserError: see `read_speaker_groups`.
    """
    folder = Path(root).absolute()
    for place in (folder, *folder.parents[:FOLDERS_ABOVE]):
        if (place / NAME).is_file():
            return read_speaker_groups(place / NAME)
    return None


def read_speaker_groups(file: Path) -> SpeakerGroups:
    """Read a file with a heading, a column ``speaker`` and a column for each kind of group; a row for each speaker.

    Columns are separated by commas, semicolons or tabs. Names that differ only in case or Unicode normal form are one
    speaker, and values that differ only so, or in white space, are one group, which has the name that is written first.
    A speaker may have several rows that say the same.

    Raises:
        UserError: the file is not UTF-8 or not CSV, it lacks the column ``speaker`` or another one, a row has another
            number of cells than the heading or no speaker, two rows of a speaker differ, or a column has so many values
            that they are no groups.
    """
    rows = _rows(file)
    line, heading = next(rows, (1, []))
    names = [cell if cell.lower() != SPEAKER else SPEAKER for cell in heading]
    _check_heading(file, names)
    at, seen = names.index(SPEAKER), dict[str, tuple[int, list[str]]]()
    spellings: list[dict[str, str]] = [{} for _ in names]  # of each column: `identity` of a group -> as first written
    for line, cells in rows:
        if len(cells) != len(names):
            raise UserError(f"{file}: line {line}: {len(cells)} cells, but the heading has {len(names)}")
        if not cells[at]:
            raise UserError(f"{file}: line {line}: column `{SPEAKER}` is empty: name the speaker, or remove the line")
        groups = [_as_first_written(spellings[number], cell) for number, cell in enumerate(cells) if number != at]
        first, known = seen.setdefault(identity(cells[at]), (line, groups))
        if groups != known:
            reason = f"speaker '{one_line(cells[at])}' has other values than in line {first}"
            raise UserError(f"{file}: line {line}: {reason}: keep one of the two lines")
    if not seen:
        raise UserError(f"{file}: has no speakers below its heading")
    kinds = [name for name in names if name != SPEAKER]
    columns = {
        kind: {speaker: groups[number] for speaker, (_, groups) in seen.items() if groups[number]}
        for number, kind in enumerate(kinds)
    }
    for kind, of_speaker in columns.items():
        _check_values(f"{file}: column `{one_line(kind)}`", list(of_speaker.values()))
    return SpeakerGroups(file, columns, frozenset(seen))


def _rows(file: Path) -> Iterator[tuple[int, list[str]]]:
    """The number of each line that is not empty and its cells, without white space around them."""
    text = read_utf8(file, "a list of speakers")
    heading = next((line for line in text.splitlines() if line.strip()), "")
    separator = next((mark for mark in SEPARATORS if SPEAKER in _plain(heading, mark)), ",")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                yield reader.line_num, [" ".join(cell.split()) for cell in cells]
    except csv.Error as error:
        raise UserError(f"{file}: line {reader.line_num}: is not CSV ({error})") from None


def _as_first_written(spellings: dict[str, str], cell: str) -> str:
    """The group in a cell, in its first spelling, which is added to ``spellings`` if it is new."""
    return spellings.setdefault(identity(cell), cell)


def _plain(heading: str, separator: str) -> list[str]:
    return [cell.strip(" \"'").lower() for cell in heading.split(separator)]


def _check_heading(file: Path, names: Sequence[str]) -> None:
    """Refuse a heading without ``speaker``, without a column of groups, or with an empty or repeated name."""
    if SPEAKER not in names:
        found = ", ".join(f"'{one_line(name)}'" for name in names) or "nothing"
        similar = closest(SPEAKER, names)
        remedy = f"rename the column of the speakers to `{SPEAKER}`"
        remedy = f"if '{one_line(similar)}' has the speakers, rename it to `{SPEAKER}`" if similar else remedy
        raise UserError(f"{file}: has no column `{SPEAKER}`, the heading has {found}: {remedy}")
    if len(names) == 1:
        raise UserError(f"{file}: has only the column `{SPEAKER}`: add a column of groups, such as sex, age or accent")
    folded = list(map(identity, names))
    for name in names:
        if not name or folded.count(identity(name)) > 1:
            reason = f"two columns are named '{one_line(name)}'" if name else "a column has no name"
            raise UserError(f"{file}: {reason}: each needs a name of its own")


def _check_values(where: str, values: Sequence[str]) -> None:
    """Refuse a column that names each speaker, or measures them, instead of groups."""
    found = set(values)
    if len(found) > MAX_VALUES or (len(found) > 10 and 2 * len(found) > len(values)):
        reason = f"{len(found)} different values for {len(values)} speakers, but groups are few (at most {MAX_VALUES})"
        raise UserError(f"{where}: {reason}: write ranges, such as 20-29, or remove the column")
    if found and all(re.fullmatch(r"[-+]?\d*\.\d+(e[-+]?\d+)?", value) for value in found):
        raise UserError(f"{where}: decimal fractions are no groups: write ranges, or remove the column")
