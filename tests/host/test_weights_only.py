"""`runner.weights_only`: a second run from the weights of a checkpoint, such as large-margin fine-tuning."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from helpers.joint_runs import joint_command
from helpers.trees import tasks

from distilled_student.checkpoints.folder import load_student
from distilled_student.host import launch

SV = "config.downstream_expert.tasks.sv"
# the settings of the second run in docs/own-data.md; without a learning rate the weights show where it has started
FINE_TUNING = f"config.runner.weights_only=True,,{SV}.loss.margin=0.5,,{SV}.crop_seconds=0.8,,{SV}.augment.speed=1.0e-9"


class Trained(NamedTuple):
    """The folder with the settings and the run ``exp``, and the command without ``-p``."""

    folder: Path
    command: list[str]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A training with speakers at three speeds."""
    folder = tmp_path_factory.mktemp("first")
    groups = tasks(folder)
    groups["sv"] |= {"loss": {"name": "aam", "margin": 0.2, "margin_warmup": 1}, "augment": {"speed": 0.7}}
    scheduler = {"name": "linear_schedule_with_warmup", "num_warmup_steps": 1}
    command = joint_command(folder, {"total_steps": 4}, groups, scheduler=scheduler)
    assert launch.main([*command, "-p", str(folder / "exp")]) == 0
    return Trained(folder, command)


def load(file: Path) -> dict:
    return torch.load(file, weights_only=True)


def test_a_second_run_starts_from_the_evaluated_weights_at_step_0(trained: Trained, tmp_path: Path) -> None:
    initial = trained.folder / "exp/states-4.ckpt"
    start = [*trained.command, "-i", str(initial), "-p", str(tmp_path / "exp")]
    assert launch.main([*start, "-o", f"{FINE_TUNING},,config.optimizer.lr=0.0"]) == 0
    first, second = load(initial), load(tmp_path / "exp/states-4.ckpt")
    for part in ("Upstream", "Downstream"):
        for name, value in second[part].items():
            if f"{part}.{name}" in first["Average"]:
                torch.testing.assert_close(value, first["Average"][f"{part}.{name}"], rtol=0, atol=0)
    assert len(second["Downstream"]["tasks.sv.objective.weight"]) == 3 * 4, "four speakers at three speeds"
    assert second["Step"] == 4 and {int(s["step"]) for s in second["Optimizer"]["state"].values()} <= {2, 4}
    entries = [json.loads(line) for line in (tmp_path / "exp/log.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in entries if entry["split"] == "train"] == [2, 4]
    assert (tmp_path / "exp/best-dev.ckpt").is_file(), "the best score of the first run does not count"


def test_a_second_run_with_the_heads_only_keeps_the_upstream_of_k(trained: Trained, tmp_path: Path) -> None:
    initial, options = (
        trained.folder / "exp/states-4.ckpt",
        f"{FINE_TUNING},,config.optimizer.lr=0.0".replace("=True", "=heads"),
    )
    start = [*trained.command, "-i", str(initial), "-p", str(tmp_path / "exp")]
    assert launch.main([*start, "-o", options]) == 0
    first, second = load(initial), load(tmp_path / "exp/states-4.ckpt")
    upstream = load_student("edge").state_dict()
    for name, value in second["Upstream"].items():
        assert torch.equal(value, upstream[name.removeprefix("model.student.").removeprefix("student.")]), name
    for name, value in second["Downstream"].items():
        if f"Downstream.{name}" in first["Average"]:
            torch.testing.assert_close(value, first["Average"][f"Downstream.{name}"], rtol=0, atol=0)


def test_a_second_run_resumes_exactly(trained: Trained, tmp_path: Path) -> None:
    start = [*trained.command, "-i", str(trained.folder / "exp/best-dev.ckpt"), "-o", FINE_TUNING, "-p"]
    assert launch.main([*start, str(tmp_path / "whole")]) == 0
    (tmp_path / "parts").mkdir()
    shutil.copy(tmp_path / "whole/states-2.ckpt", tmp_path / "parts")
    assert launch.main([*start, str(tmp_path / "parts")]) == 0
    whole, parts = load(tmp_path / "whole/states-4.ckpt"), load(tmp_path / "parts/states-4.ckpt")
    for part in ("Upstream", "Downstream", "Average"):
        for name, value in whole[part].items():
            assert name == "_extra_state" or torch.equal(value, parts[part][name]), (part, name)


def test_without_the_setting_a_run_continues_at_the_step_of_the_checkpoint(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    start = [*trained.command, "-i", str(trained.folder / "exp/states-4.ckpt"), "-p", str(tmp_path / "exp")]
    assert launch.main(start) == 0
    assert "finished: all 4 steps are trained" in capsys.readouterr().err


def test_the_setting_without_a_checkpoint_is_refused(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    start = [*trained.command, "-p", str(tmp_path / "exp"), "-o", "config.runner.weights_only=True"]
    assert launch.main(start) == 2
    assert "runner.weights_only: needs -i CHECKPOINT" in capsys.readouterr().err
