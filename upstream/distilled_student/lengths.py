"""Lengths and masks: the one place that knows how samples become frames."""

from __future__ import annotations

import torch
from torch import Tensor


def frame_mask(lengths: Tensor, frames: int) -> Tensor:
    """``(batch, frames)`` bool, True on the valid frames of ``lengths (batch,)``."""
    return torch.arange(frames, device=lengths.device)[None, :] < lengths[:, None]


def mask_if_padded(lengths: Tensor | None, frames: int) -> Tensor | None:
    """As `frame_mask`, but None where nothing is padded: then every kernel takes its unmasked, faster path."""
    if lengths is None or bool((lengths >= frames).all()):
        return None
    return frame_mask(lengths, frames)


def zero_padding(x: Tensor, mask: Tensor | None) -> Tensor:
    """``x (batch, frames, features)`` or ``(batch, frames)`` with padded frames set to zero."""
    if mask is None:
        return x
    return x.masked_fill(~(mask if x.dim() == 2 else mask[:, :, None]), 0.0)


def conv_lengths(lengths: Tensor, kernel: int, stride: int, padding: int = 0) -> Tensor:
    """Lengths after a convolution, in output frames; at least 0."""
    return torch.clamp((lengths + 2 * padding - kernel).div(stride, rounding_mode="floor") + 1, min=0)
