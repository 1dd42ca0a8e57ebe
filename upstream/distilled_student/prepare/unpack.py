"""Unpack beside and rename, so that no half of an archive is ever taken for the whole."""

from __future__ import annotations

import io
import os
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path

from rich import progress
from rich.markup import escape

from distilled_student.common.errors import UserError
from distilled_student.common.untrusted import leads_outside
from distilled_student.prepare.download import shown

# what a damaged or a hostile archive makes Python raise: names that are too long or in each other's way are OSError
UNREADABLE = (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, OSError, KeyError, ValueError, RuntimeError)


def check_member(archive: Path, name: str, is_plain: bool) -> None:
    """Raise UserError for a member of an archive that is no file or folder, or whose name leads out of the folder.

    A link is refused wherever it points: once what was unpacked is moved, it points elsewhere.
    """
    if leads_outside(name):
        raise UserError(f"{archive}: cannot be unpacked ({name}: leads out of the folder: refused)")
    if not is_plain:
        raise UserError(f"{archive}: cannot be unpacked ({name}: is neither a file nor a folder: refused)")


def check_space(folder: Path, need: int) -> None:
    """Raise UserError where the disk of ``folder``, which need not exist yet, has less than ``need`` bytes left."""
    there = next(path for path in (folder.resolve(), *folder.resolve().parents) if path.exists())
    free = shutil.disk_usage(there).free
    if free < need:
        raise UserError(f"{folder}: needs {need / 1e9:,.1f} GB of disk, {free / 1e9:,.1f} GB are free")


@contextmanager
def beside(target: Path, source: Path) -> Iterator[Path]:
    """A new folder beside ``target`` to unpack ``source`` into; gone afterwards, with what was not moved out of it."""
    partial = target.parent / f".{target.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)  # of a run that was ended
    partial.mkdir(parents=True)
    try:
        yield partial
    except UNREADABLE as error:
        raise UserError(f"{source}: cannot be unpacked ({error})") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def untar(archive: Path, target: Path, inside: str) -> None:
    """Make ``target`` of the folder ``inside`` of a .tar.gz; files next to that folder (licence, speakers) come along.

    Raises:
        UserError: damaged, a member that would land outside, no such folder in it, or a Python too old to check that.
    """
    if not hasattr(tarfile, "data_filter"):
        raise UserError(f"{archive}: unpacking it safely needs Python 3.10.12, 3.11.4 or newer; or unpack it yourself")

    def checked(member: tarfile.TarInfo, folder: str) -> tarfile.TarInfo:
        check_member(archive, member.name, member.isfile() or member.isdir())
        return tarfile.data_filter(member, folder)

    with beside(target, archive) as partial:
        with (
            progress.open(archive, "rb", description=f"unpack {escape(archive.name)}", **shown()) as file,
            tarfile.open(fileobj=file, mode="r:gz") as tar,  # "r|gz" takes a file that ends early for whole
        ):
            tar.extractall(partial, filter=checked)
        home = partial / inside
        if not home.is_dir():
            raise UserError(f"{archive}: holds no folder {inside}")
        if inside:
            for file in home.parent.iterdir():
                if file.is_file() and not (target.parent / file.name).exists():
                    os.replace(file, target.parent / file.name)
        os.replace(home, target)


def unzip(pieces: Sequence[Path], partial: Path) -> None:
    """Unpack a .zip, whole or in pieces that follow each other, into the folder ``partial``.

    Raises:
        UserError: no room for it, or a member that would land outside. Any of `UNREADABLE`: damaged, encrypted, or a
            piece is missing.
    """
    with io.BufferedReader(Pieces(pieces), 1 << 20) as file, zipfile.ZipFile(file) as archive:
        for member in archive.infolist():
            kind = stat.S_IFMT(member.external_attr >> 16)
            check_member(pieces[0], member.orig_filename, kind in (0, stat.S_IFREG, stat.S_IFDIR))
        check_space(partial, sum(member.file_size for member in archive.infolist()))
        description = f"unpack {escape(pieces[0].name)}"
        for member in progress.track(archive.infolist(), description, **shown()):
            archive.extract(member, partial)


class Pieces(io.RawIOBase):
    """Files one after the other as one: 30 GB need not be written a second time to be joined."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.files = [path.open("rb") for path in paths]
        self.ends = list(accumulate(path.stat().st_size for path in paths))
        self.position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self.position, os.SEEK_END: self.ends[-1]}[whence]
        self.position = start + offset
        return self.position

    def readinto(self, buffer: memoryview) -> int:
        for file, start, end in zip(self.files, [0, *self.ends], self.ends, strict=False):
            if start <= self.position < end:
                file.seek(self.position - start)
                count = file.readinto(memoryview(buffer)[: end - self.position])
                self.position += count
                return count
        return 0

    def close(self) -> None:
        for file in self.files:
            file.close()
        super().close()
