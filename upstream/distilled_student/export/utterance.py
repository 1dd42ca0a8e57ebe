"""Joint models and students as one ONNX file: waveforms and lengths in, hidden state and both tasks' outputs out.

The file says what it needs: labels, sample rate, thresholds. `distilled_student.onnx` runs it without torch.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from distilled_student import __version__
from distilled_student.common.errors import UserError
from distilled_student.common.sample_rate import SAMPLE_RATE
from distilled_student.export.graph import compare
from distilled_student.multitask.device_model import Features, JointModel, JointOutput, thresholds
from distilled_student.multitask.tasks.base import SHORTEST
from distilled_student.student.network import Student

OPSET = 23  # the first with an operator for attention, which onnxruntime runs in one piece
INPUTS = ("waveforms", "lengths")


def load_onnx() -> tuple[Any, Any]:
    """The modules onnx and onnxruntime. Raises UserError that says what to install."""
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401  torch writes graphs with it
    except ImportError as error:
        raise UserError(f"ONNX: needs {error.name}: pip install 'distilled-student[export]'") from None
    return onnx, onnxruntime


class Graph:
    """An ONNX file in the place of a `JointModel`: the same inputs, the same outputs."""

    def __init__(self, file: str | Path) -> None:
        options = load_onnx()[1].SessionOptions()
        options.log_severity_level = 3  # errors: its warnings are about how it optimises
        self.session = load_onnx()[1].InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        self.names = [output.name for output in self.session.get_outputs()]

    def __call__(self, waveforms: Tensor, lengths: Tensor) -> JointOutput:
        given = dict(zip(INPUTS, (waveforms.numpy(), lengths.numpy()), strict=True))
        outputs = dict(zip(self.names, map(torch.from_numpy, self.session.run(self.names, given)), strict=True))
        return JointOutput(outputs.pop("hidden_state"), outputs.pop("frames"), outputs)


class _Flat(nn.Module):
    """A model whose outputs are a tuple: a graph has no dictionaries."""

    def __init__(self, model: JointModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.model(waveforms, lengths).named().values())


def as_onnx(program: torch.export.ExportedProgram, inputs: Sequence[str], outputs: Sequence[str]) -> Any:
    """torch's ``ONNXProgram``, made without what the libraries tell about graphs that are as they should be."""
    for library in ("torch.onnx", "onnx_ir", "onnxscript"):
        logging.getLogger(library).setLevel(logging.ERROR)
    return torch.onnx.export(
        program, dynamo=True, opset_version=OPSET, input_names=inputs, output_names=outputs, verbose=False
    )


