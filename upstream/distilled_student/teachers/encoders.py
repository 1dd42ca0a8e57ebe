"""The interface of an encoder, and the encoders of this package and of `transformers`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distilled_student.checkpoints.weight_names import student_weights
from distilled_student.student.config import DROPOUTS, receptive_field
from distilled_student.student.frontend import normalize_waveforms
from distilled_student.student.lengths import mask_if_padded
from distilled_student.student.network import Student
from distilled_student.teachers.parts import Parts, parts_of_student, parts_of_transformers


class Encoded(NamedTuple):
    """``hidden_states``: ``layers + 1`` tensors ``(batch, frames, features)``; ``lengths (batch,)`` in frames."""

    hidden_states: Sequence[Tensor]
    lengths: Tensor


class Encoder(nn.Module):
    """A speech encoder that can be a teacher.

    Attributes:
        hidden_size: Features of each hidden state.
        num_layers: Number of layers; there is one hidden state more.
        frame_shift: Samples at 16 kHz from one frame to the next.
        first_centre: Centre of what the first frame is computed from, in samples; None if it is not known.
        revision: The commit on the hub that its weights were read from; None if they were not.
    """

    revision: str | None = None
    first_centre: float | None = None
    hidden_size: int
    num_layers: int
    frame_shift: int

    def forward(self, waveforms: Tensor, lengths: Tensor | None = None) -> Encoded:
        """Encode a batch. The result for an utterance does not depend on its padding.

        Args:
            waveforms: ``(batch, samples)`` float32 at 16 kHz in [-1, 1].
            lengths: ``(batch,)`` valid samples of each utterance; None if nothing is padded.
        """
        raise NotImplementedError

    def weights(self) -> dict[str, Tensor]:
        """Parameters under a student's names. A parameter that no student has keeps its own name or is left out."""
        return {}

    def parts(self) -> Parts | None:
        """What the parts of the network are, see `teachers.parts`; None if it is not known."""
        return None

    def normalization(self) -> dict[str, Any]:
        """How waveforms are normalised first, as fields of `StudentConfig`; empty if unknown."""
        return {}

    def settings(self) -> str:
        """As text, all settings that affect the result and that ``repr`` of the modules does not show."""
        return ""

    def keep_layers(self, count: int) -> None:
        """Delete the layers after the first ``count``, if it is known that the others do not depend on them."""


class StudentEncoder(Encoder):
    """An encoder with a student's network: a student, HuBERT, wav2vec 2.0 or Whisper's encoder."""

    def __init__(self, student: Student) -> None:
        super().__init__()
        self.student = student
        student.config = replace(student.config, layerdrop=0.0)  # as in s3prl's upstreams: no layer is left out
        self.hidden_size, self.num_layers = student.config.hidden_size, student.config.layers
        self.frame_shift, self.first_centre = student.config.frame_shift, student.config.first_centre

    def forward(self, waveforms: Tensor, lengths: Tensor | None = None) -> Encoded:
        output = self.student(waveforms, lengths)
        return Encoded(output.hidden_states, output.lengths)

    def weights(self) -> dict[str, Tensor]:
        return self.student.state_dict()

    def parts(self) -> Parts:
        return parts_of_student(self.student.config)

    def normalization(self) -> dict[str, Any]:
        return {name: getattr(self.student.config, name) for name in ("normalize", "normalize_epsilon")}

    def settings(self) -> str:
        """As the `repr` of the configuration before it had `DROPOUTS`, so that cached targets stay valid.

        A teacher, which is always in eval mode, has no dropout.
        """
        config = self.student.config
        described = [f"{f.name}={getattr(config, f.name)!r}" for f in fields(config) if f.name not in DROPOUTS]
        return f"StudentConfig({', '.join(described)})"

    def keep_layers(self, count: int) -> None:
        """Delete the layers after the first ``count``, the predictions, and a final norm if the last layer is deleted.

        The final norm changes the last hidden state only: the others are taken before it.
        """
        student = self.student
        if student.config.norm_first and count < student.config.layers:
            student.norm = nn.Identity()
        student.config = replace(student.config, layers=count, targets=[])
        del student.layers[count:]
        student.predictions = None


