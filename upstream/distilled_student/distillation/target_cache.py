"""Teacher targets on disk, in half precision or in codes: later epochs do not need the teacher."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from distilled_student.common.audio import SAMPLE_RATE
from distilled_student.common.errors import UserError
from distilled_student.distillation.data.cuts import Batch
from distilled_student.distillation.targets import Teacher, UtteranceTeacher

log = logging.getLogger(__name__)
TENSOR, CHECKSUM = "targets", "sha256"  # keys of a file: its tensor, and the checksum in its metadata
VERSION = "2"  # raise it when a change of a teacher's code gives other hidden states for the same weights


def _checksum(states: Tensor) -> str:
    return hashlib.sha256(states.numpy()).hexdigest()


class TargetCache:
    """One file of ``(targets, frames, features)`` float16 per utterance, named by a hash of the utterance's samples.

    Each teacher, choice of layers and precision has a folder of its own, so that no targets are mixed up.

    Args:
        folder: Folder of all caches.
        fingerprint: The teacher's, see `Teacher.fingerprint`.
        where: What error messages begin with, ``FILE: cache``.
    """

    def __init__(self, folder: str | Path, fingerprint: str, where: str = "cache") -> None:
        self.where, self.folder = where, Path(folder) / f"{VERSION}-{fingerprint[:32]}"

    def reserve(self, seconds: float, teacher: Teacher | UtteranceTeacher, utterances: int = 0) -> None:
        """Log how large the cache of ``seconds`` of audio will be, and check that the disk has enough space.

        Args:
            utterances: Their number; a speaker encoder has one frame of each.

        Raises:
            UserError: the folder cannot be written, or its disk has too little space.
        """
        is_of_utterances = isinstance(teacher, UtteranceTeacher)
        frames = utterances if is_of_utterances else seconds * SAMPLE_RATE / teacher.encoder.frame_shift
        size = int(frames * teacher.target_count * self.bytes_per_frame(teacher))
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            stored = sum(file.stat().st_size for file in self.folder.glob("*/*.safetensors"))
            free = shutil.disk_usage(self.folder).free
        except OSError as error:
            raise UserError(f"{self.where}: {self.folder}: cannot be written ({error.strerror})") from None
        log.info("cache of targets in %s: needs %.2f GB, holds %.2f GB", self.folder, size / 1e9, stored / 1e9)
        if size - stored > free:
            space = f"needs {(size - stored) / 1e9:.2f} GB more, its disk has {free / 1e9:.2f} GB free"
            raise UserError(f"{self.where}: {self.folder}: {space}")

    def bytes_per_frame(self, teacher: Teacher | UtteranceTeacher) -> int:
        """Stored bytes of a frame of one target."""
        return teacher.features * torch.float16.itemsize

    def metadata(self) -> dict[str, str]:
        """What a file must say for its targets to be used."""
        return {}

    def pack(self, states: Tensor) -> Tensor:
        """``states (targets, frames, features)`` as they are stored, ``(targets, frames, ...)`` on the CPU.

        Raises:
            UserError: the states are too large for half precision.
        """
        half = states.to("cpu", torch.float16).contiguous()
        if not torch.isfinite(half).all():
            raise UserError(f"{self.where}: the teacher's hidden states are too large for half precision; remove cache")
        return half

    def unpack(self, stored: Tensor) -> Tensor:
        """Stored targets ``(batch, targets, frames, ...)`` as ``(batch, targets, frames, features)``."""
        return stored

    def _file(self, waveform: Tensor) -> Path:
        key = hashlib.sha256(waveform.contiguous().numpy()).hexdigest()
        return self.folder / key[:2] / f"{key[2:]}.safetensors"

    def read(self, waveform: Tensor) -> Tensor | None:
        """The cached targets of ``waveform (samples,)`` as they are stored, on the CPU.

        None if there are none or their file is damaged.
        """
        try:
            with safe_open(self._file(waveform), "pt") as file:
                states, found = file.get_tensor(TENSOR), file.metadata() or {}
        except (OSError, SafetensorError):
            return None
        return states if found == {CHECKSUM: _checksum(states), **self.metadata()} else None

    def write(self, waveform: Tensor, states: Tensor) -> Tensor:
        """Store ``states (targets, frames, features)`` of ``waveform (samples,)``; returns them as they are stored.

        Raises:
            UserError: the states cannot be stored, or the disk is full.
        """
        stored = self.pack(states)
        self.replace_file(
            self._file(waveform), save({TENSOR: stored}, {CHECKSUM: _checksum(stored), **self.metadata()})
        )
        return stored

    def replace_file(self, file: Path, content: bytes) -> None:
        """Write a file of the cache completely or not at all, so that other processes can read it at any time.

        Raises:
            UserError: it cannot be written.
        """
        temporary = file.with_suffix(f".{os.getpid()}")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(content)
            os.replace(temporary, file)
        except OSError as error:
            raise UserError(f"{self.where}: {file}: cannot be written ({error.strerror})") from None

    def targets(self, batch: Batch, waveforms: Tensor, teacher: Teacher | UtteranceTeacher) -> tuple[Tensor, Tensor]:
        """The result of ``teacher(waveforms, batch.lengths)`` as far as the stored targets keep it.

        The teacher encodes only the utterances without cached targets, and these are then stored.

        Args:
            waveforms: The batch's waveforms, on the teacher's device.
        """
        found = list(batch.targets)
        if uncached := [row for row, targets in enumerate(found) if targets is None]:
            lengths = batch.lengths[uncached]
            states, frames = teacher(waveforms[uncached, : int(lengths.max())], lengths)
            for row, targets, count in zip(uncached, states, frames.tolist(), strict=True):
                found[row] = self.write(batch.waveforms[row, : batch.lengths[row]], targets[:, :count])
        frames = torch.tensor([targets.shape[1] for targets in found])
        padded = found[0].new_zeros(len(found), teacher.target_count, int(frames.max()), *found[0].shape[2:])
        for row, targets in enumerate(found):
            padded[row, :, : targets.shape[1]] = targets
        return self.unpack(padded.to(waveforms.device, non_blocking=True)), frames
