"""GE2E and angular prototypical loss against plain loops, and the batches with several clips of a speaker."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from distilled_student.multitask.contrastive import ContrastiveLoss
from distilled_student.multitask.tasks.base import grouped_order
from distilled_student.multitask.tasks.settings import CONTRASTIVE


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def softmax_loss(logits: list[float], right: int) -> float:
    return math.log(sum(math.exp(value) for value in logits)) - logits[right]


def plain(kind: str, x: np.ndarray, labels: list[int], scale: float, offset: float) -> float:
    """The formulas of the papers, one query at a time, on unit vectors as the papers have them."""
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    rows = {s: [i for i, label in enumerate(labels) if label == s] for s in sorted(set(labels))}
    rows = {s: members for s, members in rows.items() if len(members) > 1}
    losses = []
    for number, (speaker, members) in enumerate(rows.items()):
        for query in members if kind == "ge2e" else members[-1:]:
            logits = []
            for theirs in rows.values():
                support = [i for i in theirs if i != query] if kind == "ge2e" else theirs[:-1]
                logits.append(scale * cosine(unit[query], unit[support].mean(axis=0)) + offset)
            assert list(rows).index(speaker) == number
            losses.append(softmax_loss(logits, number))
    return float(np.mean(losses))


@pytest.mark.parametrize("kind", CONTRASTIVE)
def test_the_loss_equals_a_plain_loop(kind: str) -> None:
    rng = np.random.default_rng(0)
    labels = [7, 2, 7, 4, 2, 9, 4, 7, 2, 4]  # speaker 9 has one utterance and takes no part
    x, loss = rng.standard_normal((len(labels), 6)), ContrastiveLoss(kind).double()
    with torch.no_grad():
        loss.scale.fill_(3.0)
        loss.offset.fill_(0.5)
    found = loss._loss(torch.nn.functional.normalize(torch.from_numpy(x), dim=1), torch.tensor(labels))
    assert found.item() == pytest.approx(plain(kind, x, labels, 3.0, 0.5), rel=1e-9)


@pytest.mark.parametrize("kind", CONTRASTIVE)
def test_a_batch_without_two_speakers_of_several_utterances_has_no_loss(kind: str) -> None:
    loss, x = ContrastiveLoss(kind), torch.randn(4, 3, requires_grad=True)
    for labels in ([0, 1, 2, 3], [0, 0, 1, 2], [5, 5, 5, 5]):
        found = loss(x, torch.tensor(labels))
        found.backward()
        assert found.item() == 0 and not x.grad.any()


@pytest.mark.parametrize("kind", CONTRASTIVE)
def test_training_on_it_brings_utterances_of_a_speaker_together(kind: str) -> None:
    torch.manual_seed(0)
    x, labels = torch.randn(12, 5, requires_grad=True), torch.arange(4).repeat(3)
    loss = ContrastiveLoss(kind)
    optimizer = torch.optim.Adam([x, *loss.parameters()], lr=0.05)
    before = loss(x, labels).item()
    for _ in range(100):
        optimizer.zero_grad()
        loss(x, labels).backward()
        optimizer.step()
    assert loss(x, labels).item() < 0.2 * before


def test_each_batch_has_groups_of_clips_of_one_speaker() -> None:
    labels = np.repeat(np.arange(7), [1, 2, 3, 4, 5, 6, 9])
    for balanced in (False, True):
        order = grouped_order(labels, 3, balanced, np.random.default_rng(0))
        groups = labels[np.array(order)].reshape(-1, 3)
        assert (groups == groups[:, :1]).all()
        for group, of in zip(np.array(order).reshape(-1, 3), groups[:, 0], strict=True):
            assert len(set(group)) == min(3, (labels == of).sum())  # different clips, as far as there are so many
        if balanced:
            assert len(order) == 30 and np.bincount(groups[:, 0], minlength=7).max() <= 2
        else:  # each clip at most once in a pass, but for speakers with fewer than three
            assert sorted(np.bincount(groups[:, 0], minlength=7).tolist()) == [1, 1, 1, 1, 1, 2, 3]
    assert order != grouped_order(labels, 3, True, np.random.default_rng(1))
