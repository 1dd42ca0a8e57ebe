"""What all exports share: ONNX files and their metadata, speech to check them on, the comparison with PyTorch."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from distilled_student import __version__
from distilled_student.common.errors import UserError
from distilled_student.common.provenance import tensors_hash
from distilled_student.common.sample_rate import SAMPLE_RATE
from distilled_student.corpora.shipped import read_index, read_voice
from distilled_student.export.rewriting import operators_compared_first
from distilled_student.multitask.device_model import JointModel, JointOutput
from distilled_student.multitask.packed import TRAINING_ONLY
from distilled_student.multitask.tasks.base import SHORTEST, SPEAKER_EMBEDDING, EvaluationData

OPSET = 23  # the first opset with an attention operator, which onnxruntime runs as one kernel
INPUTS = ("waveforms", "lengths")  # of the graph of an utterance
TOLERANCE = 1e-4  # largest difference from PyTorch in float32, see `difference`
CALIBRATED = 48  # utterances of each task that static int8 measures ranges on
CALIBRATED_SECONDS = 10  # the longest part of an utterance that is used
SHIPPED_VOICES = ("af_heart", "am_adam", "bf_emma")  # of the embedded corpus, used where a model has no data of its own


def load_onnx() -> tuple[Any, Any]:
    """The modules onnx and onnxruntime. Raises UserError with the command that installs what is missing."""
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401  torch's exporter uses it
    except ImportError as error:
        raise UserError(f"ONNX: {error.name} is not installed; pip install 'distilled-student[export]'") from None
    return onnx, onnxruntime


class Graph:
    """An ONNX file of an utterance, run by onnxruntime: inputs and outputs are those of `JointModel`."""

    def __init__(self, file: str | Path) -> None:
        _, onnxruntime = load_onnx()
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors only; its warnings are about its own optimisations
        self.session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        self.output_names = [output.name for output in self.session.get_outputs()]

    def __call__(self, waveforms: Tensor, lengths: Tensor) -> JointOutput:
        inputs = dict(zip(INPUTS, (waveforms.numpy(), lengths.numpy()), strict=True))
        arrays = self.session.run(self.output_names, inputs)
        outputs = dict(zip(self.output_names, map(torch.from_numpy, arrays), strict=True))
        return JointOutput(outputs.pop("hidden_state"), outputs.pop("frames"), outputs)


def to_onnx_program(
    program: torch.export.ExportedProgram, input_names: Sequence[str], output_names: Sequence[str]
) -> Any:
    """torch's ``ONNXProgram`` of an exported program; hides the warnings of the libraries about correct graphs."""
    for library in ("torch.onnx", "onnx_ir", "onnxscript"):
        logging.getLogger(library).setLevel(logging.ERROR)
    with operators_compared_first():
        return torch.onnx.export(
            program, dynamo=True, opset_version=OPSET, input_names=input_names, output_names=output_names, verbose=False
        )


def fold_constants(proto: Any) -> Any:
    """A graph in which everything that depends on weights alone is computed, such as weight norm.

    Only optimisations that are valid on every machine are applied.
    """
    onnx, onnxruntime = load_onnx()
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC  # valid on every machine
    options.log_severity_level = 3
    with tempfile.TemporaryDirectory() as folder:
        options.optimized_model_filepath = f"{folder}/folded.onnx"
        onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
        folded = onnx.load(options.optimized_model_filepath)
    used_domains = {node.domain for node in folded.graph.node}
    for unused in [opset for opset in folded.opset_import if opset.domain not in used_domains]:
        folded.opset_import.remove(unused)
    del folded.graph.value_info[:]
    _merge_equal_constants(folded.graph)
    return folded


