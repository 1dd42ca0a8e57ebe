"""The five commands that docs/device.md begins with, run as they are written there."""

from __future__ import annotations

import runpy
import shlex
import sys
from pathlib import Path

import pytest
from helpers.people import run_command

DOCUMENT = Path(__file__).parents[2] / "docs" / "device.md"


def commands() -> list[list[str]]:
    """The lines of the first block of code."""
    section = DOCUMENT.read_text(encoding="utf-8").split("\n## ")[1]
    return [shlex.split(line, comments=True) for line in section.splitlines() if line.startswith("    ")]


def test_the_five_commands_lead_to_a_spotter_that_knows_its_owner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install, (python, dash, module, folder), *rest = commands()
    assert install == ["pip", "install", "."] and (python, dash) == ("python", "-m") and len(rest) == 3
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DISTILLED_STUDENT_PROFILES", str(tmp_path / "profiles"))
    monkeypatch.setattr(sys, "argv", [module, folder])
    runpy.run_module(module, run_name="__main__")
    assert capsys.readouterr().out == "clips: 13 recordings\n"
    found = []
    for program, *words in rest:
        assert program == "distilled-student"
        found.append(run_command(tuple(words), capsys))
    enrolled, verified, listened = found
    assert enrolled[0] == 0 and "Anna: 3 clips" in enrolled[1]
    assert verified[0] == 0 and verified[1].startswith("yes: Anna")
    assert listened[0] == 0 and "stop" in listened[1] and "go" not in listened[1]
    code, out, _ = run_command(("verify", "Anna", "clips/ben-go.wav"), capsys)
    assert code == 1 and out.startswith("no: Anna")
