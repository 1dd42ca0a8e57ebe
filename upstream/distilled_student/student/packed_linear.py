"""Linear layers that run on oneDNN with packed weights during an evaluation on a CPU.

torch multiplies float32 matrices with MKL, which on AMD's processors leaves a sixth of the arithmetic unused. oneDNN is
faster there, but needs each weight packed, that is in a memory layout of its own. Packing is done once per weight, see
`weight_cache`. The operations are the ones that `torch.compile` makes of a linear layer and a GELU.

Convolutions do not use it: in sums of 1,024 terms oneDNN's rounding errors are twice those of MKL, and the errors of
seven layers add up.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distilled_student.student.run_mode import is_cpu_inference, is_exporting
from distilled_student.student.weight_cache import computed_from_weights, forget_weights


def _pack(weight: Tensor) -> Tensor:
    """``weight (outputs, inputs)`` in oneDNN's memory layout."""
    return torch.ops.mkldnn._reorder_linear_weight(weight.contiguous())


def apply_weight(module: nn.Module, weight: Tensor, bias: Tensor | None, x: Tensor, activation: str = "none") -> Tensor:
    """``activation(x @ weight.T + bias)``, with the packed weight if `is_cpu_inference`.

    Args:
        module: The module that the weight belongs to and that its packed copy is cached for.
        weight: ``(outputs, inputs)``. bias: ``(outputs,)``.
        x: ``(..., inputs)``.
        activation: ``none`` or ``gelu``.

    Returns:
        ``(..., outputs)``.
    """
    if is_cpu_inference(x):
        packed = computed_from_weights(module, [weight], lambda: _pack(weight))
        return torch.ops.mkldnn._linear_pointwise(x, packed, bias, activation, [], "none")
    if torch.is_grad_enabled():
        forget_weights(module)
    y = F.linear(x, weight, bias)
    return gelu(y) if activation == "gelu" else y


def linear(layer: nn.Linear, x: Tensor, activation: str = "none") -> Tensor:
    """A linear layer and its activation, see `apply_weight`."""
    return apply_weight(layer, layer.weight, layer.bias, x, activation)


def gelu(x: Tensor) -> Tensor:
    """GELU of a tensor that nothing else uses: without gradients the result overwrites ``x``.

    At thousands of frames a second, allocating memory for a new tensor costs more than the arithmetic.
    """
    return F.gelu(x) if torch.is_grad_enabled() or is_exporting() else torch.ops.aten.gelu_(x)
