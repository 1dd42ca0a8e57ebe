"""Lengths and masks: the one place that knows how samples become frames.

Lengths stay where the caller has them. On the CPU they cost nothing to look at; on a GPU each look waits for it.
"""

from __future__ import annotations

import torch
from torch import Tensor


def frame_mask(lengths: Tensor, frames: int, device: torch.device | None = None) -> Tensor:
    """``(batch, frames)`` bool on ``device`` (default: that of ``lengths (batch,)``), True on the valid frames."""
    lengths = lengths.to(device or lengths.device, non_blocking=True)
    return torch.arange(frames, device=lengths.device)[None, :] < lengths[:, None]


def is_exporting() -> bool:
    """Whether a graph is being made, which must hold for every length and so cannot ask for one."""
    return torch.compiler.is_exporting() or torch.onnx.is_in_onnx_export()


def mask_if_padded(lengths: Tensor | None, frames: int, device: torch.device | None = None) -> Tensor | None:
    """As `frame_mask`, but None where nothing is padded: then every kernel takes its unmasked, faster path."""
    if lengths is None or (not is_exporting() and bool((lengths >= frames).all())):
        return None
    return frame_mask(lengths, frames, device)


def zero_padding(x: Tensor, mask: Tensor | None) -> Tensor:
    """``x (batch, frames, features)`` or ``(batch, frames)`` with padded frames set to zero."""
    if mask is None:
        return x
    return x.masked_fill(~(mask if x.dim() == 2 else mask[:, :, None]), 0.0)


def conv_lengths(lengths: Tensor, kernel: int, stride: int, padding: int = 0) -> Tensor:
    """Lengths after a convolution, in output frames; at least 0. ``padding``: frames on both sides together."""
    return torch.clamp((lengths + padding - kernel).div(stride, rounding_mode="floor") + 1, min=0)
