"""Tensors computed from weights, such as packed matrices and spectra of kernels: computed once for a whole evaluation.

In an evaluation the weights stay the same from call to call, so what is computed from them can be reused. In training
nothing is reused: the weights change at every step, and autograd has to record the computation.

torch counts the changes of a tensor, but not those by its fused optimizers or through ``.data``. So a value of the
tensor is compared too (on a CPU: reading one on a GPU would wait for the GPU), and a call with gradients and a switch
between training and evaluation drop what was computed before (`forget_weights`).
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from distilled_student.student.run_mode import is_exporting

T = TypeVar("T")


class _WeightVersion(NamedTuple):
    """Equal for two looks at a weight if it has not changed between them, and hardly ever if it has."""

    address: int
    changes: int  # in place, as far as torch counts them
    dtype: torch.dtype
    value: bytes  # in the middle; empty on a GPU

    @classmethod
    def of(cls, weight: Tensor) -> _WeightVersion:
        address, value = weight.data_ptr(), b""
        if address and weight.device.type == "cpu":
            # read from memory: an operation of torch would take ten times as long
            place = sum(size // 2 * stride for size, stride in zip(weight.shape, weight.stride(), strict=True))
            value = ctypes.string_at(address + place * weight.itemsize, weight.itemsize)
        return cls(address, weight._version, weight.dtype, value)


class _Entry(NamedTuple):
    versions: list[_WeightVersion]
    result: object


_CACHE: WeakKeyDictionary[nn.Module, _Entry] = WeakKeyDictionary()  # an entry is dropped together with its module


def computed_from_weights(module: nn.Module, weights: Sequence[Tensor], compute: Callable[[], T]) -> T:
    """``compute()``, or its earlier result if no weight has changed since then.

    Args:
        module: The module that the result belongs to. Each module has one result: always pass the same ``compute``.
        weights: All parameters that ``compute`` reads.
        compute: Computes the result.
    """
    counts_changes = not any(weight.is_inference() for weight in weights)
    if torch.is_grad_enabled():
        forget_weights(module)
    if torch.is_grad_enabled() or is_exporting() or not counts_changes:
        return compute()
    versions = [_WeightVersion.of(weight) for weight in weights]
    entry = _CACHE.get(module)
    if entry is None or entry.versions != versions:
        entry = _CACHE[module] = _Entry(versions, compute())
    return entry.result


def forget_weights(module: nn.Module) -> None:
    """Drop what was computed from the weights of this module itself: they may change, or may have changed."""
    if not torch.compiler.is_compiling():  # a compiled module has no entry
        _CACHE.pop(module, None)
