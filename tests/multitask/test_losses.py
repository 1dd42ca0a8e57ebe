"""Losses of speaker verification against the formulas of their papers, and their gradients at the limits."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from distilled_student.common.errors import UserError
from distilled_student.common.settings import typed
from distilled_student.multitask.losses import SpeakerLoss, aam_cosine, angular_psi
from distilled_student.multitask.tasks.settings import LossSettings

CASES = [
    {"name": "softmax"},
    *({"name": "angular", "margin": m} for m in (1, 2, 3, 4)),
    {"name": "angular", "margin": 4, "scale": 20.0},
    {"name": "am"},
    {"name": "am", "margin": 0.2, "scale": 15.0},
    {"name": "aam"},
    {"name": "aam", "margin": 0.5, "scale": 64.0},
]


def plain(loss: SpeakerLoss, x: list[list[float]], labels: list[int]) -> float:
    """The formulas of the papers, one number at a time, with acos and without tensors."""
    s, weight = loss.settings, loss.weight.double().tolist()
    total = 0.0
    for vector, label in zip(x, labels, strict=True):
        logits = []
        for j, w in enumerate(weight):
            dot = sum(a * b for a, b in zip(vector, w, strict=True))
            length = math.sqrt(sum(a * a for a in vector))
            if s.name == "softmax":
                logits.append(dot + loss.bias[j].item())
                continue
            cosine = max(-1.0, min(1.0, dot / length / math.sqrt(sum(b * b for b in w))))
            theta, m = math.acos(cosine), s.full_margin
            if j == label and s.name == "angular":
                k = min(int(m * theta / math.pi), m - 1)
                lam = max(s.anneal_stop, s.anneal_start / (1 + s.anneal_decay * int(loss.step)))
                cosine = (lam * cosine + (-1) ** k * math.cos(m * theta) - 2 * k) / (1 + lam)
            elif j == label and s.name == "am":
                cosine -= m
            elif j == label:
                cosine = math.cos(theta + m) if theta + m < math.pi else cosine - m * math.sin(m)
            logits.append(cosine * (length if s.factor is None else s.factor))
        total += math.log(sum(math.exp(v - logits[label]) for v in logits))
    return total / len(labels)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_each_loss_equals_a_plain_loop_in_double_precision(case: dict) -> None:
    torch.manual_seed(0)
    loss = SpeakerLoss(LossSettings(**case, anneal_stop=0.5), 5, 7).double().eval()
    loss.step.fill_(100_000)  # past the annealing
    x, labels = torch.randn(40, 5, dtype=torch.double), torch.randint(7, (40,))
    x[0], x[1] = loss.weight[labels[0]].detach(), -loss.weight[labels[1]].detach()  # angles 0 and pi
    got = torch.nn.functional.cross_entropy(loss.logits(x, labels), labels)
    assert got.item() == pytest.approx(plain(loss, x.tolist(), labels.tolist()), rel=1e-6)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_gradients_are_finite_where_the_angle_is_0_or_pi(case: dict) -> None:
    loss = SpeakerLoss(LossSettings(**case), 4, 3)
    x = torch.cat([loss.weight, -loss.weight, 1e-6 * loss.weight]).detach().requires_grad_()
    loss(x, torch.arange(3).repeat(3)).backward()
    assert torch.isfinite(x.grad).all() and torch.isfinite(loss.weight.grad).all()


@pytest.mark.parametrize("margin", [1, 2, 3, 4])
def test_psi_falls_with_the_angle_and_is_never_above_the_cosine(margin: int) -> None:
    cosine = torch.linspace(0, math.pi, 2001, dtype=torch.double).cos()
    psi = angular_psi(cosine, margin)
    assert (psi.diff() <= 1e-9).all() and (psi <= cosine + 1e-9).all()
    assert psi[-1].item() == pytest.approx(1 - 2 * margin)


def test_the_additive_angle_falls_with_the_angle_up_to_pi() -> None:
    cosine = torch.linspace(0, math.pi - 1e-6, 2001, dtype=torch.double).cos()
    assert (aam_cosine(cosine, 0.5).diff() < 0).all()


def test_the_margin_grows_slowly_and_a_resumed_run_continues_with_it() -> None:
    loss = SpeakerLoss(LossSettings("angular"), 4, 3)
    assert loss.annealing().item() == 1000
    for _ in range(5):
        loss(torch.randn(2, 4), torch.tensor([0, 1]))
    resumed = SpeakerLoss(LossSettings("angular"), 4, 3)
    resumed.load_state_dict(loss.state_dict())
    assert resumed.annealing().item() == pytest.approx(1000 / (1 + 0.12 * 5))


def test_the_published_annealing_ends_at_a_sixth_of_the_margin() -> None:
    torch.manual_seed(0)
    loss = SpeakerLoss(LossSettings("angular"), 4, 3)
    x, labels = torch.randn(20, 4), torch.randint(3, (20,))
    theta = np.arccos(loss.cosines(x).detach().numpy()[np.arange(20), labels])
    k = np.floor(4 * theta / np.pi)
    psi = (-1) ** k * np.cos(4 * theta) - 2 * k
    ends = []
    for step in (1658, 1659, 100_000):
        loss.step.fill_(step)
        scaled = loss.logits(x, labels).gather(1, labels[:, None])[:, 0] / x.norm(dim=1)
        ends.append(np.abs(scaled.detach().numpy() - (5 * np.cos(theta) + psi) / 6).max())
    assert ends[0] > 1e-5 > max(ends[1:])


@pytest.mark.parametrize(
    "bad", [{"name": "arc"}, {"margin": 5.0}, {"name": "am", "margin": -1.0}, {"name": "aam", "scale": 0.0}]
)
def test_a_wrong_loss_setting_gives_one_line_with_the_key(bad: dict) -> None:
    with pytest.raises(UserError, match=r"FILE: loss\."):
        typed(LossSettings, bad, "FILE")
