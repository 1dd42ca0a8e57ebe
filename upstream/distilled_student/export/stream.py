"""Exports one step of a stream as an ONNX graph: samples and state in, outputs and the next state out."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from distilled_student.common.progress import note
from distilled_student.export.graph import (
    calibration_speech,
    compare,
    file_metadata,
    file_size,
    fold_constants,
    load_onnx,
    speech_samples,
    to_onnx_program,
    with_halves,
    write_onnx,
)
from distilled_student.export.int8 import Exported, quantize_best
from distilled_student.multitask.device_model import JointModel, JointOutput, calibrate_speakers_on_device, thresholds
from distilled_student.onnx import Stream
from distilled_student.onnx.detector import KEY as DETECTOR
from distilled_student.onnx.words import CONCATENATED
from distilled_student.streaming import WINDOW_SECONDS, Step
from distilled_student.student.network import StudentOutput

DEVICE_CHUNK = 640  # samples, 40 ms: the length of the chunks that dynamic int8 is measured with
LONG_CHUNK = 64_000  # samples, 4 s: of those that other graphs are measured with, whose results do not depend on it
CALIBRATION_CHUNK = 5_120  # samples, about 0.32 s: of those that activations are calibrated on; each ends a window
OF_FRAMES = ("hidden_state", CONCATENATED)  # outputs of each frame; the others are of a window
CHECKED_CHUNKS = (320, 640, 1_600, 777)  # lengths in samples of the chunks that exports are checked with


def outputs_of_frames(output: StudentOutput) -> dict[str, Tensor]:
    """The outputs `OF_FRAMES` of a graph."""
    return {"hidden_state": output.last_hidden_state, CONCATENATED: torch.cat(output.hidden_states, dim=2)}


class _FlatStep(nn.Module):
    """A `Step` whose state is separate arguments and results, because a graph has no dictionaries and no None."""

    def __init__(self, step: Step) -> None:
        super().__init__()
        self.step, self.state_names = step, list(step.start())

    def named_outputs(self, samples: Tensor, *state: Tensor) -> dict[str, Tensor]:
        """The outputs of the graph by name; each tensor of the next state is named ``next_`` and its name."""
        output = self.step(samples, dict(zip(self.state_names, state, strict=True)))
        next_state = {f"next_{name}": tensor for name, tensor in output.state.items()}
        return {**outputs_of_frames(output.output), **output.tasks, **next_state}

    def forward(self, samples: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.named_outputs(samples, *state).values())


def trace_step(step: Step) -> Any:
    """The graph of a step, an onnx ``ModelProto``; it takes any multiple of ``step.chunk`` samples.

    The inputs are ``samples (1, samples)`` and the state: each tensor is named ``state_`` and its name, and is zeros
    before the first chunk. For the outputs see `_FlatStep.named_outputs`.
    """
    flat, state = _FlatStep(step).eval(), step.start()
    with torch.no_grad():
        output_names = list(flat.named_outputs(torch.zeros(1, step.chunk), *state.values()))
    length = step.chunk * torch.export.Dim("chunks", min=1)
    shapes = ({1: length}, tuple({} for _ in state))
    program = torch.export.export(flat, (torch.zeros(1, 5 * step.chunk), *state.values()), dynamic_shapes=shapes)
    input_names = ["samples", *(f"state_{name}" for name in state)]
    return fold_constants(to_onnx_program(program, input_names, output_names).model_proto)


@torch.no_grad()
def check_stream(file: Path, step: Step, waveforms: Sequence[Tensor]) -> float:
    """The largest difference between a stream's outputs, in chunks, and those of PyTorch for the whole utterance.

    The lengths of the chunks are `CHECKED_CHUNKS` in turn, one for each utterance.

    Raises:
        UserError: the difference is too large, see `compare`.
    """
    model, stream, largest = step.model, Stream(file), 0.0
    for i, waveform in enumerate(waveforms):
        waveform = waveform[: len(waveform) // step.chunk * step.chunk]
        chunk_length = CHECKED_CHUNKS[i % len(CHECKED_CHUNKS)]
        stream.reset()
        outputs = (stream.feed(chunk.numpy()) for chunk in waveform.split(chunk_length))
        complete = [output for output in outputs if output is not None]
        expected = outputs_of_frames(model.student(model.gain * waveform[None]))
        for name in model.task_of_output:
            filled = model.student(model.gain * step.fillings[name].fill(waveform)[None])
            window = model.features(filled)[:, -step.window :]
            expected[name] = model.head(name, window, torch.tensor([window.shape[1]]))
        of_frames = {name: np.concatenate([output[name] for output in complete]) for name in OF_FRAMES}
        where = f"in chunks of {chunk_length} samples"
        for name, found in {**complete[-1], **of_frames}.items():
            largest = max(largest, compare(name, expected[name][0], torch.from_numpy(found), where))
    return largest


class StreamGraph:
    """A stream's file, run on whole utterances in chunks as a device runs it; called as `JointModel` is.

    The outputs are those after the last chunk; of an incomplete one as much is used as the stream takes. The results
    depend on the length of the chunks only with dynamic int8, which scales activations by their range in a chunk: such
    a graph runs on chunks of `DEVICE_CHUNK`. All others run on `LONG_CHUNK`, which takes a fifth of the time or less.
    """

    def __init__(self, file: Path) -> None:
        self.stream, onnx = Stream(file), load_onnx()[0]
        scales_by_chunk = any(node.op_type == "DynamicQuantizeLinear" for node in onnx.load(file).graph.node)
        self.chunk_length = DEVICE_CHUNK if scales_by_chunk else LONG_CHUNK

    def __call__(self, waveforms: Tensor, lengths: Tensor) -> JointOutput:
        """One utterance ``(1, samples)``."""
        self.stream.reset()
        usable = int(lengths[0]) // self.stream.model.chunk * self.stream.model.chunk
        *chunks, last = waveforms[0, :usable].split(self.chunk_length)
        outputs = [output for chunk in chunks if (output := self.stream.advance(chunk.numpy())) is not None]
        outputs.append(self.stream.feed(last.numpy()))
        hidden_state = torch.from_numpy(np.concatenate([output["hidden_state"] for output in outputs]))[None]
        tasks = {name: torch.from_numpy(value)[None] for name, value in outputs[-1].items() if name not in OF_FRAMES}
        return JointOutput(hidden_state, torch.tensor([hidden_state.shape[1]]), tasks)


def stream_inputs(file: Path, waveforms: Sequence[Tensor]) -> Iterator[dict[str, Any]]:
    """The inputs of a stream's graph, state included, of all utterances in chunks of `CALIBRATION_CHUNK`.

    The student sees the same frames in chunks of any length. The heads see the window that ends with each chunk.
    """
    stream = Stream(file)
    shortest = stream.model.chunk
    chunk_length = max(CALIBRATION_CHUNK // shortest, 1) * shortest
    for waveform in waveforms:
        stream.reset()
        for chunk in waveform[: len(waveform) // shortest * shortest].split(chunk_length):
            if len(chunk):  # an utterance shorter than the shortest chunk has none
                yield stream.inputs(chunk.numpy())
                stream.advance(chunk.numpy())


def export_stream(
    model: JointModel,
    path: str | Path,
    window: float = WINDOW_SECONDS,
    checkpoint: str = "",
    int8: bool = False,
    max_loss: float = 0.3,
    printed_as: str = "",
) -> float:
    """Write the stream of a causal model to ``path`` after a comparison with PyTorch on whole utterances.

    The graph is written to a temporary file first: a graph that differs from PyTorch never gets to ``path``. Its
    metadata are those of `file_metadata`, and ``chunk``, the number of samples that every input must be a multiple of,
    ``window``, ``padded_to`` and ``repeated_to`` (see `Step`); with a keyword task also the settings of the `Detector`,
    see `JointModel.detector_settings`.

    Args:
        window: Length in seconds of the window that keyword scores and speaker embeddings are computed from.
        checkpoint: Name of the checkpoint, for the metadata.
        int8: Weights and matrix products in 8 bits, see `quantize_best`; the losses are those of streams.
        max_loss: Points of accuracy or EER that int8 may lose.
        printed_as: See `export_onnx`.

    Returns:
        The largest difference of the float32 graph from PyTorch.

    Raises:
        UserError: the student is not causal, onnx or onnxruntime is not installed, or the graph differs from PyTorch;
            with ``int8``, development data are missing or the loss is too large.
    """
    load_onnx()
    model = model.eval()
    path, step = Path(path), Step(model, window).eval()
    path.parent.mkdir(parents=True, exist_ok=True)
    layout = {"chunk": str(step.chunk), "window": str(window)}
    layout |= {"padded_to": json.dumps(step.padded_to), "repeated_to": json.dumps(step.repeated_to)}
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        file = Path(folder) / "stream.onnx"
        note(f"{printed_as or path}: tracing the model")
        write_onnx(trace_step(step), file, file_metadata(model, checkpoint, "float32", {}) | layout)
        waveforms = speech_samples(model)
        long_enough = [waveform for waveform in with_halves(waveforms) if len(waveform) >= step.chunk]
        difference = check_stream(file, step, long_enough)
        print(
            f"float32: {file_size(file)}, differs by at most {difference:.1e} from PyTorch "
            f"on {len(waveforms)} utterances"
        )
        written = Exported("float32", file)
        if int8:
            speech = calibration_speech(model)
            written = quantize_best(model, file, speech, max_loss, StreamGraph, stream_inputs, splits=("dev",))
        calibrate_speakers_on_device(model)
        measured = thresholds(model, model) if written.thresholds is None else written.thresholds
        metadata = file_metadata(model, checkpoint, written.precision, measured) | layout
        if model.labels:
            threshold = metadata.get("keyword_threshold")
            settings = model.detector_settings(None if threshold is None else float(threshold))
            metadata[DETECTOR] = settings.to_json()
        write_onnx(load_onnx()[0].load(written.file), written.file, metadata)
        os.replace(written.file, path)
    print(f"{printed_as or path}: {written.precision}, {file_size(path)}{written.losses}")
    return difference
