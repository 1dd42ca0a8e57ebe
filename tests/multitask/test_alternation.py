"""The joint training of the runner against a loop that follows the paper's text, on the same batches."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from helpers.trees import tasks
from torch import Tensor, nn
from torch.nn import functional as F

import distilled_student
from distilled_student import StudentConfig, build_student, save_student
from distilled_student.common.settings import find_config, read_yaml
from distilled_student.host import launch
from distilled_student.multitask.expert import DownstreamExpert

ITERATIONS = 20


# settings that the reference implements, by the name of a case
CASES = {
    "alternate": {"update": "alternate"},
    "sum": {"update": "sum"},
    "sum with the cosine on the log": {"update": "sum", "conflict": "log"},
    "PCGrad": {"update": "sum", "conflict": "pcgrad"},
    "an optimizer for each task": {"update": "alternate", "optimizer_per_task": True},
}


def settings(folder: Path, case: str) -> dict[str, Any]:
    """The default configuration, the paper's without its warm-up, on tones: alternation, Adam 1e-4, angular softmax."""
    config = read_yaml(find_config("default", kind="multitask"))
    del config["scheduler"]  # the reference keeps its learning rate
    update = CASES[case]["update"]
    steps = ITERATIONS * (2 if update == "alternate" else 1)
    config["runner"] |= {"total_steps": steps, "save_step": steps, "log_step": ITERATIONS, "eval_dataloaders": []}
    config["runner"]["gradient_accumulate_steps"] = 1 if update == "alternate" else 2
    config["downstream_expert"] |= {"num_workers": 0, "tasks": tasks(folder), **CASES[case]}
    return config


def make_expert(config: dict[str, Any], features: int) -> DownstreamExpert:
    torch.manual_seed(3)
    return DownstreamExpert(features, 320, config["downstream_expert"], "unused", runner=config["runner"], seed=0)


def batches(expert: DownstreamExpert) -> Iterator[tuple[Tensor, str, Tensor]]:
    for epoch in itertools.count():
        for wavs, task, labels, *_ in expert.get_dataloader("train", epoch=epoch):
            yield torch.stack([torch.as_tensor(wav) for wav in wavs]), task, torch.tensor(labels)


class PaperModel(nn.Module):
    """Student, weighted sum, mean over time, one linear layer per task, cross-entropy and angular softmax."""

    def __init__(self, student: nn.Module, expert: dict[str, Tensor]) -> None:
        super().__init__()
        self.student, self.layer_weights = student, nn.Parameter(torch.zeros(3))
        heads = {name.replace(".", "_"): v.clone() for name, v in expert.items() if name.endswith(("weight", "bias"))}
        self.heads = nn.ParameterDict(heads)
        self.sv_steps = 0

    def pooled(self, waveforms: Tensor) -> Tensor:
        states = self.student(waveforms).hidden_states
        summed = sum(p * h for p, h in zip(self.layer_weights.softmax(0), states, strict=True))
        missing = round(waveforms.shape[1] / 320) - summed.shape[1]  # s3prl's number of frames
        return torch.cat([summed, summed[:, -1:].expand(-1, missing, -1)], dim=1).mean(dim=1)

    def keyword_loss(self, waveforms: Tensor, labels: Tensor) -> Tensor:
        h = self.heads
        return F.cross_entropy(
            F.linear(self.pooled(waveforms), h["tasks_kws_head_linear_weight"], h["tasks_kws_head_linear_bias"]), labels
        )

    def speaker_loss(self, waveforms: Tensor, labels: Tensor) -> Tensor:
        """SphereFace with m = 4, annealed: lambda = max(5, 1000 / (1 + 0.12 step))."""
        h = self.heads
        x = F.linear(self.pooled(waveforms), h["tasks_sv_head_linear_weight"], h["tasks_sv_head_linear_bias"])
        cosine = F.normalize(x, dim=1) @ F.normalize(h["tasks_sv_objective_weight"], dim=1).T
        k = (4 * cosine.detach().acos() / math.pi).floor()
        psi = (-1) ** k * (8 * cosine**4 - 8 * cosine**2 + 1) - 2 * k
        strength = max(5.0, 1000 / (1 + 0.12 * self.sv_steps))
        self.sv_steps += 1
        target = F.one_hot(labels, cosine.shape[1]).bool()
        logits = torch.where(target, (strength * cosine + psi) / (1 + strength), cosine)
        return F.cross_entropy(logits * x.norm(dim=1, keepdim=True), labels)


