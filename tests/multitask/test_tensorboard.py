"""TensorBoard's curves of a joint run: what changes with training, and no constants."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from helpers.trees import tasks
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from distilled_student import StudentConfig, build_student, save_student
from distilled_student.host import launch

RUNNER = {"total_steps": 8, "gradient_clipping": 1.0, "gradient_accumulate_steps": 1, "log_step": 2, "eval_step": 4}
RUNNER |= {"save_step": 8, "max_keep": 1, "eval_dataloaders": ["dev"], "upstream_lr": 1.0e-4}


def test_curves_of_a_joint_run(small_logmel: StudentConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    save_student(build_student(small_logmel), tmp_path / "student")
    config = {
        "runner": RUNNER,
        "optimizer": {"name": "TorchOptim", "torch_optim_name": "Adam", "lr": 1.0e-2},
        "scheduler": {"name": "linear_schedule_with_warmup", "num_warmup_steps": 4},
        "downstream_expert": {"tasks": tasks(tmp_path)},
    }
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config))
    norms: list[float] = []
    clip = torch.nn.utils.clip_grad_norm_

    def measured(parameters: Any, limit: float) -> torch.Tensor:
        parameters = list(parameters)
        if len(norms) == 4:  # the fifth step is skipped
            parameters[0].grad.fill_(float("nan"))
        squares = [p.grad.double().square().sum() for p in parameters if p.grad is not None]
        norms.append(float(torch.stack(squares).sum().sqrt()))
        return clip(parameters, limit)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", measured)
    options = ["-u", "distilled_student", "-k", str(tmp_path / "student"), "-f", "-d", "multitask", "--device", "cpu"]
    command = ["-m", "train", *options, "-c", str(tmp_path / "c.yaml"), "-p", str(tmp_path / "exp")]
    assert launch.main(command) == 0
    events = EventAccumulator(str(tmp_path / "exp")).Reload()
    curves = {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}

    def values(tag: str) -> list[float]:
        return [value for _, value in curves[f"multitask/{tag}"]]

    # the rate of step n rises over 4 steps and falls to 0 at step 8
    shares = [min(step / 4, (8 - step) / 4) for step in (1, 3, 5, 7)]
    assert values("train-learning_rate") == pytest.approx([1e-2 * share for share in shares])
    assert values("train-learning_rate-upstream") == pytest.approx([1e-4 * share for share in shares])
    means = [(norms[0] + norms[1]) / 2, (norms[2] + norms[3]) / 2, norms[5], (norms[6] + norms[7]) / 2]
    assert values("train-gradient_norm") == pytest.approx(means, rel=1e-4)
    assert values("train-skipped_steps") == [0, 0, 1, 0]
    layers = [values(f"layer_weight/{layer}") for layer in range(3)]
    assert [sum(at_step) for at_step in zip(*layers, strict=True)] == pytest.approx([1.0] * 4)
    assert len(set(layers[0])) == 4, "the weights are trained"
    assert [step for step, _ in curves["multitask/dev-sv-eer"]] == [4, 8]
    assert {"dev-kws-accuracy", "dev-sv-as_norm-eer", "dev-score"} <= {tag.partition("/")[2] for tag in curves}
    counts = ("utterances", "speakers", "trials", "cohort")
    assert not [tag for tag in curves if tag.endswith(counts)], "no constants"
