"""Downloads a published file: resumes after a lost connection, retries a few times, and checks the checksum."""

# Why not an existing function: lhotse's resumable_download takes a lost connection for the end of the file, and if a
# server ignores Range it appends the complete file to the partial one. torch.hub.download_url_to_file, which torchaudio
# uses, cannot resume. Neither retries.

from __future__ import annotations

import errno
import hashlib
import http.client
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from distilled_student.common.errors import UserError
from distilled_student.common.progress import Progress
from distilled_student.prepare.catalog import Archive

log = logging.getLogger(__name__)
RETRIES = 5  # in a row without new bytes
PAUSE = 1.0  # seconds before the first retry, doubled for each further one
TIMEOUT = 30.0  # seconds without data
CHUNK = 1 << 20  # bytes
TEMPORARY_STATUSES = (408, 425, 429, 500, 502, 503, 504)  # HTTP errors after which a retry may succeed


def verify(path: Path, archive: Archive) -> Path:
    """Check a file against the published checksum and return its path. Raises UserError with both checksums."""
    kind = "md5" if len(archive.checksum) == 32 else "sha256"
    digest = hashlib.new(kind, usedforsecurity=False)
    with path.open("rb") as file, Progress(path.stat().st_size, f"check {path.name}", unit="B") as progress:
        while block := file.read(CHUNK):
            digest.update(block)
            progress.update(len(block))
    if digest.hexdigest() != archive.checksum:
        found = f"{kind} {digest.hexdigest()}, published is {archive.checksum}"
        raise UserError(f"{path}: not the published file ({found})")
    return path


def bytes_to_fetch(archive: Archive, folder: Path) -> int:
    """Bytes that `fetch` must still download."""
    own, part = folder / archive.name, folder / f"{archive.name}.part"
    return 0 if own.is_file() else archive.size - (part.stat().st_size if part.is_file() else 0)


def fetch(archive: Archive, folder: Path, mirror: str | None = None) -> Path:
    """Download ``archive`` into ``folder`` if it is not there, and check it. Returns its path.

    A file of its name is the user's own: it is used and never changed. A download is named ``NAME.part``; a later call
    resumes it.

    Args:
        mirror: Base URL of another server that has the files.

    Raises:
        UserError: no server can be reached or has the file, the connection is lost too often, or the checksum is wrong;
            a download with a wrong checksum is deleted.
    """
    own = folder / archive.name
    if own.is_file():
        return verify(own, archive)
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f"{archive.name}.part"
    if not (part.is_file() and part.stat().st_size == archive.size):
        urls = (f"{mirror.rstrip('/')}/{archive.name}",) if mirror else archive.urls
        _download_from_any(urls, part, archive)
    try:
        return verify(part, archive)
    except UserError as error:
        part.unlink()
        raise UserError(f"{error}: deleted; run the same command again to download it") from None


def _download_from_any(urls: tuple[str, ...], part: Path, archive: Archive) -> None:
    reasons = []
    for url in urls:
        try:
            return _download(url, part, archive.size)
        except (OSError, http.client.HTTPException, ValueError) as error:
            reasons.append(f"{url}: {_reason(error)}")
    if part.is_file() and not part.stat().st_size:
        part.unlink()
    raise UserError(f"{archive.name}: cannot be downloaded ({'; '.join(reasons)})")


def _reason(error: Exception) -> str:
    return str(error.reason if isinstance(error, URLError) and not isinstance(error, HTTPError) else error)


def _download(url: str, part: Path, size: int) -> None:
    """Append the rest of the file at ``url`` to ``part``, with retries. ``size``: of the whole file; 0: unknown."""
    log.info("download %s", url)
    with part.open("ab") as file, Progress(size or None, f"download {part.stem}", file.tell(), unit="B") as progress:
        start = furthest = file.tell()
        failures = 0
        while True:
            try:
                for position in _receive(url, file):
                    progress.update_to(position)
                return
            except (OSError, http.client.HTTPException) as error:
                position = file.seek(0, 2)
                failures = 0 if position > furthest else failures + 1
                furthest = max(furthest, position)
                if failures > RETRIES or not _may_retry(error, has_answered=furthest > start):
                    raise
                time.sleep(min(60.0, PAUSE * 2**failures))


def _may_retry(error: Exception, has_answered: bool) -> bool:
    """Whether a retry may succeed: not if the server refuses, has never answered, or the disk is full."""
    if isinstance(error, HTTPError):
        return error.code in TEMPORARY_STATUSES
    if isinstance(error, URLError):
        return has_answered
    return not (isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT))


def _receive(url: str, file: BinaryIO) -> Iterator[int]:
    """Append the missing bytes to ``file`` over one connection; yields the position after each block."""
    position = file.seek(0, 2)
    request = Request(url, headers={"User-Agent": "distilled-student"})
    if position:
        request.add_header("Range", f"bytes={position}-")
    try:
        answer = urlopen(request, timeout=TIMEOUT)
    except HTTPError as error:
        if error.code != 416:  # 416: the file has no bytes after this position
            raise
        if error.headers.get("Content-Range") == f"bytes */{position}":
            return
        file.truncate(0)
        raise ConnectionError(f"the server has fewer than {position:,} bytes") from None
    with answer:
        if answer.status != 206:  # the server ignores Range and sends the whole file
            file.truncate(0)
            position = 0
        length = answer.headers.get("Content-Length")
        end = position + int(length) if length else None
        while block := answer.read(CHUNK):
            file.write(block)
            position += len(block)
            yield position
    if end is not None and position < end:
        raise ConnectionError(f"connection lost after {position:,} of {end:,} bytes")
