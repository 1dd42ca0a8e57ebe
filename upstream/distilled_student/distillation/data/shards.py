"""Shards and large manifests, on disk or behind a URL, divided into units that are read from start to end.

A unit is a WebDataset shard, or a part of a lhotse manifest. Its items are read in chunks of bounded size.
"""

from __future__ import annotations

import gzip
import io
import os
import re
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

import fsspec
import soundfile
from lhotse import AudioSource, Recording
from lhotse.cut import Cut

from distilled_student.common.arithmetic import ceil_div
from distilled_student.common.audio_folders import how_to_convert, is_audio, is_foreign_audio
from distilled_student.common.audio_reading import check_header
from distilled_student.common.errors import UserError, short_reason
from distilled_student.distillation.data.config import MANIFESTS, TARS, DataConfig
from distilled_student.distillation.data.manifests import Mismatch, check_files, parse_cut

STREAMED_BYTES = 64 << 20  # a manifest on disk that is larger than this is streamed
PART_BYTES = 4 << 20  # of a part of a manifest, at most
MAX_LINE_BYTES = 16 << 20  # of a manifest's line
MAX_MEMBER_BYTES = 256 << 20  # of a shard's member: two hours of 16 kHz in 16 bits
CHUNK_ITEMS, CHUNK_BYTES = 512, 32 << 20  # what a stream holds, shuffles and sorts at a time
MAX_SAMPLES_PER_BYTE = 8192  # silence in FLAC or Opus stays below this


@dataclass(frozen=True)
class Unit:
    """A shard, or number ``part`` of the ``parts`` of a manifest of ``size`` bytes."""

    path: str
    part: int = 0
    parts: int = 1
    size: int = 0

    @property
    def is_shard(self) -> bool:
        """Whether its items are members of a tar archive; otherwise they are lines of a manifest."""
        return _has_suffix(self.path, TARS)


class Item(NamedTuple):
    """Undecoded content of a shard's member or a manifest's line; ``fault``: why it cannot be used, if known."""

    name: str
    content: bytes
    fault: str = ""


def _is_url(path: str) -> bool:
    return "://" in path


def _has_suffix(path: str, suffixes: tuple[str, ...]) -> bool:
    return (path.split("?")[0] if _is_url(path) else path).lower().endswith(suffixes)


def _open(path: str) -> BinaryIO:
    return fsspec.open(path, "rb").open() if _is_url(path) else open(path, "rb")


def expand_braces(pattern: str) -> list[str]:
    """Expand every ``{000..127}`` and ``{a,b}`` of a pattern as a shell does.

    Raises:
        ValueError: a range of more than a million numbers.
    """
    found = re.search(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}", pattern)
    if found is None:
        return [pattern]
    first, last, words = found.groups()
    if words is None:
        if not 0 <= int(last) - int(first) < 1_000_000:
            raise ValueError(f"{found[0]} is not a range of at most a million")
        choices = [f"{number:0{len(first)}}" for number in range(int(first), int(last) + 1)]
    else:
        choices = words.split(",")
    ends = expand_braces(pattern[found.end() :])
    return [pattern[: found.start()] + choice + end for choice in choices for end in ends]


def _paths_of(name: str) -> list[str]:
    """The paths that an entry of ``data.paths`` stands for; those that a wildcard matches are sorted."""
    if not _is_url(name) and Path(name).exists():
        return [name]
    paths = []
    for path in expand_braces(name):
        if not re.search(r"\*" if _is_url(path) else r"[*?\[]", path):  # the ? of a URL begins its query
            paths.append(path)
            continue
        system, inside = fsspec.core.url_to_fs(path)
        found = sorted(str(p) for p in system.glob(inside))
        paths += [system.unstrip_protocol(p) for p in found] if _is_url(path) else found
    if not paths:
        raise ValueError("no such file")
    return paths


def _is_streamed(name: str, limit: int) -> bool:
    """Whether an entry of ``data.paths`` is a URL, a pattern, a shard or a manifest of more than ``limit`` bytes."""
    path = Path(name)
    if _is_url(name) or not path.exists():
        return _is_url(name) or bool(re.search(r"[*?\[{]", name)) or _has_suffix(name, TARS)
    is_large_manifest = _has_suffix(name, MANIFESTS) and path.stat().st_size > limit
    return path.is_file() and (_has_suffix(name, TARS) or is_large_manifest)


