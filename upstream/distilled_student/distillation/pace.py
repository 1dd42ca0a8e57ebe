"""How near a run comes to what its device can do, as nanoGPT's MFU tells it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from distilled_student.distillation.targets import HALVES, Teacher
from distilled_student.host.upstreams import StudentUpstream
from distilled_student.student.cost import macs_per_second, peak_flops
from distilled_student.student.network import Student


class _Layers(nn.Module):
    """A teacher as `macs_per_second` calls a model."""

    def __init__(self, teacher: Teacher) -> None:
        super().__init__()
        self.teacher = teacher

    def forward(self, wavs: list[Tensor]) -> tuple[Tensor, Tensor]:
        return self.teacher(torch.stack(wavs))


class Speed(NamedTuple):
    """Seconds of audio and FLOPs done in a second, and what share of the device's peak these are."""

    audio: float
    flops: float
    share: float


@dataclass(frozen=True)
class Pace:
    """Operations that a second of audio takes, and the device's measured peak for them.

    Attributes:
        student: FLOPs for a second of audio, forward and, twice that, backward. ``teacher``: forward alone. Attention
            over more than a second is left out: some per cent.
        student_peak, teacher_peak: FLOP/s of the largest products, in the precision of each.
    """

    student: float
    teacher: float
    student_peak: float
    teacher_peak: float

    def speed(self, heard: float, taught: float, elapsed: float) -> Speed:
        """Of ``heard`` seconds of audio by the student and ``taught`` by the teacher in ``elapsed`` seconds."""
        student, teacher = heard * self.student, taught * self.teacher
        share = (student / self.student_peak + teacher / self.teacher_peak) / elapsed
        return Speed(heard / elapsed, (student + teacher) / elapsed, share)


def measure_pace(student: Student, teacher: Teacher, precision: str, device: torch.device) -> Pace:
    """Count the operations of both and measure the device; takes a fraction of a second beside one of audio each."""
    dtypes = [HALVES.get(name, torch.float32) for name in (precision, teacher.precision)]
    peaks = {dtype: peak_flops(device, dtype) for dtype in dict.fromkeys(dtypes)}
    with torch.compiler.set_stance("force_eager"):  # compiled operations cannot be counted
        macs = macs_per_second(StudentUpstream(student)), macs_per_second(_Layers(teacher))
    return Pace(6.0 * macs[0], 2.0 * macs[1], *(peaks[dtype] for dtype in dtypes))
