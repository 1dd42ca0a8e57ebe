"""The student (Kerpicci et al. 2023, sec. 2): front end, a few transformer layers, one prediction layer per target."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from distilled_student.student.config import StudentConfig
from distilled_student.student.convolution import TRANSFORMED_KERNEL, convolve_spectra, kernel_spectra
from distilled_student.student.frontend import build_frontend, normalize_waveforms
from distilled_student.student.lengths import frame_mask, is_exporting, mask_if_padded, zero_padding
from distilled_student.student.packed_linear import gelu, kept, linear, multiply, pack, packs
from distilled_student.student.sizes import named_size


class StudentOutput(NamedTuple):
    """What a student returns; T is frames, D the student's width, F the teacher's features.

    Attributes:
        hidden_states: ``layers + 1`` tensors ``(batch, T, D)``: the input of the first layer, then each layer's output.
        last_hidden_state: The last of them.
        predictions: ``(batch, targets, T, F)``, or None for a student without prediction layers.
        lengths: ``(batch,)`` valid frames, on the device of the lengths that came in.
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
        conv = nn.Conv1d(size, size, kernel, groups=config.position_groups)
        nn.init.normal_(conv.weight, std=math.sqrt(4 / (kernel * size)))
        nn.init.zeros_(conv.bias)
        self.conv = weight_norm(conv, dim=2)
        self.past = kernel - 1 if config.causal else kernel // 2
        self.ahead = kernel - 1 - self.past

    def kernel(self) -> Tensor:
        """``(features, features / groups, 1, kernel)``, weight norm done, laid out for frames that are time-major."""
        weight = self.conv.weight[:, :, None]
        return weight if is_exporting() else weight.contiguous(memory_format=torch.channels_last)

    def embed(self, x: Tensor) -> Tensor:
        """``(batch, past + frames + ahead, features)`` -> ``(batch, frames, features)`` to add."""
        parameters = list(self.conv.parametrizations.weight.parameters())
        if packs(x) and self.conv.kernel_size[0] >= TRANSFORMED_KERNEL:
            spectra = kept(self.conv, parameters, lambda: kernel_spectra(self.conv.weight, self.conv.groups))
            y = convolve_spectra(x, spectra, self.conv.kernel_size[0])
            return gelu(y.add_(self.conv.bias))
        kernel = kept(self, parameters, self.kernel)
        # as an image of one row, because torch has a layout with the features last for images alone
        y = F.conv2d(x.transpose(1, 2)[:, :, None], kernel, self.conv.bias, groups=self.conv.groups)
        return F.gelu(y[:, :, 0]).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, frames, features)``, zero where padded."""
        return x + self.embed(F.pad(x, (0, 0, self.past, self.ahead)))


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
        parts = linear(self.hidden, x, "gelu").chunk(len(self.outputs), dim=2)
        return torch.stack([linear(output, part) for output, part in zip(self.outputs, parts, strict=True)], dim=1)


def slow_down(x: Tensor, lengths: Tensor, stride: int) -> tuple[Tensor, Tensor]:
    """Means of ``stride`` valid frames each: ``(batch, ceil(frames / stride), features)``, and lengths of these."""
    if stride == 1:
        return x, lengths
    mask = frame_mask(lengths, x.shape[1], x.device)[:, :, None]
    missing = (x.shape[1] + stride - 1) // stride * stride - x.shape[1]
    x, count = (F.pad(t, (0, 0, 0, missing)) for t in (x.masked_fill(~mask, 0.0), mask.to(x.dtype)))
    x, count = (t.unflatten(1, (-1, stride)).sum(2) for t in (x, count))
    return x / count.clamp(min=1), (lengths + stride - 1) // stride


def speed_up(x: Tensor, stride: int, frames: int) -> Tensor:
    """The way back, to ``(..., frames, features)``: each frame ``stride`` times."""
    return x if stride == 1 else x.repeat_interleave(stride, dim=-2)[..., :frames, :]


class Layer(nn.TransformerEncoderLayer):
    """torch's transformer layer with torch's fused attention at all times, over a past too, and under its own mask."""

    def __init__(self, config: StudentConfig) -> None:
        super().__init__(
            config.hidden_size,
            config.heads,
            config.feed_forward,
            config.dropout,
            activation="gelu",
            batch_first=True,
            norm_first=config.norm_first,
        )

    def attend(self, x: Tensor, mask: Tensor | None, past: Tensor | None) -> tuple[Tensor, Tensor]:
        """``x (batch, frames, features)``; see `forward`."""
        attention = self.self_attn
        weight = attention.in_proj_weight
        weight = kept(attention, [weight], lambda: pack(weight)) if packs(x) else weight
        projected = multiply(x, weight, attention.in_proj_bias)
        query, key_value = projected.split([x.shape[2], 2 * x.shape[2]], dim=2)
        key_value = key_value if past is None else torch.cat([past, key_value], dim=1)
        heads = (t.unflatten(2, (attention.num_heads, -1)).transpose(1, 2) for t in (query, *key_value.chunk(2, dim=2)))
        dropout = attention.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(*heads, attn_mask=mask, dropout_p=dropout)
        return self.dropout1(linear(attention.out_proj, y.transpose(1, 2).flatten(2))), key_value

    def feed_forward(self, x: Tensor) -> Tensor:
        """``(batch, frames, features)``, as all that comes and goes."""
        return self.dropout2(linear(self.linear2, self.dropout(linear(self.linear1, x, "gelu"))))

    def forward(self, x: Tensor, mask: Tensor | None = None, past: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """One layer.

        Args:
            x: ``(batch, frames, features)``.
            mask: bool, True where a frame may look, broadcast to ``(batch, heads, frames, past + frames)``; None: all.
            past: ``(batch, past, 2 * features)`` keys and values of earlier frames.

        Returns:
            ``(batch, frames, features)``, and the keys and values that it looked at, ``past`` in front.
        """
        y, key_value = self.attend(self.norm1(x) if self.norm_first else x, mask, past)
        x = x + y if self.norm_first else self.norm1(x + y)
        y = self.feed_forward(self.norm2(x) if self.norm_first else x)
        return x + y if self.norm_first else self.norm2(x + y), key_value


def causal_mask(frames: int, past: int, context: int, device: torch.device) -> Tensor:
    """``(frames, past + frames)`` bool: each frame sees itself and the ``context - 1`` before."""
    age = past + torch.arange(frames, device=device)[:, None] - torch.arange(past + frames, device=device)[None, :]
    return (age >= 0) & (age < context)


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
        self.layers = nn.ModuleList(Layer(config) for _ in range(1 if config.shared else config.layers))
        self.predictions = PredictionLayers(config) if config.targets else None

    def forward(self, waveforms: Tensor, lengths: Tensor | None = None, predict: bool = True) -> StudentOutput:
        """Encode a batch.

        Args:
            waveforms: ``(batch, samples)`` float32 at 16 kHz in [-1, 1].
            lengths: ``(batch,)`` valid samples of each; None where nothing is padded. What lies behind is ignored.
                Best on the CPU, wherever the waveforms are: a GPU is not waited for then.
            predict: False leaves the predictions out.

        Raises:
            ValueError: wrong shapes, or a length outside 1 to ``samples``.
        """
        if waveforms.dim() != 2 or waveforms.shape[1] == 0:
            raise ValueError(f"waveforms: expected (batch, samples), found {tuple(waveforms.shape)}")
        samples = waveforms.shape[1]
        if lengths is None:
            lengths = torch.full((len(waveforms),), samples)
        elif not is_exporting():
            if lengths.shape != waveforms.shape[:1]:
                raise ValueError(f"lengths: expected ({len(waveforms)},), found {tuple(lengths.shape)}")
            if bool((lengths < 1).any()) or bool((lengths > samples).any()):
                raise ValueError(f"lengths: expected 1 to {samples} samples, found {lengths.tolist()}")
        waveforms = zero_padding(waveforms, mask_if_padded(lengths, samples, waveforms.device))
        if self.config.normalize:
            waveforms = normalize_waveforms(waveforms, lengths, self.config.normalize_epsilon)
        x, lengths = self.frontend(waveforms, lengths)
        return self.encode(self.project(x), lengths, predict)

    def project(self, x: Tensor) -> Tensor:
        """The front end's frames ``(batch, frames, conv_dim[-1])`` -> ``(batch, frames, hidden_size)``."""
        x = self.projection_norm(x)
        return linear(self.projection, x) if self.config.projection else x

    def stack(self) -> Iterator[Layer]:
        """The layers in their order; the one there is, every time, where they share their weights."""
        return iter([self.layers[0]] * self.config.layers if self.config.shared else self.layers)

    def transform(
        self, x: Tensor, mask: Tensor | None, pasts: Sequence[Tensor | None]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """The layers, each with its past, over frames with their positions: hidden states, and keys and values."""
        x = self.dropout(x if self.config.norm_first else self.norm(x))
        hidden_states, key_values = [x], []
        for layer, past in zip(self.stack(), pasts, strict=True):
            x, key_value = layer(x, mask, past)
            hidden_states.append(x)
            key_values.append(key_value)
        if self.config.norm_first:
            hidden_states[-1] = self.norm(x)
        return hidden_states, key_values

    def encode(self, x: Tensor, lengths: Tensor, predict: bool = True) -> StudentOutput:
        """Transformer layers and predictions over projected frames ``(batch, frames, features)``."""
        config, frames, outside = self.config, x.shape[1], lengths
        x, lengths = slow_down(x, lengths, config.encoder_stride)
        valid = mask_if_padded(lengths, x.shape[1], x.device)
        x = self.positions(zero_padding(x, valid))
        if config.causal:  # what is behind the end is later than all that counts
            mask = causal_mask(x.shape[1], 0, config.attention_context, x.device)
        else:  # None lets attention take its fastest kernel
            mask = None if valid is None else valid[:, None, None, :].expand(-1, -1, x.shape[1], -1)
        hidden_states, _ = self.transform(x, mask, [None] * config.layers)
        predictions = None
        if predict and self.predictions is not None:
            predictions = self.predictions(zero_padding(hidden_states[-1], valid))
        valid = mask_if_padded(outside, frames, x.device)
        hidden_states = [zero_padding(speed_up(h, config.encoder_stride, frames), valid) for h in hidden_states]
        if predictions is not None:
            predictions = speed_up(predictions, config.encoder_stride, frames)
        return StudentOutput(hidden_states, hidden_states[-1], predictions, outside)


def build_student(size: str | StudentConfig = "paper") -> Student:
    """A student with random weights, from a named size (see `named_size`) or a configuration.

    Raises:
        ValueError: no such size.
    """
    return Student(named_size(size) if isinstance(size, str) else size)
