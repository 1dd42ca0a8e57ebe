"""The load of other processes is measured, so that a real-time factor with other load is marked."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from distilled_student.common import other_load


def test_the_load_is_the_share_of_busy_ticks_of_all_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = iter(["cpu  100 0 50 800 50 0 0 0 0 0\n", "cpu  130 0 60 850 60 0 0 0 0 0\n"])
    monkeypatch.setattr(other_load, "STAT", type("File", (), {"read_text": lambda self: next(lines)})())
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    assert other_load.other_load(0) == pytest.approx(4 * 40 / 100)
    assert other_load.needs_more_cores(1.6, 3) and not other_load.needs_more_cores(1.6, 2)
    monkeypatch.setattr(other_load, "STAT", tmp_path / "none")
    assert other_load.other_load(0) is None and not other_load.needs_more_cores(None, 99)


@pytest.mark.skipif(not other_load.STAT.is_file(), reason="no /proc/stat")
def test_a_busy_process_is_other_load() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", "print(flush=True)\nwhile True: pass"], stdout=subprocess.PIPE
    ) as busy:
        busy.stdout.readline()
        try:
            assert other_load.other_load(0.4) > 0.5
        finally:
            busy.kill()
