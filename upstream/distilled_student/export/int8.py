"""Quantises an ONNX graph to int8 by two methods, measures what each loses, and keeps the better one.

A file gives the same results on every CPU. On x86 CPUs without VNNI, onnxruntime multiplies unsigned activations by
signed weights with an instruction (vpmaddubsw) that adds pairs of products in 16 bits and saturates. With weights of
the full range of int8 a sum can leave 16 bits. Two forms of weights cannot saturate:

* Signed weights of 7 bits: a sum is at most 2 * 255 * 64, less than 2 ** 15. As fast as weights of 8 bits.
* Unsigned weights of 8 bits: onnxruntime adds products of unsigned factors in 32 bits on every CPU. On x86 it takes 1.4
  times as long, but it loses less.

`check_products` refuses all other files.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

from distilled_student.common.errors import UserError
from distilled_student.export.graph import INPUTS, Graph, load_onnx, padded_batches
from distilled_student.multitask.device_model import JointModel, JointOutput, Measured, measure

Run = Callable[[Tensor, Tensor], JointOutput]  # a graph, called as the model: waveforms and lengths
Measurements = dict[tuple[str, str], Measured]  # an evaluation of each task and split
METHODS = ("dynamic", "static")  # see `quantize`
# Operators that hold the weights of a matrix product in 8 bits -> the number of the input with the weights.
WEIGHT_INPUTS = {"MatMulInteger": 1, "QLinearMatMul": 3, "DequantizeLinear": 0}
INTERVAL = re.compile(r" \[-?[\d.]+, -?[\d.]+\]")  # in `BaseTask.summary`
LARGEST_SIGNED = 64  # absolute value of a weight with 7 bits


class Exported(NamedTuple):
    """A graph that an export writes.

    Attributes:
        precision: ``float32``, ``int8 dynamic`` or ``int8 static``.
        file: The graph.
        lost: Points of accuracy or EER that int8 loses on development data, by task; empty in float32.
        thresholds: Of each task that has one, from the graph's outputs on development data; None: not measured yet.
    """

    precision: str
    file: Path
    lost: Mapping[str, float] = MappingProxyType({})
    thresholds: Mapping[str, float | None] | None = None

    @property
    def losses(self) -> str:
        """The points lost, for the end of a message; empty without any."""
        points = ", ".join(f"{task} {value:.2f}" for task, value in self.lost.items())
        return points and f"; points lost on development data: {points}"


def prepare_matmuls(file: Path) -> list[str]:
    """Rewrite a float32 graph in place so that its matrix products can be quantised.

    Returns:
        The names of the matrix products with float32 weights. Those of the log-mel spectrogram are in double precision
        and stay so: power spectra span ten decades, and in eight bits their small values would all become zero.
    """
    onnx, _ = load_onnx()
    from onnxruntime.quantization.onnx_model import ONNXModel

    model = ONNXModel(onnx.load(file))
    # onnxruntime's int8 kernel is faster for MatMul than for Gemm, and its dynamic quantisation has none for Gemm
    model.replace_gemm_with_matmul()
    model.clean_initializers()
    graph = model.model.graph
    _store_convolutions_in_int8(graph)
    onnx.save(model.model, file)
    weights = {weight.name for weight in graph.initializer if weight.data_type == onnx.TensorProto.FLOAT}
    return [node.name for node in graph.node if node.op_type == "MatMul" and node.input[1] in weights]


def _store_convolutions_in_int8(graph: Any) -> None:
    """Store the weights of convolutions as int8; onnxruntime converts them to float32 when it loads the file.

    onnxruntime has no fast int8 kernel for the grouped positional convolution. But without the matrix products, half of
    the file would be that convolution's weights. A Cast and a Mul are folded at load; a DequantizeLinear is not, and it
    would slow down each call.
    """
    onnx, _ = load_onnx()
    weights = {weight.name: weight for weight in graph.initializer}
    first_use: dict[str, int] = {}  # a graph that encodes short utterances apart uses weights twice
    for position, node in enumerate(graph.node):
        if node.op_type == "Conv":
            first_use.setdefault(node.input[1], position)
    for name, position in reversed(first_use.items()):  # from the end, so that the earlier positions stay valid
        values = onnx.numpy_helper.to_array(weights[name])
        scale = np.abs(values).max(axis=tuple(range(1, values.ndim)), keepdims=True).clip(min=1e-12) / 127
        graph.initializer.remove(weights[name])
        stored = {f"{name}/int8": np.round(values / scale).astype(np.int8), f"{name}/scale": scale.astype(np.float32)}
        graph.initializer.extend(onnx.numpy_helper.from_array(array, key) for key, array in stored.items())
        cast = onnx.helper.make_node("Cast", [f"{name}/int8"], [f"{name}/float"], to=onnx.TensorProto.FLOAT)
        graph.node.insert(position, onnx.helper.make_node("Mul", [f"{name}/float", f"{name}/scale"], [name]))
        graph.node.insert(position, cast)


def quantize(
    file: Path, matmuls: Sequence[str], method: str, inputs: Iterable[Mapping[str, Any]], unsigned: bool = False
) -> Path:
    """Write a float32 graph with these matrix products in int8 to a new file, METHOD.onnx, in the same folder.

    Args:
        matmuls: See `prepare_matmuls`.
        method: ``dynamic``: each call scales activations by their range in this call, so a result depends on the other
            utterances in its batch, or on the length of a stream's chunk; ``static``: activations are scaled by their
            ranges on the ``inputs``.
        inputs: The graph's inputs by name, for many calls.
        unsigned: Whether weights have 8 unsigned bits; else 7 signed ones. The beginning of this module says why.

    Returns:
        The new file.

    Raises:
        UserError: see `check_products`.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_dynamic, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.calls = iter(inputs)

        def get_next(self) -> Mapping[str, Any] | None:
            return next(self.calls, None)

    out = file.with_name(f"{method}.onnx")
    options = {"nodes_to_quantize": list(matmuls), "op_types_to_quantize": ["MatMul"], "per_channel": True}
    options |= {"weight_type": QuantType.QUInt8 if unsigned else QuantType.QInt8, "reduce_range": not unsigned}
    logging.disable(logging.WARNING)  # it advises to fold constants first, which `export.utterance` has done
    try:
        if method == "dynamic":
            quantize_dynamic(file, out, **options)
        else:
            quantize_static(file, out, Reader(), activation_type=QuantType.QUInt8, **options)
    finally:
        logging.disable(logging.NOTSET)
    check_products(out)
    return out


