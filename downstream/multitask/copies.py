"""Recordings that are in two classes, or both trained on and held out: links are refused, copies are logged."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from distilled_student.common.errors import UserError, one_line
from distilled_student.common.recordings import Copy, find_copies

log = logging.getLogger(__name__)


class Use(NamedTuple):
    """How a task uses a recording: its class, and whether it is trained on (or held out)."""

    name: str
    is_trained: bool


def check_copies(files: Iterable[tuple[Path, Use]], key: str) -> None:
    """Compare the recordings of a task, see `find_copies`.

    A large corpus may have a few files with the same bytes: these are logged. A link is made on purpose.

    Args:
        files: ``(path, use)`` of each recording.
        key: ``FILE: dotted.key`` of the task, for messages.

    Raises:
        UserError: one file is in two classes, or both trained on and held out.
    """
    copies = find_copies(files)
    if links := [copy for copy in copies if copy.is_link]:
        raise UserError(f"{key}: {_described(links, 'is the same recording')}: remove one of the two")
    if copies:
        log.warning("%s: %s: remove one of the two files", key, _described(copies, "has the same bytes"))


def _described(copies: list[Copy], what: str) -> str:
    """The first two paths, what is wrong with them, and how many others there are."""
    first, second, (one, other), _ = copies[0]
    if first == second:
        return f"{first} is both trained on and held out" + (f" ({len(copies)} such files)" if copies[1:] else "")
    if one.is_trained != other.is_trained:
        reason = "but one is trained on and one is held out, so the results do not hold for new recordings"
    else:
        reason = f"but they are of two classes, '{one_line(one.name)}' and '{one_line(other.name)}'"
    more = f" (and {len(copies) - 1} more)" if len(copies) > 1 else ""
    return f"{second} {what} as {first}, {reason}{more}"