def _merge_equal_constants(graph: Any) -> None:
    """Keep one of several equal constants: a graph that encodes an utterance twice has computed some weights twice."""
    onnx, _ = load_onnx()
    kept: dict[tuple[Any, ...], str] = {}
    merged: dict[str, str] = {}
    for tensor in list(graph.initializer):
        array = onnx.numpy_helper.to_array(tensor)
        name = kept.setdefault((tensor.data_type, array.shape, array.tobytes()), tensor.name)
        if name != tensor.name:
            merged[tensor.name] = name
            graph.initializer.remove(tensor)
    for node in graph.node:
        for position, name in enumerate(node.input):
            node.input[position] = merged.get(name, name)


def write_onnx(proto: Any, file: Path, metadata: dict[str, str]) -> None:
    """Write an onnx ``ModelProto`` with these ``metadata_props`` instead of its own."""
    del proto.metadata_props[:]
    for key, value in metadata.items():
        proto.metadata_props.add(key=key, value=value)
    file.write_bytes(proto.SerializeToString())


def file_metadata(
    model: JointModel, checkpoint: str, precision: str, thresholds: Mapping[str, float | None]
) -> dict[str, str]:
    """The metadata of an exported file; a key that does not apply to the model is left out.

    Args:
        checkpoint: Name of the checkpoint.
        precision: ``float32``, ``int8 dynamic`` or ``int8 static``.
        thresholds: Of each task, see `distilled_student.multitask.device_model.thresholds`.
    """
    values: dict[str, Any] = {
        "version": __version__,
        "checkpoint": checkpoint or None,
        "precision": precision,
        "fingerprint": fingerprint(model),
        "config": json.dumps(dataclasses.asdict(model.student.config)),
        "sample_rate": SAMPLE_RATE,
        "shortest": SHORTEST,  # samples; shorter utterances are padded with silence
        **model.metadata(thresholds),
    }
    return {key: str(value) for key, value in values.items() if value is not None}


def fingerprint(model: JointModel) -> str:
    """Names the weights of a model: all its exports have the same, another model has another.

    It is a hash of the weights that outputs depend on, without what is fitted to the outputs afterwards.
    """
    tensors = {
        name: value
        for name, value in model.state_dict().items()
        if isinstance(value, Tensor) and TRAINING_ONLY not in name and "calibration" not in name.rpartition(".")[2]
    }
    return tensors_hash(tensors)[:16]


def file_size(file: Path) -> str:
    """Size of a file for messages, such as ``15.3 MB``."""
    return f"{file.stat().st_size / 1e6:.1f} MB"


def _development_data(model: JointModel) -> Iterator[EvaluationData]:
    """The development data of each task that has some."""
    for task in model.tasks.values():
        with suppress(UserError):
            yield task.evaluation_data("dev")


def speech_samples(model: JointModel, count: int = 24) -> list[Tensor]:
    """Waveforms ``(samples,)`` of many lengths, to check exports on.

    ``count`` utterances of the development data of each task, evenly spaced in order of length; utterances of the
    embedded corpus if no task has development data.
    """
    waveforms: list[Tensor] = []
    for data in _development_data(model):
        by_length = sorted(range(len(data)), key=data.samples)
        waveforms += [data.item(by_length[i]).waveform for i in _evenly_spaced(len(by_length), count)]
    return waveforms or list(_shipped_speech(count))


def calibration_speech(model: JointModel) -> list[Tensor]:
    """Waveforms ``(samples,)`` that static int8 measures ranges on, the same at every call.

    `CALIBRATED` utterances of the development data of each task, drawn with a fixed seed: every class equally often, as
    far as it has so many, and each class once even if there are more classes. Of long ones the first
    `CALIBRATED_SECONDS`. Utterances of the embedded corpus if no task has development data.
    """
    waveforms: list[Tensor] = []
    for data in _development_data(model):
        label_of = getattr(data, "label", lambda index: 0)
        drawn = np.random.default_rng(0).permutation(len(data)).tolist()
        waveforms += [data.item(index).waveform for index in _of_all_classes(drawn, label_of, CALIBRATED)]
    waveforms = waveforms or list(_shipped_speech(CALIBRATED))
    return [waveform[: CALIBRATED_SECONDS * SAMPLE_RATE] for waveform in waveforms]


