"""`distilled-student average`: a run with the mean of the weights of several runs. Reference: numpy."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.joint_runs import joint_command

from distilled_student.cli import main
from distilled_student.common.files import save_torch
from distilled_student.host import launch


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two runs of one model with other learning rates."""
    folder = tmp_path_factory.mktemp("runs")
    command = joint_command(folder, {"total_steps": 2})
    for name, rate in (("a", 1e-2), ("b", 1e-3)):
        assert launch.main([*command, "-p", str(folder / name), "-o", f"config.optimizer.lr={rate}"]) == 0
    return [folder / "a", folder / "b"]


def run(*argv: object) -> int:
    with pytest.raises(SystemExit) as end:
        main(list(map(str, argv)))
    return int(end.value.code or 0)


def test_the_weights_are_the_means_of_those_that_evaluations_use(runs: list[Path], tmp_path: Path) -> None:
    assert run("average", *runs, "-o", tmp_path / "mean") == 0
    a, b = (torch.load(folder / "best-dev.ckpt", weights_only=True) for folder in runs)
    found = torch.load(tmp_path / "mean/best-dev.ckpt", weights_only=True)
    assert "Average" not in found and "Optimizer" not in found
    for model in ("Upstream", "Downstream"):
        for name, value in found[model].items():
            if value.is_floating_point():
                used = [state["Average"].get(f"{model}.{name}", state[model][name]).numpy() for state in (a, b)]
                np.testing.assert_allclose(value, np.mean(used, axis=0, dtype=np.float64), rtol=1e-6, atol=1e-9)
    assert json.loads((tmp_path / "mean/provenance.json").read_text())["mean of"] == [str(folder) for folder in runs]


def test_the_new_run_can_be_evaluated(runs: list[Path], tmp_path: Path) -> None:
    assert run("average", *runs, "-o", tmp_path / "mean") == 0
    assert run("evaluate", tmp_path / "mean") == 0
    assert {"kws", "sv"} <= set(json.loads((tmp_path / "mean/results.json").read_text()))


