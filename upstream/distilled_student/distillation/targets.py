"""The targets of distillation: a frozen teacher's hidden states, at the student's frame rate, or its embeddings."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distilled_student.common.errors import UserError
from distilled_student.student.lengths import conv_lengths
from distilled_student.teachers.speaker_encoder import SpeakerEncoder

HALF_PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Teacher(nn.Module):
    """A frozen encoder that returns the hidden states of some layers: always in eval mode, without gradients.

    Args:
        encoder: See `open_teacher`.
        layers: The layers, counted from 1.
        precision: ``fp32``, or ``bf16`` or ``fp16`` for the matrix products.

    Raises:
        UserError: the encoder has no such layer.
    """

    def __init__(self, encoder: nn.Module, layers: Sequence[int], precision: str = "fp32") -> None:
        super().__init__()
        if not layers or max(layers) > encoder.num_layers or min(layers) < 1:
            raise UserError(f"targets: {list(layers)}: the teacher has layers 1 to {encoder.num_layers}")
        self.encoder, self.layers, self.precision = encoder, list(layers), precision
        self.target_count, self.features = len(self.layers), encoder.hidden_size
        encoder.keep_layers(max(layers))
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> Teacher:
        """Stay in eval mode: dropout in a teacher is an error that nothing reports (see ARMHuBERT)."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, waveforms: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """``(batch, samples)`` at 16 kHz -> hidden states ``(batch, targets, frames, features)``, lengths in frames."""
        half = HALF_PRECISIONS.get(self.precision)
        with torch.autocast(waveforms.device.type, half, enabled=half is not None):
            encoded = self.encoder(waveforms, lengths)
        return torch.stack([encoded.hidden_states[layer] for layer in self.layers], dim=1), encoded.lengths

    def fingerprint(self) -> str:
        """A hash of all that the targets depend on except the audio: module, settings, weights, layers, precision."""
        described = repr((self.encoder, self.encoder.settings(), self.layers, self.precision))
        digest = hashlib.sha256(described.encode())
        for name, weight in self.encoder.state_dict().items():
            digest.update(name.encode())
            digest.update(weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        return digest.hexdigest()


class UtteranceTeacher(nn.Module):
    """A frozen speaker encoder with the interface of `Teacher`: an embedding is one target of one frame.

    Speaker encoders are compared by the directions of their embeddings, and their lengths differ: each embedding is
    scaled to a root mean square of 1, so that the L1 distance means the same for all of them.

    Args:
        encoder: See `open_speaker_encoder`.
        precision: ``fp32``, or ``bf16`` or ``fp16`` for the matrix products.
    """

    def __init__(self, encoder: SpeakerEncoder, precision: str = "fp32") -> None:
        super().__init__()
        self.encoder, self.precision = encoder, precision
        self.target_count, self.features = 1, encoder.embedding_size
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> UtteranceTeacher:
        """Stay in eval mode, as `Teacher.train`."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, waveforms: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """``(batch, samples)`` at 16 kHz -> embeddings ``(batch, 1, 1, features)``, lengths of 1."""
        half = HALF_PRECISIONS.get(self.precision)
        with torch.autocast(waveforms.device.type, half, enabled=half is not None):
            embeddings = self.encoder(waveforms, lengths).float()
        scaled = F.normalize(embeddings, dim=1) * self.features**0.5
        return scaled[:, None, None], torch.ones(len(waveforms), dtype=torch.long)

    def fingerprint(self) -> str:
        """A hash of all that the targets depend on except the audio."""
        weights = self.encoder.fingerprint()["sha256"]
        described = repr((self.encoder, self.encoder.settings(), weights, self.precision))
        return hashlib.sha256(described.encode()).hexdigest()


def check_frame_shifts(shift: int, student_shift: int) -> None:
    """Raise ValueError unless one of the frame shifts (samples between two frames) is a multiple of the other."""
    if shift % student_shift and student_shift % shift:
        raise ValueError(f"a frame every {shift} and every {student_shift} samples: no rate is a multiple of the other")


def align(
    states: Tensor,
    lengths: Tensor,
    shift: int,
    student_lengths: Tensor,
    student_shift: int,
    frames: int,
    offset: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Select the teacher's frame at the time of each of the student's frames.

    With ``offset`` it is the frame with the nearest centre; without it the frame at that number of samples, as if the
    first frames of both began together.

    Args:
        states: The teacher's hidden states, ``(batch, targets, teacher frames, features)``.
        lengths: ``(batch,)`` valid frames of the teacher.
        shift: Samples between two frames of the teacher.
        student_lengths: ``(batch,)`` valid frames of the student.
        student_shift: Samples between two frames of the student.
        frames: The student's frames, padding included.
        offset: Samples from the centre of the teacher's first frame to the centre of the student's first frame.

    Returns:
        ``(batch, targets, frames, features)``, and ``(batch,)`` frames that are valid for teacher and student.

    Raises:
        ValueError: neither frame shift is a multiple of the other, or lengths differ by more than two frames.
    """
    check_frame_shifts(shift, student_shift)
    apart = (lengths * shift - student_lengths * student_shift).abs().max()
    if apart > 2 * max(shift, student_shift):
        raise ValueError(f"teacher and student frames are {int(apart)} samples apart at the end of an utterance")
    if offset is None:
        index = (torch.arange(frames, device=states.device) * student_shift).div(shift, rounding_mode="floor")
        valid = conv_lengths(lengths * shift, 1, student_shift)  # student frames inside a valid teacher frame
    else:
        nearest = ((torch.arange(frames) * student_shift + offset) / shift).round().long().clamp(min=0)
        index = nearest.to(states.device)
        valid = (nearest < lengths.cpu()[:, None]).sum(dim=1).to(lengths.device)
    return states[:, :, index.clamp(max=states.shape[2] - 1)], torch.minimum(student_lengths, valid)
