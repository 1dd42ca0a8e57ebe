"""An ONNX graph in int8: two ways, the loss of each measured, and the better one taken."""

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
from distilled_student.export.utterance import INPUTS, Graph, batches, load_onnx
from distilled_student.multitask.device_model import JointModel, measure

WAYS = ("dynamic", "static")
# power spectra span ten decades: eight bits would leave the quiet ones nothing
IN_FLOAT = "student.frontend.mel/"


def prepare(file: Path) -> list[str]:
    """Make a float32 graph's products those that int8 knows, in place; the names of the ones with weights."""
    onnx, _ = load_onnx()
    from onnxruntime.quantization.onnx_model import ONNXModel

    model = ONNXModel(onnx.load(file))
    model.replace_gemm_with_matmul()  # onnxruntime has a faster kernel for these, and no dynamic one for the others
    model.clean_initializers()
    graph = model.model.graph
    _store_small(graph)
    onnx.save(model.model, file)
    weights = {weight.name for weight in graph.initializer}
    products = [node for node in graph.node if node.op_type == "MatMul" and node.input[1] in weights]
    return [node.name for node in products if not node.name.startswith(IN_FLOAT)]


def _store_small(graph: Any) -> None:
    """Weights of convolutions as int8, which onnxruntime makes float32 again when it loads them.

    There is no fast int8 kernel for the grouped convolution of positions, but half of what the products leave of a file
    is its weights. A cast and a product are folded at load, a DequantizeLinear is not, and slows each call.
    """
    onnx, _ = load_onnx()
    weights = {weight.name: weight for weight in graph.initializer}
    for place, node in [(i, node) for i, node in enumerate(graph.node) if node.op_type == "Conv"][::-1]:
        name = node.input[1]
        values = onnx.numpy_helper.to_array(weights[name])
        scale = np.abs(values).max(axis=tuple(range(1, values.ndim)), keepdims=True).clip(min=1e-12) / 127
        graph.initializer.remove(weights[name])
        parts = {f"{name}/int8": np.round(values / scale).astype(np.int8), f"{name}/scale": scale.astype(np.float32)}
        graph.initializer.extend(onnx.numpy_helper.from_array(part, key) for key, part in parts.items())
        cast = onnx.helper.make_node("Cast", [f"{name}/int8"], [f"{name}/float"], to=onnx.TensorProto.FLOAT)
        graph.node.insert(place, onnx.helper.make_node("Mul", [f"{name}/float", f"{name}/scale"], [name]))
        graph.node.insert(place, cast)


def quantize(file: Path, products: Sequence[str], way: str, waveforms: Sequence[Tensor]) -> Path:
    """The ``products`` of a float32 graph in int8, in a file beside it.

    Args:
        way: ``dynamic``: activations are scaled by their range in each call, which depends on what is in the batch;
            ``static``: by the ranges that the ``waveforms`` have.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_dynamic, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.batches = ([wav.numpy() for wav in batch] for batch in batches(waveforms, sizes=(1,)))

        def get_next(self) -> dict[str, Any] | None:
            batch = next(self.batches, None)
            return None if batch is None else dict(zip(INPUTS, batch, strict=True))

    out = file.with_name(f"{way}.onnx")
    options = {"nodes_to_quantize": list(products), "op_types_to_quantize": ["MatMul"], "per_channel": True}
    logging.disable(logging.WARNING)  # the advice to fold constants first, which `export` has done
    try:
        if way == "dynamic":
            quantize_dynamic(file, out, weight_type=QuantType.QInt8, **options)
        else:
            kinds = {"weight_type": QuantType.QInt8, "activation_type": QuantType.QUInt8}
            quantize_static(file, out, Reader(), **kinds, **options)
    finally:
        logging.disable(logging.NOTSET)
    return out


@torch.no_grad()
def cosine(model: JointModel, graph: Graph, waveforms: Sequence[Tensor]) -> float:
    """Mean cosine of a graph's hidden states with PyTorch's, over all frames."""
    found = []
    for padded, lengths in batches(waveforms, sizes=(1,)):
        ours, theirs = model(padded, lengths).hidden_state, graph(padded, lengths).hidden_state
        found.append(F.cosine_similarity(ours, theirs, dim=2).flatten())
    return torch.cat(found).mean().item()


def losses(model: JointModel, graphs: Mapping[str, Graph]) -> dict[str, float]:
    """Points of accuracy or EER that each graph but the first, float32, loses at most; prints them all.

    On development data, and on test data where they are there.

    Raises:
        UserError: there are no development data.
    """
    table = Table("", "split", "float32", *(f"{way}, points lost" for way in WAYS), box=box.SIMPLE)
    lost: dict[str, list[float]] = {way: [] for way in WAYS}
    for name in model.task_of_output.values():
        for split in ("dev", "test"):
            try:
                reference, *others = (measure(model, graph, split, name) for graph in graphs.values())
            except UserError:
                if split == "dev":
                    raise
                continue
            for way, other in zip(WAYS, others, strict=True):
                lost[way].append(reference.score - other.score)
            worth = re.split("[,(]", reference.summary)[0]  # the first of its figures
            table.add_row(name, split, worth, *(f"{found[-1]:.2f}" for found in lost.values()))
    Console().print(table)
    return {way: max(found) for way, found in lost.items()}


def smallest_loss(model: JointModel, file: Path, waveforms: Sequence[Tensor], max_loss: float) -> tuple[str, Path]:
    """A float32 graph in int8, in the way that loses least: its name, and its file beside that of the graph.

    Raises:
        UserError: there are no development data to measure with, or more than ``max_loss`` points are lost.
    """
    for name in model.task_of_output.values():
        model.tasks[name].evaluation_data("dev")  # what is amiss there is said now
    graphs, products = {"float32": Graph(file)}, prepare(file)
    files = {way: quantize(file, products, way, waveforms) for way in WAYS}
    graphs |= {way: Graph(file) for way, file in files.items()}
    if not model.tasks:
        same = {way: cosine(model, graphs[way], waveforms) for way in WAYS}
        print("int8: cosine with float32: " + ", ".join(f"{way} {value:.4f}" for way, value in same.items()))
        way = max(same, key=same.__getitem__)
        return f"int8 {way}", files[way]
    lost = losses(model, graphs)
    way = min(lost, key=lost.__getitem__)
    if lost[way] > max_loss:
        raise UserError(f"int8: loses {lost[way]:.2f} points, more than --max-loss {max_loss:g}; nothing is written")
    return f"int8 {way}", files[way]
