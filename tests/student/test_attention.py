"""Attention in training on a CPU in half precision, which is computed without torch's fused kernel."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from distilled_student.student.attention import attend, causal_mask

BATCH, HEADS, FRAMES, PAST, FEATURES = 3, 2, 7, 4, 6


def random_inputs(attended: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(BATCH, HEADS, frames, FEATURES) for frames in (FRAMES, attended, attended)]
    return [torch.randn(shape, generator=generator).bfloat16() for shape in shapes]


def results(inputs: list[Tensor], mask: Tensor | None, function: object) -> list[Tensor]:
    """The output and the gradients of the inputs, of a loss that weights each output differently."""
    leaves = [x.clone().requires_grad_() for x in inputs]
    y = function(*leaves, mask)  # type: ignore[operator]
    (y.double() * torch.linspace(-1, 1, y.numel(), dtype=torch.float64).view_as(y)).sum().backward()
    return [y, *(leaf.grad for leaf in leaves if leaf.grad is not None)]


@pytest.mark.parametrize("kind", ["none", "causal", "causal with past", "utterances"])
def test_outputs_and_gradients_are_those_of_torch_in_double_precision(kind: str) -> None:
    past = PAST if kind == "causal with past" else 0
    ends = torch.tensor([FRAMES, 3, 5])
    mask = {
        "none": None,
        "causal": causal_mask(FRAMES, 0, 3, torch.device("cpu")),
        "causal with past": causal_mask(FRAMES, PAST, 4, torch.device("cpu")),
        "utterances": (torch.arange(FRAMES) < ends[:, None])[:, None, None, :].expand(-1, -1, FRAMES, -1),
    }[kind]
    inputs = random_inputs(FRAMES + past)
    found = results(inputs, mask, lambda *x: attend(*x, dropout=0.0))
    expected = results([x.double() for x in inputs], mask, F.scaled_dot_product_attention)
    assert len(found) == 4
    for x, reference in zip(found, expected, strict=True):
        torch.testing.assert_close(x.double(), reference, atol=0.03, rtol=0.03)


def test_dropout_keeps_the_mean_of_the_outputs() -> None:
    query, key, value = random_inputs(FRAMES)
    many = [x[:1].expand(2000, -1, -1, -1).clone().requires_grad_() for x in (query, key, value)]
    torch.manual_seed(0)
    dropped, kept = (attend(*many, mask=None, dropout=share).detach().float() for share in (0.5, 0.0))
    assert (dropped != kept).float().mean() > 0.9
    torch.testing.assert_close(dropped.mean(0), kept.mean(0), atol=0.1, rtol=0)