class EqualLengthEncoder(Encoder):
    """An encoder whose result would depend on padding: utterances of the same length are encoded together, unpadded."""

    def encode(self, waveforms: Tensor) -> Sequence[Tensor]:
        """``(batch, samples)`` without padding -> ``layers + 1`` hidden states ``(batch, frames, features)``."""
        raise NotImplementedError

    def forward(self, waveforms: Tensor, lengths: Tensor | None = None) -> Encoded:
        if mask_if_padded(lengths, waveforms.shape[1]) is None:
            states = self.encode(waveforms)
            return Encoded(states, torch.full((len(waveforms),), states[0].shape[1]))
        groups: list[tuple[Tensor, Sequence[Tensor]]] = []  # rows of the batch, and their hidden states
        for samples in lengths.unique().tolist():
            rows = (lengths == samples).nonzero()[:, 0]
            groups.append((rows, self.encode(waveforms[rows, :samples])))
        frames = max(states[0].shape[1] for _, states in groups)
        hidden_states = []
        for layer in range(len(groups[0][1])):
            padded = waveforms.new_zeros(len(waveforms), frames, groups[0][1][layer].shape[2])
            for rows, states in groups:
                padded[rows, : states[layer].shape[1]] = states[layer].to(padded.dtype)
            hidden_states.append(padded)
        frame_lengths = torch.zeros_like(lengths)
        for rows, states in groups:
            frame_lengths[rows] = states[0].shape[1]
        return Encoded(hidden_states, frame_lengths)


class TransformersEncoder(EqualLengthEncoder):
    """A `transformers` encoder of waveforms whose network no student has: WavLM, data2vec and others.

    Its layers are those of the encoder: an adapter after them, which shortens the output, is deleted. SEW's layers run
    at a lower rate than its front end and its output; their frames are those of the lower rate.
    """

    def __init__(self, model: nn.Module, normalize: bool) -> None:
        super().__init__()
        self.model, self.normalize = model, normalize
        config = model.config
        config.layerdrop, config.apply_spec_augment = 0.0, False
        if getattr(model, "adapter", None) is not None:
            model.adapter = None
        self.hidden_size, self.num_layers = config.hidden_size, config.num_hidden_layers
        self.squeeze = getattr(config, "squeeze_factor", 1)  # SEW: frames that are averaged into one before the layers
        shift = math.prod(config.conv_stride)
        self.shortest = receptive_field(config.conv_kernel, config.conv_stride) + (self.squeeze - 1) * shift
        self.frame_shift, self.first_centre = shift * self.squeeze, (self.shortest - 1) / 2

    def encode(self, waveforms: Tensor) -> Sequence[Tensor]:
        """As if silence followed an utterance that is shorter than a frame, as in a student's front end."""
        if self.normalize:
            waveforms = normalize_waveforms(waveforms)
        waveforms = F.pad(waveforms, (0, max(0, self.shortest - waveforms.shape[1])))
        output = self.model(waveforms, output_hidden_states=True)
        if self.squeeze > 1:
            return output.hidden_states
        # in pre-norm models of transformers 5, only last_hidden_state is taken after the final norm
        return [*output.hidden_states[:-1], output.last_hidden_state]

    def weights(self) -> dict[str, Tensor]:
        return student_weights(self.model.state_dict())

    def parts(self) -> Parts | None:
        try:
            return parts_of_transformers(self.model.config.to_dict())
        except KeyError:  # a model of another family
            return None

    def normalization(self) -> dict[str, Any]:
        return {"normalize": self.normalize}

    def settings(self) -> str:
        return f"{self.normalize} {self.model.config.to_json_string()}"

    def keep_layers(self, count: int) -> None:
        norm_first = getattr(self.model.config, "do_stable_layer_norm", None)
        if norm_first is None or count == self.num_layers:  # None: not built like HuBERT, so nothing is known
            return
        del self.model.encoder.layers[count:]
        if norm_first:
            self.model.encoder.layer_norm = nn.Identity()
