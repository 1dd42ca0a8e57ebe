"""Convolutions over frames, computed as matrix products: the fastest way on a CPU, and the one that int8 supports.

Frames are stored time-major, ``(batch, frames, channels)``. With stride s, each row of a matrix holds s successive
frames, and a kernel of size k becomes ceil(k / s) products: each multiplies rows by a part of the kernel. No input is
copied, and the utterances of a batch follow each other in one long matrix. So a window at the end of an utterance reads
the first frames of the next one: results beyond `conv_lengths` are meaningless and must be cut or masked.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from distilled_student.common.arithmetic import ceil_div
from distilled_student.student.run_mode import is_exporting

SPECTRAL_KERNEL_SIZE = 64  # kernel size from which `convolve_by_spectra` is faster on a CPU
BLOCK_KERNELS = 3  # size of its blocks, as a multiple of the kernel size; 4 s of HuBERT's frames are one block


def split_kernel(weight: Tensor, stride: int) -> list[Tensor]:
    """``(width, channels, kernel)`` -> matrices ``(width, taps * channels)``, each of at most ``stride`` taps."""
    return [part.reshape(len(weight), -1) for part in weight.transpose(1, 2).split(stride, dim=1)]


def _sum_of_products(rows: Tensor, bias: Tensor | None, parts: Sequence[Tensor]) -> Tensor:
    """Row i of the result is the sum over n of ``parts[n]`` applied to row i + n of ``rows``."""
    first, *others = parts
    y = F.linear(rows[:, : first.shape[1]], first, bias)
    for offset, part in enumerate(others, start=1):
        x = rows[offset:, : part.shape[1]]
        if is_exporting():  # a graph has no operation that adds a product to a part of a matrix
            y = y + F.pad(F.linear(x, part), (0, 0, 0, offset))
        else:
            y[:-offset].addmm_(x, part.T)
    return y


class _RowConvolution(torch.autograd.Function):
    """`_sum_of_products` with a backward pass that adds in place too; autograd would copy each gradient twice."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, bias: Tensor | None, *parts: Tensor) -> Tensor:
        ctx.save_for_backward(rows, *parts)
        return _sum_of_products(rows, bias, parts)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, first, *others = ctx.saved_tensors
        grad_rows = None
        if ctx.needs_input_grad[0]:
            grad_rows = F.pad(grad @ first, (0, rows.shape[1] - first.shape[1]))
            for offset, part in enumerate(others, start=1):
                grad_rows[offset:, : part.shape[1]].addmm_(grad[:-offset], part)
        grad_bias = grad.sum(0) if ctx.needs_input_grad[1] else None
        grad_parts = [grad.T @ rows[:, : first.shape[1]]]
        for offset, part in enumerate(others, start=1):
            grad_parts.append(grad[:-offset].T @ rows[offset:, : part.shape[1]])
        return grad_rows, grad_bias, *grad_parts


def convolve(x: Tensor, parts: Sequence[Tensor], bias: Tensor | None, stride: int) -> Tensor:
    """Strided convolution without padding.

    Args:
        x: ``(batch, frames, channels)``; zeros are appended until ``stride`` divides ``frames``.
        parts: The kernel, from `split_kernel`. bias: ``(width,)``.

    Returns:
        ``(batch, ceil(frames / stride), width)``. Frames beyond `conv_lengths` are meaningless.
    """
    batch, frames, channels = x.shape
    if is_exporting() or frames % stride:
        x = F.pad(x, (0, 0, 0, ceil_div(frames, stride) * stride - frames))
    if torch.is_autocast_enabled(x.device.type):
        half = torch.get_autocast_dtype(x.device.type)
        x, parts, bias = x.to(half), [part.to(half) for part in parts], None if bias is None else bias.to(half)
    rows = x.reshape(-1, stride * channels)
    y = _sum_of_products(rows, bias, parts) if is_exporting() else _RowConvolution.apply(rows, bias, *parts)
    return y.reshape(batch, -1, y.shape[-1])


