"""A local HTTP server whose connections and requests can be made to fail, and small archives for it to serve."""

from __future__ import annotations

import hashlib
import io
import socket
import struct
import tarfile
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from distilled_student import cli
from distilled_student.prepare import download
from distilled_student.prepare.catalog import Archive


class Server(ThreadingHTTPServer):
    """An HTTP server whose next answers can be made to fail.

    Attributes:
        files: Name -> content.
        cuts: For each of the next requests: the number of bytes after which its connection is lost.
        statuses: For each of the next requests: its HTTP status.
        failure: How a connection is lost: ``closed``, ``reset``, or ``silent`` (no data until the client gives up).
        ranges: Whether the server supports Range requests.
        requests: Name and Range header of each request so far.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.cuts: list[int] = []
        self.statuses: list[int] = []
        self.failure = "closed"
        self.ranges = True
        self.requests: list[tuple[str, str | None]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    """Answers GET requests as the attributes of its server say."""

    server: Server

    def do_GET(self) -> None:
        server, name, range_header = self.server, self.path.strip("/"), self.headers.get("Range")
        server.requests.append((name, range_header))
        if server.statuses and (status := server.statuses.pop(0)) != 200:
            return self.send_error(status)
        if name not in server.files:
            return self.send_error(404)
        body, start = server.files[name], 0
        if range_header and server.ranges:
            start = int(range_header.removeprefix("bytes=").removesuffix("-"))
            if start >= len(body):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(body)}")
                return self.end_headers()
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        cut = server.cuts.pop(0) if server.cuts else None
        self.wfile.write(body[start:] if cut is None else body[start : start + cut])
        if cut is not None and server.failure == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if cut is not None and server.failure == "silent":
            self.connection.recv(1)
        return None  # HTTP/1.0: the connection is closed here

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A running server; downloads retry without a pause."""
    monkeypatch.setattr(download, "PAUSE", 0.0)
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture
def unreachable_url() -> str:
    """A URL of a local port on which no server listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


def tar(files: Mapping[str, bytes]) -> bytes:
    """A gzip-compressed tar archive of these files: name -> content."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def published(name: str, content: bytes, *urls: str) -> Archive:
    """The catalog's description of a published archive: its checksum, size and URLs."""
    return Archive(name, hashlib.sha256(content).hexdigest(), len(content), urls)


def noise(name: str) -> bytes:
    """3,000 bytes, the same for the same name, that gzip cannot compress."""
    return hashlib.shake_128(name.encode()).digest(3000)


def files_below(root: Path) -> set[str]:
    """Relative paths of all files below ``root``."""
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


def run(*arguments: object) -> int:
    """Run ``distilled-student prepare`` and return its exit code."""
    with pytest.raises(SystemExit) as stopped:
        cli.main(["prepare", *map(str, arguments)])
    return int(stopped.value.code or 0)
