"""A teacher of a run: it gives the targets of each batch, live or cached, at the times of the student's frames."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distilled_student.common.errors import UserError
from distilled_student.common.provenance import weights_fingerprint
from distilled_student.distillation.code_cache import CodeCache
from distilled_student.distillation.config import DistillConfig, TeacherConfig
from distilled_student.distillation.data.cuts import Batch
from distilled_student.distillation.target_cache import TargetCache
from distilled_student.distillation.targets import Teacher, UtteranceTeacher, align, check_frame_shifts
from distilled_student.student.config import StudentConfig
from distilled_student.teachers.encoders import Encoder
from distilled_student.teachers.open import open_speaker_encoder, open_teacher
from distilled_student.teachers.speaker_encoder import SpeakerEncoder


def open_encoder(settings: TeacherConfig, where: str | Path) -> Encoder | SpeakerEncoder:
    """The model of a teacher. Raises UserError, with ``where`` at the beginning, if it cannot be opened."""
    try:
        return (open_speaker_encoder if settings.embeds_utterances else open_teacher)(settings.teacher)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def short_names(teachers: Sequence[TeacherConfig]) -> list[str]:
    """A name of each teacher for logs: the last part of its path, with a number if another one has the same."""
    names: list[str] = []
    for teacher in teachers:
        name = os.path.basename(os.path.normpath(teacher.teacher))
        same = sum(found == name or found.startswith(f"{name} (") for found in names)
        names.append(f"{name} ({same + 1})" if same else name)
    return names


class TargetSource:
    """One teacher of a run.

    Args:
        name: For logs, see `short_names`.
        settings: The teacher's settings.
        config: The run's settings.
        encoder: See `open_encoder`. Its layers above the targets are deleted.
        student: The student's configuration.
        device: Where the teacher computes.
        where: The settings file, for error messages.

    Attributes:
        cache: Of training targets; None without ``cache`` in the settings.
        held_out_cache: Of targets of held-out audio, always in half precision.
        weight: Of its loss.
        provenance: Name, revision, number and hash of its weights.
        target_names: ``layer 4`` or ``utterance``, for each target.

    Raises:
        UserError: the targets do not exist or do not fit the student.
    """

    def __init__(
        self,
        name: str,
        settings: TeacherConfig,
        config: DistillConfig,
        encoder: Encoder | SpeakerEncoder,
        student: StudentConfig,
        device: torch.device,
        where: str | Path,
    ) -> None:
        self.name, self.weight, self.student, self.where = name, settings.weight, student, where
        is_speaker_encoder = isinstance(encoder, SpeakerEncoder)
        # before the teacher's last layers are deleted
        fingerprint = encoder.fingerprint() if is_speaker_encoder else weights_fingerprint(encoder)
        self.provenance: dict[str, Any] = {"name": settings.teacher, "revision": encoder.revision, **fingerprint}
        self.offset: float | None = None
        self.teacher: Teacher | UtteranceTeacher
        try:
            if is_speaker_encoder:
                self.target_names = ["utterance"]
                self.teacher = UtteranceTeacher(encoder, config.teacher_precision).to(device)
            else:
                self.target_names = [f"layer {layer}" for layer in settings.targets]
                check_frame_shifts(encoder.frame_shift, student.frame_shift)
                self.offset = self._offset(encoder, config.align)
                self.teacher = Teacher(encoder, settings.targets, config.teacher_precision).to(device)
        except (ValueError, UserError) as error:
            which = f"{settings.teacher}: " if len(config.teachers) > 1 else ""
            raise UserError(f"{where}: {which}{error}") from None
        self.cache: TargetCache | None = None
        self.held_out_cache: TargetCache | None = None
        if config.cache:
            place = config.cache, self.teacher.fingerprint()
            self.cache = self.held_out_cache = TargetCache(*place, where=f"{where}: cache")
            if config.cache_codes and isinstance(self.teacher, Teacher):
                self.cache = CodeCache(*place, config.cache_codes, f"{where}: cache")

    def _offset(self, encoder: Encoder, align: str) -> float | None:
        """Samples from the centre of the teacher's first frame to that of the student's; None for ``align: number``."""
        if align == "number":
            return None
        if encoder.first_centre is None:
            raise ValueError("align: centre: where the teacher's frames are centred is not known; use number")
        return self.student.first_centre - encoder.first_centre

    def targets(self, batch: Batch, number: int, waveforms: Tensor, held_out: bool = False) -> tuple[Tensor, Tensor]:
        """The targets of a batch ``(batch, targets, frames, features)`` and their lengths, at the teacher's frame rate.

        An utterance's embedding is one frame.

        Args:
            number: Position of this teacher among those of the run.
            waveforms: The batch's waveforms, on the teacher's device.
            held_out: Whether the audio is held out: its targets are never in codes.
        """
        cache = self.held_out_cache if held_out else self.cache
        if cache is None:
            return self.teacher(waveforms, batch.lengths)
        cached = [None if found is None else found[number] for found in batch.targets]
        return cache.targets(replace(batch, targets=cached), waveforms, self.teacher)

    def align(self, targets: Tensor, lengths: Tensor, student_lengths: Tensor, frames: int) -> tuple[Tensor, Tensor]:
        """The targets at the times of the student's frames, and ``(batch,)`` valid frames, see `align`.

        Args:
            targets, lengths: From `targets`.
            student_lengths: ``(batch,)`` valid frames of the student.
            frames: The student's frames, padding included.

        Raises:
            UserError: the teacher's frames and the student's are too far apart at the end of an utterance.
        """
        if isinstance(self.teacher, UtteranceTeacher):
            return targets, lengths
        shift, student_shift = self.teacher.encoder.frame_shift, self.student.frame_shift
        try:
            return align(targets, lengths, shift, student_lengths, student_shift, frames, self.offset)
        except ValueError as error:
            raise UserError(f"{self.where}: teacher {self.provenance['name']}: {error}") from None


def read_cached(caches: Sequence[TargetCache], waveform: Tensor) -> list[Tensor | None]:
    """The cached targets of a waveform for each teacher, see `TargetCache.read`."""
    return [cache.read(waveform) for cache in caches]
