"""A YAML file of run_downstream.py that names its base: the run has the merged settings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from stress import kills

from distilled_student.host import launch


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``joint.yaml``, its data and a small student."""
    folder = tmp_path_factory.mktemp("base") / "joint"
    kills.joint(folder)
    return folder


def train(base: Path, config: Path, output: Path, *options: str) -> int:
    arguments = ["-u", "distilled_student", "-k", base / "student", "-f", "-d", "multitask", "-c", config, "-p", output]
    return launch.main(["-m", "train", *map(str, arguments), "--device", "cpu", *options])


def test_checkpoint_and_provenance_have_the_merged_settings_and_overrides_win(base: Path, tmp_path: Path) -> None:
    file = tmp_path / "own.yaml"
    file.write_text(f"base: {base / 'joint.yaml'}\nrunner: {{total_steps: 2, save_step: 2, eval_step: 2}}\n")
    assert train(base, file, tmp_path / "exp", "-o", "config.runner.total_steps=1,,config.runner.save_step=1") == 0
    expected = yaml.safe_load((base / "joint.yaml").read_text())
    expected["runner"] |= {"total_steps": 1, "save_step": 1, "eval_step": 2}
    state = torch.load(tmp_path / "exp/states-1.ckpt", weights_only=False)
    assert state["Config"]["runner"] == expected["runner"] and "base" not in state["Config"]
    assert state["Config"]["downstream_expert"]["tasks"].keys() == expected["downstream_expert"]["tasks"].keys()
    settings = json.loads((tmp_path / "exp/provenance.json").read_text())["settings"]
    assert settings["config"]["runner"] == expected["runner"] and settings["arguments"]["config"] == str(file)


def test_a_mistake_in_a_base_is_one_line(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "own.yaml"
    file.write_text("base: multitask/egde\n")
    assert train(base, file, tmp_path / "exp") == 2
    error = capsys.readouterr().err.strip()
    assert "own.yaml: base: multitask/egde: no such config file; did you mean `edge`?" in error and "\n" not in error
    assert not (tmp_path / "exp").exists()
