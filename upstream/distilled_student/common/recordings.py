"""Compares recordings without decoding them: recordings in two places, and the fingerprint of a class's recordings.

Sizes are compared first, then 768 bytes of each file that has another one's size. Only files that agree in these are
read whole: 100,000 files of one size in a disk's cache take about two seconds of a core.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Hashable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeVar

from distilled_student.common.audio_folders import path_identity

In, Out = TypeVar("In"), TypeVar("Out")

SAMPLE = 256  # bytes that are read at each of the three quarters of a file
BLOCK = 2**20  # bytes of a whole file that are read at once
THREADS, PER_THREAD = 16, 256  # a network file system answers slowly, but many requests at once


class Copy(NamedTuple):
    """Two paths of one recording: of one file (links), or of two files with the same bytes."""

    first: Path
    second: Path
    keys: tuple[Hashable, Hashable]
    is_link: bool


class _File(NamedTuple):
    path: Path
    key: Hashable
    identity: Hashable
    size: int


def find_copies(files: Iterable[tuple[Path, Hashable]]) -> list[Copy]:
    """The recordings that are under more than one key, such as two classes; links come first.

    Files that cannot be opened, empty files and files whose samples are one repeated byte, as of digital silence, have
    no copies.

    Args:
        files: ``(path, key)`` of each file.

    Returns:
        For each recording one entry for each of its keys after the first one.
    """
    found = [file for file in _in_threads(_status, list(dict.fromkeys(files))) if file is not None]
    links = _copies(_under_several_keys(found, [file.identity for file in found]), is_link=True)

    distinct = list({file.identity: file for file in reversed(found)}.values())[::-1]  # one path of each file
    alike = _flat(_under_several_keys(distinct, [file.size or None for file in distinct]))
    samples = _in_threads(_sample, alike)
    alike = _flat(_under_several_keys(alike, samples))
    return links + _copies(_under_several_keys(alike, _in_threads(_digest, alike)), is_link=False)


def recordings_fingerprint(files: Sequence[Path]) -> str:
    """16 hexadecimal digits that tell the recordings of one class from those of another; empty without files.

    They are a hash of all names of files, without their folders, and of the size and the samples of the first file.
    """
    if not files:
        return ""
    digest = hashlib.sha256("\n".join(sorted(file.name for file in files)).encode("utf-8", "surrogateescape"))
    first = _status((files[0], None))
    if first is not None:
        digest.update(repr((first.size, _sample(first))).encode())
    return digest.hexdigest()[:16]


def _in_threads(function: Callable[[In], Out], items: Sequence[In]) -> list[Out]:
    parts = [items[start : start + PER_THREAD] for start in range(0, len(items), PER_THREAD)]
    with ThreadPoolExecutor(THREADS) as pool:
        return [value for values in pool.map(lambda part: list(map(function, part)), parts) for value in values]


def _status(entry: tuple[Path, Hashable]) -> _File | None:
    path, key = entry
    try:
        status = os.stat(path)
    except OSError:
        return None
    return _File(path, key, path_identity(path, status), status.st_size)


def _sample(file: _File) -> bytes | None:
    """Bytes at the quarters of a file, with its size; None if they are one repeated byte or cannot be read."""
    starts = [max(0, file.size * quarter // 4 - SAMPLE // 2) for quarter in (1, 2, 3)]
    try:
        with open(file.path, "rb", buffering=0) as opened:
            sample = b"".join([opened.read(SAMPLE) for start in starts if opened.seek(start) == start])
    except OSError:
        return None
    return None if sample.count(sample[:1]) == len(sample) else b"%d " % file.size + sample


def _digest(file: _File) -> bytes | None:
    digest = hashlib.sha256()
    try:
        with open(file.path, "rb", buffering=0) as opened:
            while block := opened.read(BLOCK):
                digest.update(block)
    except OSError:
        return None
    return digest.digest()


def _under_several_keys(files: Sequence[_File], values: Sequence[Hashable]) -> list[list[_File]]:
    """The files with the same value, where these have more than one key; a value of None is left out."""
    groups: dict[Hashable, list[_File]] = {}
    for file, value in zip(files, values, strict=True):
        if value is not None:
            groups.setdefault(value, []).append(file)
    return [group for group in groups.values() if any(file.key != group[0].key for file in group)]


def _flat(groups: Iterable[list[_File]]) -> list[_File]:
    return [file for group in groups for file in group]


def _copies(groups: Iterable[list[_File]], is_link: bool) -> list[Copy]:
    copies = []
    for first, *others in groups:
        by_key = {file.key: file for file in reversed(others) if file.key != first.key}
        copies += [Copy(first.path, other.path, (first.key, key), is_link) for key, other in by_key.items()]
    return copies
