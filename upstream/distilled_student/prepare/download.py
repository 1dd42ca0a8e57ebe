"""Fetch a published file: resumed where it was cut, tried a bounded number of times, kept with its checksum alone."""

# lhotse's resumable_download takes a cut connection for the end of the file, and appends a whole answer to a partial
# file where a server ignores Range; torch.hub.download_url_to_file, torchaudio's, cannot resume. Neither retries.

from __future__ import annotations

import errno
import hashlib
import http.client
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from rich import progress
from rich.console import Console

from distilled_student.common.errors import UserError
from distilled_student.prepare.catalog import Archive

log = logging.getLogger(__name__)
RETRIES = 5  # in a row that bring nothing new
PAUSE = 1.0  # seconds before the first of them; each further one waits twice as long
TIMEOUT = 30.0  # seconds of silence
CHUNK = 1 << 20
BUSY = (408, 425, 429, 500, 502, 503, 504)  # answers that a later attempt may better


def shown() -> dict[str, Any]:
    """Where and whether progress is shown: beside the errors, to a person."""
    console = Console(stderr=True)
    return {"console": console, "transient": True, "disable": not console.is_terminal}


def verify(path: Path, archive: Archive) -> Path:
    """``path``, whose checksum is the published one. Raises UserError that names both sums where it is not."""
    kind = "md5" if len(archive.checksum) == 32 else "sha256"
    digest = hashlib.new(kind, usedforsecurity=False)
    with progress.open(path, "rb", description=f"check {path.name}", **shown()) as file:
        while block := file.read(CHUNK):
            digest.update(block)
    if digest.hexdigest() != archive.checksum:
        found = f"{kind} {digest.hexdigest()}, published is {archive.checksum}"
        raise UserError(f"{path}: not the published file ({found})")
    return path


def left(archive: Archive, folder: Path) -> int:
    """Bytes that `fetch` has yet to fetch."""
    own, part = folder / archive.name, folder / f"{archive.name}.part"
    return 0 if own.is_file() else archive.size - (part.stat().st_size if part.is_file() else 0)


def fetch(archive: Archive, folder: Path, mirror: str | None = None) -> Path:
    """The path of ``archive`` in ``folder``, checked.

    A file of that name was put there by the user: it is used, never changed. What is fetched is ``NAME.part``, which a
    later call goes on with.

    Args:
        mirror: A URL under which the files are, in place of their own.

    Raises:
        UserError: no server has it or can be reached, the connection is cut again and again, or the checksum differs,
            after which a fetched file is deleted.
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
        raise UserError(f"{error}: deleted, the same command fetches it anew") from None


def _download_from_any(urls: tuple[str, ...], part: Path, archive: Archive) -> None:
    reasons = []
    for url in urls:
        try:
            return _download(url, part, archive.size)
        except (OSError, http.client.HTTPException, ValueError) as error:
            reasons.append(f"{url}: {_reason(error)}")
    if part.is_file() and not part.stat().st_size:
        part.unlink()
    raise UserError(f"{archive.name}: cannot be fetched ({'; '.join(reasons)})")


def _reason(error: Exception) -> str:
    return str(error.reason if isinstance(error, URLError) and not isinstance(error, HTTPError) else error)


def _download(url: str, part: Path, size: int) -> None:
    columns = (
        progress.TextColumn(f"fetch {part.stem}"),
        progress.BarColumn(),
        progress.DownloadColumn(),
        progress.TransferSpeedColumn(),
        progress.TimeRemainingColumn(),
    )
    log.info("fetch %s", url)
    with part.open("ab") as file, progress.Progress(*columns, **shown()) as bar:
        task = bar.add_task(part.stem, total=size or None)
        start = furthest = file.tell()
        failures = 0
        while True:
            try:
                for position in _receive(url, file):
                    bar.update(task, completed=position)
                return
            except (OSError, http.client.HTTPException) as error:
                position = file.seek(0, 2)
                failures = 0 if position > furthest else failures + 1
                furthest = max(furthest, position)
                if failures > RETRIES or _hopeless(error, reached=furthest > start):
                    raise
                time.sleep(min(60.0, PAUSE * 2**failures))


def _hopeless(error: Exception, reached: bool) -> bool:
    """A server that has sent something is waited for; one that never answered, or refuses, is not."""
    if isinstance(error, HTTPError):
        return error.code not in BUSY
    if isinstance(error, URLError):
        return not reached
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def _receive(url: str, file: BinaryIO) -> Iterator[int]:
    """Append what is missing to ``file`` over one connection, and give the position after each block."""
    position = file.seek(0, 2)
    request = Request(url, headers={"User-Agent": "distilled-student"})
    if position:
        request.add_header("Range", f"bytes={position}-")
    try:
        answer = urlopen(request, timeout=TIMEOUT)
    except HTTPError as error:
        if error.code != 416:  # nothing after that position
            raise
        if error.headers.get("Content-Range") == f"bytes */{position}":
            return
        file.truncate(0)
        raise ConnectionError(f"the server has fewer than {position:,} bytes") from None
    with answer:
        if answer.status != 206:  # the server sends the whole file
            file.truncate(0)
            position = 0
        length = answer.headers.get("Content-Length")
        end = position + int(length) if length else None
        while block := answer.read(CHUNK):
            file.write(block)
            position += len(block)
            yield position
    if end is not None and position < end:
        raise ConnectionError(f"cut after {position:,} of {end:,} bytes")
