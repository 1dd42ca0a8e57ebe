"""The command ``web``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from distilled_student.common.early_checks import check_between
from distilled_student.device.commands import PANEL, ModelOption

LOOPBACK = ("127.0.0.1", "localhost", "::1")


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command(rich_help_panel=PANEL)(web)


def web(
    model: ModelOption = "edge",
    port: Annotated[int, typer.Option(help="Port; 0: one that is free.")] = 8090,
    host: Annotated[str, typer.Option(help="Address to serve at; 0.0.0.0: to other machines too.")] = "127.0.0.1",
    copy: Annotated[
        Path | None, typer.Option("--copy", metavar="FOLDER", help="Write the site for any static host, and end.")
    ] = None,
) -> None:
    """Serve a web page that recognises keywords and speakers in the browser; nothing is sent."""
    check_between("--port", port, 0, 65535)
    import contextlib
    import signal
    import tempfile

    from distilled_student.web.server import SiteServer
    from distilled_student.web.site import write_site

    if copy is not None:
        is_local = write_site(copy, model)
        print(f"{copy}: written; any static host serves it, by https for the microphone")
        _print_runtime(is_local)
        return
    with tempfile.TemporaryDirectory(prefix="distilled-student-web-") as folder:
        is_local = write_site(Path(folder), model)
        with SiteServer(Path(folder), host, port) as server:
            print(f"{server.url}  (Ctrl+C ends it)", flush=True)
            _print_runtime(is_local)
            if host not in LOOPBACK:
                print("note: browsers open the microphone only by https or on localhost; files work everywhere")
            signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the temporary folder is deleted
            with contextlib.suppress(KeyboardInterrupt):
                server.serve_forever()


def _print_runtime(is_local: bool) -> None:
    if not is_local:
        print("note: the browser loads onnxruntime-web from a public CDN;", end=" ")
        print("`make web` and a new `pip install` put it into the site", flush=True)
