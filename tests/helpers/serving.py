"""A real local server that loses connections and refuses requests, and the small archives that it serves."""

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
    """An HTTP server.

    Attributes:
        files: Name -> content.
        cuts: For each request, in order: the number of bytes after which the connection is lost.
        statuses: For each request, in order: the HTTP status.
        how: How a connection is lost: ``closed``, ``reset``, or ``silent`` (no data until the client gives up).
        ranges: Whether the server supports Range requests.
        asked: The requests so far: name and Range header.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.cuts: list[int] = []
        self.statuses: list[int] = []
        self.how = "closed"
        self.ranges = True
        self.asked: list[tuple[str, str | None]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server, name, wanted = self.server, self.path.strip("/"), self.headers.get("Range")
        server.asked.append((name, wanted))
        if server.statuses and (status := server.statuses.pop(0)) != 200:
            return self.send_error(status)
        if name not in server.files:
            return self.send_error(404)
        body, start = server.files[name], 0
        if wanted and server.ranges:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            if start >= len(body):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(body)}")
                return self.end_headers()
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        cut = server.cuts.pop(0) if server.cuts else None
        self.wfile.write(body[start:] if cut is None else body[start : start + cut])
        if cut is not None and server.how == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if cut is not None and server.how == "silent":
            self.connection.recv(1)
        return None  # HTTP/1.0: the connection is closed here

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(download, "PAUSE", 0.0)
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture
def nowhere() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


def tar(files: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def published(name: str, content: bytes, *urls: str) -> Archive:
    return Archive(name, hashlib.sha256(content).hexdigest(), len(content), urls)


def noise(name: str) -> bytes:
    """3,000 bytes that compression does not shrink."""
    return hashlib.shake_128(name.encode()).digest(3000)


def whole(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main(["prepare", *map(str, arguments)])
    return int(ended.value.code or 0)
