"""Front ends: waveform -> frames. Either wav2vec 2.0's CNN or log-mel with a strided convolution stem."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distilled_student.student.config import StudentConfig
from distilled_student.student.convolution import convolve, kernel_parts, normalized_convolution, windows
from distilled_student.student.lengths import conv_lengths, is_exporting, mask_if_padded, zero_padding
from distilled_student.student.packed_linear import gelu, kept

SAMPLE_RATE = 16_000
WINDOW, HOP = 400, 160  # 25 ms and 10 ms at 16 kHz, Whisper's (and most of the field's) analysis


def normalize_waveforms(waveforms: Tensor, lengths: Tensor | None = None, epsilon: float = 1e-7) -> Tensor:
    """Zero mean and unit variance over each utterance's valid samples; zero behind them.

    `transformers`' Wav2Vec2FeatureExtractor adds 1e-7 to the variance, fairseq and s3prl (``F.layer_norm``) add 1e-5.
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

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, frames, channels)`` -> ``(batch, ceil(frames / stride), width)``, see `convolve`."""
        weight = self.conv.weight
        x = convolve(x, kept(self, [weight], lambda: kernel_parts(weight, self.stride)), self.conv.bias, self.stride)
        return gelu(x if self.norm is None else self.norm(x))

    def first(self, waveforms: Tensor, lengths: Tensor, frames: int) -> Tensor:
        """The block on a waveform: ``(batch, samples)`` -> ``(batch, frames, width)``, ``lengths`` of them valid.

        HuBERT's and wav2vec 2.0's group norm takes its statistics over padding too, in every public implementation, so
        that an utterance changes with the batch it is in. Ours takes them over valid frames; equal without padding.
        """
        x = windows(waveforms, self.kernel, self.stride, frames)
        weight, norm = self.conv.weight[:, 0], self.norm
        if isinstance(norm, nn.GroupNorm):
            valid = mask_if_padded(lengths, frames, x.device)
            return gelu(normalized_convolution(x, valid, weight, norm.weight, norm.bias, norm.eps))
        x = F.linear(x, weight, self.conv.bias)
        return gelu(x if norm is None else norm(x))


class WaveformCNN(nn.Module):
    """wav2vec 2.0's feature encoder (Baevski et al. 2020), with a width per layer."""

    def __init__(self, config: StudentConfig) -> None:
        super().__init__()
        widths = [1, *config.conv_dim]
        self.layers = nn.ModuleList(ConvBlock(config, i, widths[i]) for i in range(len(config.conv_dim)))
        self.receptive_field = 1
        for kernel, stride in reversed(list(zip(config.conv_kernel, config.conv_stride, strict=True))):
            self.receptive_field = (self.receptive_field - 1) * stride + kernel

    def forward(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """``(batch, samples)`` -> ``(batch, frames, features)`` and lengths in frames.

        Unpadded convolutions: a valid output frame sees valid samples only. Shorter than the receptive field (25 ms)
        counts as filled up with silence.
        """
        samples = waveforms.shape[1] if is_exporting() else max(waveforms.shape[1], self.receptive_field)
        lengths = lengths.clamp(min=self.receptive_field)
        first, *others = self.layers
        frames = (samples - first.kernel) // first.stride + 1
        lengths = conv_lengths(lengths, first.kernel, first.stride)
        together = math.prod(layer.stride for layer in others)  # so that no later layer is left with half a row
        x = first.first(waveforms, lengths, (frames + together - 1) // together * together)
        for layer in others:
            x, lengths = layer(x), conv_lengths(lengths, layer.kernel, layer.stride)
            frames = (frames - layer.kernel) // layer.stride + 1
        return x[:, :frames], lengths


def mel_filters(bins: int) -> Tensor:
    """Slaney's mel filter bank, area-normalised, 0 to 8 kHz: ``(frequencies, bins)``, as librosa and Whisper use it."""

    def to_hertz(mel: Tensor) -> Tensor:
        return torch.where(mel < 15, mel * 200 / 3, 1000 * torch.exp((mel - 15) * 1.8562979903656263 / 27))

    top = 15 + torch.log(torch.tensor(8.0, dtype=torch.float64, device="cpu")) * 27 / 1.8562979903656263  # 8 kHz in mel
    edges = to_hertz(torch.linspace(0, float(top), bins + 2, dtype=torch.float64))
    frequencies = torch.linspace(0, SAMPLE_RATE / 2, WINDOW // 2 + 1, dtype=torch.float64)
    slopes = edges[None, :] - frequencies[:, None]
    width = edges.diff()
    down, up = -slopes[:, :-2] / width[:-1], slopes[:, 2:] / width[1:]
    triangles = torch.minimum(down, up).clamp(min=0)
    return (triangles * 2 / (edges[2:] - edges[:-2])).float()


def transform_steps() -> tuple[Tensor, Tensor]:
    """A Fourier transform of 400 points as two of 20 (Cooley and Tukey 1965), in double.

    Returns:
        ``(offset, place, 2 * frequency)`` and ``(2 * offset, 2 * 11)``: real parts, then imaginary ones.
    """
    side = math.isqrt(WINDOW)
    n = torch.arange(side, dtype=torch.float64)
    angles = 2 * math.pi / WINDOW * (n[:, None, None] + side * n[:, None]) * n
    first = torch.cat([angles.cos(), -angles.sin()], dim=2)
    angles = 2 * math.pi / side * n[:, None] * n[: side // 2 + 1]  # up to 8 kHz and a little more
    cos, sin = angles.cos(), angles.sin()
    return first, torch.cat([torch.cat([cos, -sin], dim=1), torch.cat([sin, cos], dim=1)])


def power_in_products(x: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Power spectrum ``(batch, frames, 201)`` of ``(batch, frames, 400)`` with the matrices of `transform_steps`."""
    side = len(first)
    x = (x.unflatten(-1, (side, side)).movedim(-1, 0) @ first[:, None]).movedim(0, -1)
    x = x.unflatten(-2, (2, side)).transpose(-2, -3).flatten(-2) @ second
    return x.square().unflatten(-1, (2, -1)).sum(-2).transpose(-1, -2).flatten(-2)[..., : WINDOW // 2 + 1]


class LogMel(nn.Module):
    """Whisper's log-mel spectrogram (Radford et al. 2022), for any length and without the padding to 30 s.

    ``causal``: windows end with their hop, only whole hops count, and there is no floor under the utterance's maximum,
    which a stream does not know.
    """

    def __init__(self, bins: int, causal: bool = False) -> None:
        super().__init__()
        self.causal = causal
        self.past = WINDOW - HOP  # samples that a causal window sees before its hop
        # In double: beside loud frequencies, quiet ones drown in the rounding of a float32 transform, and the logarithm
        # makes that plain. On band-limited recordings two float32 transforms give hidden states 2e-4 apart.
        self.register_buffer("window", torch.hann_window(WINDOW, dtype=torch.float64), persistent=False)
        self.register_buffer("filters", mel_filters(bins).double(), persistent=False)
        first, second = transform_steps()  # made here: what is computed in a graph begins with float32 numbers
        self.register_buffer("first", first, persistent=False)
        self.register_buffer("second", second, persistent=False)

    def power(self, x: Tensor) -> Tensor:
        """Windowed samples ``(..., 400)`` -> power spectrum ``(..., 201)``."""
        if not is_exporting():
            spectrum = torch.fft.rfft(x)
            return spectrum.real.square() + spectrum.imag.square()
        return power_in_products(x, self.first, self.second)  # runtimes are slow at transforms, or have none

    def log_mel(self, samples: Tensor, frames: int) -> Tensor:
        """The first ``frames`` windows of ``(batch, samples)`` -> ``(batch, frames, bins)``."""
        with torch.autocast(samples.device.type, enabled=False):  # a spectrum's range is too wide for half precision
            power = self.power(windows(samples.float(), WINDOW, HOP, frames) * self.window)
            return (power @ self.filters).clamp(min=1e-10).log10().float()

    def forward(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """``(batch, samples)``, zero behind ``lengths``, -> ``(batch, frames, bins)``; frame i is centred on 160 i.

        Before the first sample the signal is mirrored, behind the last it is silence, as in an utterance that Whisper
        pads. The floor of 80 dB under the utterance's maximum looks at its valid frames only.
        """
        if self.causal:
            waveforms = F.pad(waveforms, (self.past, HOP))  # the last for utterances under a hop, which have one frame
            lengths = lengths.clamp(min=HOP) // HOP
            frames = (waveforms.shape[1] - self.past - HOP) // HOP
            frames = frames if is_exporting() else max(1, frames)
            mel = (self.log_mel(waveforms, frames) + 4.0) / 4.0
            return zero_padding(mel, mask_if_padded(lengths, frames, mel.device)), lengths
        half = WINDOW // 2
        lengths = lengths.clamp(min=1)
        if not is_exporting():
            waveforms = F.pad(waveforms, (0, max(0, half + 1 - waveforms.shape[1])))
        frames = (waveforms.shape[1] + HOP - 1) // HOP
        mel = self.log_mel(torch.cat([waveforms[:, 1 : half + 1].flip(1), waveforms], dim=1), frames)
        lengths = (lengths + HOP - 1) // HOP
        mask = mask_if_padded(lengths, frames, mel.device)
        peak = (mel if mask is None else mel.masked_fill(~mask[:, :, None], -10.0)).amax(dim=(1, 2), keepdim=True)
        return zero_padding((torch.maximum(mel, peak - 8.0) + 4.0) / 4.0, mask), lengths


class LogMelStem(nn.Module):
    """Log-mel, then strided convolutions with GELU: Whisper's stem, with a width per layer.

    A frame sees as many frames before as after it; a ``causal`` one none after those of its own stride.
    """

    def __init__(self, config: StudentConfig) -> None:
        super().__init__()
        self.mel = LogMel(config.mel_bins, config.causal)
        widths = [config.mel_bins, *config.conv_dim]
        self.layers = nn.ModuleList(ConvBlock(config, i, widths[i]) for i in range(len(config.conv_dim)))

    def past(self, layer: ConvBlock) -> int:
        """Frames before the first that a layer sees."""
        return layer.kernel - layer.stride if self.mel.causal else layer.kernel // 2

    def forward(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """``(batch, samples)`` -> ``(batch, frames, features)`` and lengths in frames."""
        x, lengths = self.mel(waveforms, lengths)
        for layer in self.layers:
            past, frames = self.past(layer), x.shape[1]
            if self.mel.causal:
                lengths, frames = lengths // layer.stride, frames // layer.stride
                lengths, frames = lengths.clamp(min=1), frames if is_exporting() else max(1, frames)
                x = F.pad(x, (0, 0, past, 0))
            else:
                lengths = conv_lengths(lengths, layer.kernel, layer.stride, 2 * past)
                frames = (frames + 2 * past - layer.kernel) // layer.stride + 1
                x = F.pad(x, (0, 0, past, past))
            # The next convolution reaches over the end: behind it there must be what an utterance alone has, zeros.
            x = layer(x)[:, :frames]
            x = zero_padding(x, mask_if_padded(lengths, frames, x.device))
        return x, lengths


def build_frontend(config: StudentConfig) -> WaveformCNN | LogMelStem:
    """The front end that the configuration names."""
    return LogMelStem(config) if config.frontend == "logmel" else WaveformCNN(config)
