"""Exports a joint model or a student as one ONNX file: waveforms and lengths in; hidden state and task outputs out.

The file contains what its user needs to know: labels, sample rate, thresholds. `distilled_student.onnx` runs it without
torch.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from distilled_student.common.errors import UserError
from distilled_student.common.progress import note
from distilled_student.common.sample_rate import SAMPLE_RATE
from distilled_student.export.graph import (
    INPUTS,
    Graph,
    calibration_speech,
    compare,
    file_metadata,
    file_size,
    fold_constants,
    load_onnx,
    padded_batches,
    speech_samples,
    to_onnx_program,
    with_halves,
    write_onnx,
)
from distilled_student.export.int8 import Exported, quantize_best
from distilled_student.multitask.device_model import Features, JointModel, calibrate_speakers_on_device, thresholds
from distilled_student.student.network import Student

AXES = {"waveforms": ("batch", "samples"), "hidden_state": ("batch", "frames")}  # dynamic axes; of the others: batch


class _TupleOutputs(nn.Module):
    """A joint model whose outputs are a tuple, because a graph has no dictionaries."""

    def __init__(self, model: JointModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.model(waveforms, lengths).named().values())


def trace_model(model: JointModel) -> Any:
    """The model's float32 graph, an onnx ``ModelProto``, with dynamic batch size and number of samples."""
    waveforms, lengths = torch.zeros(2, SAMPLE_RATE), torch.tensor([SAMPLE_RATE, SAMPLE_RATE // 2])
    with torch.no_grad():
        output_names = list(model(waveforms, lengths).named())
    dynamic = torch.export.Dim.DYNAMIC
    program = torch.export.export(
        _TupleOutputs(model),
        (waveforms, lengths),
        dynamic_shapes=({0: dynamic, 1: dynamic}, {0: dynamic}),
    )
    return _name_axes(fold_constants(to_onnx_program(program, INPUTS, output_names).model_proto))


def _name_axes(proto: Any) -> Any:
    """The graph with names for the dynamic axes of its inputs and outputs."""
    for value in [*proto.graph.input, *proto.graph.output]:
        for axis, name in zip(value.type.tensor_type.shape.dim, AXES.get(value.name, ("batch",)), strict=False):
            axis.dim_param = name
    return proto


@torch.no_grad()
def check_graph(file: Path, model: JointModel, waveforms: Sequence[Tensor]) -> float:
    """The largest difference between the outputs of a graph and of PyTorch, over `padded_batches`.

    Raises:
        UserError: the difference is too large, see `compare`.
    """
    graph, largest = Graph(file), 0.0
    for padded, lengths in padded_batches(waveforms):
        outputs = graph(padded, lengths).named()
        for name, expected in model(padded, lengths).named().items():
            largest = max(largest, compare(name, expected, outputs[name], f"on {lengths.tolist()} samples"))
    return largest


def export_onnx(
    model: JointModel | Student,
    path: str | Path,
    int8: bool = False,
    max_loss: float = 0.3,
    checkpoint: str = "",
    splits: Sequence[str] = ("dev", "test"),
    printed_as: str = "",
) -> None:
    """Write a model's graph to ``path`` after a comparison with PyTorch on speech.

    The graph is written to a temporary file first: a graph that differs from PyTorch never gets to ``path``.

    Args:
        int8: Weights and matrix products in 8 bits, by the method that loses less accuracy (see `quantize_best`); the
            losses are printed.
        max_loss: Points of accuracy or EER that int8 may lose.
        checkpoint: Name of the checkpoint, for the metadata.
        splits: What the losses are printed of; ``dev``, which decides, must be among them.
        printed_as: What is printed instead of a path that is moved afterwards.

    Raises:
        UserError: onnx or onnxruntime is not installed; ``path`` is a folder; the float32 graph differs from PyTorch
            (see `compare`); with ``int8``, development data are missing or the loss is too large.
    """
    load_onnx()
    if isinstance(model, Student):
        model = JointModel(model, Features("last_hidden_state"))
    path, model = Path(path), model.eval()
    if path.is_dir():
        raise UserError(f"{path}: is a folder; give the name of a file, FILE.onnx")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        file, waveforms = Path(folder) / "float32.onnx", speech_samples(model)
        note(f"{printed_as or path}: tracing the model")
        write_onnx(trace_model(model), file, {})
        difference = check_graph(file, model, with_halves(waveforms))
        print(
            f"float32: {file_size(file)}, differs by at most {difference:.1e} from PyTorch "
            f"on {len(waveforms)} utterances"
        )
        written = Exported("float32", file)
        if int8:
            written = quantize_best(model, file, calibration_speech(model), max_loss, splits=splits)
        calibrate_speakers_on_device(model)
        measured = thresholds(model, Graph(file)) if written.thresholds is None else written.thresholds
        metadata = file_metadata(model, checkpoint, written.precision, measured)
        write_onnx(load_onnx()[0].load(written.file), written.file, metadata)
        os.replace(written.file, path)
    print(f"{printed_as or path}: {written.precision}, {file_size(path)}{written.losses}")