def _check_first_line(path: str) -> None:
    """Raise ValueError if the first line of a manifest is not a cut: one error now instead of one for each line."""
    with _open(path) as file:
        unpacked = gzip.GzipFile(fileobj=file) if _has_suffix(path, (".gz",)) else io.BufferedReader(file)
        line = unpacked.readline(MAX_LINE_BYTES)
    try:
        check_files(parse_cut(line))
    except Mismatch:
        raise
    except Exception as error:  # for a foreign line lhotse can raise any exception
        raise ValueError(f"cannot be read as a lhotse manifest ({short_reason(error)})") from None


def _check_path(path: str) -> int:
    """The size in bytes of a manifest that can be read from any position; 0 for a shard or a compressed manifest.

    Raises an exception of any type for a path that cannot be streamed.
    """
    if not _is_url(path) and Path(path).is_dir():
        raise ValueError("a folder cannot be streamed: make shards or a manifest of it")
    if not _has_suffix(path, TARS + MANIFESTS):
        raise ValueError(f"{path} is neither a shard nor a manifest ({', '.join(TARS + MANIFESTS)})")
    system, inside = fsspec.core.url_to_fs(path)
    if _has_suffix(path, TARS):
        if not _is_url(path):  # asking a store for each of thousands of shards would take long
            Path(path).stat()
        return 0
    _check_first_line(path)
    size = 0 if _has_suffix(path, (".gz",)) else system.size(inside)
    if size is None:
        raise ValueError("its size is not known")
    return size


def open_units(
    config: DataConfig, where: str | Path = "data", world: int = 1, limit: int = STREAMED_BYTES
) -> list[Unit] | None:
    """The units of a streamed corpus; None if all paths are folders or small manifests, which `read_cuts` reads.

    Looks only at names, at sizes and at the first line of each manifest: the time does not depend on the corpus's size.

    Args:
        where: What error messages begin with, ``FILE: data``.
        world: Number of processes. There must be at least one unit for each stream of each process.
        limit: Bytes; a larger manifest is streamed.

    Raises:
        UserError: a path cannot be streamed, or there are too few shards.
    """
    if not any(_is_streamed(name, limit) for name in config.paths):
        return None
    if config.workers and config.streams % config.workers:
        raise UserError(f"{where}.workers: {config.workers} cannot share {config.streams} streams evenly")
    sizes, places = dict[str, int](), set[str]()  # a shard that several paths lead to is read once
    for name in config.paths:
        try:
            for path in _paths_of(name):
                if (place := path if _is_url(path) else os.path.realpath(path)) not in places:
                    places.add(place)
                    sizes[path] = _check_path(path)
        except Exception as error:  # the library of a store can raise any exception
            reason = f"{error.strerror}: {error.filename}" if getattr(error, "strerror", None) else str(error)
            raise UserError(f"{where}.paths: {name}: {reason}") from None
    units, streams = _divide(sizes, world * config.streams), world * config.streams
    if len(units) < streams:
        few = f"{len(units)} shards for {streams} streams: make {streams} shards, or set data.streams to fewer"
        raise UserError(f"{where}.paths: {', '.join(config.paths)}: {few}")
    return units


