"""Front ends: waveform -> frames. Either wav2vec 2.0's CNN or log-mel with a strided convolution stem."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distilled_student.config import StudentConfig
from distilled_student.lengths import conv_lengths, frame_mask, mask_if_padded, zero_padding

SAMPLE_RATE = 16_000
WINDOW, HOP = 400, 160  # 25 ms and 10 ms at 16 kHz, Whisper's (and most of the field's) analysis


def normalize_waveforms(waveforms: Tensor, lengths: Tensor | None = None, epsilon: float = 1e-7) -> Tensor:
    """Zero mean and unit variance over each utterance's valid samples; zero behind them.

    `transformers`' Wav2Vec2FeatureExtractor adds 1e-7 to the variance, fairseq and s3prl (``F.layer_norm``) add 1e-5.
    """
    samples = waveforms.shape[1]
    keep = torch.ones_like(waveforms) if lengths is None else frame_mask(lengths, samples).to(waveforms.dtype)
    count = keep.sum(1, keepdim=True)
    centred = (waveforms - (waveforms * keep).sum(1, keepdim=True) / count) * keep
    return centred / (centred.square().sum(1, keepdim=True) / count + epsilon).sqrt()


class MaskedGroupNorm(nn.GroupNorm):
    """One group per channel, with statistics over valid frames only.

    HuBERT's and wav2vec 2.0's first norm takes its statistics over padding too, in every public implementation, so
    that an utterance changes with the batch it is in. Equal to theirs where nothing is padded.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """``x (batch, channels, frames)``; ``mask (batch, frames)``, True where valid."""
        if mask is None:
            return super().forward(x)
        keep = mask[:, None, :]
        count = keep.sum(dim=2, keepdim=True).clamp(min=1)
        mean = (x * keep).sum(dim=2, keepdim=True) / count
        centred = (x - mean) * keep
        variance = centred.square().sum(dim=2, keepdim=True) / count
        return centred * torch.rsqrt(variance + self.eps) * self.weight[:, None] + self.bias[:, None]


