"""Teacher targets on disk, in half precision: a second epoch over a small set does without the teacher."""

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
from distilled_student.distillation.targets import Teacher

log = logging.getLogger(__name__)
NAME, CHECKSUM = "targets", "sha256"
FORM = "2"  # raise the form when a teacher's code gives other states for the same weights


def _checksum(states: Tensor) -> str:
    return hashlib.sha256(states.numpy()).hexdigest()


class TargetCache:
    """A file of ``(targets, frames, features)`` float16 for each piece of audio, named by a hash of its samples.

    Those of another teacher, other layers or another precision lie in a folder of their own: none is taken for another.

    Args:
        folder: For all caches.
        fingerprint: Of the teacher, see `Teacher.fingerprint`.
        where: What messages begin with, ``FILE: cache``.
    """

    def __init__(self, folder: str | Path, fingerprint: str, where: str = "cache") -> None:
        self.where, self.folder = where, Path(folder) / f"{FORM}-{fingerprint[:32]}"

    def reserve(self, seconds: float, teacher: Teacher) -> None:
        """Say how large the cache of ``seconds`` of audio will be.

        Raises:
            UserError: the folder cannot be written, or its disk has not enough room; one line.
        """
        features, frames = teacher.encoder.hidden_size, seconds * SAMPLE_RATE / teacher.encoder.frame_shift
        size = int(frames * features * len(teacher.layers) * torch.float16.itemsize)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            there = sum(file.stat().st_size for file in self.folder.glob("*/*.safetensors"))
            free = shutil.disk_usage(self.folder).free
        except OSError as error:
            raise UserError(f"{self.where}: {self.folder}: cannot be written ({error.strerror})") from None
        log.info("cache of targets in %s: %.2f GB, %.2f GB of it are there", self.folder, size / 1e9, there / 1e9)
        if size - there > free:
            needed = f"needs {(size - there) / 1e9:.2f} GB more, its disk has {free / 1e9:.2f}"
            raise UserError(f"{self.where}: {self.folder}: {needed}")

    def _file(self, waveform: Tensor) -> Path:
        key = hashlib.sha256(waveform.contiguous().numpy()).hexdigest()
        return self.folder / key[:2] / f"{key[2:]}.safetensors"

    def read(self, waveform: Tensor) -> Tensor | None:
        """The targets of ``(samples,)`` on the CPU; None where there are none, or their file is damaged."""
        try:
            with safe_open(self._file(waveform), "pt") as file:
                states, noted = file.get_tensor(NAME), (file.metadata() or {}).get(CHECKSUM)
        except (OSError, SafetensorError):
            return None
        return states if noted == _checksum(states) else None

    def write(self, waveform: Tensor, states: Tensor) -> Tensor:
        """Keep ``(targets, frames, features)`` of ``waveform``; beside its place, then renamed. Returns what was kept.

        Raises:
            UserError: the states are too large for half precision, or the disk is full; one line.
        """
        half = states.to("cpu", torch.float16).contiguous()
        if not torch.isfinite(half).all():
            raise UserError(f"{self.where}: the teacher's hidden states are too large for half precision; go without")
        file = self._file(waveform)
        part = file.with_suffix(f".{os.getpid()}")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            part.write_bytes(save({NAME: half}, {CHECKSUM: _checksum(half)}))
            os.replace(part, file)
        except OSError as error:
            raise UserError(f"{self.where}: {file}: cannot be written ({error.strerror})") from None
        return half

    def targets(self, batch: Batch, waveforms: Tensor, teacher: Teacher) -> tuple[Tensor, Tensor]:
        """What ``teacher(waveforms, batch.lengths)`` gives, in half precision; asked only for what is not there.

        ``waveforms``: the batch's, on the teacher's device.
        """
        kept = list(batch.targets)
        if missing := [row for row, found in enumerate(kept) if found is None]:
            lengths = batch.lengths[missing]
            states, frames = teacher(waveforms[missing, : int(lengths.max())], lengths)
            for row, own, count in zip(missing, states, frames.tolist(), strict=True):
                kept[row] = self.write(batch.waveforms[row, : batch.lengths[row]], own[:, :count])
        frames = torch.tensor([own.shape[1] for own in kept])
        padded = kept[0].new_zeros(len(kept), len(teacher.layers), int(frames.max()), teacher.encoder.hidden_size)
        for row, own in enumerate(kept):
            padded[row, :, : own.shape[1]] = own
        return padded.to(waveforms.device, non_blocking=True), frames
