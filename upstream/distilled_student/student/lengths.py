"""Lengths and masks: the lengths of a batch, how samples become frames, and which frames are valid.

Lengths stay on the device where the caller has them. Reading a length on the CPU is free; reading one on a GPU waits
for the GPU.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from distilled_student.student.run_mode import is_exporting


def not_a_tensor(value: Any) -> str:
    """What is wrong with an array, a list or something else where a tensor is expected, and the remedy."""
    remedy = ": use torch.as_tensor" if hasattr(value, "__array__") or isinstance(value, list | tuple) else ""
    return f"expected a torch.Tensor, found {type(value).__name__}{remedy}"


def checked_lengths(waveforms: Tensor, lengths: Tensor | None) -> Tensor:
    """The lengths ``(batch,)`` in samples of ``waveforms (batch, samples)``; None stands for ``samples`` each.

    An exported graph cannot check values.

    Raises:
        ValueError: no tensors, an empty batch, wrong shapes, or a length that is no whole number from 1 to ``samples``.
    """
    if not isinstance(waveforms, Tensor):
        raise ValueError(f"waveforms: {not_a_tensor(waveforms)}")
    if waveforms.dim() != 2 or waveforms.shape[1] == 0:
        raise ValueError(f"waveforms: expected (batch, samples), found {tuple(waveforms.shape)}")
    batch, samples = waveforms.shape
    if not is_exporting() and batch == 0:
        raise ValueError("waveforms: an empty batch: give one utterance or more")
    if lengths is None:
        return torch.full((len(waveforms),), samples)
    if not isinstance(lengths, Tensor):
        raise ValueError(f"lengths: {not_a_tensor(lengths)}")
    if not is_exporting():
        if lengths.shape != waveforms.shape[:1]:
            raise ValueError(f"lengths: expected ({batch},), found {tuple(lengths.shape)}")
        if lengths.is_floating_point() or lengths.dtype == torch.bool:
            raise ValueError(f"lengths: expected whole numbers of samples, found {lengths.dtype}")
        if bool((lengths < 1).any()) or bool((lengths > samples).any()):
            raise ValueError(f"lengths: expected 1 to {samples} samples, found {lengths.tolist()}")
    return lengths


def frame_mask(lengths: Tensor, frames: int, device: torch.device | None = None) -> Tensor:
    """``(batch, frames)`` bool, True for valid frames; on ``device``, by default that of ``lengths (batch,)``."""
    if device is not None and device != lengths.device:  # each operation of a graph takes time to export
        lengths = lengths.to(device, non_blocking=True)
    return torch.arange(frames, device=lengths.device) < lengths.unsqueeze(1)


def mask_if_padded(lengths: Tensor | None, frames: int, device: torch.device | None = None) -> Tensor | None:
    """As `frame_mask`, but None if nothing is padded: without a mask, torch uses its faster kernels."""
    if lengths is None or (not is_exporting() and bool((lengths >= frames).all())):
        return None
    return frame_mask(lengths, frames, device)


def zero_padding(x: Tensor, mask: Tensor | None) -> Tensor:
    """``x (batch, frames, features)`` or ``(batch, frames)`` with padded frames set to zero."""
    if mask is None:
        return x
    return x.masked_fill(~(mask if x.dim() == 2 else mask.unsqueeze(2)), 0.0)


def conv_lengths(lengths: Tensor, kernel: int, stride: int, padding: int = 0) -> Tensor:
    """Lengths after a convolution, in output frames, at least 0. ``padding``: frames on both sides together."""
    return torch.clamp((lengths + padding - kernel).div(stride, rounding_mode="floor") + 1, min=0)
