"""Who the speaker of a file is: a folder of its path, or what a regular expression finds in the path."""

from __future__ import annotations

import logging
import re
import unicodedata
from collections.abc import Iterable

from distilled_student.common.errors import UserError, one_line

log = logging.getLogger(__name__)

# Other places of the speaker in a path, which an error message suggests where they agree with all labels of a list.
COMMON_PATTERNS = (
    r"^[^/]+/([^/]+)/",  # the second folder
    r"([^/]+)/[^/]+$",  # the folder of the file
    r"([^/]+)/[^/]+/[^/]+$",  # the folder above it
    r"([^/_-]+)[_-][^/]*$",  # the name of the file up to _ or -
)


def check_speaker_pattern(pattern: str | None) -> None:
    """Raise ValueError for a ``speaker_pattern`` that is not a regular expression with one group."""
    if pattern is None:
        return
    try:
        groups = re.compile(pattern).groups
    except re.error as error:
        raise ValueError(f"speaker_pattern: '{pattern}' is not a regular expression: {error}") from None
    if groups != 1:
        raise ValueError(f"speaker_pattern: '{pattern}' has {groups} groups (...); needs one, around the speaker")


def match_speaker(pattern: str, path: str) -> str | None:
    """What the group of ``pattern`` finds in ``path``, a relative path with ``/``; None if there is no match."""
    found = re.search(pattern, path)
    return found[1] or None if found else None


def speaker_by_pattern(pattern: str, path: str, key: str) -> str:
    """`match_speaker`. Raises UserError naming ``key``, ``FILE: dotted.key`` of the task, if there is no match."""
    found = match_speaker(pattern, path)
    if found is None:
        raise UserError(f"{key}.speaker_pattern: '{pattern}' finds no speaker in {path}")
    return found


def identity(name: str) -> str:
    """Equal for names that differ only in case or in their Unicode normal form: both are taken for one speaker."""
    return unicodedata.normalize("NFC", name).casefold()


def merged_names(names: Iterable[str], where: str) -> dict[str, str]:
    """Each name -> the name of its speaker: the first of those that differ only in case or Unicode normal form.

    Names are composed (NFC), so that they do not depend on a file system. Names that differ in case are logged.

    Args:
        where: The folder or list, with its key, for messages.
    """
    composed = {name: unicodedata.normalize("NFC", name) for name in names}
    first: dict[str, str] = {}
    for name in sorted(set(composed.values())):
        first.setdefault(identity(name), name)
    merged = {name: first[identity(name)] for name in composed}
    if others := sorted(name for name in set(composed.values()) if first[identity(name)] != name):
        example = one_line(f"'{first[identity(others[0])]}' and '{others[0]}'")
        reason = f"{len(others)} names of speakers differ from another one only in case, such as {example}"
        log.warning("%s: %s: they are taken as one speaker", where, reason)
    return merged
