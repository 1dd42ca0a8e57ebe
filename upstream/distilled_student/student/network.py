"""The student (Kerpicci et al. 2023, sec. 2): front end, a few transformer layers, one prediction layer per target."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distilled_student.common.arithmetic import ceil_div
from distilled_student.common.sample_range import wrong_range, wrong_type
from distilled_student.student.attention import attend, causal_mask
from distilled_student.student.config import StudentConfig, named_size
from distilled_student.student.frontend import build_frontend, normalize_waveforms
from distilled_student.student.lengths import checked_lengths, frame_mask, mask_if_padded, zero_padding
from distilled_student.student.packed_linear import apply_weight, linear
from distilled_student.student.positions import build_positions
from distilled_student.student.run_mode import is_exporting
from distilled_student.student.weight_cache import forget_weights


class StudentOutput(NamedTuple):
    """What a student returns; T is frames, D the student's width, F the teacher's features.

    Attributes:
        hidden_states: ``layers + 1`` tensors ``(batch, T, D)``: the input of the first layer, then each layer's output;
            then the output of each branch.
        last_hidden_state: The output of the last layer.
        predictions: ``(batch, targets, T, F)``, or None for a student without prediction layers.
        lengths: ``(batch,)`` valid frames, on the same device as the lengths that were passed in.
    """

    hidden_states: list[Tensor]
    last_hidden_state: Tensor
    predictions: Tensor | None
    lengths: Tensor


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


def average_frames(x: Tensor, lengths: Tensor, stride: int) -> tuple[Tensor, Tensor]:
    """Means over each ``stride`` successive frames, of valid frames only.

    Returns:
        ``(batch, ceil(frames / stride), features)`` and its lengths.
    """
    if stride == 1:
        return x, lengths
    mask = frame_mask(lengths, x.shape[1], x.device).unsqueeze(2)
    missing = ceil_div(x.shape[1], stride) * stride - x.shape[1]
    x, count = (F.pad(t, (0, 0, 0, missing)) for t in (x.masked_fill(~mask, 0.0), mask.to(x.dtype)))
    x, count = (t.unflatten(1, (-1, stride)).sum(2) for t in (x, count))
    return x / count.clamp(min=1), ceil_div(lengths, stride)


def repeat_frames(x: Tensor, stride: int, frames: int) -> Tensor:
    """Each frame ``stride`` times, cut to ``(..., frames, features)``: the frame rate from before `average_frames`."""
    return x if stride == 1 else x.repeat_interleave(stride, dim=-2)[..., :frames, :]


class Layer(nn.TransformerEncoderLayer):
    """torch's transformer layer, but always with its fastest attention, with any mask, and with past keys and values.

    Its parameters are those of `torch.nn.TransformerEncoderLayer`; only the computation differs.
    """

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
        if config.attention_dropout is not None:
            self.self_attn.dropout = config.attention_dropout
        apart = config.activation_dropout
        self.activation_dropout = config.dropout if apart is None else apart

    def attend(self, x: Tensor, mask: Tensor | None, past: Tensor | None) -> tuple[Tensor, Tensor]:
        """Self-attention with dropout; arguments and results are those of `forward`."""
        attention = self.self_attn
        projected = apply_weight(attention, attention.in_proj_weight, attention.in_proj_bias, x)
        query, key_value = projected.split([x.shape[2], 2 * x.shape[2]], dim=2)
        key_value = key_value if past is None else torch.cat([past, key_value], dim=1)
        heads = (t.unflatten(2, (attention.num_heads, -1)).transpose(1, 2) for t in (query, *key_value.chunk(2, dim=2)))
        dropout = attention.dropout if self.training else 0.0
        y = attend(*heads, mask, dropout)
        return self.dropout1(linear(attention.out_proj, y.transpose(1, 2).flatten(2))), key_value

    def feed_forward(self, x: Tensor) -> Tensor:
        """``(batch, frames, features)`` -> the same shape."""
        x = F.dropout(linear(self.linear1, x, "gelu"), self.activation_dropout, self.training)
        return self.dropout2(linear(self.linear2, x))

    def forward(self, x: Tensor, mask: Tensor | None = None, past: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """One layer.

        Args:
            x: ``(batch, frames, features)``.
            mask: bool, True where a frame may attend, broadcast to ``(batch, heads, frames, past + frames)``; None:
                everywhere.
            past: ``(batch, past, 2 * features)`` keys and values of earlier frames.

        Returns:
            ``(batch, frames, features)``, and the keys and values that were attended to: ``past``, then those of ``x``.
        """
        y, key_value = self.attend(self.norm1(x) if self.norm_first else x, mask, past)
        x = x + y if self.norm_first else self.norm1(x + y)
        y = self.feed_forward(self.norm2(x) if self.norm_first else x)
        return x + y if self.norm_first else self.norm2(x + y), key_value


class Branch(nn.Module):
    """A copy of a student's last layer for one task, and of the norm after it: late branching (arXiv 2206.13708)."""

    def __init__(self, layer: Layer, norm: nn.Module) -> None:
        super().__init__()
        self.layer, self.norm = copy.deepcopy(layer), copy.deepcopy(norm)