def trace(model: JointModel) -> Any:
    """The model's float32 graph, an onnx ``ModelProto``; batch and time are free."""
    waveforms, lengths = torch.zeros(2, SAMPLE_RATE), torch.tensor([SAMPLE_RATE, SAMPLE_RATE // 2])
    with torch.no_grad():
        names = list(model(waveforms, lengths).named())
    free = torch.export.Dim.DYNAMIC
    program = torch.export.export(_Flat(model), (waveforms, lengths), dynamic_shapes=({0: free, 1: free}, {0: free}))
    traced = as_onnx(program, INPUTS, names)
    for node in traced.model.graph.all_nodes():  # by its place in the model `quantize` knows the log-mel
        scopes = json.loads(node.metadata_props.get("pkg.torch.onnx.name_scopes", "[]").replace("'", '"'))
        place = scopes[-2].removeprefix("model.") if len(scopes) > 1 else "model"
        node.name = f"{place}/{node.name}"
    return _fold(traced.model_proto)


def _fold(graph: Any) -> Any:
    """All that depends on weights alone computed, such as weight norm and parts of kernels; nothing of this machine."""
    onnx, onnxruntime = load_onnx()
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC  # any machine's
    options.log_severity_level = 3
    with tempfile.TemporaryDirectory() as folder:
        options.optimized_model_filepath = f"{folder}/folded.onnx"
        onnxruntime.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
        graph = onnx.load(options.optimized_model_filepath)
    used = {node.domain for node in graph.graph.node}
    for found in [found for found in graph.opset_import if found.domain not in used]:
        graph.opset_import.remove(found)
    del graph.graph.value_info[:]
    for value in [*graph.graph.input, *graph.graph.output]:
        names = {"waveforms": ("batch", "samples"), "hidden_state": ("batch", "frames")}.get(value.name, ("batch",))
        for axis, name in zip(value.type.tensor_type.shape.dim, names, strict=False):
            axis.dim_param = name
    return graph


def describe(model: JointModel, checkpoint: str, precision: str, found: Mapping[str, float | None]) -> dict[str, str]:
    """A file's ``metadata_props``; keys that do not apply are left out. ``found``: see `thresholds`."""
    values: dict[str, Any] = {
        "version": __version__,
        "checkpoint": checkpoint or None,
        "precision": precision,
        "config": json.dumps(dataclasses.asdict(model.student.config)),
        "sample_rate": SAMPLE_RATE,
        "shortest": SHORTEST,  # samples; what is shorter is filled up with silence
        **model.metadata(found),
    }
    return {key: str(value) for key, value in values.items() if value is not None}


def recordings(model: JointModel, count: int = 24) -> list[Tensor]:
    """Waveforms of many lengths: each task's development data where they are, else the speech that ships with us."""
    found: list[Tensor] = []
    for task in model.tasks.values():
        try:
            data = task.evaluation_data("dev")
        except UserError:
            continue
        order = sorted(range(len(data)), key=data.samples)
        found += [data.item(order[i]).waveform for i in np.linspace(0, len(order) - 1, count).astype(int)]
    return found or list(_shipped(count))


def _shipped(count: int) -> Iterator[Tensor]:
    from distilled_student.corpora.shipped import read_index, read_voice

    clips = sorted(read_index(), key=lambda clip: (clip.voice, clip.samples))
    by_voice = {voice: [clip for clip in clips if clip.voice == voice] for voice in ("af_heart", "am_adam", "bf_emma")}
    for voice, of in by_voice.items():
        audio = torch.from_numpy(read_voice(voice))
        for i in np.linspace(0, len(of) - 1, -(-count // len(by_voice))).astype(int):
            yield audio[of[i].start : of[i].start + of[i].samples]


def batches(waveforms: Sequence[Tensor], sizes: Sequence[int] = (1, 4)) -> Iterator[tuple[Tensor, Tensor]]:
    """Each alone, then four by four with padding, and their lengths."""
    for size in sizes:
        for first in range(0, len(waveforms), size):
            part = waveforms[first : first + size]
            lengths = torch.tensor([len(wav) for wav in part])
            padded = pad_sequence(list(part), batch_first=True)
            yield nn.functional.pad(padded, (0, max(0, SHORTEST - padded.shape[1]))), lengths


@torch.no_grad()
def check(file: Path, model: JointModel, waveforms: Sequence[Tensor]) -> float:
    """The largest difference of a graph's outputs from PyTorch's, over `batches`.

    Raises:
        UserError: it is too large, see `compare`.
    """
    graph, worst = Graph(file), 0.0
    for padded, lengths in batches(waveforms):
        found = graph(padded, lengths).named()
        for name, expected in model(padded, lengths).named().items():
            worst = max(worst, compare(name, expected, found[name], f"on {lengths.tolist()} samples"))
    return worst


def write(graph: Any, file: Path, metadata: dict[str, str]) -> None:
    """The graph and its metadata."""
    del graph.metadata_props[:]
    for key, value in metadata.items():
        graph.metadata_props.add(key=key, value=value)
    file.write_bytes(graph.SerializeToString())


def export_onnx(
    model: JointModel | Student, path: str | Path, int8: bool = False, max_loss: float = 0.3, checkpoint: str = ""
) -> None:
    """Write a model's graph, checked on speech; beside its place first, so that no wrong file is left behind.

    Args:
        int8: Weights and products in 8 bits, in the one of two ways that loses less; what is lost is printed.
        max_loss: Points of accuracy and EER that may be lost in int8.
        checkpoint: Its name, for the metadata.

    Raises:
        UserError: onnx or onnxruntime are missing; ``path`` is a folder; the float32 graph differs from PyTorch
            (see `compare`); in int8, development data are missing or too much is lost.
    """
    load_onnx()
    if isinstance(model, Student):
        model = JointModel(model, Features("last_hidden_state"))
    path, model = Path(path), model.eval()
    if path.is_dir():
        raise UserError(f"{path}: is a folder; expected a file's name, FILE.onnx")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        file, waveforms = Path(folder) / "float32.onnx", recordings(model)
        write(trace(model), file, {})
        difference = check(file, model, waveforms)
        print(f"float32: {size(file)}, at most {difference:.1e} from PyTorch on {len(waveforms)} utterances")
        precision = "float32"
        if int8:
            from distilled_student.export.int8 import smallest_loss

            precision, file = smallest_loss(model, file, waveforms, max_loss)
        graph = load_onnx()[0].load(file)
        write(graph, file, describe(model, checkpoint, precision, thresholds(model, Graph(file))))
        os.replace(file, path)
    print(f"{path}: {precision}, {size(path)}")


def size(file: Path) -> str:
    return f"{file.stat().st_size / 1e6:.1f} MB"
