"""Products with weights that stay the same: in an evaluation on a CPU they are laid out once, for oneDNN's kernels.

torch multiplies float32 by MKL, which on AMD's processors leaves a sixth of the arithmetic unused. oneDNN does not, but
wants weights in an order of its own. The operations are those that `torch.compile` makes of a linear layer and a GELU.
Not for convolutions: its sums of 1,024 terms are half as exact as MKL's, and seven layers add them up.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distilled_student.student.lengths import is_exporting

T = TypeVar("T")
_KEPT: WeakKeyDictionary[nn.Module, tuple[object, object]] = WeakKeyDictionary()


def kept(module: nn.Module, sources: Sequence[Tensor], make: Callable[[], T]) -> T:
    """What ``make`` gives, made anew only when ``sources``, parameters of ``module``, have changed.

    Only where no gradient is asked for: an evaluation need not lay out the same weights at every call.
    """
    if torch.is_grad_enabled() or is_exporting() or any(p.is_inference() for p in sources):
        return make()
    key = [(p.data_ptr(), p._version, p.dtype) for p in sources]
    found = _KEPT.get(module)
    if found is None or found[0] != key:
        found = _KEPT[module] = (key, make())
    return found[1]


def packs(x: Tensor) -> bool:
    """Whether products with ``x`` are oneDNN's."""
    able = x.device.type == "cpu" and x.dtype == torch.float32 and torch.backends.mkldnn.is_available()
    free = not (torch.is_grad_enabled() or is_exporting() or torch.compiler.is_compiling())
    return able and free and not torch.is_autocast_enabled("cpu")


def pack(weight: Tensor) -> Tensor:
    """``(outputs, inputs)`` in oneDNN's order, for `multiply`."""
    return torch.ops.mkldnn._reorder_linear_weight(weight.contiguous())


def multiply(x: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str = "none") -> Tensor:
    """``x (..., inputs)`` by ``weight (outputs, inputs)``, as it is or from `pack`; ``activation``: none or gelu."""
    if weight.is_mkldnn:
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, activation, [], "none")
    y = F.linear(x, weight, bias)
    return gelu(y) if activation == "gelu" else y


def linear(layer: nn.Linear, x: Tensor, activation: str = "none") -> Tensor:
    """A linear layer and its activation."""
    if not packs(x):
        return multiply(x, layer.weight, layer.bias, activation)
    return multiply(x, kept(layer, [layer.weight], lambda: pack(layer.weight)), layer.bias, activation)


def gelu(x: Tensor) -> Tensor:
    """GELU of a tensor that nobody else holds: in place where no gradient needs it as it was.

    Over thousands of frames a second the pages of a fresh tensor cost more than the arithmetic.
    """
    return F.gelu(x) if torch.is_grad_enabled() or is_exporting() else torch.ops.aten.gelu_(x)
