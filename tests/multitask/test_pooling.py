"""Pooling over time: independent of padding, equal to its formulas, with finite gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from distilled_student.multitask.pooling import Pooling
from distilled_student.multitask.tasks.settings import POOLINGS


@pytest.mark.parametrize("kind", POOLINGS)
def test_padding_never_changes_a_result_even_when_it_is_nan(kind: str) -> None:
    torch.manual_seed(0)
    pooling, lengths = Pooling(kind, 5), [7, 3, 1]
    utterances = [torch.randn(n, 5) for n in lengths]
    padded = torch.full((3, 9, 5), float("nan"))
    for row, utterance in zip(padded, utterances, strict=True):
        row[: len(utterance)] = utterance
    together = pooling(padded, torch.tensor(lengths))
    for row, utterance in zip(together, utterances, strict=True):
        torch.testing.assert_close(row, pooling(utterance[None], torch.tensor([len(utterance)]))[0])
    assert together.shape == (3, pooling.output_size)


def test_mean_and_deviation_equal_torchs() -> None:
    x = torch.randn(1, 6, 4)
    got = Pooling("mean_std", 4)(x, torch.tensor([6]))[0]
    torch.testing.assert_close(got, torch.cat([x[0].mean(0), x[0].std(0, correction=0)]))


def test_attention_equals_the_formula_of_the_paper() -> None:
    pooling, x = Pooling("attentive", 4, hidden=3), torch.randn(1, 6, 4)
    w, v = pooling.attention[0], pooling.attention[2]
    scores = [(v.weight[0] @ torch.tanh(w.weight @ frame + w.bias)).item() for frame in x[0]]
    weights = torch.tensor(scores).exp() / torch.tensor(scores).exp().sum()
    torch.testing.assert_close(pooling(x, torch.tensor([6]))[0], (weights[:, None] * x[0]).sum(0))


def test_attentive_statistics_are_the_weighted_mean_and_deviation() -> None:
    torch.manual_seed(0)
    pooling, x = Pooling("attentive_std", 4, hidden=3).double(), torch.randn(1, 9, 4, dtype=torch.double)
    w, v = (layer.weight.detach().numpy() for layer in (pooling.attention[0], pooling.attention[2]))
    frames, bias = x[0, :6].numpy(), pooling.attention[0].bias.detach().numpy()
    scores = np.exp(np.tanh(frames @ w.T + bias) @ v[0])
    weights = scores / scores.sum()
    mean = np.average(frames, axis=0, weights=weights)
    deviation = np.sqrt(np.average(frames**2, axis=0, weights=weights) - mean**2)
    got = pooling(x, torch.tensor([6]))[0].detach().numpy()
    np.testing.assert_allclose(got, np.concatenate([mean, deviation]), rtol=1e-9)
    assert pooling.output_size == 8


@pytest.mark.parametrize("kind", POOLINGS)
def test_the_gradient_of_a_single_or_constant_frame_is_finite(kind: str) -> None:
    x = torch.ones(2, 4, 3, requires_grad=True)
    Pooling(kind, 3)(x, torch.tensor([1, 4])).sum().backward()
    assert torch.isfinite(x.grad).all()
