"""The student (Kerpicci et al. 2023, sec. 2): front end, a few transformer layers, one prediction layer per target."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from distilled_student.config import SIZES, StudentConfig
from distilled_student.frontend import build_frontend, normalize_waveforms
from distilled_student.lengths import frame_mask, mask_if_padded, zero_padding


class StudentOutput(NamedTuple):
    """What a student returns; T is frames, D the student's width, F the teacher's features.

    Attributes:
        hidden_states: ``layers + 1`` tensors ``(batch, T, D)``: the input of the first layer, then each layer's output.
        last_hidden_state: The last of them.
        predictions: ``(batch, targets, T, F)``, or None for a student without prediction layers.
        lengths: ``(batch,)`` valid frames.
    """

    hidden_states: list[Tensor]
    last_hidden_state: Tensor
    predictions: Tensor | None
    lengths: Tensor


class ConvPositions(nn.Module):
    """wav2vec 2.0's convolutional position embedding: weight-normed grouped convolution, GELU, added to the input."""

    def __init__(self, config: StudentConfig) -> None:
        super().__init__()
        size, kernel = config.hidden_size, config.position_kernel
        conv = nn.Conv1d(size, size, kernel, padding=kernel // 2, groups=config.position_groups)
        nn.init.normal_(conv.weight, std=math.sqrt(4 / (kernel * size)))
        nn.init.zeros_(conv.bias)
        self.conv = weight_norm(conv, dim=2)

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, frames, features)``, zero where padded."""
        y = self.conv(x.transpose(1, 2))[:, :, : x.shape[1]]  # an even kernel makes one frame too many
        return x + F.gelu(y).transpose(1, 2)


class SinusoidalPositions(nn.Module):
    """Whisper's fixed position embedding, made for the length at hand."""

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, frames, features)``."""
        half = x.shape[2] // 2
        rates = torch.exp(-math.log(10_000) / (half - 1) * torch.arange(half, device=x.device))
        angles = torch.arange(x.shape[1], device=x.device)[:, None] * rates[None, :]
        return x + torch.cat([angles.sin(), angles.cos()], dim=1).to(x.dtype)


def _positions(config: StudentConfig) -> nn.Module:
    if config.positions == "conv":
        return ConvPositions(config)
    return SinusoidalPositions() if config.positions == "sinusoidal" else nn.Identity()


class PredictionLayers(nn.Module):
    """DistilHuBERT's prediction heads (Chang et al. 2022): a shared linear layer and GELU, then a linear per target."""

    def __init__(self, config: StudentConfig) -> None:
        super().__init__()
        targets, size = len(config.targets), config.prediction_size
        self.hidden = nn.Linear(config.hidden_size, targets * size)
        self.outputs = nn.ModuleList(nn.Linear(size, config.target_size) for _ in range(targets))

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, frames, features)`` -> ``(batch, targets, frames, teacher features)``."""
        parts = F.gelu(self.hidden(x)).chunk(len(self.outputs), dim=2)
        return torch.stack([output(part) for output, part in zip(self.outputs, parts, strict=True)], dim=1)


class Student(nn.Module):
    """A small speech encoder whose results do not depend on padding. See `StudentConfig` for its sizes."""

    def __init__(self, config: StudentConfig) -> None:
        super().__init__()
        self.config = config
        self.frontend = build_frontend(config)
        width = config.conv_dim[-1]
        self.projection_norm = nn.LayerNorm(width) if config.projection_norm else nn.Identity()
        self.projection = nn.Linear(width, config.hidden_size) if config.projection else nn.Identity()
        self.positions = _positions(config)
        self.norm = nn.LayerNorm(config.hidden_size)  # before the first layer, or behind the last if norm_first
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                config.hidden_size,
                config.heads,
                config.feed_forward,
                config.dropout,
                activation="gelu",
                batch_first=True,
                norm_first=config.norm_first,
            )
            for _ in range(config.layers)
        )
        self.predictions = PredictionLayers(config) if config.targets else None

    def forward(self, waveforms: Tensor, lengths: Tensor | None = None) -> StudentOutput:
        """Encode a batch.

        Args:
            waveforms: ``(batch, samples)`` float32 at 16 kHz in [-1, 1].
            lengths: ``(batch,)`` valid samples of each; None where nothing is padded. What lies behind is ignored.

        Raises:
            ValueError: wrong shapes, or a length outside 1 to ``samples``.
        """
        if waveforms.dim() != 2 or waveforms.shape[1] == 0:
            raise ValueError(f"waveforms: expected (batch, samples), found {tuple(waveforms.shape)}")
        samples = waveforms.shape[1]
        if lengths is None:
            lengths = torch.full((len(waveforms),), samples, device=waveforms.device)
        else:
            if lengths.shape != waveforms.shape[:1]:
                raise ValueError(f"lengths: expected ({len(waveforms)},), found {tuple(lengths.shape)}")
            if bool((lengths < 1).any()) or bool((lengths > samples).any()):
                raise ValueError(f"lengths: expected 1 to {samples} samples, found {lengths.tolist()}")
            lengths = lengths.to(waveforms.device)
            waveforms = zero_padding(waveforms, mask_if_padded(lengths, samples))
        if self.config.normalize:
            waveforms = normalize_waveforms(waveforms, lengths, self.config.normalize_epsilon)
        x, lengths = self.frontend(waveforms, lengths)
        return self.encode(self.projection(self.projection_norm(x)), lengths)

    def encode(self, x: Tensor, lengths: Tensor) -> StudentOutput:
        """Transformer layers and predictions over projected frames ``(batch, frames, features)``."""
        mask = mask_if_padded(lengths, x.shape[1])
        x = self.positions(zero_padding(x, mask))
        x = self.dropout(x if self.config.norm_first else self.norm(x))
        hidden_states = [x]
        # None lets attention take its fused kernel
        padding = None if mask is None else ~frame_mask(lengths.clamp(min=1), x.shape[1])
        for layer in self.layers:
            x = layer(x, src_key_padding_mask=padding)
            hidden_states.append(x)
        if self.config.norm_first:
            hidden_states[-1] = x = self.norm(x)
        hidden_states = [zero_padding(h, mask) for h in hidden_states]
        predictions = None if self.predictions is None else self.predictions(hidden_states[-1])
        return StudentOutput(hidden_states, hidden_states[-1], predictions, lengths)


def build_student(size: str | StudentConfig = "paper") -> Student:
    """A student with random weights, from a named size (see `SIZES`) or a configuration.

    Raises:
        ValueError: no such size.
    """
    if isinstance(size, str):
        if size not in SIZES:
            raise ValueError(f"{size}: no such student size; there are {', '.join(SIZES)}")
        size = SIZES[size]
    return Student(size)
