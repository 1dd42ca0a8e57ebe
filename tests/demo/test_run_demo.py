"""The demo resumes an interrupted one, begins again after a finished one, and removes no runs of another suite."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from distilled_student.benchmark.commands import Bench
from distilled_student.benchmark.execute import Outcome
from distilled_student.benchmark.suite import Run
from distilled_student.common.errors import UserError
from distilled_student.common.interruption import Interrupted, Interruption
from distilled_student.demo import run_demo


@pytest.fixture
def left(tmp_path: Path) -> Path:
    """The output folder of an earlier demo, with a checkpoint of one run."""
    file = tmp_path / "demo/runs/teacher/finetuned/seed-0/experiment/states-3.ckpt"
    file.parent.mkdir(parents=True)
    file.touch()
    return file


def demo(output: Path, monkeypatch: pytest.MonkeyPatch, done: Sequence[int], run_suite: Any = None) -> None:
    """Run the demo without its trainings; the runs with these numbers are finished."""
    numbers: list[Run] = []

    def finished(bench: Bench, run: Run) -> Outcome | None:
        numbers.append(run)
        return Outcome(run) if len(numbers) - 1 in done else None

    monkeypatch.setattr(run_demo, "finished", finished)
    monkeypatch.setattr(run_demo, "run_suite", run_suite or (lambda bench, runs: []))
    run_demo.run_demo(output, corpus=output)


def name_of_a_model() -> str:
    from distilled_student.benchmark.suite import read_suite, slug

    return slug(next(iter(read_suite("demo").models)))


def test_an_interrupted_demo_is_resumed_and_a_finished_one_begins_again(
    left: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    output = tmp_path / "demo"
    (output / "runs/teacher").rename(output / "runs" / name_of_a_model())
    demo(output, monkeypatch, done=[0])
    assert list(output.rglob("*.ckpt")) and "an earlier demo was interrupted: resuming it" in capsys.readouterr().out
    demo(output, monkeypatch, done=range(100))
    assert not list(output.rglob("*.ckpt")) and "interrupted" not in capsys.readouterr().out


def test_runs_of_another_suite_are_not_removed(left: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left.parents[3].rename(tmp_path / "demo/runs/another-model")
    with pytest.raises(UserError, match=r"--output .*demo: holds runs of another suite \(another-model\)"):
        demo(tmp_path / "demo", monkeypatch, done=[])
    assert list(tmp_path.rglob("states-3.ckpt"))


def test_an_interruption_names_the_demo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def interrupted(bench: Bench, runs: Sequence[Run]) -> list:
        interruption = Interruption()
        interruption.signal = 15
        interruption.leave("saved step 3", "resume: run_downstream.py")
        return []

    with pytest.raises(Interrupted):
        demo(tmp_path / "new", monkeypatch, done=[], run_suite=interrupted)
    assert f"saved step 3; resume: distilled-student demo --output {tmp_path}/new" in capsys.readouterr().err
