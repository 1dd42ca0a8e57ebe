"""Convolutions over frames as matrix products. They run a CPU at its peak, forwards and backwards, and int8 knows them.

Frames are time-major, ``(batch, frames, channels)``: with stride s, s frames side by side are one row of a matrix, and
a kernel of k taps is ceil(k / s) products of rows with a part of the kernel. Nothing is copied, and a batch is one long
stream of rows. A window over an utterance's end reads the next one's frames: what lies behind `conv_lengths` is void.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from distilled_student.student.lengths import is_exporting
from distilled_student.student.packed_linear import multiply

TRANSFORMED_KERNEL = 64  # taps from which `convolve_spectra` is faster on a CPU
BLOCK = 3  # its blocks, in kernels: 4 s of HuBERT's frames are one


def kernel_parts(weight: Tensor, stride: int) -> list[Tensor]:
    """``(width, channels, kernel)`` cut into matrices ``(width, taps * channels)`` of at most ``stride`` taps each."""
    return [part.reshape(len(weight), -1) for part in weight.transpose(1, 2).split(stride, dim=1)]


def _product(rows: Tensor, bias: Tensor | None, parts: Sequence[Tensor]) -> Tensor:
    first, *others = parts
    y = multiply(rows[:, : first.shape[1]], first, bias)
    for place, part in enumerate(others, start=1):
        x = rows[place:, : part.shape[1]]  # the windows' later taps are the beginning of later rows
        if is_exporting():  # graphs have no product onto a part of a matrix
            y = y + F.pad(multiply(x, part), (0, 0, 0, place))
        else:
            y[:-place].addmm_(x, part.T)
    return y


class _RowConvolution(torch.autograd.Function):
    """`_product` with a backward pass that adds in place, too: autograd's own copies each part's gradient twice."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, bias: Tensor | None, *parts: Tensor) -> Tensor:
        ctx.save_for_backward(rows, *parts)
        return _product(rows, bias, parts)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, first, *others = ctx.saved_tensors
        grad_rows = None
        if ctx.needs_input_grad[0]:
            grad_rows = F.pad(grad @ first, (0, rows.shape[1] - first.shape[1]))
            for place, part in enumerate(others, start=1):
                grad_rows[place:, : part.shape[1]].addmm_(grad[:-place], part)
        grad_bias = grad.sum(0) if ctx.needs_input_grad[1] else None
        grad_parts = [grad.T @ rows[:, : first.shape[1]]]
        grad_parts += [grad[:-place].T @ rows[place:, : part.shape[1]] for place, part in enumerate(others, start=1)]
        return grad_rows, grad_bias, *grad_parts