def _of_all_classes(indices: Sequence[int], label_of: Callable[[int], int], count: int) -> list[int]:
    """The first ``count`` of these indices if the classes take turns; more if there are more classes."""
    seen: Counter[int] = Counter()
    turns = []  # of an index: how many of its class come before it
    for index in indices:
        turns.append(seen[label_of(index)])
        seen[label_of(index)] += 1
    in_turns = [indices[i] for i in np.argsort(turns, kind="stable")]
    return in_turns[: max(count, len(seen))]


def with_halves(waveforms: Sequence[Tensor]) -> list[Tensor]:
    """The waveforms, and the first half of every fourth: utterances that are shorter than those of a training."""
    return [*waveforms, *(waveform[: len(waveform) // 2] for waveform in waveforms[::4])]


def _shipped_speech(count: int) -> Iterator[Tensor]:
    """About ``count`` utterances of the embedded corpus, as many of each voice."""
    clips = sorted(read_index(), key=lambda clip: clip.samples)
    for voice in SHIPPED_VOICES:
        audio = torch.from_numpy(read_voice(voice))
        of_voice = [clip for clip in clips if clip.voice == voice]
        for i in _evenly_spaced(len(of_voice), math.ceil(count / len(SHIPPED_VOICES))):
            yield audio[of_voice[i].start : of_voice[i].start + of_voice[i].samples]


def _evenly_spaced(length: int, count: int) -> list[int]:
    """``count`` evenly spaced indices into a list, from the first to the last."""
    return np.linspace(0, length - 1, count).astype(int).tolist()


def padded_batches(waveforms: Sequence[Tensor], sizes: Sequence[int] = (1, 4)) -> Iterator[tuple[Tensor, Tensor]]:
    """All waveforms in batches of each of these sizes: ``(batch, samples)``, padded with zeros, and their lengths."""
    for size in sizes:
        for start in range(0, len(waveforms), size):
            batch = waveforms[start : start + size]
            lengths = torch.tensor([len(waveform) for waveform in batch])
            padded = pad_sequence(list(batch), batch_first=True)
            yield F.pad(padded, (0, max(0, SHORTEST - padded.shape[1]))), lengths


def difference(name: str, expected: Tensor, found: Tensor) -> float:
    """The largest difference between PyTorch's output and that of an exported model, measured by what it is used for.

    * Speaker embeddings ``(..., embedding)`` are brought to length 1 first: only their directions are compared.
    * Hidden states: relative to the largest value. Rounding errors grow with the values, and the largest values of
      trained models are tens of times as large as those of new ones.
    * Scores, and the outputs of further tasks: relative to the largest value if that is more than 1, else absolute.
    * Whole numbers: absolute.

    Infinite if the shapes differ; NaN if a value is.
    """
    if expected.shape != found.shape:
        return float("inf")
    if not expected.is_floating_point():
        return float((expected - found).abs().max())
    if name.endswith(SPEAKER_EMBEDDING):
        expected, found = (F.normalize(embedding, dim=-1) for embedding in (expected, found))
    largest = float(expected.abs().max())
    scale = largest if name == "hidden_state" and largest > 0 else max(1.0, largest)
    return float((expected - found).abs().max()) / scale


def compare(name: str, expected: Tensor, found: Tensor, where: str) -> float:
    """The `difference` between an output of PyTorch and that of an exported model.

    Args:
        name: Of the output.
        expected, found: PyTorch's output and that of the exported model.
        where: The inputs that gave them, for the message.

    Raises:
        UserError: the difference is more than `TOLERANCE`, the shapes differ, or a value is NaN.
    """
    differs = difference(name, expected, found)
    if not differs <= TOLERANCE:  # true for NaN, too
        raise UserError(f"{name}: differs by {differs:.1e} from PyTorch {where}; no file is written")
    return differs
