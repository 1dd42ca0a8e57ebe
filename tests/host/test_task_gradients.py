"""Gradients of several tasks on shared weights, and the optimizer's states of several tasks."""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from helpers.trees import tasks
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from distilled_student.host import launch
from distilled_student.host.task_gradients import TaskGradients
from distilled_student.host.task_moments import TaskMoments

BLOCKS = (slice(0, 12), slice(12, 17))  # the two weights in a vector of 17 numbers


def shared(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """1 on the weights that both gradients have, 0 elsewhere."""
    mask = np.zeros(len(a))
    for block in BLOCKS:
        mask[block] = a[block].any() and b[block].any()
    return mask


def projected(gradients: dict[str, np.ndarray], order: random.Random) -> np.ndarray:
    """PCGrad's algorithm 1 on vectors, in double precision."""
    total = np.zeros(len(next(iter(gradients.values()))))
    for task, gradient in gradients.items():
        own, others = gradient.copy(), [other for name, other in gradients.items() if name != task]
        order.shuffle(others)
        for other in others:
            other = other * shared(gradient, other)
            if own @ other < 0:
                own -= (own @ other) / (other @ other) * other
        total += own
    return total


@pytest.mark.parametrize("projects", [False, True])
@pytest.mark.parametrize("names", [("kws", "sv"), ("kws", "sv", "other", "last")])
def test_combined_gradients_and_their_cosines_equal_those_of_plain_vectors(
    names: tuple[str, ...], projects: bool
) -> None:
    rng = np.random.default_rng(0)
    weights = [nn.Parameter(torch.zeros(3, 4)), nn.Parameter(torch.zeros(5)), nn.Parameter(torch.zeros(2))]
    gradients = TaskGradients(weights, projects)
    for step in range(1, 9):
        vectors = {}
        for name in [*names, names[0]]:  # two batches of the first task
            part = rng.standard_normal(17).astype(np.float32)
            if name == names[-1]:
                part[12:] = 0.0  # a task that does not use the second weight, and has no gradient there
            weights[0].grad = torch.from_numpy(part[:12].reshape(3, 4).copy())
            weights[1].grad = None if name == names[-1] else torch.from_numpy(part[12:].copy())
            vectors[name] = vectors.get(name, 0.0) + part.astype(np.float64)
            gradients.collect(name)
            assert all(weight.grad is None for weight in weights)
        cosines = gradients.combine(step)
        expected = projected(vectors, random.Random(step)) if projects else sum(vectors.values())
        found = torch.cat([weights[0].grad.flatten(), weights[1].grad]).numpy()
        np.testing.assert_allclose(found, expected, atol=1e-5)
        assert weights[2].grad is None, "no task uses it"
        for pair, value in cosines.items():
            a, b = (vectors[name] for name in pair.split("-"))
            a, b = a * shared(a, b), b * shared(a, b)
            assert float(value) == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b), abs=1e-6)
        assert len(cosines) == len(names) * (len(names) - 1) // 2


def test_a_task_without_a_gradient_changes_nothing() -> None:
    weight = nn.Parameter(torch.zeros(2))
    gradients = TaskGradients([weight], projects=True)
    for name, gradient in (("kws", [1.0, 2.0]), ("sv", [0.0, 0.0])):
        weight.grad = torch.tensor(gradient)
        gradients.collect(name)
    assert gradients.combine(1) == {"kws-sv": 0.0} and weight.grad.tolist() == [1.0, 2.0]
    weight.grad = torch.tensor([3.0, 4.0])
    gradients.collect("kws")
    gradients.discard()
    assert gradients.combine(2) == {}


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.Adagrad, torch.optim.SGD])
def test_each_task_has_the_updates_of_an_optimizer_of_its_own(kind: type[torch.optim.Optimizer]) -> None:
    settings = {"momentum": 0.9} if kind is torch.optim.SGD else {}
    torch.manual_seed(0)
    weight, plain = (nn.Parameter(torch.ones(4)) for _ in range(2))
    optimizer = kind([weight], lr=0.1, **settings)
    moments = TaskMoments(optimizer, ["kws", "sv"])
    of_task = {task: kind([plain], lr=0.1, **settings) for task in ("kws", "sv")}
    for step in range(12):
        task, gradient = ("kws", "sv", "sv")[step % 3], torch.randn(4)
        if step == 7:  # saved and resumed
            saved, groups = moments.state(), optimizer.state_dict() | {"state": {}}
            optimizer = kind([weight], lr=0.1, **settings)
            optimizer.load_state_dict(groups)
            moments = TaskMoments(optimizer, ["kws", "sv"], saved)
        weight.grad, plain.grad = gradient.clone(), gradient.clone()
        moments.use(task)
        optimizer.step()
        of_task[task].step()
        assert torch.equal(weight, plain)


RUNNER = {"total_steps": 8, "gradient_clipping": 1.0, "gradient_accumulate_steps": 1, "log_step": 2, "eval_step": 99}
RUNNER |= {"save_step": 4, "max_keep": 9, "eval_dataloaders": [], "upstream_lr": 1.0e-3, "layer_decay": 0.5}