class ChannelLayerNorm(nn.LayerNorm):
    """Layer norm over the channels of ``(batch, channels, frames)``; frames are independent, so padding is harmless."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return super().forward(x.transpose(1, 2)).transpose(1, 2)


def _norm(config: StudentConfig, index: int) -> nn.Module | None:
    if config.conv_norm == "layer":
        return ChannelLayerNorm(config.conv_dim[index])
    if config.conv_norm == "group" and index == 0:
        return MaskedGroupNorm(config.conv_dim[index])
    return None


class ConvBlock(nn.Module):
    """Convolution, optional norm, GELU."""

    def __init__(self, config: StudentConfig, index: int, channels: int, padding: int) -> None:
        super().__init__()
        kernel, stride = config.conv_kernel[index], config.conv_stride[index]
        self.conv = nn.Conv1d(channels, config.conv_dim[index], kernel, stride, padding=padding, bias=config.conv_bias)
        nn.init.kaiming_normal_(self.conv.weight)
        self.norm = _norm(config, index)

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """``x (batch, channels, frames)`` -> the same with fewer frames, and their lengths."""
        (kernel,), (stride,), (padding,) = self.conv.kernel_size, self.conv.stride, self.conv.padding
        lengths = conv_lengths(lengths, kernel, stride, padding)
        x = self.conv(x)
        if self.norm is not None:
            x = self.norm(x, mask_if_padded(lengths, x.shape[-1]))
        return F.gelu(x), lengths


class WaveformCNN(nn.Module):
    """wav2vec 2.0's feature encoder (Baevski et al. 2020), with a width per layer."""

    def __init__(self, config: StudentConfig) -> None:
        super().__init__()
        widths = [1, *config.conv_dim]
        self.layers = nn.ModuleList(ConvBlock(config, i, widths[i], 0) for i in range(len(config.conv_dim)))
        self.receptive_field = 1
        for kernel, stride in reversed(list(zip(config.conv_kernel, config.conv_stride, strict=True))):
            self.receptive_field = (self.receptive_field - 1) * stride + kernel

    def forward(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """``(batch, samples)`` -> ``(batch, frames, features)`` and lengths in frames.

        Unpadded convolutions: a valid output frame sees valid samples only. Shorter than the receptive field (25 ms)
        counts as filled up with silence.
        """
        waveforms = F.pad(waveforms, (0, max(0, self.receptive_field - waveforms.shape[1])))
        lengths = lengths.clamp(min=self.receptive_field)
        x = waveforms[:, None, :]
        for layer in self.layers:
            x, lengths = layer(x, lengths)
        return x.transpose(1, 2), lengths


def mel_filters(bins: int) -> Tensor:
    """Slaney's mel filter bank, area-normalised, 0 to 8 kHz: ``(frequencies, bins)``, as librosa and Whisper use it."""

    def to_hertz(mel: Tensor) -> Tensor:
        return torch.where(mel < 15, mel * 200 / 3, 1000 * torch.exp((mel - 15) * 1.8562979903656263 / 27))

    top = 15 + torch.log(torch.tensor(8.0, dtype=torch.float64)) * 27 / 1.8562979903656263  # 8 kHz in mel
    edges = to_hertz(torch.linspace(0, float(top), bins + 2, dtype=torch.float64))
    frequencies = torch.linspace(0, SAMPLE_RATE / 2, WINDOW // 2 + 1, dtype=torch.float64)
    slopes = edges[None, :] - frequencies[:, None]
    width = edges.diff()
    down, up = -slopes[:, :-2] / width[:-1], slopes[:, 2:] / width[1:]
    triangles = torch.minimum(down, up).clamp(min=0)
    return (triangles * 2 / (edges[2:] - edges[:-2])).float()


class LogMel(nn.Module):
    """Whisper's log-mel spectrogram (Radford et al. 2022), for any length and without the padding to 30 s."""

    def __init__(self, bins: int) -> None:
        super().__init__()
        self.register_buffer("window", torch.hann_window(WINDOW), persistent=False)
        self.register_buffer("filters", mel_filters(bins), persistent=False)

    def log_mel(self, padded: Tensor) -> Tensor:
        """Windows of ``(batch, samples)`` -> ``(batch, frames, bins)``."""
        spectrum = torch.stft(padded, WINDOW, HOP, window=self.window, center=False, return_complex=True)
        power = spectrum.real.square() + spectrum.imag.square()
        return (power.transpose(1, 2) @ self.filters).clamp(min=1e-10).log10()

    def forward(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """``(batch, samples)``, zero behind ``lengths``, -> ``(batch, bins, frames)``; frame i is centred on 160 i.

        Before the first sample the signal is mirrored, behind the last it is silence, as in an utterance that Whisper
        pads. The floor of 80 dB under the utterance's maximum looks at its valid frames only.
        """
        half = WINDOW // 2
        lengths = lengths.clamp(min=1)
        waveforms = F.pad(waveforms, (0, max(0, half + 1 - waveforms.shape[1])))
        frames = -(-waveforms.shape[1] // HOP)
        padded = torch.cat([waveforms[:, 1 : half + 1].flip(1), waveforms], dim=1)
        padded = F.pad(padded, (0, (frames - 1) * HOP + WINDOW - padded.shape[1]))
        with torch.autocast(waveforms.device.type, enabled=False):  # a spectrum's range is too wide for half precision
            mel = self.log_mel(padded.float())
        lengths = -(-lengths // HOP)
        mask = mask_if_padded(lengths, frames)
        peak = (mel if mask is None else mel.masked_fill(~mask[:, :, None], -10.0)).amax(dim=(1, 2), keepdim=True)
        mel = (torch.maximum(mel, peak - 8.0) + 4.0) / 4.0
        return zero_padding(mel, mask).transpose(1, 2), lengths


class LogMelStem(nn.Module):
    """Log-mel, then same-padded strided convolutions with GELU: Whisper's stem, with a width per layer."""

    def __init__(self, config: StudentConfig) -> None:
        super().__init__()
        self.mel = LogMel(config.mel_bins)
        widths = [config.mel_bins, *config.conv_dim]
        self.layers = nn.ModuleList(
            ConvBlock(config, i, widths[i], config.conv_kernel[i] // 2) for i in range(len(config.conv_dim))
        )

    def forward(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """``(batch, samples)`` -> ``(batch, frames, features)`` and lengths in frames."""
        x, lengths = self.mel(waveforms, lengths)
        for layer in self.layers:
            x, lengths = layer(x, lengths)
            # The next convolution reaches over the end: behind it there must be what an utterance alone has, zeros.
            mask = mask_if_padded(lengths, x.shape[-1])
            x = x if mask is None else x.masked_fill(~mask[:, None, :], 0.0)
        return x.transpose(1, 2), lengths


def build_frontend(config: StudentConfig) -> WaveformCNN | LogMelStem:
    """The front end that the configuration names."""
    return LogMelStem(config) if config.frontend == "logmel" else WaveformCNN(config)
