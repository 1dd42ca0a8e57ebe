"""Speaker encoders in ONNX files, ours among them: run by onnxruntime on the CPU."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from distilled_student.common.errors import UserError, short_reason
from distilled_student.common.sample_rate import SAMPLE_RATE
from distilled_student.teachers.early_checks import EXPORT_EXTRA
from distilled_student.teachers.speaker_encoder import SpeakerEncoder

if TYPE_CHECKING:
    from onnx import TensorProto
    from onnxruntime import InferenceSession

EMBEDDING = "speaker_embedding"  # the output of the graphs that this package exports


def open_graph(file: Path) -> tuple[InferenceSession, Sequence[TensorProto]]:
    """A session on the CPU with as many threads as torch, and the graph's constants without those of other files.

    Raises:
        UserError: onnxruntime or onnx is missing, or the file is damaged.
    """
    try:
        import onnx
        import onnxruntime
    except ImportError as error:
        raise UserError(f"{file}: {error.name} is not installed; {EXPORT_EXTRA}") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        return session, onnx.load(str(file), load_external_data=False).graph.initializer
    except Exception as error:  # a damaged file can raise anything
        raise UserError(f"{file}: cannot be read as an ONNX model ({short_reason(error)})") from None


class OnnxEncoder(SpeakerEncoder):
    """An ONNX graph of waveforms, ``(batch, samples)`` or ``(samples,)``, and possibly of their lengths, ``(batch,)``.

    Raises:
        UserError: onnxruntime or onnx is missing, or the graph has other inputs or outputs.
    """

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.file = file
        self.session, weights = open_graph(file)
        self.values = sum(math.prod(weight.dims) for weight in weights)
        stored = {entry.value for weight in weights for entry in weight.external_data if entry.key == "location"}
        self.files = [file, *(file.parent / name for name in sorted(stored))]
        self._find_inputs()
        self.output = self._find_output()
        try:
            self.embedding_size = self.embed(0.01 * torch.ones(1, SAMPLE_RATE)).shape[1]
        except UserError:
            raise
        except Exception as error:  # of the runtime: any exception
            raise UserError(f"{file}: cannot embed a second of audio ({short_reason(error)})") from None

    def _find_inputs(self) -> None:
        """Which inputs are the waveforms and the lengths, and whether the waveforms have a dimension of utterances."""
        inputs = self.session.get_inputs()
        waves = [found for found in inputs if found.type == "tensor(float)" and len(found.shape) in (1, 2)]
        lengths = [found for found in inputs if found.type == "tensor(int64)" and len(found.shape) == 1]
        if len(waves) != 1 or len(waves) + len(lengths) != len(inputs) or len(lengths) > 1:
            found = ", ".join(f"{one.name} {one.type} {one.shape}" for one in inputs)
            wanted = "waveforms (batch, samples) of float, and at most lengths (batch,) of int64"
            raise UserError(f"{self.file}: is not a speaker encoder: needs the inputs {wanted}, has {found}")
        if isinstance(waves[0].shape[-1], int):
            raise UserError(f"{self.file}: takes only {waves[0].shape[-1]} samples; needs a graph for any length")
        self.waveforms, self.lengths = waves[0].name, lengths[0].name if lengths else None
        self.has_batches = len(waves[0].shape) == 2
        self.one_by_one = not self.has_batches or waves[0].shape[0] == 1

    def _find_output(self) -> str:
        names = [output.name for output in self.session.get_outputs()]
        if EMBEDDING in names or len(names) == 1:
            return EMBEDDING if EMBEDDING in names else names[0]
        if len(embeddings := [name for name in names if "embed" in name.lower()]) == 1:
            return embeddings[0]
        raise UserError(f"{self.file}: which output is the embedding? None of {', '.join(names)} is {EMBEDDING}")

    def _run(self, waveforms: Tensor, lengths: Tensor) -> Tensor:
        """A batch that the graph takes as it is."""
        samples = waveforms.detach().float().cpu().numpy()
        inputs = {self.waveforms: samples if self.has_batches else samples[0]}
        if self.lengths is not None:
            inputs[self.lengths] = lengths.cpu().numpy().astype(np.int64)
        found = torch.from_numpy(np.asarray(self.session.run([self.output], inputs)[0])).float()
        if found.numel() % len(waveforms) or not torch.isfinite(found).all() or found.dim() == 0:
            raise UserError(f"{self.file}: {self.output}: is not a finite embedding, shape {tuple(found.shape)}")
        return found.reshape(len(waveforms), -1).to(waveforms.device)

    def embed(self, waveforms: Tensor) -> Tensor:
        lengths = torch.full((len(waveforms),), waveforms.shape[1])
        if not self.one_by_one:
            return self._run(waveforms, lengths)
        rows = zip(waveforms.split(1), lengths.split(1), strict=True)
        return torch.cat([self._run(waveform, length) for waveform, length in rows])

    def forward(self, waveforms: Tensor, lengths: Tensor | None = None) -> Tensor:
        if lengths is not None and self.lengths is not None and not self.one_by_one:
            return self._run(waveforms, lengths)  # the graph leaves the padding out itself
        return super().forward(waveforms, lengths)

    def fingerprint(self) -> dict[str, Any]:
        """Number of values in the graph's constants, and the hash of its files."""
        digest = hashlib.sha256()
        for file in self.files:
            digest.update(file.read_bytes())
        return {"values": self.values, "sha256": digest.hexdigest()}

    def settings(self) -> str:
        return self.output

    def parameter_count(self) -> int:
        return self.values

    def macs_per_second(self) -> None:
        return None
