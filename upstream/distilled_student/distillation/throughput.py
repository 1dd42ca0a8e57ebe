"""Training speed: seconds of audio and FLOPs per second, and their share of what the device can do (nanoGPT's MFU)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from distilled_student.distillation.targets import HALF_PRECISIONS, Teacher
from distilled_student.host.upstreams import StudentUpstream
from distilled_student.student.cost import macs_per_second, peak_flops
from distilled_student.student.network import Student


class _TeacherUpstream(nn.Module):
    """A teacher with the interface that `macs_per_second` calls: a list of waveforms."""

    def __init__(self, teacher: Teacher) -> None:
        super().__init__()
        self.teacher = teacher

    def forward(self, wavs: list[Tensor]) -> tuple[Tensor, Tensor]:
        return self.teacher(torch.stack(wavs))


class Throughput(NamedTuple):
    """Seconds of audio per second, FLOP/s, and the share of the device's peak FLOP/s."""

    audio: float
    flops: float
    share: float


@dataclass(frozen=True)
class Workload:
    """The operations that one second of audio takes in training, and the device's measured peak.

    Attributes:
        student: FLOPs per second of audio: the forward pass, and the backward pass, which counts twice.
        teacher: FLOPs per second of audio of the forward pass.
        student_peak, teacher_peak: FLOP/s of the fastest matrix product in the precision of each.

    Counted on one second of audio: longer utterances need a few per cent more, for attention.
    """

    student: float
    teacher: float
    student_peak: float
    teacher_peak: float

    def throughput(self, student_seconds: float, teacher_seconds: float, elapsed: float) -> Throughput:
        """The throughput of ``elapsed`` seconds of training.

        Args:
            student_seconds: Seconds of audio that the student was trained on.
            teacher_seconds: Seconds of audio that the teacher encoded: less where targets were cached.
        """
        student, teacher = student_seconds * self.student, teacher_seconds * self.teacher
        share = (student / self.student_peak + teacher / self.teacher_peak) / elapsed
        return Throughput(student_seconds / elapsed, (student + teacher) / elapsed, share)


def measure_workload(student: Student, teacher: Teacher, precision: str, device: torch.device) -> Workload:
    """Count the operations of both models and measure the device's peak. Takes less than a second.

    ``precision``: the student's, as in `DistillConfig`.
    """
    dtypes = [HALF_PRECISIONS.get(name, torch.float32) for name in (precision, teacher.precision)]
    peaks = {dtype: peak_flops(device, dtype) for dtype in dict.fromkeys(dtypes)}
    with torch.compiler.set_stance("force_eager"):  # operations of compiled layers cannot be counted
        student_macs, teacher_macs = (
            macs_per_second(StudentUpstream(student)),
            macs_per_second(_TeacherUpstream(teacher)),
        )
    # one multiply-accumulate is two FLOPs; the backward pass costs two forward passes
    return Workload(6.0 * student_macs, 2.0 * teacher_macs, *(peaks[dtype] for dtype in dtypes))
