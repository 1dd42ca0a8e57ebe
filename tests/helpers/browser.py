"""Headless Chromium on the web page, driven by browser.mjs with playwright-core."""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from distilled_student.onnx import Stream
from distilled_student.web import site
from distilled_student.web.server import SiteServer

ROOT = Path(__file__).parents[2]
MODULES = ROOT / "node_modules"
RUNTIME = MODULES / "onnxruntime-web/dist"
DRIVER = Path(__file__).with_suffix(".mjs")
FAKE_MICROPHONE = "--use-fake-device-for-media-stream"


def chromium() -> str | None:
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def missing() -> str | None:
    """Why there is no browser to test with; None if there is one."""
    if shutil.which("node") is None:
        return "node is not installed"
    if chromium() is None:
        return "Chromium is not installed"
    if not (MODULES / "playwright-core").is_dir() or not RUNTIME.is_dir():
        return "`npm ci` was not run"
    return None


needs_browser = pytest.mark.skipif(missing() is not None, reason=str(missing()))


def drive(tasks: Sequence[dict[str, Any]], folder: Path, flags: Sequence[str] = ()) -> list[dict[str, Any]]:
    """The results of tasks of browser.mjs, in one browser. ``folder``: for the list of tasks."""
    order = {"modules": str(ROOT / "package.json"), "chromium": chromium(), "flags": list(flags), "tasks": list(tasks)}
    file = folder / "tasks.json"
    file.write_text(json.dumps(order))
    done = subprocess.run(["node", str(DRIVER), str(file)], capture_output=True, text=True, timeout=1_800)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The URL of a site while it is served."""
    with SiteServer(folder, "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.url
        finally:
            server.shutdown()
            thread.join()


def write_local_site(folder: Path, model: str | Path) -> Path:
    """A site with the installed onnxruntime-web."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(site, "RUNTIME", RUNTIME)
        assert site.write_site(folder, str(model))
    return folder


def traced(stream: Stream, samples: NDArray[np.float32], **people: Any) -> tuple[list[Any], NDArray[np.float64]]:
    """In Python: the hits of a stream, and its smoothed scores ``(hops, classes)``."""
    scores, smooth = [], stream.detector.smooth

    def recorded(raw: NDArray) -> NDArray:
        scores.append(smooth(raw))
        return scores[-1]

    stream.detector.smooth = recorded
    return stream.listen(samples, **people, is_last=True), np.array(scores)
