"""Teacher targets on disk in codes of a few bytes for each frame and layer, and the codebooks that they belong to."""

from __future__ import annotations

import hashlib
import json
import logging
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from lhotse.cut import Cut
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from distilled_student.common.audio import SAMPLE_RATE
from distilled_student.common.errors import UserError
from distilled_student.distillation.data.cuts import decode_cut
from distilled_student.distillation.quantizer import Quantizer, train_quantizer
from distilled_student.distillation.target_cache import TargetCache
from distilled_student.distillation.targets import Teacher

log = logging.getLogger(__name__)
FILE, PARTS = "codebooks.safetensors", ("mean", "scale", "rotation", "entries")  # of a `Quantizer`, one for each target
CODEBOOKS, REPORT = "codebooks", "errors"  # keys of the metadata
MEASURED = 10  # every tenth utterance of the sample measures the error, the others train the codebooks


class QuantizationError(NamedTuple):
    """What a layer loses in codes, on utterances that its codebooks were not trained on.

    Attributes:
        lost: Variance of the error over the variance of the hidden states, mean over features.
        l1: Mean absolute error of a feature. cosine: Mean cosine similarity of frames.
    """

    lost: float
    l1: float
    cosine: float

    def __str__(self) -> str:
        return f"{self.lost:.1%} of the variance lost, L1 {self.l1:.4f}, cosine similarity {self.cosine:.4f}"


def quantization_error(states: Tensor, decoded: Tensor) -> QuantizationError:
    """The error of ``decoded (frames, features)``, see `QuantizationError`."""
    error = (decoded - states).square().mean(dim=0) / states.var(dim=0, correction=0).clamp(min=1e-12)
    l1, cosine = (decoded - states).abs().mean(), torch.cosine_similarity(decoded, states, dim=1).mean()
    return QuantizationError(float(error.mean()), float(l1), float(cosine))


class CodeCache(TargetCache):
    """One file of codes ``(targets, frames, bytes)`` for each utterance; the student is trained on what they decode to.

    The codebooks are in the same folder. A file of codes names them, so that codes of other codebooks are not used.

    Args:
        folder, fingerprint, where: See `TargetCache`.
        codes: Bytes for each frame and target: the number of codebooks.

    Attributes:
        quantizers: Of each target; empty before `prepare`.
        errors: Of each target.
        version: A hash of the codebooks.
    """

    def __init__(self, folder: str | Path, fingerprint: str, codes: int, where: str = "cache") -> None:
        super().__init__(folder, fingerprint, where)
        self.codes, self.folder = codes, self.folder.with_name(f"{self.folder.name}-codes{codes}")
        self.quantizers: list[Quantizer] = []
        self.errors: list[QuantizationError] = []
        self.version = ""

    def bytes_per_frame(self, teacher: Teacher) -> int:
        return self.codes

    def metadata(self) -> dict[str, str]:
        return {CODEBOOKS: self.version}

    def pack(self, states: Tensor) -> Tensor:
        self._check_finite(states)
        of_targets = zip(self.quantizers, states.float(), strict=True)
        return torch.stack([quantizer.encode(target) for quantizer, target in of_targets]).cpu()

    def unpack(self, stored: Tensor) -> Tensor:
        return torch.stack([quantizer.decode(stored[:, i]) for i, quantizer in enumerate(self.quantizers)], dim=1)

    def _check_finite(self, states: Tensor) -> None:
        if not torch.isfinite(states).all():
            raise UserError(f"{self.where}: the teacher's hidden states are not finite; remove cache")

    # the codebooks

    def prepare(self, cuts: Sequence[Cut], seconds: float, teacher: Teacher, device: torch.device) -> None:
        """Read the codebooks from the folder. If there are none, train them on ``seconds`` of the cuts and store them.

        The cuts are drawn at random, always the same ones of the same corpus.

        Raises:
            UserError: no cut can be read, hidden states are not finite, or the folder cannot be written.
        """
        file = self.folder / FILE
        if not self._read(file, device):
            used = min(seconds, sum(cut.duration for cut in cuts))
            log.info("training codebooks of %d bytes a frame on %.0f s of audio", self.codes, used)
            self._train(cuts, seconds, teacher, device)
            self._write(file)
            if not self._read(file, device):
                raise UserError(f"{self.where}: {file}: cannot be read after it was written; check the disk")
        for layer, error in zip(teacher.layers, self.errors, strict=True):
            log.info("codes of layer %d: %s", layer, error)

    def _train(self, cuts: Sequence[Cut], seconds: float, teacher: Teacher, device: torch.device) -> None:
        sample = list(_encoded(cuts, seconds, teacher, device))
        if not sample:
            raise UserError(f"{self.where}: no file could be read to train codebooks on")
        for states in sample:
            self._check_finite(states)
        measured = sample[::MEASURED] if len(sample) > 1 else sample
        trained = [states for i, states in enumerate(sample) if i % MEASURED] or sample
        for target in range(teacher.target_count):
            quantizer = train_quantizer(torch.cat([states[target] for states in trained]), self.codes)
            states = torch.cat([states[target] for states in measured])
            self.errors.append(quantization_error(states, quantizer.decode(quantizer.encode(states))))
            self.quantizers.append(quantizer)

    def _write(self, file: Path) -> None:
        parts = {name: torch.stack([getattr(q, name) for q in self.quantizers]).cpu() for name in PARTS}
        self.replace_file(file, save(parts, {CODEBOOKS: _version(parts), REPORT: json.dumps(self.errors)}))

    def _read(self, file: Path, device: torch.device) -> bool:
        """Whether the folder has undamaged codebooks; they are then used."""
        try:
            with safe_open(file, "pt") as stored:
                parts = {name: stored.get_tensor(name).to(device) for name in PARTS}
                metadata = stored.metadata() or {}
        except (OSError, SafetensorError):
            return False
        self.version = _version(parts)
        if metadata.get(CODEBOOKS) != self.version:
            return False
        self.quantizers = [Quantizer(*of_target) for of_target in zip(*(parts[name] for name in PARTS), strict=True)]
        self.errors = [QuantizationError(*values) for values in json.loads(metadata[REPORT])]
        return True


def _version(parts: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in PARTS:
        digest.update(parts[name].cpu().contiguous().numpy())
    return digest.hexdigest()


def _encoded(cuts: Sequence[Cut], seconds: float, teacher: Teacher, device: torch.device) -> Iterator[Tensor]:
    """Hidden states ``(targets, frames, features)`` of cuts of ``seconds`` together, drawn without repetition."""
    order, drawn = list(range(len(cuts))), 0.0
    random.Random(0).shuffle(order)
    for index in order:
        if drawn >= seconds:
            return
        try:
            waveform = decode_cut(cuts[index])
        except Exception:  # for a damaged file lhotse can raise any exception; the training names it
            continue
        drawn += len(waveform) / SAMPLE_RATE
        states, frames = teacher(waveform[None].to(device), torch.tensor([len(waveform)]))
        yield states[0, :, : int(frames[0])].float()