def test_runs_of_different_models_are_refused(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(runs[0], tmp_path / "other")
    state = torch.load(tmp_path / "other/best-dev.ckpt", weights_only=True)
    name = next(name for name, value in state["Downstream"].items() if value.dim() == 2)
    state["Downstream"][name] = state["Downstream"][name][:1].clone()
    save_torch({key: value for key, value in state.items() if key != "Average"}, tmp_path / "other/best-dev.ckpt")
    assert run("average", tmp_path / "other", runs[1], "-o", tmp_path / "mean") == 2
    assert "other/best-dev.ckpt: is not a run of the model of" in (message := capsys.readouterr().err)
    assert name in message and not (tmp_path / "mean").exists()


def test_one_run_or_a_missing_one_is_refused(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("average", runs[0], "-o", tmp_path / "mean") == 2
    assert "RUNS: give two runs or more" in capsys.readouterr().err
    (tmp_path / "link").symlink_to(runs[0])
    assert run("average", runs[0], tmp_path / "link", "-o", tmp_path / "mean") == 2
    assert f"RUNS: {runs[0]}: is the only run that is given: give two runs or more" in capsys.readouterr().err
    assert run("average", runs[0], tmp_path / "nothing", "-o", tmp_path / "mean") == 2
    assert "nothing: no such folder" in capsys.readouterr().err


def test_checkpoints_are_read_in_a_process_that_has_not_imported_s3prl(runs: list[Path], tmp_path: Path) -> None:
    before = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    try:
        assert run("average", *runs, "-o", tmp_path / "mean") == 0
    finally:
        torch.serialization.add_safe_globals(before)


def changed(run_folder: Path, folder: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """A copy of a run in ``folder`` with a changed checkpoint."""
    shutil.copytree(run_folder, folder)
    state = torch.load(folder / "best-dev.ckpt", weights_only=True)
    change(state)
    save_torch(state, folder / "best-dev.ckpt")
    return folder


def refusal(first: Path, second: Path, output: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """What `average` prints about two runs that have no mean; it writes nothing."""
    assert run("average", first, second, "-o", output) == 2
    assert not output.exists()
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda state: next(iter(state["Average"].values())).fill_(math.nan), "holds NaN: leave out this run"),
        (lambda state: state.update(Average=["x"]), "Average: is not a mapping of weights"),
        (lambda state: state["Downstream"].update({next(iter(state["Downstream"])): 3}), "shapes int and "),
    ],
)
def test_damaged_weights_are_named(
    change: Callable[[dict[str, Any]], object],
    reason: str,
    runs: list[Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    damaged = changed(runs[0], tmp_path / "damaged", change)
    if reason.startswith("shapes"):
        changed(damaged, tmp_path / "other", lambda state: state.update(Average=None))
        damaged = tmp_path / "other"
    error = refusal(damaged, runs[1], tmp_path / "mean", capsys)
    assert reason in error and "best-dev.ckpt" in error


def test_a_checkpoint_of_a_run_is_never_overwritten(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = runs[0] / "best-dev.ckpt"
    before = file.read_bytes()
    for path in (file, f"../{runs[0].name}/best-dev.ckpt"):
        assert run("average", *runs, "-o", tmp_path / "mean", "--checkpoint", path) == 2
        assert f"--checkpoint {path}: expected the name of a file" in capsys.readouterr().err
    assert file.read_bytes() == before


def test_branches_of_tasks_in_another_order_are_refused(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def branched(state: dict[str, Any], order: tuple[str, str]) -> None:
        expert = state["Config"]["downstream_expert"]
        expert["schedule"] = dict.fromkeys(order, 1)
        for name in order:
            expert["tasks"][name] |= {"branch": True, "layer": None}

    orders = ("kws", "sv"), ("sv", "kws")
    first, second = (changed(runs[i], tmp_path / str(i), lambda state, i=i: branched(state, orders[i])) for i in (0, 1))
    message = "branches in this order: ['kws', 'sv'], but ['sv', 'kws'] in"
    assert message in refusal(first, second, tmp_path / "mean", capsys)


def edit(*keys: str, value: object) -> Callable[[dict[str, Any]], object]:
    """A change of a checkpoint: one setting in ``Config``, or one argument in ``Args``."""

    def change(state: dict[str, Any]) -> None:
        if keys[0] == "Args":
            return setattr(state["Args"], keys[1], value)
        group = state["Config"]
        for key in keys[:-1]:
            group = group.setdefault(key, {})
        group[keys[-1]] = value

    return change


KWS, SV = ("downstream_expert", "tasks", "kws"), ("downstream_expert", "tasks", "sv")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (edit(*KWS, "keywords", value=["no", "yes"]), "downstream_expert.tasks.kws: classes: ['_silence_', "),
        (edit(*KWS, "pooling", value="mean_std"), "downstream_expert.tasks.kws.pooling: mean_std, but mean in "),
        (edit(*KWS, "layer", value=0), "downstream_expert.tasks.kws.layer: 0, but None in "),
        (edit(*SV, "center", value=True), "downstream_expert.tasks.sv.center: True, but False in "),
        (edit("downstream_expert", "gain_db", value=6.0), "downstream_expert.gain_db: 6.0, but 0.0 in "),
        (edit("Args", "upstream_feature_selection", value="last_hidden_state"), "-s: last_hidden_state, but "),
        (edit("Args", "upstream_ckpt", value="tiny"), "-k: conv_dim: "),
        (edit("Args", "upstream_ckpt", value="gone"), "-k: cannot be compared with that of the other runs: gone: no "),
    ],
)
def test_runs_whose_weights_have_other_meanings_are_refused_with_both_values(
    change: Callable[[dict[str, Any]], object],
    reason: str,
    runs: list[Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    other = changed(runs[0], tmp_path / "other", change)
    error = refusal(other, runs[1], tmp_path / "mean", capsys)
    assert f"{other}/best-dev.ckpt: {reason}" in error
    assert error.count("\n") == 1


def test_settings_of_the_training_alone_may_differ(runs: list[Path], tmp_path: Path) -> None:
    other = tmp_path / "other"
    changed(runs[0], tmp_path / "batches", edit(*KWS, "batch_size", value=7))
    changed(tmp_path / "batches", tmp_path / "named", edit("Args", "upstream_ckpt", value="edge"))  # the default
    changed(tmp_path / "named", other, edit(*SV, "augment", value={"gain": 0.5}))
    assert run("average", other, runs[1], "-o", tmp_path / "mean") == 0


def test_an_existing_folder_is_not_overwritten(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mean").mkdir()
    assert run("average", *runs, "-o", tmp_path / "mean") == 0, "an empty folder is a new one"
    before = (tmp_path / "mean/best-dev.ckpt").read_bytes()
    capsys.readouterr()
    assert run("average", *reversed(runs), "-o", tmp_path / "mean") == 2
    assert f"--output {tmp_path / 'mean'}: is not empty: choose another folder" in capsys.readouterr().err
    assert (tmp_path / "mean/best-dev.ckpt").read_bytes() == before
