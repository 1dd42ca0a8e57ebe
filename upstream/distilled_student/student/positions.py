"""Position embeddings: wav2vec 2.0's convolution over frames, and Whisper's sinusoids."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from distilled_student.student.config import StudentConfig
from distilled_student.student.convolution import SPECTRAL_KERNEL_SIZE, convolve_by_spectra, kernel_spectra
from distilled_student.student.packed_linear import gelu
from distilled_student.student.run_mode import is_cpu_inference, is_exporting
from distilled_student.student.weight_cache import computed_from_weights


class ConvPositions(nn.Module):
    """wav2vec 2.0's convolutional position embedding: weight-normed grouped convolution, GELU, added to the input."""

    def __init__(self, config: StudentConfig) -> None:
        super().__init__()
        size, kernel = config.hidden_size, config.position_kernel
        conv = nn.Conv1d(size, size, kernel, groups=config.position_groups)
        nn.init.normal_(conv.weight, std=math.sqrt(4 / (kernel * size)))
        nn.init.zeros_(conv.bias)
        self.conv = weight_norm(conv, dim=2)
        self.frames_before = kernel - 1 if config.causal else kernel // 2
        self.frames_after = kernel - 1 - self.frames_before

    def embed(self, x: Tensor) -> Tensor:
        """What is added to each frame.

        Args:
            x: ``(batch, frames_before + frames + frames_after, features)``.

        Returns:
            ``(batch, frames, features)``.
        """
        kernel_size = self.conv.kernel_size[0]
        weights = list(self.conv.parametrizations.weight.parameters())
        if is_cpu_inference(x) and kernel_size >= SPECTRAL_KERNEL_SIZE:
            spectra = computed_from_weights(self.conv, weights, self._spectra)
            return gelu(convolve_by_spectra(x, spectra, kernel_size).add_(self.conv.bias))
        kernel = computed_from_weights(self, weights, self._image_kernel)
        # as an image with one row: torch has a memory layout with the features last for images only
        y = F.conv2d(x.transpose(1, 2)[:, :, None], kernel, self.conv.bias, groups=self.conv.groups)
        return F.gelu(y[:, :, 0]).transpose(1, 2)

    def _spectra(self) -> Tensor:
        return kernel_spectra(self.conv.weight, self.conv.groups)

    def _image_kernel(self) -> Tensor:
        """``(features, features / groups, 1, kernel)``, after weight norm, in the layout of time-major frames."""
        weight = self.conv.weight[:, :, None]
        return weight if is_exporting() else weight.contiguous(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, frames, features)``, zero where padded, plus its positions."""
        return x + self.embed(F.pad(x, (0, 0, self.frames_before, self.frames_after)))


class SinusoidalPositions(nn.Module):
    """Whisper's fixed position embedding, computed for the number of frames in the input."""

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, frames, features)``, plus its positions."""
        half = x.shape[2] // 2
        rates = torch.exp(-math.log(10_000) / (half - 1) * torch.arange(half, device=x.device))
        angles = torch.arange(x.shape[1], device=x.device)[:, None] * rates[None, :]
        return x + torch.cat([angles.sin(), angles.cos()], dim=1).to(x.dtype)


def build_positions(config: StudentConfig) -> nn.Module:
    """The position embedding that the configuration names."""
    if config.positions == "conv":
        return ConvPositions(config)
    return SinusoidalPositions() if config.positions == "sinusoidal" else nn.Identity()