class Student(nn.Module):
    """A small speech encoder whose results do not depend on padding. See `StudentConfig` for its sizes.

    Attributes:
        checks_range: Whether `forward` checks the peak of the waveforms. Trainings set it to False, because they have
            checked the samples when they were read.
        revision: The commit on the hub that its weights were read from; None if they were not.
    """

    revision: str | None = None

    def __init__(self, config: StudentConfig) -> None:
        super().__init__()
        self.config, self.checks_range, self._checked_on_gpu = config, True, False
        self.frontend = build_frontend(config)
        width = config.conv_dim[-1]
        self.projection_norm = nn.LayerNorm(width) if config.projection_norm else nn.Identity()
        self.projection = nn.Linear(width, config.hidden_size) if config.projection else nn.Identity()
        self.positions = build_positions(config)
        self.norm = nn.LayerNorm(config.hidden_size)  # before the first layer, or after the last one if norm_first
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(Layer(config) for _ in range(1 if config.shared else config.layers))
        self.predictions = PredictionLayers(config) if config.targets else None

    @property
    def branches(self) -> Sequence[Branch]:
        """The branches, see `add_branches`.

        A student without them has no module for them, so that its description, of which the names of cached targets are
        made, is that of version 0.1.
        """
        return self._modules.get("branches", ())

    def add_branches(self, count: int) -> None:
        """Add ``count`` copies of the last layer, with the same input. Their outputs follow the other hidden states.

        They are not part of the configuration: they are saved with the heads that use them.
        """
        norm = self.norm if self.config.norm_first else nn.Identity()
        self._modules["branches"] = nn.ModuleList(Branch(self.layers[-1], norm) for _ in range(count))

    def without_branches(self) -> Student:
        """This student without its branches; it shares all other weights."""
        student = copy.copy(self)
        student._modules = {name: module for name, module in self._modules.items() if name != "branches"}
        return student

    @property
    def attending_layers(self) -> int:
        """The number of layers that keep keys and values in a stream: ``layers``, then the branches."""
        return self.config.layers + len(self.branches)

    def train(self, mode: bool = True) -> Student:
        """As every module's; what an evaluation has computed from the weights is computed again."""
        for module in self.modules():
            forget_weights(module)
        return super().train(mode)

    def forward(self, waveforms: Tensor, lengths: Tensor | None = None, predict: bool = True) -> StudentOutput:
        """Encode a batch.

        Args:
            waveforms: ``(batch, samples)`` float32 at 16 kHz in [-1, 1].
            lengths: ``(batch,)`` valid samples of each utterance; None if nothing is padded. Samples beyond them are
                ignored. Best on the CPU even for waveforms on a GPU: then nothing waits for the GPU.
            predict: Whether to compute the predictions.

        Raises:
            ValueError: arrays or lists instead of tensors, an empty batch, wrong shapes, a length outside 1 to
                ``samples``, integers, or a peak far above 1. On a GPU the peak of the first batch alone is checked,
                because this waits for the GPU.
        """
        lengths = checked_lengths(waveforms, lengths)
        waveforms = zero_padding(waveforms, mask_if_padded(lengths, waveforms.shape[1], waveforms.device))
        self._check_samples(waveforms)
        if self.config.normalize:
            waveforms = normalize_waveforms(waveforms, lengths, self.config.normalize_epsilon)
        x, lengths = self.frontend(waveforms, lengths)
        return self.encode(self.project(x), lengths, predict)

    def _check_samples(self, waveforms: Tensor) -> None:
        """Raise ValueError for integers or for a peak far above 1, unless a graph is made, which has no values."""
        fault, has_values = wrong_type(waveforms), not (is_exporting() or torch.compiler.is_compiling())
        if fault is None and self.checks_range and has_values and not torch.jit.is_tracing():
            device = waveforms.device.type
            if device == "cpu" or (device == "cuda" and not self._checked_on_gpu):
                fault = wrong_range(waveforms)
                self._checked_on_gpu |= device == "cuda" and fault is None
        if fault is not None:
            raise ValueError(f"waveforms: {fault}")

    def project(self, x: Tensor) -> Tensor:
        """The front end's frames ``(batch, frames, conv_dim[-1])`` -> ``(batch, frames, hidden_size)``."""
        x = self.projection_norm(x)
        x = linear(self.projection, x) if self.config.projection else x
        return F.dropout(x, self.config.projection_dropout, self.training) if self.config.projection_dropout else x

    def encode(self, x: Tensor, lengths: Tensor, predict: bool = True) -> StudentOutput:
        """Positions, transformer layers and predictions.

        Args:
            x: ``(batch, frames, hidden_size)``, from `project`.
            lengths: ``(batch,)`` valid frames.
            predict: Whether to compute the predictions.
        """
        config, frames, frame_lengths = self.config, x.shape[1], lengths
        x, lengths = average_frames(x, lengths, config.encoder_stride)
        valid = mask_if_padded(lengths, x.shape[1], x.device)
        x = self.positions(zero_padding(x, valid))
        if config.causal:  # no need to mask padding: it comes after all valid frames
            mask = causal_mask(x.shape[1], 0, config.attention_context, x.device)
        else:  # without a mask, attention uses its fastest kernel
            mask = None if valid is None else valid[:, None, None, :].expand(-1, -1, x.shape[1], -1)
        hidden_states, _ = self.run_layers(x, mask, [None] * self.attending_layers)
        last = config.layers
        predictions = None
        if predict and self.predictions is not None:
            predictions = self.predictions(zero_padding(hidden_states[last], valid))
            predictions = repeat_frames(predictions, config.encoder_stride, frames)
        valid = mask_if_padded(frame_lengths, frames, x.device)
        hidden_states = [zero_padding(repeat_frames(h, config.encoder_stride, frames), valid) for h in hidden_states]
        return StudentOutput(hidden_states, hidden_states[last], predictions, frame_lengths)

    def run_layers(
        self, x: Tensor, mask: Tensor | None, pasts: Sequence[Tensor | None]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """All transformer layers, then the branches.

        Args:
            x: ``(batch, frames, hidden_size)``, positions added.
            mask: See `Layer.forward`.
            pasts: ``attending_layers`` keys and values of earlier frames, or None; see `Layer.forward`.

        Returns:
            Hidden states as in `StudentOutput`, and ``attending_layers`` keys and values.
        """
        x = self.dropout(x if self.config.norm_first else self.norm(x))
        layers = [self.layers[0]] * self.config.layers if self.config.shared else self.layers
        hidden_states, key_values = [x], []
        own, of_branches = pasts[: self.config.layers], pasts[self.config.layers :]
        for layer, past in zip(layers, own, strict=True):
            x, key_value = self._run_layer(layer, x, mask, past)
            hidden_states.append(x)
            key_values.append(key_value)
        if self.config.norm_first:
            hidden_states[-1] = self.norm(x)
        before_last = hidden_states[-2]
        for branch, past in zip(self.branches, of_branches, strict=True):
            x, key_value = self._run_layer(branch.layer, before_last, mask, past)
            hidden_states.append(branch.norm(x))
            key_values.append(key_value)
        return hidden_states, key_values

    def _run_layer(self, layer: Layer, x: Tensor, mask: Tensor | None, past: Tensor | None) -> tuple[Tensor, Tensor]:
        """`Layer.forward`; in training with ``layerdrop``."""
        y, key_value = layer(x, mask, past)
        if self.training and self.config.layerdrop:  # computed all the same: every weight then has a gradient
            y = torch.where(torch.rand((), device=x.device) < self.config.layerdrop, x, y)
        return y, key_value


def build_student(size: str | StudentConfig = "paper") -> Student:
    """A student with random weights, from a named size (see `named_size`) or a configuration.

    Raises:
        ValueError: there is no such size.
    """
    return Student(named_size(size) if isinstance(size, str) else size)