def command(folder: Path, *options: str, **changes: Any) -> list[str]:
    """A joint training of the shipped student with a scheduler; ``changes`` of ``runner`` and ``downstream_expert``."""
    config = {
        "runner": RUNNER | changes.pop("runner", {}),
        "optimizer": {"name": "TorchOptim", "torch_optim_name": "Adam", "lr": 1.0e-2} | changes.pop("optimizer", {}),
        "scheduler": {"name": "linear_schedule_with_warmup", "num_warmup_steps": 4},
        "downstream_expert": {"tasks": tasks(folder)} | changes,
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    start = ["-m", "train", "-u", "distilled_student", "-d", "multitask", "--device", "cpu"]
    return [*start, "-c", str(folder / "config.yaml"), *(options or ("-f",))]


def test_a_run_with_a_state_for_each_task_resumes_exactly(tmp_path: Path) -> None:
    assert launch.main([*command(tmp_path, optimizer_per_task=True), "-p", str(tmp_path / "whole")]) == 0
    (tmp_path / "resumed").mkdir()
    checkpoint = shutil.copy(tmp_path / "whole/states-4.ckpt", tmp_path / "resumed")
    assert launch.main(["-m", "train", "-e", str(checkpoint), "--device", "cpu"]) == 0
    whole, resumed = (torch.load(tmp_path / f / "states-8.ckpt", weights_only=True) for f in ("whole", "resumed"))
    assert set(whole["Moments"]) == {"kws", "sv"} and whole["Optimizer"]["state"] == {}
    for task, state in whole["Moments"].items():
        assert {int(values["step"]) for values in state.values()} == {4}, "half of the steps are of this task"
        for number, values in state.items():
            for name, value in values.items():
                assert torch.equal(value, resumed["Moments"][task][number][name]), (task, number, name)
    for part in ("Upstream", "Featurizer", "Downstream"):
        for name, value in whole[part].items():
            assert torch.equal(value, resumed[part][name]) or name == "_extra_state", (part, name)
    groups = torch.load(checkpoint, weights_only=True)["Optimizer"]["param_groups"]
    heads, *upstream = (group["lr"] for group in groups)
    assert upstream == pytest.approx([1.0e-3 * 0.5**i for i in range(len(upstream))]) and len(upstream) > 1
    assert heads == pytest.approx(1.0e-2), "the rate of step 4, at the end of the warm-up"


@pytest.mark.parametrize("bf16", [False, True])
def test_the_cosine_is_logged_with_a_cycle_of_several_batches(
    bf16: bool, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    runner = {"gradient_accumulate_steps": 3, "bf16": bf16, "total_steps": 4}
    start = command(tmp_path, update="sum", conflict="pcgrad", schedule={"kws": 2, "sv": 1}, runner=runner)
    assert launch.main([*start, "-p", str(tmp_path / "exp")]) == 0
    entries = [yaml.safe_load(line) for line in (tmp_path / "exp/log.jsonl").read_text().splitlines()]
    cosines = [entry["gradient_cosine/kws-sv"] for entry in entries]
    assert len(cosines) == 2 and all(-1 < cosine < 1 for cosine in cosines)
    events = EventAccumulator(str(tmp_path / "exp")).Reload().Scalars("multitask/train-gradient_cosine-kws-sv")
    assert [event.value for event in events] == pytest.approx(cosines)
    assert f"gradient_cosine/kws-sv {cosines[0]:.4g}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"conflict": "log"}, (), "conflict: log needs update: sum and two or more tasks in the schedule"),
        ({"conflict": "gradnorm", "update": "sum"}, (), "conflict: 'gradnorm' is not log or pcgrad"),
        (
            {"conflict": "log", "update": "sum", "schedule": {"kws": 2}, "runner": {"gradient_accumulate_steps": 2}},
            (),
            "conflict: log needs update: sum and two or more tasks in the schedule",
        ),
        (
            {"conflict": "log", "update": "sum", "runner": {"gradient_accumulate_steps": 2}},
            ("--seed", "1"),
            "conflict: needs -f",
        ),
        ({"optimizer_per_task": True}, ("--seed", "1"), "optimizer_per_task: needs -f"),
        ({"optimizer_per_task": True, "schedule": {"kws": 1}}, (), "optimizer_per_task: needs two or more tasks"),
        (
            {"optimizer_per_task": True, "update": "sum", "runner": {"gradient_accumulate_steps": 2}},
            (),
            "optimizer_per_task: needs update: alternate",
        ),
        (
            {"optimizer_per_task": True, "optimizer": {"name": "BertAdam_with_schedule"}},
            (),
            "optimizer_per_task: BertAdam_with_schedule changes its learning rate by the steps of each task",
        ),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(
    changes: dict[str, Any], options: tuple[str, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    start = command(tmp_path, *options, **changes)
    assert launch.main([*start, "-p", str(tmp_path / "exp")]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "config.yaml: downstream_expert" in error and message in error


def test_a_run_is_not_resumed_with_the_other_kind_of_optimizer(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    start = command(tmp_path, optimizer_per_task=True)
    short = "config.runner.total_steps=2"
    assert launch.main([*start, "-p", str(tmp_path / "exp"), "-o", short]) == 0
    other = "config.runner.total_steps=4,,config.downstream_expert.optimizer_per_task=False"
    resume = ["-m", "train", "-e", str(tmp_path / "exp"), "--device", "cpu", "-o", other]
    assert launch.main(resume) == 2
    assert "optimizer_per_task: " in capsys.readouterr().err
