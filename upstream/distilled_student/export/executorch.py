"""Models for phones: ExecuTorch programs on XNNPACK, checked against PyTorch before they are written."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distilled_student.common.errors import UserError
from distilled_student.common.files import write_files
from distilled_student.common.sample_rate import SAMPLE_RATE
from distilled_student.export.graph import compare

if TYPE_CHECKING:
    from distilled_student.multitask.device_model import JointModel

MAX_SECONDS = 10.0


class Utterance(nn.Module):
    """A joint model on one utterance without padding; a program has no batches, lengths or outputs that are None."""

    def __init__(self, model: JointModel) -> None:
        super().__init__()
        self.model = model

    def named(self, waveform: Tensor) -> dict[str, Tensor]:
        """``waveform (1, samples)`` -> of `JointOutput`, but ``frames``, what the model has."""
        output = self.model(waveform, torch.full((1,), waveform.shape[1])).named()
        return {name: tensor for name, tensor in output.items() if name != "frames"}

    def forward(self, waveform: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.named(waveform).values())


def lower(module: nn.Module, samples: tuple[int, int], constants: Mapping[str, str]) -> bytes:
    """An ExecuTorch program whose ``forward`` is that of a module on ``(1, samples)``, from fewest to most samples.

    ``constants``: what further methods, without inputs, return.
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
    # Weight norm is done once, here; decomposed first, since the pass does not look into the block without autocast.
    program = constant_prop_pass(program.run_decompositions({}))
    # XNNPACK's batch norm is that of images; ours standardises one vector of pooled features
    known = [config for config in ALL_PARTITIONER_CONFIGS if config is not BatchNormConfig]
    lowered = to_edge_transform_and_lower(
        program, partitioner=[XnnpackPartitioner(configs=known)], constant_methods=dict(constants)
    )
    return lowered.to_executorch().buffer


def check(program: bytes, module: Utterance, waveforms: Iterable[Tensor]) -> float:
    """The largest difference between a program and its module on ``(samples,)`` each.

    Raises:
        UserError: it is too large, see `compare`.
    """
    from executorch.runtime import Runtime

    loaded = Runtime.get().load_program(program)
    method, largest = loaded.load_method("forward"), 0.0
    for wave in waveforms:
        with torch.no_grad():
            expected = module.named(wave[None])
        for (name, tensor), found in zip(expected.items(), method.execute([wave[None]]), strict=True):
            largest = max(largest, compare(name, tensor, found, f"on {len(wave)} samples"))
    return largest


def fitting(waveforms: Sequence[Tensor], shortest: int, longest: int) -> Iterator[Tensor]:
    """Each, cut or filled up with silence to what a program takes; then as much of all of them as it takes at most."""
    for wave in waveforms:
        yield F.pad(wave[:longest], (0, max(0, shortest - len(wave))))
    wave = torch.cat(list(waveforms))
    yield wave.repeat(-(-longest // len(wave)))[:longest]


def export_executorch(
    model: JointModel, path: str | Path, max_seconds: float = MAX_SECONDS, checkpoint: str = ""
) -> float:
    """Write a model as an ExecuTorch program for CPUs (XNNPACK).

    ``forward`` takes one waveform ``(1, samples)``, float32 at 16 kHz in [-1, 1], of 0.1 s to ``max_seconds``, for
    which the program plans its memory; it returns ``hidden_state (1, frames, features)``, ``keyword_scores (1,
    classes)`` and ``speaker_embedding (1, embedding)``, those that the model has. Further methods, without inputs, tell
    their names (``outputs``, JSON), ``longest``, the most samples, and the metadata of `export_onnx`, all as text.

    Args:
        checkpoint: Its name, for the metadata.

    Returns:
        The largest difference from PyTorch on speech of many lengths.

    Raises:
        UserError: ExecuTorch is not installed, ``max_seconds`` is under 1, or the program differs from PyTorch.
    """
    from distilled_student.export.utterance import describe, recordings, size
    from distilled_student.multitask.device_model import thresholds
    from distilled_student.multitask.tasks.base import SHORTEST

    if not max_seconds >= 1.0:
        raise UserError(f"max_seconds: needs at least 1, found {max_seconds}")
    path, longest = Path(path), round(max_seconds * SAMPLE_RATE)
    module, waveforms = Utterance(model).eval(), recordings(model)
    about = describe(model, checkpoint, "float32", thresholds(model, model))
    about |= {"outputs": json.dumps(list(module.named(waveforms[-1][None]))), "longest": str(longest)}
    program = lower(module, (SHORTEST, longest), about)
    difference = check(program, module, fitting(waveforms, SHORTEST, longest))
    write_files(path.parent, {path.name: program})
    print(f"{path}: {size(path)}, at most {difference:.1e} from PyTorch on {len(waveforms)} utterances")
    return difference
