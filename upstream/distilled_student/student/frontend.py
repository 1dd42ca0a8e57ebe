"""Front ends: waveform -> frames. Either wav2vec 2.0's CNN, or log-mel with strided convolutions."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distilled_student.common.arithmetic import Count, ceil_div
from distilled_student.student.config import StudentConfig, receptive_field
from distilled_student.student.convolution import (
    convolution_and_group_norm,
    convolve,
    sliding_windows,
    split_kernel,
)
from distilled_student.student.lengths import conv_lengths, mask_if_padded, zero_padding
from distilled_student.student.log_mel import HOP, LogMel
from distilled_student.student.packed_linear import gelu
from distilled_student.student.run_mode import is_exporting
from distilled_student.student.weight_cache import computed_from_weights


def normalize_waveforms(waveforms: Tensor, lengths: Tensor | None = None, epsilon: float = 1e-7) -> Tensor:
    """Zero mean and unit variance over each utterance's valid samples; zero beyond them.

    Args:
        waveforms: ``(batch, samples)``.
        lengths: ``(batch,)`` valid samples; None: all.
        epsilon: Added to the variance: 1e-7 in `transformers`' Wav2Vec2FeatureExtractor, 1e-5 in fairseq and s3prl
            (``F.layer_norm``).
    """
    samples = waveforms.shape[1]
    mask = mask_if_padded(lengths, samples, waveforms.device)
    keep = torch.ones_like(waveforms) if mask is None else mask.to(waveforms.dtype)
    count = keep.sum(1, keepdim=True)
    centred = (waveforms - (waveforms * keep).sum(1, keepdim=True) / count) * keep
    return centred / (centred.square().sum(1, keepdim=True) / count + epsilon).sqrt()


class ConvBlock(nn.Module):
    """Convolution over time-major frames, optional norm, GELU."""

    def __init__(self, config: StudentConfig, index: int, channels: int) -> None:
        super().__init__()
        self.kernel, self.stride = config.conv_kernel[index], config.conv_stride[index]
        width = config.conv_dim[index]
        self.conv = nn.Conv1d(channels, width, self.kernel, self.stride, bias=config.conv_bias)
        nn.init.kaiming_normal_(self.conv.weight)
        self.norm: nn.LayerNorm | nn.GroupNorm | None = None
        if config.conv_norm == "layer":
            self.norm = nn.LayerNorm(width)
        elif config.conv_norm == "group" and index == 0:
            self.norm = nn.GroupNorm(width, width)

    def _kernel_parts(self) -> list[Tensor]:
        return split_kernel(self.conv.weight, self.stride)

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, frames, channels)`` -> ``(batch, ceil(frames / stride), width)``, see `convolve`."""
        parts = computed_from_weights(self, [self.conv.weight], self._kernel_parts)
        x = convolve(x, parts, self.conv.bias, self.stride)
        return gelu(x if self.norm is None else self.norm(x))

    def forward_waveform(self, waveforms: Tensor, lengths: Tensor, frames: int) -> Tensor:
        """The block as a first layer: ``(batch, samples)`` -> ``(batch, frames, width)``, ``lengths`` of them valid.

        In every public implementation the group norm of HuBERT and wav2vec 2.0 takes its statistics over padding too,
        so that the result for an utterance depends on its batch. Here the statistics are taken over valid frames only;
        without padding the results are equal.
        """
        x = sliding_windows(waveforms, self.kernel, self.stride, frames)
        weight, norm = self.conv.weight[:, 0], self.norm
        if isinstance(norm, nn.GroupNorm):
            valid = mask_if_padded(lengths, frames, x.device)
            return gelu(convolution_and_group_norm(x, valid, weight, norm.weight, norm.bias, norm.eps))
        x = F.linear(x, weight, self.conv.bias)
        return gelu(x if norm is None else norm(x))


