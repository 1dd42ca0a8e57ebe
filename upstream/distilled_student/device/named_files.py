"""The files in the folder of the profiles: a JSON file for each person or word, that only the user may read."""

from __future__ import annotations

import hashlib
import json
import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from distilled_student.common.errors import UserError, one_line
from distilled_student.common.files import write_files

if TYPE_CHECKING:
    from filelock import FileLock

FOLDER = "DISTILLED_STUDENT_PROFILES"  # environment variable: the folder of the profiles
MAX_NAME = 100  # characters
RECOMMENDED = 3  # recordings of a person or of a word
LOCK, LOCK_SECONDS = ".lock", 30  # file of the folder, and how long to wait for it


def profiles_folder(folder: Path | None = None) -> Path:
    """The folder of the profiles: the given one, that of the environment variable, or one in the user's data folder."""
    if folder is not None:
        return folder
    if os.environ.get(FOLDER):
        return Path(os.environ[FOLDER])
    import platformdirs

    return Path(platformdirs.user_data_dir("distilled-student", appauthor=False), "profiles")


def checked_name(name: str) -> str:
    """The name of a person or word in Unicode's composed form. Raises UserError if it is empty, long or not text."""
    name = unicodedata.normalize("NFC", name).strip()
    if not name:
        raise UserError("NAME: is empty; give a name")
    if not name.isprintable():  # control characters, and bytes that are not UTF-8
        raise UserError(f"NAME {name}: has characters that cannot be printed; give another name")
    if len(name) > MAX_NAME:
        raise UserError(f"NAME: has {len(name)} characters; give a name of at most {MAX_NAME}")
    return name


def note_of_case(name: str, read_names: Callable[[], Iterable[str]], kind: str) -> list[str]:
    """A note if another name differs from this one in case alone; ``kind``: ``people`` or ``words``.

    If ``read_names`` raises UserError there is none: the commands that use the damaged file say it.
    """
    try:
        names = read_names()
    except UserError:
        return []
    alike = [other for other in names if other != name and other.casefold() == name.casefold()]
    return [f"{name} and {', '.join(alike)} are different {kind}: their names differ in case alone"] if alike else []


def note_of_few(count: int, items_and_effect: str) -> list[str]:
    """A note if there are fewer than `RECOMMENDED`, but some, of ``items: what too few of them lead to``."""
    return [f"{count} of at least {RECOMMENDED} {items_and_effect}; add others"] if 0 < count < RECOMMENDED else []


class NamedFiles:
    """The JSON files of one kind, one for each name.

    Args:
        folder: It is made when the first file is written.
        prefix: Of the files' names; each kind has its own.

    Raises:
        UserError: the folder is a file.
    """

    def __init__(self, folder: Path, prefix: str) -> None:
        if folder.exists() and not folder.is_dir():
            raise UserError(f"{folder}: is a file; give the folder of the profiles")
        self.folder, self._prefix = folder, prefix
        self._lock: FileLock | None = None

    def path(self, name: str) -> Path:
        """The file of a name: readable, safe in every file system, and different for different names.

        If it was copied from a file system that decomposes characters, it is the file with the decomposed name.
        """
        name = checked_name(name)
        readable = re.sub(r"\W+", "_", name)[:40]
        file = self.folder / f"{self._prefix}{readable}-{hashlib.sha256(name.encode()).hexdigest()[:10]}.json"
        if file.is_file():
            return file
        return next((found for found in self.all() if _composed(found) == _composed(file)), file)

    def all(self) -> Iterable[Path]:
        """All files, in no order."""
        return self.folder.glob(f"{self._prefix}*.json") if self.folder.is_dir() else ()

    def check(self, file: Path, name: str) -> None:
        """Raise ValueError if ``name``, found in a file, is not the one that `write` has written into this file."""
        try:
            own = self.path(name)
        except UserError as error:
            raise ValueError(f"name: {error}") from None
        is_own = _composed(own) == _composed(file) and own.is_file() and own.samefile(file)
        if checked_name(name) != name or not is_own:
            raise ValueError(f"name: {one_line(name)} belongs in the file {own.name}")

    def write(self, name: str, record: Any) -> None:
        """Write the fields of a dataclass."""
        content = json.dumps(asdict(record), ensure_ascii=False) + "\n"
        write_files(self.folder, {self.path(name).name: content.encode()}, is_private=True)

    def remove(self, name: str) -> None:
        with self.lock():
            self.path(name).unlink(missing_ok=True)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Let one process at a time change the folder. The process may take the lock again while it has it.

        Raises:
            UserError: another process keeps it for longer than `LOCK_SECONDS`.
        """
        from filelock import FileLock, Timeout

        write_files(self.folder, {}, is_private=True)  # makes the folder
        if self._lock is None:
            self._lock = FileLock(self.folder / LOCK, timeout=LOCK_SECONDS, mode=0o600)
        try:
            self._lock.acquire()
        except Timeout:
            reason = f"another process has used the folder for {LOCK_SECONDS} s; end it, or try again later"
            raise UserError(f"{self.folder / LOCK}: {reason}") from None
        except OSError as error:
            raise UserError(f"{self.folder}: cannot be written ({error.strerror})") from None
        try:
            yield
        finally:
            self._lock.release()


def _composed(file: Path) -> str:
    """The name of a file in Unicode's composed form."""
    return unicodedata.normalize("NFC", file.name)


def as_rows(vectors: Iterable[NDArray[np.float32]]) -> list[list[float]]:
    """Vectors for JSON: float32 needs 9 digits; all of them are the same number again."""
    return [[float(f"{value:.9g}") for value in vector] for vector in vectors]


def as_vectors(rows: Any, count: int, size: int | None = None) -> NDArray[np.float32]:
    """Vectors ``(count, size)`` from JSON. Raises ValueError or TypeError if they are not ``count`` of length 1.

    Args:
        size: Of the embeddings of the model that they are of; None: not known.
    """
    found = np.array(rows)
    if found.ndim != 2 or not found.size or found.dtype.kind not in "fi":
        raise ValueError("vectors: expected lists of numbers, of one size")
    if len(found) != count:
        raise ValueError(f"vectors: expected {count}, found {len(found)}")
    if size not in (None, found.shape[1]):
        raise ValueError(f"vectors: {found.shape[1]} numbers, but those of the model have {size}")
    if not np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-3):  # with NaN neither
        raise ValueError("vectors: expected vectors of length 1")
    return found.astype(np.float32)


def is_number(value: Any, largest: float) -> bool:
    """Whether a value from JSON is a number above 0 and up to ``largest``, which NaN and infinity are not."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= largest
