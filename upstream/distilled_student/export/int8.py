"""Quantises an ONNX graph to int8 by two methods, measures what each loses, and keeps the better one."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

from distilled_student.common.errors import UserError
from distilled_student.export.graph import INPUTS, Graph, load_onnx, padded_batches
from distilled_student.multitask.device_model import JointModel, measure

METHODS = ("dynamic", "static")  # see `quantize`
# Nodes whose names begin with this stay in float32: power spectra span ten decades, and in eight bits their small
# values would all become zero.
FLOAT_NODES = "student.frontend.mel/"


def prepare_matmuls(file: Path) -> list[str]:
    """Rewrite a float32 graph in place so that its matrix products can be quantised.

    Returns:
        The names of the matrix products with weights, without those that stay in float32.
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
    weights = {weight.name for weight in graph.initializer}
    matmuls = [node for node in graph.node if node.op_type == "MatMul" and node.input[1] in weights]
    return [node.name for node in matmuls if not node.name.startswith(FLOAT_NODES)]


def _store_convolutions_in_int8(graph: Any) -> None:
    """Store the weights of convolutions as int8; onnxruntime converts them to float32 when it loads the file.

    onnxruntime has no fast int8 kernel for the grouped positional convolution. But without the matrix products, half of
    the file would be that convolution's weights. A Cast and a Mul are folded at load; a DequantizeLinear is not, and it
    would slow down each call.
    """
    onnx, _ = load_onnx()
    weights = {weight.name: weight for weight in graph.initializer}
    convolutions = [(position, node) for position, node in enumerate(graph.node) if node.op_type == "Conv"]
    for position, node in reversed(convolutions):  # from the end, so that the earlier positions stay valid
        name = node.input[1]
        values = onnx.numpy_helper.to_array(weights[name])
        scale = np.abs(values).max(axis=tuple(range(1, values.ndim)), keepdims=True).clip(min=1e-12) / 127
        graph.initializer.remove(weights[name])
        stored = {f"{name}/int8": np.round(values / scale).astype(np.int8), f"{name}/scale": scale.astype(np.float32)}
        graph.initializer.extend(onnx.numpy_helper.from_array(array, key) for key, array in stored.items())
        cast = onnx.helper.make_node("Cast", [f"{name}/int8"], [f"{name}/float"], to=onnx.TensorProto.FLOAT)
        graph.node.insert(position, onnx.helper.make_node("Mul", [f"{name}/float", f"{name}/scale"], [name]))
        graph.node.insert(position, cast)


def quantize(file: Path, matmuls: Sequence[str], method: str, waveforms: Sequence[Tensor]) -> Path:
    """Write a float32 graph with these matrix products in int8 to a new file, METHOD.onnx, in the same folder.

    Args:
        matmuls: See `prepare_matmuls`.
        method: ``dynamic``: each call scales activations by their range in this call, so a result depends on the other
            utterances in its batch; ``static``: activations are scaled by their ranges on the ``waveforms``.

    Returns:
        The new file.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_dynamic, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.batches = padded_batches(waveforms, sizes=(1,))

        def get_next(self) -> dict[str, Any] | None:
            batch = next(self.batches, None)
            return None if batch is None else dict(zip(INPUTS, (part.numpy() for part in batch), strict=True))

    out = file.with_name(f"{method}.onnx")
    options = {"nodes_to_quantize": list(matmuls), "op_types_to_quantize": ["MatMul"], "per_channel": True}
    logging.disable(logging.WARNING)  # it advises to fold constants first, which `export.utterance` has done
    try:
        if method == "dynamic":
            quantize_dynamic(file, out, weight_type=QuantType.QInt8, **options)
        else:
            types = {"weight_type": QuantType.QInt8, "activation_type": QuantType.QUInt8}
            quantize_static(file, out, Reader(), **types, **options)
    finally:
        logging.disable(logging.NOTSET)
    return out


@torch.no_grad()
def cosine(model: JointModel, graph: Graph, waveforms: Sequence[Tensor]) -> float:
    """Mean cosine similarity of a graph's hidden states to those of PyTorch, over all frames."""
    similarities = []
    for padded, lengths in padded_batches(waveforms, sizes=(1,)):
        expected, found = model(padded, lengths).hidden_state, graph(padded, lengths).hidden_state
        similarities.append(F.cosine_similarity(expected, found, dim=2).flatten())
    return torch.cat(similarities).mean().item()


def points_lost(model: JointModel, float32: Graph, int8: Mapping[str, Graph]) -> dict[str, float]:
    """Points of accuracy or EER that each int8 graph loses against float32, the largest over tasks and splits.

    Measures on development data, and on test data where they exist; prints a table of all values.

    Args:
        int8: Graph of each method.

    Raises:
        UserError: there are no development data.
    """
    table = Table("", "split", "float32", *(f"{method}, points lost" for method in int8), box=box.SIMPLE)
    lost: dict[str, list[float]] = {method: [] for method in int8}
    for task in model.task_of_output.values():
        for split in ("dev", "test"):
            try:
                reference, *quantized = (measure(model, graph, split, task) for graph in (float32, *int8.values()))
            except UserError:
                if split == "dev":
                    raise
                continue
            for method, result in zip(int8, quantized, strict=True):
                lost[method].append(reference.score - result.score)
            first_metric = re.split("[,(]", reference.summary)[0]
            table.add_row(task, split, first_metric, *(f"{points[-1]:.2f}" for points in lost.values()))
    Console().print(table)
    return {method: max(points) for method, points in lost.items()}


def quantize_best(model: JointModel, file: Path, waveforms: Sequence[Tensor], max_loss: float) -> tuple[str, Path]:
    """Quantise a float32 graph by the method that loses least: by accuracy and EER, or by cosine without any task.

    Args:
        file: The float32 graph; it is overwritten, and the int8 graphs are written to its folder.
        waveforms: Speech that static quantisation measures ranges on.
        max_loss: Points of accuracy or EER that may be lost.

    Returns:
        ``int8 METHOD`` and its file.

    Raises:
        UserError: there are no development data to measure on, or more than ``max_loss`` points are lost.
    """
    for name in model.task_of_output.values():
        model.tasks[name].evaluation_data("dev")  # raises before the long work if the data are missing
    float32, matmuls = Graph(file), prepare_matmuls(file)
    files = {method: quantize(file, matmuls, method, waveforms) for method in METHODS}
    int8 = {method: Graph(file) for method, file in files.items()}
    if not model.tasks:
        similarity = {method: cosine(model, graph, waveforms) for method, graph in int8.items()}
        print("int8: cosine with float32: " + ", ".join(f"{name} {value:.4f}" for name, value in similarity.items()))
        best = max(similarity, key=similarity.__getitem__)
        return f"int8 {best}", files[best]
    lost = points_lost(model, float32, int8)
    best = min(lost, key=lost.__getitem__)
    if lost[best] > max_loss:
        raise UserError(
            f"int8: loses {lost[best]:.2f} points, more than --max-loss {max_loss:g} allows; no file is written"
        )
    return f"int8 {best}", files[best]