def _divide(sizes: Mapping[str, int], streams: int) -> list[Unit]:
    """One unit for each shard; manifests are divided into parts, so that every stream gets a unit.

    ``sizes``: path -> the result of `_check_path`.
    """
    shards = [path for path in sizes if _has_suffix(path, TARS)]
    compressed = [path for path in sizes if _has_suffix(path, MANIFESTS) and not sizes[path]]
    missing = max(1, streams - len(shards))
    part_bytes = max(1, min(PART_BYTES, sum(sizes.values()) // missing))
    units = [Unit(path) for path in shards]
    for path, size in sizes.items():
        parts = ceil_div(size, part_bytes)
        units += [Unit(path, part, parts, size) for part in range(parts)]
    # the reader of each part decompresses the whole file: no more parts than necessary
    parts = ceil_div(missing, max(1, len(compressed)))
    return units + [Unit(path, part, parts) for path in compressed for part in range(parts)]


class _StrictTarInfo(tarfile.TarInfo):
    """A member whose damaged header is an error; tarfile itself takes it for the end of the archive."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> _StrictTarInfo:
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"damaged or truncated ({error})") from None


def _members(file: BinaryIO, unit: Unit) -> Iterator[Item]:
    """The audio files in a shard, and the first one that is not read."""
    any_foreign = False
    with tarfile.open(fileobj=file, mode="r|*", tarinfo=_StrictTarInfo) as archive:
        for member in archive:
            archive.members.clear()  # tarfile would keep all of them in memory
            name = f"{unit.path}/{member.name}"
            if member.isfile() and is_foreign_audio(member.name) and not any_foreign:
                any_foreign = True  # one for all of them
                yield Item(name, b"", how_to_convert(member.name))
            if not member.isfile() or not is_audio(member.name):
                continue
            if member.size > MAX_MEMBER_BYTES:
                yield Item(name, b"", f"larger than {MAX_MEMBER_BYTES >> 20} MB")
                continue
            yield Item(name, archive.extractfile(member).read())


def _lines_of_compressed(file: BinaryIO, unit: Unit) -> Iterator[Item]:
    """The lines of a part of a compressed manifest, which must be read from its start: every ``parts``-th line."""
    unpacked = gzip.GzipFile(fileobj=file)
    for number, line in enumerate(iter(lambda: unpacked.readline(MAX_LINE_BYTES), b"")):
        if number % unit.parts == unit.part and line.strip():
            yield Item(f"{unit.path}, line {number + 1}", line)


def _lines(file: BinaryIO, unit: Unit) -> Iterator[Item]:
    """The lines of a part of a manifest: those that begin in its share of the manifest's bytes."""
    start, end = (unit.size * part // unit.parts for part in (unit.part, unit.part + 1))
    position = max(0, start - 1)  # one byte earlier: if it is a line break, a line begins at ``start``
    file.seek(position)
    block = file.read(end - position)
    if start:  # the line that begins earlier is of the part before
        skipped = block.find(b"\n") + 1
        block, position = (block[skipped:], position + skipped) if skipped else (b"", end)
    # complete the last line, which may end in the next part
    while block and not block.endswith(b"\n") and (more := file.read(1 << 16)):
        block += more[: more.find(b"\n") + 1] or more
        if len(block) > MAX_LINE_BYTES + PART_BYTES:
            raise ValueError(f"a line of more than {MAX_LINE_BYTES >> 20} MB at byte {position}")
    for line in block.split(b"\n"):
        if line.strip():
            yield Item(f"{unit.path}, byte {position}", line)
        position += len(line) + 1


def read_chunks(unit: Unit) -> Iterator[tuple[list[Item], dict[str, str]]]:
    """The items of a unit in chunks of bounded size; with the last chunk, the error that ended reading (path: reason).

    A damaged unit is read up to the damage.
    """
    if unit.is_shard:
        read = _members
    elif _has_suffix(unit.path, (".gz",)):
        read = _lines_of_compressed
    else:
        read = _lines
    chunk, size, failed = [], 0, {}
    try:
        with _open(unit.path) as file:
            for item in read(file, unit):
                chunk.append(item)
                size += len(item.content)
                if len(chunk) == CHUNK_ITEMS or size >= CHUNK_BYTES:
                    yield chunk, {}
                    chunk, size = [], 0
    except Exception as error:  # a store or a damaged archive can raise any exception
        failed = {unit.path: short_reason(error)}
    if chunk or failed:
        yield chunk, failed


def cut_of_member(name: str, content: bytes) -> Cut:
    """A cut of an audio file in memory. Reads only its header; raises any exception if that is damaged."""
    with soundfile.SoundFile(io.BytesIO(content)) as file:
        check_header(file)
        frames, rate, channels = file.frames, file.samplerate, list(range(file.channels))
    if not 0 <= frames <= MAX_SAMPLES_PER_BYTE * len(content):
        raise ValueError(f"{frames} samples in its header, but only {len(content)} bytes")
    source = AudioSource("memory", channels, content)
    return Recording(name, [source], rate, frames, frames / rate, channels).to_cut()
