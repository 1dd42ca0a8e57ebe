"""What a student learns to predict: hidden states of a frozen teacher, at the student's times."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from distilled_student.common.errors import UserError
from distilled_student.student.lengths import conv_lengths

HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Teacher(nn.Module):
    """A frozen encoder that gives the hidden states of chosen layers: always in eval mode, never with gradients.

    ``precision``: ``fp32``, or ``bf16`` or ``fp16`` for its matrix products.
    """

    def __init__(self, encoder: nn.Module, layers: Sequence[int], precision: str = "fp32") -> None:
        super().__init__()
        if not layers or max(layers) > encoder.num_layers or min(layers) < 1:
            raise UserError(f"targets: {list(layers)}: the teacher has layers 1 to {encoder.num_layers}")
        self.encoder, self.layers, self.precision = encoder, list(layers), precision
        encoder.keep_layers(max(layers))
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> Teacher:
        """Stays in eval mode: dropout in a teacher is a silent error (see ARMHuBERT)."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, waveforms: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Hidden states ``(batch, targets, frames, features)`` and their lengths in frames."""
        half = HALVES.get(self.precision)
        with torch.autocast(waveforms.device.type, half, enabled=half is not None):
            encoded = self.encoder(waveforms, lengths)
        return torch.stack([encoded.hidden_states[layer] for layer in self.layers], dim=1), encoded.lengths

    def fingerprint(self) -> str:
        """A hash of what its targets depend on beside the audio: form, settings, weights, layers, precision."""
        form = repr((self.encoder, self.encoder.settings(), self.layers, self.precision))
        digest = hashlib.sha256(form.encode())
        for name, weight in self.encoder.state_dict().items():
            digest.update(name.encode())
            digest.update(weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        return digest.hexdigest()


def check_rates(shift: int, student_shift: int) -> None:
    """Raise ValueError where frames ``shift`` and ``student_shift`` samples apart never meet."""
    if shift % student_shift and student_shift % shift:
        raise ValueError(f"a frame every {shift} and every {student_shift} samples: no rate is a multiple of the other")


def align(
    states: Tensor, lengths: Tensor, shift: int, student_lengths: Tensor, student_shift: int, frames: int
) -> tuple[Tensor, Tensor]:
    """Teacher frames at the student's times.

    Args:
        states: ``(batch, targets, teacher frames, features)``; ``lengths (batch,)`` of them valid, ``shift`` samples
            apart.
        student_lengths: ``(batch,)`` valid frames of the student, ``student_shift`` samples apart; ``frames`` with
            padding.

    Returns:
        ``(batch, targets, frames, features)`` and the lengths over which both are valid.

    Raises:
        ValueError: neither rate is a multiple of the other, or lengths differ by more than two frames.
    """
    check_rates(shift, student_shift)
    times = torch.arange(frames, device=states.device) * student_shift
    index = times.div(shift, rounding_mode="floor")
    slower = max(shift, student_shift)
    apart = (lengths * shift - student_lengths * student_shift).abs().max()
    if apart > 2 * slower:
        raise ValueError(f"teacher and student frames are {int(apart)} samples apart at the end of an utterance")
    valid = conv_lengths(lengths * shift, 1, student_shift)  # student frames whose time lies in a teacher's frame
    return states[:, :, index.clamp(max=states.shape[2] - 1)], torch.minimum(student_lengths, valid)
