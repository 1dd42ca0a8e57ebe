"""Convolutions as matrix products and by spectra, against torch's own."""

from __future__ import annotations

import pytest
import torch

from distilled_student.student.convolution import (
    convolution_and_group_norm,
    convolve,
    convolve_by_spectra,
    kernel_spectra,
    sliding_windows,
    split_kernel,
)
from distilled_student.student.lengths import frame_mask


def test_convolution_and_group_norm_in_one_product_equal_torch_on_valid_frames() -> None:
    waveforms, weight, scale, shift = torch.randn(2, 260) + 3.0, torch.randn(4, 10), torch.randn(4), torch.randn(4)
    x, lengths = sliding_windows(waveforms, 10, 5, 51), torch.tensor([51, 31])
    together = convolution_and_group_norm(x, frame_mask(lengths, 51), weight, scale, shift, 1e-5)
    for row, frames in enumerate(lengths.tolist()):
        convolved = torch.nn.functional.conv1d(
            waveforms[row : row + 1, None, : 5 * frames + 5], weight[:, None], stride=5
        )
        expected = torch.nn.functional.group_norm(convolved, 4, scale, shift, 1e-5)
        torch.testing.assert_close(together[row, :frames].T, expected[0], atol=2e-5, rtol=0)


@pytest.mark.parametrize(("kernel", "stride"), [(3, 2), (2, 2), (3, 1), (1, 1), (5, 2)])
def test_convolve_and_its_gradients_equal_torch(kernel: int, stride: int) -> None:
    x, weight = torch.randn(2, 24, 4, dtype=torch.float64), torch.randn(6, 4, kernel, dtype=torch.float64)
    bias = torch.randn(6, dtype=torch.float64)
    ours, theirs = ([t.clone().requires_grad_() for t in (x, weight, bias)] for _ in range(2))
    together = convolve(ours[0], split_kernel(ours[1], stride), ours[2], stride)
    expected = torch.nn.functional.conv1d(theirs[0].transpose(1, 2), *theirs[1:], stride=stride).transpose(1, 2)
    together = together[:, : expected.shape[1]]
    torch.testing.assert_close(together, expected)
    for one in (together, expected):
        one.square().sum().backward()
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one.grad, other.grad)


@pytest.mark.parametrize("frames", [8, 17, 40])
def test_convolve_by_spectra_equals_torch(frames: int) -> None:
    x, weight = torch.randn(2, frames, 6, dtype=torch.float64), torch.randn(6, 2, 8, dtype=torch.float64)
    found = convolve_by_spectra(x, kernel_spectra(weight, 3), 8)
    expected = torch.nn.functional.conv1d(x.transpose(1, 2), weight, groups=3).transpose(1, 2)
    torch.testing.assert_close(found, expected)