def convolve(x: Tensor, parts: Sequence[Tensor], bias: Tensor | None, stride: int) -> Tensor:
    """Unpadded strided convolution.

    Args:
        x: ``(batch, frames, channels)``; frames beyond the last multiple of ``stride`` count as followed by zeros.
        parts: The kernel's, see `kernel_parts`. bias: ``(width,)``.

    Returns:
        ``(batch, ceil(frames / stride), width)``, of which the caller's lengths say how many are valid.
    """
    batch, frames, channels = x.shape
    if is_exporting() or frames % stride:
        x = F.pad(x, (0, 0, 0, (frames + stride - 1) // stride * stride - frames))
    if torch.is_autocast_enabled(x.device.type):
        half = torch.get_autocast_dtype(x.device.type)
        x, parts, bias = x.to(half), [part.to(half) for part in parts], None if bias is None else bias.to(half)
    rows = x.reshape(-1, stride * channels)
    y = _product(rows, bias, parts) if is_exporting() else _RowConvolution.apply(rows, bias, *parts)
    return y.reshape(batch, -1, y.shape[-1])


def kernel_spectra(weight: Tensor, groups: int) -> Tensor:
    """``(width, channels / groups, kernel)`` -> ``(bins, groups, channels / groups, width / groups)``, complex."""
    spectra = torch.fft.rfft(weight, BLOCK * weight.shape[2]).conj()  # the conjugate: a correlation, as all of torch's
    return spectra.unflatten(0, (groups, -1)).permute(3, 0, 2, 1).contiguous()


def convolve_spectra(x: Tensor, spectra: Tensor, kernel: int) -> Tensor:
    """Unpadded grouped convolution with a long kernel, as products of spectra (overlap-save; Stockham 1966).

    A quarter of the time of the direct way for HuBERT's 128 taps, and sums a sixth as inexact.

    Args:
        x: ``(batch, frames, channels)``, at least ``kernel`` frames. spectra: From `kernel_spectra`.

    Returns:
        ``(batch, frames - kernel + 1, width)``.
    """
    size, step, frames = BLOCK * kernel, (BLOCK - 1) * kernel + 1, x.shape[1] - kernel + 1
    count = -(-frames // step)
    blocks = F.pad(x, (0, 0, 0, count * step + kernel - 1 - x.shape[1])).unfold(1, size, step)
    found = torch.fft.rfft(blocks.flatten(0, 1)).unflatten(1, (spectra.shape[1], -1))
    found = (found.permute(3, 1, 0, 2) @ spectra).permute(2, 1, 3, 0).flatten(1, 2)
    y = torch.fft.irfft(found, size)[..., :step].transpose(1, 2)
    return y.reshape(len(x), count * step, -1)[:, :frames]


def windows(samples: Tensor, size: int, step: int, count: int) -> Tensor:
    """``count`` windows, ``step`` apart, of ``(batch, samples)``, zeros behind its end: ``(batch, count, size)``."""
    over = -(-size // step)
    wanted = (count + over - 1) * step
    missing = wanted if is_exporting() else wanted - samples.shape[1]  # not every runtime cuts where that is negative
    rows = F.pad(samples, (0, missing))[:, :wanted].unflatten(1, (-1, step))
    return torch.cat([rows[:, i : i + count] for i in range(over)], dim=2)[:, :, :size]


def normalized_convolution(
    x: Tensor, valid: Tensor | None, weight: Tensor, scale: Tensor, shift: Tensor, epsilon: float
) -> Tensor:
    """A convolution of the waveform and the norm of each channel over time, in one product.

    Mean and variance of ``weight @ window`` over time follow from the mean m and the covariance C of the windows:
    ``weight @ m`` and ``weight @ C @ weight.T``. So the norm becomes part of each utterance's own kernel, and the
    widest tensor of the network (512 features at 3,200 frames a second) is written once instead of three times.

    Args:
        x: ``(batch, frames, taps)`` windows of the waveform.
        valid: ``(batch, frames)`` bool, where statistics are taken; None: everywhere.
        weight: ``(width, taps)``. scale, shift: ``(width,)``, the norm's. epsilon: added to the variance.

    Returns:
        ``(batch, frames, width)``: group norm of one channel per group (HuBERT's and wav2vec 2.0's first), its
        statistics over valid frames alone. A bias before it would have no effect.
    """
    with torch.autocast(x.device.type, enabled=False):
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        # double, for a few numbers: these products stand in for sums over the widest tensor
        wide, taps = x.double(), weight.double()
        keep = None if valid is None else valid[:, :, None].to(wide.dtype)
        count = x.shape[1] if keep is None else keep.sum(1, keepdim=True).clamp(min=1)
        inside = wide if keep is None else wide * keep
        mean = inside.sum(1, keepdim=True) / count
        covariance = inside.transpose(1, 2) @ inside / count - mean.transpose(1, 2) @ mean
        variance = ((taps @ covariance) * taps).sum(2)  # (batch, width)
        kernel = taps * (scale * torch.rsqrt(variance.clamp(min=0) + epsilon))[:, :, None]
        offset = shift - (kernel @ mean.transpose(1, 2))[:, :, 0]
    return torch.baddbmm(offset[:, None, :].to(x.dtype), x, kernel.transpose(1, 2).to(x.dtype))
