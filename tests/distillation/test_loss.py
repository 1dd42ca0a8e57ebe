"""The distillation loss against a loop written from the paper's formula (Kerpicci et al. 2023, eq. 1)."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from distilled_student.distillation.loss import distillation_loss

LENGTHS = [7, 4, 1]


@pytest.fixture
def batch() -> tuple[Tensor, Tensor, Tensor]:
    """Predictions and targets ``(batch 3, targets 3, frames 7, features 5)`` in float64, and lengths."""
    torch.manual_seed(0)
    predictions, targets = (torch.randn(3, 3, 7, 5, dtype=torch.float64) for _ in range(2))
    return predictions, targets, torch.tensor(LENGTHS)


def plain_parts(f: list[float], g: list[float]) -> tuple[float, float]:
    """The parts of the loss of one frame: mean absolute difference, and ``-log sigmoid(cos(f, g))``."""
    l1 = sum(abs(x - y) for x, y in zip(f, g, strict=True)) / len(f)
    dot = sum(x * y for x, y in zip(f, g, strict=True))
    cosine = dot / (math.sqrt(sum(x * x for x in f)) * math.sqrt(sum(y * y for y in g)))
    return l1, -math.log(1 / (1 + math.exp(-cosine)))


def test_the_loss_is_the_papers_sum_over_valid_frames_and_target_layers(batch: tuple[Tensor, Tensor, Tensor]) -> None:
    predictions, targets, lengths = batch
    l1, cosine = [0.0] * 3, [0.0] * 3
    for utterance, frames in enumerate(LENGTHS):
        for layer in range(3):
            for frame in range(frames):
                f, g = targets[utterance, layer, frame].tolist(), predictions[utterance, layer, frame].tolist()
                one, other = plain_parts(f, g)
                l1[layer] += one
                cosine[layer] += other
    parts = distillation_loss(predictions, targets, lengths)
    assert parts.l1.tolist() == pytest.approx(l1, rel=1e-12)
    assert parts.cosine.tolist() == pytest.approx(cosine, rel=1e-12)
    assert float(parts.total) == pytest.approx(sum(l1) + sum(cosine), rel=1e-12)
    assert int(parts.frames) == sum(LENGTHS)


def test_padded_frames_do_not_change_the_loss(batch: tuple[Tensor, Tensor, Tensor]) -> None:
    predictions, targets, lengths = batch
    expected = distillation_loss(predictions, targets, lengths)
    for utterance, frames in enumerate(LENGTHS):
        predictions[utterance, :, frames:] = 1e6
        targets[utterance, :, frames:] = 0.0
    found = distillation_loss(predictions.requires_grad_(), targets, lengths)
    assert torch.equal(found.l1, expected.l1)
    assert torch.equal(found.cosine, expected.cosine)
    found.total.backward()
    for utterance, frames in enumerate(LENGTHS):
        assert not predictions.grad[utterance, :, frames:].any()
        assert predictions.grad[utterance, :, :frames].all()


def test_the_losss_gradient_is_right(batch: tuple[Tensor, Tensor, Tensor]) -> None:
    predictions, targets, lengths = batch
    assert torch.autograd.gradcheck(
        lambda one, other: distillation_loss(one, other, lengths).total,
        (predictions.requires_grad_(), targets.requires_grad_()),
    )


def test_half_precision_is_summed_in_single_precision(batch: tuple[Tensor, Tensor, Tensor]) -> None:
    predictions, targets, lengths = batch
    predictions, targets = predictions.half(), targets.half()
    parts = distillation_loss(predictions, targets, lengths)
    assert parts.total.dtype == torch.float32
    exact = distillation_loss(predictions.double(), targets.double(), lengths)
    assert float(parts.total) == pytest.approx(float(exact.total), rel=1e-6)
