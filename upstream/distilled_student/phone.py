"""Models for phones: ExecuTorch programs on XNNPACK, checked against PyTorch before they are written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from distilled_student import audio
from distilled_student.errors import UserError
from distilled_student.files import write_whole
from distilled_student.frontend import SAMPLE_RATE

if TYPE_CHECKING:
    from distilled_student.multitask.joint import JointModel

MAX_SECONDS = 10.0
TOLERANCE = 1e-4  # largest difference from PyTorch


class Utterance(nn.Module):
    """A joint model on one utterance without padding; a program has no batches, lengths or outputs that are None."""

    def __init__(self, model: JointModel) -> None:
        super().__init__()
        self.model = model

    def named(self, waveform: Tensor) -> dict[str, Tensor]:
        """``waveform (1, samples)`` -> of `JointOutput`, but ``frames``, what the model has."""
        output = self.model(waveform, torch.full((1,), waveform.shape[1]))._asdict()
        return {name: tensor for name, tensor in output.items() if name != "frames" and tensor is not None}

    def forward(self, waveform: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.named(waveform).values())


def lower(module: nn.Module, samples: tuple[int, int], constants: dict[str, Any]) -> bytes:
    """An ExecuTorch program whose ``forward`` is that of a module on ``(1, samples)``, from fewest to most samples.

    ``constants``: further methods without inputs, each of which returns an int, a float or a string.
    """
    try:
        from executorch.backends.xnnpack.partition.config import ALL_PARTITIONER_CONFIGS, BatchNormConfig
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower
        from executorch.exir.passes.constant_prop_pass import constant_prop_pass
    except ImportError:
        raise UserError("executorch: is not installed; pip install 'distilled-student[executorch]'") from None
    shapes = ({1: torch.export.Dim.DYNAMIC(min=samples[0], max=samples[1])},)
    program = torch.export.export(module, (torch.zeros(1, sum(samples) // 2),), dynamic_shapes=shapes)
    # Weight norm and the matrices of the Fourier transform are made once, here; decomposed first, since the pass does
    # not look into the block without autocast that the spectrum is in.
    program = constant_prop_pass(program.run_decompositions({}))
    # XNNPACK's batch norm is that of images; ours standardises one vector of pooled features
    known = [config for config in ALL_PARTITIONER_CONFIGS if config is not BatchNormConfig]
    lowered = to_edge_transform_and_lower(
        program, partitioner=[XnnpackPartitioner(configs=known)], constant_methods=constants
    )
    return lowered.to_executorch().buffer


def speech(samples: int) -> Tensor:
    """``(1, samples)`` of the speech that ships with the package, over again where it ends."""
    from distilled_student.demo.corpus import PACKED

    wave = audio.load(PACKED / "af_heart.ogg", duration=samples / SAMPLE_RATE)
    return wave.repeat(-(-samples // len(wave)))[None, :samples]


def check(program: bytes, module: Utterance, samples: tuple[int, int]) -> float:
    """The largest difference between a program and its module on speech of several lengths.

    Raises:
        UserError: it is more than `TOLERANCE`; names the output.
    """
    from executorch.runtime import Runtime

    loaded = Runtime.get().load_program(program)
    method, largest = loaded.load_method("forward"), 0.0
    shortest, longest = samples
    for count in (shortest, 7_777, SAMPLE_RATE, (shortest + longest) // 2 + 1, longest):
        wave = speech(min(count, longest))
        with torch.no_grad():
            expected = module.named(wave)
        for (name, tensor), found in zip(expected.items(), method.execute([wave]), strict=True):
            same = found.shape == tensor.shape
            difference = float((found - tensor).abs().max()) if same else float("inf")
            if not difference <= TOLERANCE:  # also where it is not a number
                seconds = wave.shape[1] / SAMPLE_RATE
                raise UserError(
                    f"{name}: differs by {difference:.1e} from PyTorch on {seconds:g} s; nothing is written"
                )
            largest = max(largest, difference)
    return largest


def export_executorch(model: JointModel, path: str | Path, max_seconds: float = MAX_SECONDS) -> float:
    """Write a model as an ExecuTorch program for CPUs (XNNPACK).

    ``forward`` takes one waveform ``(1, samples)``, float32 at 16 kHz in [-1, 1], of 0.1 s to ``max_seconds``, for
    which the program plans its memory; it returns ``hidden_state (1, frames, features)``, ``keyword_scores (1,
    classes)`` and ``speaker_embedding (1, embedding)``, those that the model has. Methods without inputs tell
    ``outputs`` and ``labels`` (JSON), ``sample_rate``, ``min_samples``, ``max_samples`` and, once fitted, ``slope`` and
    ``offset``, which make the cosine of two embeddings a log-likelihood ratio.

    Returns:
        The largest difference from PyTorch on real speech of several lengths.

    Raises:
        UserError: ExecuTorch is not installed, ``max_seconds`` is under 1, or the program differs from PyTorch.
    """
    from distilled_student.multitask.tasks import SHORTEST

    if not max_seconds >= 1.0:
        raise UserError(f"max_seconds: needs at least 1, found {max_seconds}")
    path, samples = Path(path), (SHORTEST, round(max_seconds * SAMPLE_RATE))
    module = Utterance(model).eval()
    constants: dict[str, Any] = {
        "outputs": json.dumps(list(module.named(speech(SHORTEST)))),
        "labels": json.dumps(model.labels),
        "sample_rate": SAMPLE_RATE,
        "min_samples": samples[0],
        "max_samples": samples[1],
    }
    if model.calibration is not None:
        constants |= dict(zip(("slope", "offset"), model.calibration, strict=True))
    program = lower(module, samples, constants)
    difference = check(program, module, samples)
    write_whole(path.parent, {path.name: program})
    return difference