def _build_blocks(config: StudentConfig, channels: int) -> nn.ModuleList:
    """All convolutions of the configuration; the first one has ``channels`` input channels."""
    widths = [channels, *config.conv_dim]
    return nn.ModuleList(ConvBlock(config, i, widths[i]) for i in range(len(config.conv_dim)))


class WaveformCNN(nn.Module):
    """wav2vec 2.0's feature encoder (Baevski et al. 2020), with a width per layer."""

    def __init__(self, config: StudentConfig) -> None:
        super().__init__()
        self.layers = _build_blocks(config, channels=1)
        self.receptive_field = receptive_field(config.conv_kernel, config.conv_stride)

    def frames(self, samples: Count) -> Count:
        """The number of frames of ``samples``, at least the receptive field."""
        for layer in self.layers:
            samples = (samples - layer.kernel) // layer.stride + 1
        return samples

    def forward(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """``(batch, samples)`` -> ``(batch, frames, features)`` and lengths in frames.

        The convolutions are unpadded: a valid output frame depends on valid samples only. An utterance shorter than the
        receptive field (25 ms) is treated as if silence followed it.
        """
        samples = waveforms.shape[1] if is_exporting() else max(waveforms.shape[1], self.receptive_field)
        lengths = lengths.clamp(min=self.receptive_field)
        first, *others = self.layers
        frames = (samples - first.kernel) // first.stride + 1
        lengths = conv_lengths(lengths, first.kernel, first.stride)
        total_stride = math.prod(layer.stride for layer in others)
        # rounded up, so that the stride of every later layer divides the number of its frames
        x = first.forward_waveform(waveforms, lengths, ceil_div(frames, total_stride) * total_stride)
        for layer in others:
            x, lengths = layer(x), conv_lengths(lengths, layer.kernel, layer.stride)
            frames = (frames - layer.kernel) // layer.stride + 1
        return x[:, :frames], lengths


class LogMelStem(nn.Module):
    """Log-mel, then strided convolutions with GELU: Whisper's stem, with a width per layer.

    Each convolution is centred on its output frame. If ``causal``, it ends with the input frames of its own stride.
    """

    def __init__(self, config: StudentConfig) -> None:
        super().__init__()
        self.mel = LogMel(config.mel_bins, config.causal)
        self.layers = _build_blocks(config, channels=config.mel_bins)

    def frames_before(self, layer: ConvBlock) -> int:
        """Number of frames before the first one that a layer's first output frame depends on."""
        return layer.kernel - layer.stride if self.mel.causal else layer.kernel // 2

    def frames(self, samples: Count) -> Count:
        """The number of frames of ``samples``, at least the size of a frame."""
        frames = samples // HOP if self.mel.causal else ceil_div(samples, HOP)
        for layer in self.layers:
            if self.mel.causal:
                frames = frames // layer.stride
            else:
                frames = (frames + 2 * self.frames_before(layer) - layer.kernel) // layer.stride + 1
        return frames

    def forward(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """``(batch, samples)`` -> ``(batch, frames, features)`` and lengths in frames."""
        x, lengths = self.mel(waveforms, lengths)
        for layer in self.layers:
            before, frames = self.frames_before(layer), x.shape[1]
            if self.mel.causal:
                lengths, frames = lengths // layer.stride, frames // layer.stride
                lengths, frames = lengths.clamp(min=1), frames if is_exporting() else max(1, frames)
                x = F.pad(x, (0, 0, before, 0))
            else:
                lengths = conv_lengths(lengths, layer.kernel, layer.stride, 2 * before)
                frames = (frames + 2 * before - layer.kernel) // layer.stride + 1
                x = F.pad(x, (0, 0, before, before))
            x = layer(x)[:, :frames]
            # The next convolution reads beyond the end of an utterance. Without padding it finds zeros there.
            x = zero_padding(x, mask_if_padded(lengths, frames, x.device))
        return x, lengths


def build_frontend(config: StudentConfig) -> WaveformCNN | LogMelStem:
    """The front end that the configuration names."""
    return LogMelStem(config) if config.frontend == "logmel" else WaveformCNN(config)