def check_products(file: Path) -> None:
    """Refuse a graph whose matrix products in 8 bits would depend on the CPU; the beginning of this module says why.

    Raises:
        UserError: signed activations, or signed weights beyond `LARGEST_SIGNED`; the message names the tensor.
    """
    onnx, _ = load_onnx()
    graph = onnx.load(file).graph
    arrays = {array.name: array for array in graph.initializer}
    for node in graph.node:
        if node.op_type == "QuantizeLinear" and _is_signed(arrays, node.input[2]):
            raise UserError(f"int8: {node.input[0]}: signed activations: results would depend on the CPU")
        position = WEIGHT_INPUTS.get(node.op_type)
        if position is None or not _is_signed(arrays, name := node.input[position]):
            continue
        largest = np.abs(onnx.numpy_helper.to_array(arrays[name]).astype(int)).max()
        if largest > LARGEST_SIGNED:
            raise UserError(
                f"int8: {name}: signed weights up to {largest}, more than {LARGEST_SIGNED}: sums of products would "
                "saturate on CPUs without VNNI"
            )


def _is_signed(arrays: Mapping[str, Any], name: str) -> bool:
    """Whether this is a constant of signed 8-bit numbers."""
    onnx, _ = load_onnx()
    return name in arrays and arrays[name].data_type == onnx.TensorProto.INT8


@torch.no_grad()
def cosine(model: JointModel, graph: Run, waveforms: Sequence[Tensor]) -> float:
    """Mean cosine similarity of a graph's hidden states to those of PyTorch, over all frames of the graph."""
    similarities = []
    for padded, lengths in padded_batches(waveforms, sizes=(1,)):
        expected, found = model(padded, lengths).hidden_state, graph(padded, lengths).hidden_state
        similarities.append(F.cosine_similarity(expected[:, : found.shape[1]], found, dim=2).flatten())
    return torch.cat(similarities).mean().item()


def measure_splits(model: JointModel, run: Run, splits: Sequence[str]) -> Measurements:
    """Evaluate all tasks on these splits, ``dev`` among them. Splits without data are left out.

    Raises:
        UserError: there are no development data.
    """
    found = {}
    for task in model.task_of_output.values():
        for split in splits:
            try:
                found[task, split] = measure(model, run, split, task)
            except UserError:
                if split == "dev":
                    raise
    return found


