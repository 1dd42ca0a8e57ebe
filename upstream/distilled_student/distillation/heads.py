"""The heads of further teachers, trained with the student; the first teacher's are the student's prediction layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from distilled_student.distillation.targets import Teacher, UtteranceTeacher
from distilled_student.student.config import StudentConfig
from distilled_student.student.lengths import frame_mask
from distilled_student.student.network import PredictionLayers, Student, StudentOutput


class LayersHead(nn.Module):
    """Predicts a teacher's hidden states from the student's last hidden state, as its prediction layers do."""

    def __init__(self, config: StudentConfig, layers: Sequence[int], features: int) -> None:
        super().__init__()
        self.predictions = PredictionLayers(replace(config, targets=list(layers), target_size=features))

    def forward(self, output: StudentOutput) -> Tensor:
        """-> ``(batch, layers, frames, features)``."""
        return self.predictions(output.last_hidden_state)


class UtteranceHead(nn.Module):
    """Predicts an utterance's embedding from a weighted sum of the student's hidden states.

    The weights are learned, positive, and their sum is 1. Mean and standard deviation over the valid frames are the
    input of a linear layer.
    """

    def __init__(self, config: StudentConfig, features: int) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(config.layers + 1))
        self.linear = nn.Linear(2 * config.hidden_size, features)

    def forward(self, output: StudentOutput) -> Tensor:
        """-> ``(batch, 1, 1, features)``: one target, one frame."""
        weights = self.weights.softmax(dim=0)
        x = sum(weight * states.float() for weight, states in zip(weights, output.hidden_states, strict=True))
        mask = frame_mask(output.lengths, x.shape[1], x.device)[:, :, None].to(x.dtype)
        count = mask.sum(dim=1, keepdim=True).clamp(min=1)
        mean = (x * mask).sum(dim=1, keepdim=True) / count
        variance = ((x - mean).square() * mask).sum(dim=1, keepdim=True) / count
        # the gradient of a root is infinite at 0
        return self.linear(torch.cat([mean, (variance + 1e-5).sqrt()], dim=2))[:, None]


def make_head(config: StudentConfig, teacher: Teacher | UtteranceTeacher) -> nn.Module:
    """The head of a student with this configuration for the targets of ``teacher``."""
    if isinstance(teacher, UtteranceTeacher):
        return UtteranceHead(config, teacher.features)
    return LayersHead(config, teacher.layers, teacher.features)


class StudentWithHeads(nn.Module):
    """What is trained: the student, and a head for each teacher after the first."""

    def __init__(self, student: Student, heads: Sequence[nn.Module] = ()) -> None:
        super().__init__()
        self.student, self.heads = student, nn.ModuleList(heads)

    def forward(self, waveforms: Tensor, lengths: Tensor) -> tuple[StudentOutput, list[Tensor]]:
        """The student's output, and for each teacher the predictions ``(batch, targets, frames, features)``."""
        output = self.student(waveforms, lengths)
        return output, [output.predictions, *(head(output) for head in self.heads)]
