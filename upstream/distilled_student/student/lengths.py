"""Lengths and masks: how samples become frames, and which frames are valid.

Lengths stay on the device where the caller has them. Reading a length on the CPU is free; reading one on a GPU waits
for the GPU.
"""

from __future__ import annotations

import torch
from torch import Tensor

from distilled_student.student.run_mode import is_exporting


def frame_mask(lengths: Tensor, frames: int, device: torch.device | None = None) -> Tensor:
    """``(batch, frames)`` bool, True for valid frames; on ``device``, by default that of ``lengths (batch,)``."""
    lengths = lengths.to(device or lengths.device, non_blocking=True)
    return torch.arange(frames, device=lengths.device)[None, :] < lengths[:, None]


def mask_if_padded(lengths: Tensor | None, frames: int, device: torch.device | None = None) -> Tensor | None:
    """As `frame_mask`, but None if nothing is padded: without a mask, torch uses its faster kernels."""
    if lengths is None or (not is_exporting() and bool((lengths >= frames).all())):
        return None
    return frame_mask(lengths, frames, device)


def zero_padding(x: Tensor, mask: Tensor | None) -> Tensor:
    """``x (batch, frames, features)`` or ``(batch, frames)`` with padded frames set to zero."""
    if mask is None:
        return x
    return x.masked_fill(~(mask if x.dim() == 2 else mask[:, :, None]), 0.0)


def conv_lengths(lengths: Tensor, kernel: int, stride: int, padding: int = 0) -> Tensor:
    """Lengths after a convolution, in output frames, at least 0. ``padding``: frames on both sides together."""
    return torch.clamp((lengths + padding - kernel).div(stride, rounding_mode="floor") + 1, min=0)
