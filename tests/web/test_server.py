"""The server of the web page: it serves the files of its folder with their types, and nothing else."""

from __future__ import annotations

import http.client
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from distilled_student.common.errors import UserError
from distilled_student.web import server as server_module
from distilled_student.web.server import SiteServer


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small site, with files around it that must not be served."""
    outside = tmp_path_factory.mktemp("outside")
    folder = outside / "site"
    (folder / "model").mkdir(parents=True)
    (folder / "empty").mkdir()
    (outside / "secret.txt").write_text("secret")
    (outside / "site-of-another").mkdir()
    (outside / "site-of-another" / "secret.txt").write_text("secret")
    for name in ("index.html", "page.mjs", "a.wasm", "style.css", "model/stream.onnx", "model/model.json", ".hidden"):
        (folder / name).write_text(name)
    (folder / "link.txt").symlink_to(outside / "secret.txt")
    (folder / "linked").symlink_to(outside)
    return folder


@pytest.fixture(scope="module")
def server(site: Path) -> Iterator[SiteServer]:
    with SiteServer(site, "127.0.0.1", 0) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def ask(server: SiteServer, path: str, method: str = "GET") -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body; the path is sent as it is."""
    connection = http.client.HTTPConnection(*server.server_address[:2], timeout=20)
    connection.putrequest(method, path, skip_host=True)
    connection.endheaders()
    answer = connection.getresponse()
    found = answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
    connection.close()
    return found


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/", "text/html; charset=utf-8"),
        ("/index.html", "text/html; charset=utf-8"),
        ("/page.mjs?version=1", "text/javascript; charset=utf-8"),
        ("/a.wasm", "application/wasm"),
        ("/style.css", "text/css; charset=utf-8"),
        ("/model/model.json", "application/json"),
        ("/model/stream.onnx", "application/octet-stream"),
    ],
)
def test_files_of_the_site_have_the_types_that_browsers_ask_for(server: SiteServer, path: str, kind: str) -> None:
    status, headers, body = ask(server, path)
    assert (status, headers["content-type"]) == (200, kind)
    assert body.decode() == (path.partition("?")[0].lstrip("/") or "index.html")
    assert headers["x-content-type-options"] == "nosniff"
    assert "default-src 'none'" in headers["content-security-policy"]


@pytest.mark.parametrize(
    "path",
    [
        "/../secret.txt",
        "/%2e%2e/secret.txt",
        "/..%2fsecret.txt",
        "/%2e%2e%2fsecret.txt",
        "/model/../../secret.txt",
        "/..\\secret.txt",
        "/..%5csecret.txt",
        "/../site-of-another/secret.txt",
        "/%252e%252e/secret.txt",
        "//etc/passwd",
        "/etc/passwd",
        "/link.txt",
        "/linked/secret.txt",
        "/linked/",
        "/.hidden",
        "/a%00.wasm",
        "/" + "a" * 5_000,
        "/%ff",
    ],
)
def test_nothing_outside_of_the_folder_is_served(server: SiteServer, path: str) -> None:
    status, _, body = ask(server, path)
    assert status == 404 and b"secret" not in body


@pytest.mark.parametrize("path", ["/model", "/model/", "/empty/", "/missing", "/missing/"])
def test_folders_are_not_listed(server: SiteServer, path: str) -> None:
    status, _, body = ask(server, path)
    assert status in (301, 404) and b"stream.onnx" not in body


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PATCH"])
def test_only_files_are_asked_for(server: SiteServer, method: str, site: Path) -> None:
    before = sorted(site.rglob("*"))
    assert ask(server, "/index.html", method)[0] == 501
    assert sorted(site.rglob("*")) == before


def test_head_has_the_headers_and_no_body(server: SiteServer) -> None:
    status, headers, body = ask(server, "/a.wasm", "HEAD")
    assert (status, headers["content-length"], body) == (200, "6", b"")


def test_garbage_and_clients_that_vanish_harm_nobody(server: SiteServer, capsys: pytest.CaptureFixture) -> None:
    for sent in (b"\0\xff\r\n\r\n", b"GET", b"GET / HTTP/9.9\r\n\r\n", b"GET /" + b"a" * 70_000 + b"\r\n\r\n", b""):
        with socket.create_connection(server.server_address[:2], timeout=20) as client:
            client.sendall(sent)
    assert ask(server, "/")[0] == 200
    assert capsys.readouterr() == ("", "")


def test_the_number_of_clients_at_once_is_bounded(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "MAX_CONNECTIONS", 2)
    with SiteServer(site, "127.0.0.1", 0) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        silent = [socket.create_connection(running.server_address[:2]) for _ in range(2)]
        with pytest.raises((http.client.HTTPException, OSError)):
            ask(running, "/")
        for client in silent:
            client.close()
        for _ in range(50):  # until the server has noticed that they are gone
            try:
                found = ask(running, "/")[0]
                break
            except (http.client.HTTPException, OSError):
                threading.Event().wait(0.1)
        running.shutdown()
        thread.join()
    assert found == 200


def test_only_this_machine_is_served_by_default(server: SiteServer) -> None:
    assert server.server_address[0] == "127.0.0.1"
    assert server.url == f"http://127.0.0.1:{server.server_address[1]}/"


@pytest.mark.parametrize(("host", "port"), [("127.0.0.1", "taken"), ("127.0.0.1", 70_000), ("no.such.host.invalid", 0)])
def test_an_address_that_cannot_be_used_is_one_line(server: SiteServer, site: Path, host: str, port: str | int) -> None:
    number = server.server_address[1] if port == "taken" else int(port)
    with pytest.raises(UserError, match=f"--host {host} --port {number}: cannot be used"):
        SiteServer(site, host, number)