def train_as_in_the_paper(
    model: PaperModel, data: Iterator[tuple[Tensor, str, Tensor]], case: str, clip: float
) -> list[float]:
    """Train; returns the cosine of the tasks' gradients at each step, for the cases with one step for both tasks."""
    adam = {task: torch.optim.Adam(model.parameters(), lr=1e-4) for task in ("kws", "sv")}
    if case != "an optimizer for each task":
        adam["sv"] = adam["kws"]
    cosines, weights = [], [p for name, p in model.named_parameters() if name.startswith("student.")]

    def step(loss: Tensor, task: str = "kws") -> None:
        model.zero_grad()
        loss.backward()
        finish(adam[task])

    def finish(optimizer: torch.optim.Optimizer) -> None:
        nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()

    def combined_step(words: Tensor, voices: Tensor) -> None:
        """Both gradients on the student as one vector each, projected as in the paper's text for two tasks."""
        used = [
            p
            for p, g in zip(
                weights, torch.autograd.grad(words, weights, retain_graph=True, allow_unused=True), strict=True
            )
            if g is not None
        ]
        a, b = (
            torch.cat([g.flatten() for g in torch.autograd.grad(x, used, retain_graph=True)]).double()
            for x in (words, voices)
        )
        cosines.append(float(a @ b / (a.norm() * b.norm())))
        model.zero_grad()
        (words + voices).backward()
        if case == "PCGrad":
            if a @ b < 0:
                a, b = a - (a @ b) / (b @ b) * b, b - (a @ b) / (a @ a) * a
            for p, g in zip(used, (a + b).split([p.numel() for p in used]), strict=True):
                p.grad = g.view_as(p).float()
        finish(adam["kws"])

    for _ in range(ITERATIONS):
        (words, first, word_labels), (voices, second, voice_labels) = next(data), next(data)
        assert (first, second) == ("kws", "sv")
        if CASES[case]["update"] == "alternate":
            step(model.keyword_loss(words, word_labels))
            step(model.speaker_loss(voices, voice_labels), "sv")
        else:
            combined_step(model.keyword_loss(words, word_labels), model.speaker_loss(voices, voice_labels))
    return cosines


@pytest.mark.parametrize("case", CASES)
def test_twenty_iterations_of_the_runner_equal_the_papers_updates(
    tmp_path: Path, small_cnn: StudentConfig, case: str
) -> None:
    distilled_student.register()
    torch.manual_seed(0)
    save_student(build_student(replace(small_cnn, dropout=0.0)), tmp_path / "student")
    config = settings(tmp_path, case)
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config))
    expert = make_expert(config, small_cnn.hidden_size)
    initial = {name: value.clone() for name, value in expert.state_dict().items()}
    torch.save({"Downstream": initial}, tmp_path / "initial.ckpt")
    command = ["-m", "train", "-f", "-u", "distilled_student", "-k", str(tmp_path / "student"), "-d", "multitask"]
    command += ["-c", str(tmp_path / "c.yaml"), "-p", str(tmp_path / "exp"), "-i", str(tmp_path / "initial.ckpt")]
    assert launch.main([*command, "--device", "cpu", "--seed", "0"]) == 0
    [checkpoint] = (tmp_path / "exp").glob("states-*.ckpt")
    runners = torch.load(checkpoint, weights_only=True)

    model = PaperModel(distilled_student.load_student(tmp_path / "student"), initial).train()
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    cosines = train_as_in_the_paper(model, batches(expert), case, config["runner"]["gradient_clipping"])
    found = dict(runners["Upstream"])  # the student has the same parameter names
    found["layer_weights"] = runners["Featurizer"]["weights"]
    found |= {f"heads.{name.replace('.', '_')}": value for name, value in runners["Downstream"].items()}
    for name, parameter in model.named_parameters():
        difference = (parameter.detach() - found[name]).abs()
        if name.endswith("in_proj_bias"):
            # A key's bias adds the same to all scores of a query. Its true gradient is 0; Adam scales the rounding up.
            difference[small_cnn.hidden_size : 2 * small_cnn.hidden_size] = 0
        assert difference.max() < 1.5e-7, name  # one unit of float32 at 1: processors choose the order of sums
        has_learned = bool((parameter - start[name]).abs().max() > 1e-4)
        assert has_learned != name.startswith("student.predictions"), f"{name}: both tasks use hidden_states"
    logged = json.loads((tmp_path / "exp/log.jsonl").read_text().splitlines()[-1])
    if config["downstream_expert"].get("conflict"):
        assert logged["gradient_cosine/kws-sv"] == pytest.approx(sum(cosines) / ITERATIONS, abs=1e-5)
        assert min(cosines) < 0, "no gradients in conflict: nothing was projected"
    else:
        assert "gradient_cosine/kws-sv" not in logged
