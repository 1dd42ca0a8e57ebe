"""Shards and long manifests, on a disk or behind a URL, in units that are read in one go.

A unit is a WebDataset shard, or a part of a lhotse manifest. What is in it comes in chunks of a bounded size.
"""

from __future__ import annotations

import gzip
import io
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

from distilled_student.common.audio import SUFFIXES, check
from distilled_student.common.errors import UserError
from distilled_student.distillation.data.cuts import MANIFESTS, DataConfig
from distilled_student.distillation.data.manifests import parse_cut

TARS = (".tar", ".tar.gz", ".tgz")
LARGE = 64 << 20  # bytes from which on a manifest is streamed
SLICE = 4 << 20  # bytes of a manifest's part
LINE = 16 << 20  # bytes of its longest line
MEMBER = 256 << 20  # bytes of a shard's largest member: two hours of 16 kHz in 16 bits
CHUNK_ITEMS, CHUNK_BYTES = 512, 32 << 20  # what a stream holds, shuffles and sorts at a time
DENSEST = 8192  # samples that a byte can stand for: silence in FLAC or Opus stays below


@dataclass(frozen=True)
class Unit:
    """What is read in one go: a shard, or one of ``parts`` of a manifest of ``size`` bytes."""

    path: str
    part: int = 0
    parts: int = 1
    size: int = 0

    @property
    def is_shard(self) -> bool:
        """Whether its items are members of a tar, and not lines."""
        return _ends(self.path, TARS)


class Item(NamedTuple):
    """A shard's member or a manifest's line as it is; ``fault``: why it cannot be used, if that is known already."""

    name: str
    content: bytes
    fault: str = ""


def _is_url(path: str) -> bool:
    return "://" in path


def _ends(path: str, suffixes: tuple[str, ...]) -> bool:
    return (path.split("?")[0] if _is_url(path) else path).lower().endswith(suffixes)


def _open(path: str) -> BinaryIO:
    return fsspec.open(path, "rb").open() if _is_url(path) else open(path, "rb")


def reason_of(error: Exception) -> str:
    """An error of anybody's in a short line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def expand(pattern: str) -> list[str]:
    """What a shell makes of ``{000..127}`` and ``{a,b}``, any number of them.

    Raises:
        ValueError: a range of more than a million.
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
    ends = expand(pattern[found.end() :])
    return [pattern[: found.start()] + choice + end for choice in choices for end in ends]


def _paths(name: str) -> list[str]:
    """The paths that an entry of ``data.paths`` stands for, sorted where it has wildcards."""
    if not _is_url(name) and Path(name).exists():
        return [name]
    paths = []
    for path in expand(name):
        if not re.search(r"\*" if _is_url(path) else r"[*?\[]", path):  # a URL's ? is its query
            paths.append(path)
            continue
        system, inside = fsspec.core.url_to_fs(path)
        found = sorted(str(p) for p in system.glob(inside))
        paths += [system.unstrip_protocol(p) for p in found] if _is_url(path) else found
    if not paths:
        raise ValueError("no such file")
    return paths


def _is_streamed(name: str, limit: int) -> bool:
    path = Path(name)
    if _is_url(name) or not path.exists():  # or a pattern
        return _is_url(name) or bool(re.search(r"[*?\[{]", name)) or _ends(name, TARS)
    return path.is_file() and (_ends(name, TARS) or (_ends(name, MANIFESTS) and path.stat().st_size > limit))


def _check_manifest(path: str) -> None:
    """Raise ValueError for one whose first line is of another kind: rather now than for each of millions."""
    with _open(path) as file:
        line = (gzip.GzipFile(fileobj=file) if _ends(path, (".gz",)) else io.BufferedReader(file)).readline(LINE)
    try:
        parse_cut(line)
    except Exception as error:  # whatever lhotse raises on foreign lines
        raise ValueError(f"cannot be read as a lhotse manifest ({reason_of(error)})") from None


def _check_path(path: str) -> int:
    """The bytes of a manifest that can be read from the middle, else 0. Raises what makes a path unusable."""
    if not _is_url(path) and Path(path).is_dir():
        raise ValueError("a folder cannot be streamed: make shards or a manifest of it")
    if not _ends(path, TARS + MANIFESTS):
        raise ValueError(f"{path} is neither a shard nor a manifest ({', '.join(TARS + MANIFESTS)})")
    system, inside = fsspec.core.url_to_fs(path)
    if _ends(path, TARS):
        if not _is_url(path):  # a store is not asked for each of thousands
            Path(path).stat()
        return 0
    _check_manifest(path)
    size = 0 if _ends(path, (".gz",)) else system.size(inside)
    if size is None:
        raise ValueError("its size is not known")
    return size