def points_lost(float32: Measurements, int8: Mapping[str, Measurements]) -> dict[str, dict[str, float]]:
    """Points of accuracy or EER that each int8 graph loses against float32 on development data, by method and task.

    Prints a table of all values. Losses on test data, where these exist, are printed only: they decide nothing.

    Args:
        float32, int8: Evaluations of the float32 graph, and of that of each method.
    """
    table = Table("", "split", "float32", *(f"{method}, points lost" for method in int8), box=box.SIMPLE)
    lost: dict[str, dict[str, float]] = {method: {} for method in int8}
    for (task, split), reference in float32.items():
        if not all((task, split) in measured for measured in int8.values()):
            continue
        points = {method: reference.score - measured[task, split].score for method, measured in int8.items()}
        if split == "dev":
            for method, value in points.items():
                lost[method][task] = value
        first_metric = re.split("[,(]", INTERVAL.sub("", reference.summary))[0]
        table.add_row(task, split, first_metric, *(f"{value:.2f}" for value in points.values()))
    Console().print(table)
    return lost


def utterance_inputs(file: Path, waveforms: Sequence[Tensor]) -> Iterator[dict[str, Any]]:
    """The inputs of an utterance's graph, one utterance in each."""
    for batch in padded_batches(waveforms, sizes=(1,)):
        yield dict(zip(INPUTS, (part.numpy() for part in batch), strict=True))


def quantize_best(
    model: JointModel,
    file: Path,
    waveforms: Sequence[Tensor],
    max_loss: float,
    open_graph: Callable[[Path], Run] = Graph,
    inputs_of: Callable[[Path, Sequence[Tensor]], Iterable[Mapping[str, Any]]] = utterance_inputs,
    splits: Sequence[str] = ("dev", "test"),
) -> Exported:
    """Quantise a float32 graph by the method that loses least: by accuracy and EER, or by cosine without any task.

    Weights have 7 signed bits, or, if both methods then lose too much, 8 unsigned ones, which take longer. Each graph
    is evaluated once.

    Args:
        file: The float32 graph; it is overwritten, and the int8 graphs are written to its folder.
        waveforms: Speech that static quantisation measures ranges on, see `calibration_speech`.
        max_loss: Points of accuracy or EER that may be lost on development data.
        open_graph: Opens a graph's file, to run it as the model.
        inputs_of: The inputs of the float32 graph for the ``waveforms``.
        splits: What is evaluated, see `measure_splits`.

    Raises:
        UserError: there are no development data to measure on, or more than ``max_loss`` points are lost.
    """
    for name in model.task_of_output.values():
        model.tasks[name].evaluation_data("dev")  # raises before the long work if the data are missing
    float32 = measure_splits(model, open_graph(file), splits)
    matmuls = prepare_matmuls(file)
    for unsigned in (False, True):
        files = {
            method: quantize(file, matmuls, method, inputs_of(file, waveforms) if method == "static" else (), unsigned)
            for method in METHODS
        }
        int8 = {method: open_graph(file) for method, file in files.items()}
        if not model.tasks:
            similarity = {method: cosine(model, graph, waveforms) for method, graph in int8.items()}
            print(
                "int8: cosine with float32: " + ", ".join(f"{name} {value:.4f}" for name, value in similarity.items())
            )
            best = max(similarity, key=similarity.__getitem__)
            return Exported(f"int8 {best}", files[best])
        print(f"int8: weights of {'8 unsigned' if unsigned else '7'} bits")
        measured = {method: measure_splits(model, graph, splits) for method, graph in int8.items()}
        lost = points_lost(float32, measured)
        most = {method: max(points.values()) for method, points in lost.items()}
        best = min(most, key=most.__getitem__)
        if most[best] <= max_loss:
            return Exported(f"int8 {best}", files[best], lost[best], _thresholds(model, measured[best]))
    raise UserError(
        f"int8: loses {most[best]:.2f} points on development data, more than --max-loss {max_loss:g} allows; "
        "no file is written; allow more where the data are few: of 100 clips, one is a whole point"
    )


def _thresholds(model: JointModel, measured: Measurements) -> dict[str, float | None]:
    """The threshold of each task that has one, from an evaluation; that of a packed model if it has stored one."""
    of_data = {name: measured[name, "dev"].threshold for name, task in model.tasks.items() if task.has_threshold}
    return of_data | model.stored_thresholds
