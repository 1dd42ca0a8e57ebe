"""`runner.average` and `runner.layer_decay`: the averaged weights, where they are used, and the rates of layers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from helpers.joint_runs import joint_command
from torch import nn

from distilled_student import register
from distilled_student.host import launch
from distilled_student.host.runner_parts import RunnerParts, layer_depths
from distilled_student.host.weight_average import WeightAverage


def test_the_average_equals_a_plain_loop() -> None:
    torch.manual_seed(0)
    model, expected = nn.Linear(3, 2).double(), None
    average = WeightAverage({"Downstream": model}, 0.8)
    expected = model.weight.detach().numpy().copy()
    for step in range(1, 30):
        with torch.no_grad():
            model.weight.add_(torch.randn(2, 3))
        average.update()
        decay = min(0.8, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * model.weight.detach().numpy()
    own = model.weight.detach().clone()
    with average.applied():
        np.testing.assert_allclose(model.weight.detach().numpy(), expected, rtol=1e-12)
    assert torch.equal(model.weight, own)
    again = WeightAverage({"Downstream": model}, 0.8, average.state())
    assert again.steps == 29 and torch.equal(again.values["Downstream.weight"], average.values["Downstream.weight"])


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A joint training with averaged weights, without the experiment folder."""
    folder = tmp_path_factory.mktemp("average")
    return [*joint_command(folder, {"total_steps": 8, "eval_step": 4}), "-p"]


@pytest.fixture(scope="module")
def trained(command: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("averaged")
    assert launch.main([*command, str(folder)]) == 0
    return folder


def test_an_evaluation_has_the_averaged_weights_and_training_its_own(trained: Path) -> None:
    state = torch.load(trained / "states-8.ckpt", weights_only=True)
    runner = launch.open_runner(trained / "states-8.ckpt", "cpu")
    weights = {**runner.upstream.model.state_dict()}
    key = "student.layers.0.linear1.weight"
    assert torch.equal(weights[key], state["Average"][f"Upstream.{key}"])
    assert not torch.equal(state["Upstream"][key], state["Average"][f"Upstream.{key}"])
    runner.evaluate("dev", logger=type("L", (), {"add_scalar": lambda *_, **__: None})(), global_step=8)
    logged = [line for line in (trained / "log.jsonl").read_text().splitlines() if '"dev"' in line]
    assert runner.expert.results["dev"]["kws"]["accuracy"] == pytest.approx(
        yaml.safe_load(logged[1])["kws"]["accuracy"]
    ), logged


def test_a_resumed_training_has_the_same_weights_and_averages(
    command: list[str], trained: Path, tmp_path: Path
) -> None:
    assert launch.main([*command, str(tmp_path), "-o", "config.runner.total_steps=4"]) == 0
    more = [
        "-m",
        "train",
        "-e",
        str(tmp_path / "states-4.ckpt"),
        "-o",
        "config.runner.total_steps=8",
        "--device",
        "cpu",
    ]
    assert launch.main(more) == 0
    whole, resumed = (torch.load(f / "states-8.ckpt", weights_only=True) for f in (trained, tmp_path))
    for part in ("Average", "Upstream", "Downstream"):
        for name, value in whole[part].items():
            if name != "_extra_state":
                assert torch.equal(value, resumed[part][name]), (part, name)


@pytest.mark.parametrize("rate", [None, 1.0e-3])
def test_each_layer_has_the_rate_of_the_one_above_times_the_decay(rate: float | None) -> None:
    register()
    upstream = nn.ModuleDict({"frontend": nn.ModuleDict({"layers": nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])})})
    upstream["layers"] = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    upstream["predictions"] = nn.Linear(2, 2)
    head = nn.Linear(2, 2)
    runner = RunnerParts.__new__(RunnerParts)
    runner.config = {"runner": {"layer_decay": 0.5, "upstream_lr": rate}}
    runner.upstream = type("Entry", (), {"model": upstream})()
    optimizer = torch.optim.Adam([*upstream.parameters(), *head.parameters()], lr=8.0e-3)
    runner._set_upstream_rate(optimizer)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    top = rate or 8.0e-3
    found = {name: rates[id(parameter)] for name, parameter in upstream.named_parameters() if name.endswith("weight")}
    assert found == {
        "frontend.layers.0.weight": top / 4,
        "frontend.layers.1.weight": top / 4,
        "layers.0.weight": top / 2,
        "layers.1.weight": top,
        "predictions.weight": top,
    }
    assert rates[id(head.weight)] == 8.0e-3 and max(layer_depths(upstream).values()) == 2
