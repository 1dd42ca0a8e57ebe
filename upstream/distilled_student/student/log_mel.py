"""Whisper's log-mel spectrogram, for utterances of any length and for streams."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distilled_student.common.arithmetic import ceil_div
from distilled_student.common.sample_rate import SAMPLE_RATE
from distilled_student.student.convolution import sliding_windows
from distilled_student.student.lengths import mask_if_padded, zero_padding
from distilled_student.student.run_mode import is_exporting

WINDOW, HOP = 400, 160  # samples: 25 ms and 10 ms, as in Whisper and most of the field


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


def fourier_matrices() -> tuple[Tensor, Tensor]:
    """A Fourier transform of 400 points as two of 20 points (Cooley and Tukey 1965), in double precision.

    Returns:
        ``(offset, place, 2 * frequency)`` and ``(2 * offset, 2 * 11)``: real parts, then imaginary parts.
    """
    side = math.isqrt(WINDOW)
    n = torch.arange(side, dtype=torch.float64)
    angles = 2 * math.pi / WINDOW * (n[:, None, None] + side * n[:, None]) * n
    first = torch.cat([angles.cos(), -angles.sin()], dim=2)
    angles = 2 * math.pi / side * n[:, None] * n[: side // 2 + 1]  # up to 8 kHz and a little more
    cos, sin = angles.cos(), angles.sin()
    return first, torch.cat([torch.cat([cos, -sin], dim=1), torch.cat([sin, cos], dim=1)])


def power_by_matrices(x: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Power spectrum ``(batch, frames, 201)`` of ``x (batch, frames, 400)`` with the matrices of `fourier_matrices`."""
    side = len(first)
    x = (x.unflatten(-1, (side, side)).movedim(-1, 0) @ first[:, None]).movedim(0, -1)
    x = x.unflatten(-2, (2, side)).transpose(-2, -3).flatten(-2) @ second
    return x.square().unflatten(-1, (2, -1)).sum(-2).transpose(-1, -2).flatten(-2)[..., : WINDOW // 2 + 1]


class LogMel(nn.Module):
    """Whisper's log-mel spectrogram (Radford et al. 2022), for any length and without the padding to 30 s.

    ``causal``: each window ends with its hop, an incomplete hop at the end is dropped, and the lower limit relative to
    the utterance's maximum is left out, because a stream does not know that maximum.
    """

    def __init__(self, bins: int, causal: bool = False) -> None:
        super().__init__()
        self.causal = causal
        self.samples_before = WINDOW - HOP  # samples that a causal window contains before its hop
        # In double precision: next to loud frequencies, the rounding errors of a float32 transform are larger than
        # quiet frequencies, and the logarithm makes the errors visible. On band-limited recordings the hidden states
        # of two float32 transforms differ by 2e-4.
        self.register_buffer("window", torch.hann_window(WINDOW, dtype=torch.float64), persistent=False)
        self.register_buffer("filters", mel_filters(bins).double(), persistent=False)
        first, second = fourier_matrices()  # computed here, because a graph would compute them in float32
        self.register_buffer("first", first, persistent=False)
        self.register_buffer("second", second, persistent=False)

    def power(self, x: Tensor) -> Tensor:
        """Windowed samples ``(..., 400)`` -> power spectrum ``(..., 201)``."""
        if not is_exporting():
            spectrum = torch.fft.rfft(x)
            return spectrum.real.square() + spectrum.imag.square()
        return power_by_matrices(x, self.first, self.second)  # runtimes have slow Fourier transforms, or none

    def log_mel(self, samples: Tensor, frames: int) -> Tensor:
        """The first ``frames`` windows of ``(batch, samples)`` -> ``(batch, frames, bins)``."""
        device = samples.device.type
        # if what follows is in half precision, the errors of float32 are invisible, and it takes half the time
        precision = torch.float32 if torch.is_autocast_enabled(device) else torch.float64
        with torch.autocast(device, enabled=False):  # a spectrum exceeds the range of half precision
            power = self.power(sliding_windows(samples.float(), WINDOW, HOP, frames) * self.window.to(precision))
            return (power @ self.filters.to(precision)).clamp(min=1e-10).log10().float()

    def forward(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """``(batch, samples)``, zero beyond ``lengths``, -> ``(batch, frames, bins)`` and lengths in frames."""
        return self._causal(waveforms, lengths) if self.causal else self._whole_utterance(waveforms, lengths)

    def _causal(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Frame i depends on samples before 160 (i + 1) only. An utterance shorter than a hop has one frame."""
        waveforms = F.pad(waveforms, (self.samples_before, HOP))
        lengths = lengths.clamp(min=HOP) // HOP
        frames = (waveforms.shape[1] - self.samples_before - HOP) // HOP
        frames = frames if is_exporting() else max(1, frames)
        mel = (self.log_mel(waveforms, frames) + 4.0) / 4.0
        return zero_padding(mel, mask_if_padded(lengths, frames, mel.device)), lengths

    def _whole_utterance(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Frame i is centred on sample 160 i.

        The signal is mirrored before its first sample and silent after its last one, as if Whisper had padded the
        utterance. The lower limit is 80 dB below the utterance's maximum over its valid frames.
        """
        half = WINDOW // 2
        lengths = lengths.clamp(min=1)
        if not is_exporting():
            waveforms = F.pad(waveforms, (0, max(0, half + 1 - waveforms.shape[1])))
        frames = ceil_div(waveforms.shape[1], HOP)
        mel = self.log_mel(torch.cat([waveforms[:, 1 : half + 1].flip(1), waveforms], dim=1), frames)
        lengths = ceil_div(lengths, HOP)
        mask = mask_if_padded(lengths, frames, mel.device)
        peak = (mel if mask is None else mel.masked_fill(~mask[:, :, None], -10.0)).amax(dim=(1, 2), keepdim=True)
        return zero_padding((torch.maximum(mel, peak - 8.0) + 4.0) / 4.0, mask), lengths