def open_units(config: DataConfig, where: str | Path = "data", world: int = 1, limit: int = LARGE) -> list[Unit] | None:
    """The units of a corpus that is to be streamed; None where `read_cuts` reads it: folders and small manifests.

    What is looked at does not grow with the corpus: names and sizes, and the first line of each manifest.

    Args:
        where: What messages begin with, ``FILE: data``.
        world: Processes. There are enough units for all their streams, or it is an error.
        limit: Bytes from which on a manifest is streamed.

    Raises:
        UserError: a path cannot be streamed, or there are too few shards; names it.
    """
    if not any(_is_streamed(name, limit) for name in config.paths):
        return None
    if config.workers and config.streams % config.workers:
        raise UserError(f"{where}.workers: {config.workers} cannot share {config.streams} streams evenly")
    sizes: dict[str, int] = {}
    for name in config.paths:
        try:
            sizes |= {path: _check_path(path) for path in _paths(name)}
        except Exception as error:  # a store's library raises what it likes
            reason = f"{error.strerror}: {error.filename}" if getattr(error, "strerror", None) else str(error)
            raise UserError(f"{where}.paths: {name}: {reason}") from None
    units, streams = _divide(sizes, world * config.streams), world * config.streams
    if len(units) < streams:
        few = f"{len(units)} shards for {streams} streams: make {streams} of them, or set streams to fewer"
        raise UserError(f"{where}.paths: {', '.join(config.paths)}: {few}")
    return units


def _divide(sizes: Mapping[str, int], streams: int) -> list[Unit]:
    """Shards as they are, manifests in small enough parts for all ``streams``."""
    shards = [path for path in sizes if _ends(path, TARS)]
    packed = [path for path in sizes if _ends(path, MANIFESTS) and not sizes[path]]
    missing = max(1, streams - len(shards))
    each = max(1, min(SLICE, sum(sizes.values()) // missing))
    units = [Unit(path) for path in shards]
    for path, size in sizes.items():
        parts = -(-size // each)
        units += [Unit(path, part, parts, size) for part in range(parts)]
    parts = -(-missing // max(1, len(packed)))  # each of them unpacks the whole file: no more than needed
    return units + [Unit(path, part, parts) for path in packed for part in range(parts)]


class _Member(tarfile.TarInfo):
    """A member whose header must be whole: tarfile takes a damaged one for the archive's end."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> _Member:
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"damaged, or not all there ({error})") from None


def _members(file: BinaryIO, unit: Unit) -> Iterator[Item]:
    with tarfile.open(fileobj=file, mode="r|*", tarinfo=_Member) as archive:
        for member in archive:
            archive.members.clear()  # it would keep them all
            if not member.isfile() or Path(member.name).suffix.lower() not in SUFFIXES:
                continue
            name = f"{unit.path}/{member.name}"
            if member.size > MEMBER:
                yield Item(name, b"", f"larger than {MEMBER >> 20} MB")
                continue
            yield Item(name, archive.extractfile(member).read())


def _every_line(file: BinaryIO, unit: Unit) -> Iterator[Item]:
    """Every ``parts``-th line of what must be unpacked from its start."""
    unpacked = gzip.GzipFile(fileobj=file)
    for number, line in enumerate(iter(lambda: unpacked.readline(LINE), b"")):
        if number % unit.parts == unit.part and line.strip():
            yield Item(f"{unit.path}, line {number + 1}", line)


def _lines(file: BinaryIO, unit: Unit) -> Iterator[Item]:
    """The lines that begin in the unit's share of a manifest's bytes."""
    start, end = (unit.size * part // unit.parts for part in (unit.part, unit.part + 1))
    position = max(0, start - 1)  # a line begins behind a line's end
    file.seek(position)
    block = file.read(end - position)
    if start:
        skipped = block.find(b"\n") + 1
        block, position = (block[skipped:], position + skipped) if skipped else (b"", end)
    while block and not block.endswith(b"\n") and (more := file.read(1 << 16)):
        block += more[: more.find(b"\n") + 1] or more
        if len(block) > LINE + SLICE:
            raise ValueError(f"a line of more than {LINE >> 20} MB at byte {position}")
    for line in block.split(b"\n"):
        if line.strip():
            yield Item(f"{unit.path}, byte {position}", line)
        position += len(line) + 1


def chunks_of(unit: Unit) -> Iterator[tuple[list[Item], dict[str, str]]]:
    """What is in a unit, a bounded part at a time, and with the last of it why there is no more, if that is a fault."""
    read = _members if unit.is_shard else _every_line if _ends(unit.path, (".gz",)) else _lines
    chunk, size, failed = [], 0, {}
    try:
        with _open(unit.path) as file:
            for item in read(file, unit):
                chunk.append(item)
                size += len(item.content)
                if len(chunk) == CHUNK_ITEMS or size >= CHUNK_BYTES:
                    yield chunk, {}
                    chunk, size = [], 0
    except Exception as error:  # whatever a store, or a damaged archive, raises
        failed = {unit.path: reason_of(error)}
    if chunk or failed:
        yield chunk, failed


def member_cut(name: str, content: bytes) -> Cut:
    """An audio file's bytes, which stay as they are: only the header is read. Raises whatever damage makes it raise."""
    with soundfile.SoundFile(io.BytesIO(content)) as file:
        check(file)
        frames, rate, channels = file.frames, file.samplerate, list(range(file.channels))
    if not 0 <= frames <= DENSEST * len(content):
        raise ValueError(f"{frames} samples in its header, and {len(content)} bytes")
    source = AudioSource("memory", channels, content)
    return Recording(name, [source], rate, frames, frames / rate, channels).to_cut()
