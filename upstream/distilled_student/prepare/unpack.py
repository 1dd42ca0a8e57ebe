"""Unpacks archives into a temporary folder, which is renamed at the end: a target folder is always complete."""

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

from distilled_student.common.errors import UserError
from distilled_student.common.progress import Progress
from distilled_student.common.untrusted import leads_outside

# exceptions that a damaged or hostile archive can cause; too long or conflicting names cause OSError
UNREADABLE = (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, OSError, KeyError, ValueError, RuntimeError)


def check_member(archive: Path, name: str, is_plain: bool) -> None:
    """Raise UserError for a member of an archive that is not a file or folder, or whose name leads out of the target.

    Every link is refused: it would point elsewhere after the unpacked folder is moved.
    """
    if leads_outside(name):
        raise UserError(f"{archive}: cannot be unpacked ({name}: leads out of the folder: refused)")
    if not is_plain:
        raise UserError(f"{archive}: cannot be unpacked ({name}: is neither a file nor a folder: refused)")


def check_space(folder: Path, need: int) -> None:
    """Raise UserError if the disk of ``folder``, which may not exist yet, has less than ``need`` bytes free."""
    existing = next(path for path in (folder.resolve(), *folder.resolve().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if free < need:
        raise UserError(f"{folder}: needs {need / 1e9:,.1f} GB of disk, {free / 1e9:,.1f} GB are free")


@contextmanager
def temporary_folder(target: Path, source: Path) -> Iterator[Path]:
    """A new folder next to ``target``, into which ``source`` is unpacked. It is deleted at the end.

    Raises:
        UserError: any of `UNREADABLE` inside the context; names ``source``.
    """
    partial = target.parent / f".{target.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)  # left by a run that was killed
    partial.mkdir(parents=True)
    try:
        yield partial
    except UNREADABLE as error:
        raise UserError(f"{source}: cannot be unpacked ({error})") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def untar(archive: Path, target: Path, inside: str) -> None:
    """Unpack the folder ``inside`` of a .tar.gz to ``target``, and the files next to it (licence, speakers) too.

    Raises:
        UserError: damaged, a member that leads out of the folder, no folder ``inside``, or a Python that cannot check.
    """
    if not hasattr(tarfile, "data_filter"):
        raise UserError(
            f"{archive}: unpacking it safely needs Python 3.10.12, 3.11.4 or newer; update Python or unpack it yourself"
        )

    with temporary_folder(target, archive) as partial:
        with (
            archive.open("rb") as file,
            tarfile.open(fileobj=file, mode="r:gz") as tar,  # not "r|gz", which accepts a truncated file
            Progress(archive.stat().st_size, f"unpack {archive.name}", unit="B") as progress,
        ):

            def check(member: tarfile.TarInfo, folder: str) -> tarfile.TarInfo:
                progress.update_to(file.tell())
                check_member(archive, member.name, member.isfile() or member.isdir())
                return tarfile.data_filter(member, folder)

            tar.extractall(partial, filter=check)
        unpacked = partial / inside
        if not unpacked.is_dir():
            raise UserError(f"{archive}: holds no folder {inside}")
        if inside:
            for neighbour in unpacked.parent.iterdir():
                if neighbour.is_file() and not (target.parent / neighbour.name).exists():
                    os.replace(neighbour, target.parent / neighbour.name)
        os.replace(unpacked, target)


def unzip(pieces: Sequence[Path], partial: Path) -> None:
    """Unpack a .zip file, given as its consecutive pieces, into the folder ``partial``.

    Raises:
        UserError: too little disk space, or a member that leads out of the folder.
        Exception: any of `UNREADABLE`, if the archive is damaged or encrypted, or a piece is missing.
    """
    with io.BufferedReader(Pieces(pieces), 1 << 20) as file, zipfile.ZipFile(file) as archive:
        for member in archive.infolist():
            kind = stat.S_IFMT(member.external_attr >> 16)
            check_member(pieces[0], member.orig_filename, kind in (0, stat.S_IFREG, stat.S_IFDIR))
        check_space(partial, sum(member.file_size for member in archive.infolist()))
        with Progress(len(archive.infolist()), f"unpack {pieces[0].name}") as progress:
            for member in archive.infolist():
                archive.extract(member, partial)
                progress.update()


class Pieces(io.RawIOBase):
    """Consecutive pieces of a file, read as one file: 30 GB need not be copied to join them."""

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