def kernel_spectra(weight: Tensor, groups: int) -> Tensor:
    """``(width, channels / groups, kernel)`` -> ``(bins, groups, channels / groups, width / groups)``, complex."""
    # the conjugate, because torch's convolutions are correlations
    spectra = torch.fft.rfft(weight, BLOCK_KERNELS * weight.shape[2]).conj()
    return spectra.unflatten(0, (groups, -1)).permute(3, 0, 2, 1).contiguous()


def convolve_by_spectra(x: Tensor, spectra: Tensor, kernel: int) -> Tensor:
    """Grouped convolution with a long kernel and without padding, as products of spectra (overlap-save; Stockham 1966).

    For HuBERT's kernel of 128 frames it takes a quarter of the time of a direct convolution, and its rounding errors
    are a sixth as large.

    Args:
        x: ``(batch, frames, channels)``, at least ``kernel`` frames. spectra: From `kernel_spectra`.

    Returns:
        ``(batch, frames - kernel + 1, width)``.
    """
    frames = x.shape[1] - kernel + 1
    block_size = BLOCK_KERNELS * kernel  # frames that a block reads
    block_step = block_size - kernel + 1  # frames that a block gives
    blocks = ceil_div(frames, block_step)
    missing = blocks * block_step + kernel - 1 - x.shape[1]
    x_blocks = F.pad(x, (0, 0, 0, missing)).unfold(1, block_size, block_step)
    x_spectra = torch.fft.rfft(x_blocks.flatten(0, 1)).unflatten(1, (spectra.shape[1], -1))
    y_spectra = (x_spectra.permute(3, 1, 0, 2) @ spectra).permute(2, 1, 3, 0).flatten(1, 2)
    y = torch.fft.irfft(y_spectra, block_size)[..., :block_step].transpose(1, 2)
    return y.reshape(len(x), blocks * block_step, -1)[:, :frames]


def sliding_windows(samples: Tensor, size: int, step: int, count: int) -> Tensor:
    """Windows of ``size`` samples that begin every ``step`` samples; beyond the end of ``samples`` they contain zeros.

    Args:
        samples: ``(batch, samples)``.
        size, step: In samples. count: Number of windows.

    Returns:
        ``(batch, count, size)``.
    """
    steps_per_window = ceil_div(size, step)
    wanted = (count + steps_per_window - 1) * step
    # a negative padding cuts, which some runtimes cannot; a graph appends too many zeros instead
    missing = wanted if is_exporting() else wanted - samples.shape[1]
    rows = F.pad(samples, (0, missing))[:, :wanted].unflatten(1, (-1, step))
    return torch.cat([rows[:, i : i + count] for i in range(steps_per_window)], dim=2)[:, :, :size]


def convolution_and_group_norm(
    x: Tensor, valid: Tensor | None, weight: Tensor, scale: Tensor, shift: Tensor, epsilon: float
) -> Tensor:
    """A convolution of the waveform and the norm of each channel over time, in one product.

    Mean and variance of ``weight @ window`` over time follow from the mean m and the covariance C of the windows:
    ``weight @ m`` and ``weight @ C @ weight.T``. So the norm can be included in a kernel of its own for each utterance,
    and the widest tensor of the network (512 features at 3,200 frames a second) is written once instead of three times.

    Args:
        x: ``(batch, frames, taps)`` windows of the waveform.
        valid: ``(batch, frames)`` bool, the frames that statistics are taken over; None: all frames.
        weight: ``(width, taps)``. scale, shift: ``(width,)``, of the norm. epsilon: added to the variance.

    Returns:
        ``(batch, frames, width)``: group norm with one channel per group (as in the first layer of HuBERT and wav2vec
        2.0), its statistics over valid frames only. A bias before the norm would have no effect.
    """
    with torch.autocast(x.device.type, enabled=False):
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        # double precision for these few numbers, because they replace sums over the widest tensor
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
