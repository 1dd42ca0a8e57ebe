"""Training speed: seconds of audio and FLOPs per second, and their share of what the device can do (nanoGPT's MFU)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from distilled_student.distillation.targets import HALF_PRECISIONS, Teacher, UtteranceTeacher
from distilled_student.host.upstreams import StudentUpstream
from distilled_student.student.cost import TakesList, macs_per_second, parameters, peak_flops, real_time_factor
from distilled_student.student.network import Student


class TeacherCost(NamedTuple):
    """Parameters; multiply-accumulates (None if unknown) and seconds of work for a second of audio."""

    parameters: int
    macs: int | None
    seconds: float


def teacher_cost(teacher: Teacher | UtteranceTeacher) -> TeacherCost:
    """The cost of the layers that a teacher computes, measured on its device on two seconds of audio."""
    encoder = teacher.encoder
    count = encoder.parameter_count() if isinstance(teacher, UtteranceTeacher) else parameters(encoder)
    return TeacherCost(count, _macs(teacher), real_time_factor(TakesList(teacher), seconds=2.0, repeats=3))


def _macs(teacher: Teacher | UtteranceTeacher) -> int | None:
    """Multiply-accumulates for a second of audio; None if they cannot be counted."""
    if isinstance(teacher, UtteranceTeacher):
        return teacher.encoder.macs_per_second()
    return macs_per_second(TakesList(teacher)) or None  # 0 if torch does not compute it


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
        teacher: FLOPs per second of audio of the forward pass of all teachers; those that cannot be counted are 0.
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


def measure_workload(
    student: Student, teachers: Sequence[Teacher | UtteranceTeacher], precision: str, device: torch.device
) -> Workload:
    """Count the operations of all models and measure the device's peak. Takes less than a second.

    ``precision``: the student's, as in `DistillConfig`; the teachers have one precision.
    """
    dtypes = [HALF_PRECISIONS.get(name, torch.float32) for name in (precision, teachers[0].precision)]
    peaks = {dtype: peak_flops(device, dtype) for dtype in dict.fromkeys(dtypes)}
    with torch.compiler.set_stance("force_eager"):  # operations of compiled layers cannot be counted
        student_macs = macs_per_second(StudentUpstream(student))
        teacher_macs = sum(_macs(teacher) or 0 for teacher in teachers)
    # one multiply-accumulate is two FLOPs; the backward pass costs two forward passes
    return Workload(6.0 * student_macs, 2.0 * teacher_macs, *(peaks[dtype] for dtype in dtypes))
