"""Exports a model as an ExecuTorch program for CPUs (XNNPACK), compared with PyTorch before it is written."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distilled_student.common.errors import UserError
from distilled_student.common.files import write_files
from distilled_student.common.sample_rate import SAMPLE_RATE
from distilled_student.export.graph import compare, file_metadata, file_size, speech_samples, with_halves
from distilled_student.multitask.device_model import JointModel, calibrate_speakers_on_device, thresholds
from distilled_student.multitask.tasks.base import SHORTEST

MAX_SECONDS = 10.0


class SingleUtterance(nn.Module):
    """A joint model for one utterance without padding: a program has no batches, no lengths and no dictionaries."""

    def __init__(self, model: JointModel) -> None:
        super().__init__()
        self.model = model

    def named_outputs(self, waveform: Tensor) -> dict[str, Tensor]:
        """``waveform (1, samples)`` -> the outputs of `JointOutput` by name, without ``frames``."""
        output = self.model(waveform).named()
        return {name: tensor for name, tensor in output.items() if name != "frames"}

    def forward(self, waveform: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.named_outputs(waveform).values())


def compile_program(module: nn.Module, shortest: int, longest: int, constants: Mapping[str, str]) -> bytes:
    """An ExecuTorch program whose ``forward`` computes that of the module.

    Args:
        module: Takes a waveform ``(1, samples)``.
        shortest, longest: Fewest and most samples that the program takes.
        constants: Further methods, without inputs, and the text that each returns.

    Raises:
        UserError: ExecuTorch is not installed.
    """
    try:
        from executorch.backends.xnnpack.partition.config import ALL_PARTITIONER_CONFIGS, BatchNormConfig
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower
        from executorch.exir.passes.constant_prop_pass import constant_prop_pass
    except ImportError:
        raise UserError("executorch: is not installed; pip install 'distilled-student[executorch]'") from None
    shapes = ({1: torch.export.Dim.DYNAMIC(min=shortest, max=longest)},)
    example = torch.zeros(1, (shortest + longest) // 2)
    program = torch.export.export(module, (example,), dynamic_shapes=shapes)
    # Computes weight norm once, at export. Decompositions come first: the pass skips the block without autocast.
    program = constant_prop_pass(program.run_decompositions({}))
    # XNNPACK's batch norm takes images only; ours standardises one vector of pooled features.
    configs = [config for config in ALL_PARTITIONER_CONFIGS if config is not BatchNormConfig]
    lowered = to_edge_transform_and_lower(
        program, partitioner=[XnnpackPartitioner(configs=configs)], constant_methods=dict(constants)
    )
    return lowered.to_executorch().buffer


def check_program(program: bytes, module: SingleUtterance, waveforms: Iterable[Tensor]) -> float:
    """The largest difference between the outputs of a program and of its module, over waveforms ``(samples,)``.

    Raises:
        UserError: the difference is too large, see `compare`.
    """
    from executorch.runtime import Runtime

    loaded = Runtime.get().load_program(program)  # must live as long as its method
    method, largest = loaded.load_method("forward"), 0.0
    for waveform in waveforms:
        with torch.no_grad():
            expected = module.named_outputs(waveform[None])
        for (name, tensor), found in zip(expected.items(), method.execute([waveform[None]]), strict=True):
            largest = max(largest, compare(name, tensor, found, f"on {len(waveform)} samples"))
    return largest


def fit_lengths(waveforms: Sequence[Tensor], shortest: int, longest: int) -> Iterator[Tensor]:
    """Waveforms whose lengths a program takes: each one cut or padded with silence, and one of the largest length.

    The last one repeats all waveforms one after the other until it has ``longest`` samples.
    """
    for waveform in waveforms:
        yield F.pad(waveform[:longest], (0, max(0, shortest - len(waveform))))
    joined = torch.cat(list(waveforms))
    yield joined.repeat(math.ceil(longest / len(joined)))[:longest]


def export_executorch(
    model: JointModel, path: str | Path, max_seconds: float = MAX_SECONDS, checkpoint: str = ""
) -> float:
    """Write a model as an ExecuTorch program for CPUs (XNNPACK).

    ``forward`` takes one waveform ``(1, samples)``, float32 at 16 kHz in [-1, 1], of 0.1 s to ``max_seconds``; the
    program reserves memory for ``max_seconds``. It returns those of these outputs that the model has, in this order:
    ``hidden_state (1, frames, features)``, ``keyword_scores (1, classes)``, ``speaker_embedding (1, embedding)``.

    Further methods without inputs return text: ``outputs`` the names of the outputs (JSON), ``longest`` the largest
    number of samples, and one method for each key of `file_metadata` its value.

    Args:
        checkpoint: Name of the checkpoint, for the metadata.

    Returns:
        The largest difference from PyTorch on speech of many lengths.

    Raises:
        UserError: ExecuTorch is not installed, ``max_seconds`` is less than 1, or the program differs from PyTorch.
    """
    if not max_seconds >= 1.0:
        raise UserError(f"max_seconds: must be at least 1, found {max_seconds}")
    path, longest = Path(path), round(max_seconds * SAMPLE_RATE)
    module, waveforms = SingleUtterance(model).eval(), speech_samples(model)
    calibrate_speakers_on_device(model)
    metadata = file_metadata(model, checkpoint, "float32", thresholds(model, model))
    output_names = list(module.named_outputs(waveforms[-1][None]))
    metadata |= {"outputs": json.dumps(output_names), "longest": str(longest)}
    program = compile_program(module, SHORTEST, longest, metadata)
    difference = check_program(program, module, fit_lengths(with_halves(waveforms), SHORTEST, longest))
    write_files(path.parent, {path.name: program})
    parity = f"differs by at most {difference:.1e} from PyTorch on {len(waveforms)} utterances"
    print(f"{path}: {file_size(path)}, {parity}")
    return difference
