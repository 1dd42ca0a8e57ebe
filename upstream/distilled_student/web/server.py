"""Serves the static site: GET and HEAD of files in one folder, nothing else."""

from __future__ import annotations

import socket
import threading
from functools import partial
from http import HTTPStatus
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, BinaryIO

from distilled_student.common.errors import UserError

MAX_CONNECTIONS = 64  # at once; further ones are closed
TIMEOUT = 20.0  # seconds that a client may be silent
MIME_TYPES = {  # of all files of a site: those of the system differ, and browsers refuse scripts of another type
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".svg": "image/svg+xml",
    ".wasm": "application/wasm",
    ".onnx": "application/octet-stream",
}
POLICY = (  # the browser itself keeps the page from sending anything elsewhere
    "default-src 'none'; script-src 'self' blob: 'wasm-unsafe-eval'; style-src 'self'; "
    "connect-src 'self' https://cdn.jsdelivr.net; worker-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Permissions-Policy": "microphone=(self)",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
}


class SiteHandler(SimpleHTTPRequestHandler):
    """Answers one request. A path that is not a regular file inside of the folder is not found."""

    timeout = TIMEOUT
    server_version, sys_version = "distilled-student", ""
    extensions_map = MIME_TYPES | {"": "application/octet-stream"}

    def send_head(self) -> BinaryIO | None:  # type: ignore[override]
        """Send the headers; the file, or None if it is not served."""
        file = self._file()
        if file is None:
            self.send_error(HTTPStatus.NOT_FOUND)
            return None
        return super().send_head()  # type: ignore[return-value]

    def _file(self) -> Path | None:
        """The file that is asked for; a folder means its ``index.html``."""
        root = Path(self.directory).resolve()
        try:
            file = Path(self.translate_path(self.path)).resolve()
            file = file / "index.html" if file.is_dir() else file
            is_served = file.is_relative_to(root) and file.is_file() and not file.name.startswith(".")
        except (OSError, ValueError):  # a null byte, a name that is too long
            return None
        return file if is_served else None

    def list_directory(self, path: Any) -> None:
        self.send_error(HTTPStatus.NOT_FOUND)

    def end_headers(self) -> None:
        for name, value in HEADERS.items():
            self.send_header(name, value)
        super().end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing: requests say when somebody uses the page."""


class SiteServer(ThreadingHTTPServer):
    """Serves a folder to a bounded number of clients at once.

    Args:
        folder: The site.
        host: Address to bind to.
        port: Port; 0: one that is free.

    Raises:
        UserError: the address cannot be used.
    """

    daemon_threads = True

    def __init__(self, folder: Path, host: str, port: int) -> None:
        self._free = threading.BoundedSemaphore(MAX_CONNECTIONS)
        if ":" in host:
            self.address_family = socket.AF_INET6
        try:
            super().__init__((host, port), partial(SiteHandler, directory=str(folder)))
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            raise UserError(f"--host {host} --port {port}: cannot be used ({reason}); give another one") from None

    @property
    def url(self) -> str:
        host, port = self.server_address[:2]
        return f"http://{f'[{host}]' if ':' in str(host) else host}:{port}/"

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._free.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that vanishes is no error."""
