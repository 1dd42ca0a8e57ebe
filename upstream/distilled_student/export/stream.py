"""Exports one step of a stream as an ONNX graph: samples and state in, outputs and the next state out."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from distilled_student.export.graph import (
    compare,
    file_metadata,
    file_size,
    load_onnx,
    speech_samples,
    to_onnx_program,
    with_halves,
    write_onnx,
)
from distilled_student.multitask.device_model import JointModel, thresholds
from distilled_student.onnx import Stream
from distilled_student.streaming import WINDOW_SECONDS, Step

CHECKED_CHUNKS = (320, 640, 1_600, 777)  # lengths in samples of the chunks that exports are checked with


class _FlatStep(nn.Module):
    """A `Step` whose state is separate arguments and results, because a graph has no dictionaries and no None."""

    def __init__(self, step: Step) -> None:
        super().__init__()
        self.step, self.state_names = step, list(step.start())

    def named_outputs(self, samples: Tensor, *state: Tensor) -> dict[str, Tensor]:
        """The outputs of the graph by name; each tensor of the next state is named ``next_`` and its name."""
        output = self.step(samples, dict(zip(self.state_names, state, strict=True)))
        next_state = {f"next_{name}": tensor for name, tensor in output.state.items()}
        return {"hidden_state": output.output.last_hidden_state, **output.tasks, **next_state}

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
    return to_onnx_program(program, input_names, output_names).model_proto


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
        expected = {"hidden_state": model.student(model.gain * waveform[None]).last_hidden_state}
        for name in model.task_of_output:
            filled = model.student(model.gain * step.fillings[name].fill(waveform)[None])
            window = model.features(filled)[:, -step.window :]
            expected[name] = model.head(name, window, torch.tensor([window.shape[1]]))
        hidden_state = np.concatenate([output["hidden_state"] for output in complete])
        where = f"in chunks of {chunk_length} samples"
        for name, found in {**complete[-1], "hidden_state": hidden_state}.items():
            largest = max(largest, compare(name, expected[name][0], torch.from_numpy(found), where))
    return largest


def export_stream(model: JointModel, path: str | Path, window: float = WINDOW_SECONDS, checkpoint: str = "") -> float:
    """Write the stream of a causal model to ``path`` after a comparison with PyTorch on whole utterances.

    The graph is written to a temporary file first: a graph that differs from PyTorch never gets to ``path``. Its
    metadata are those of `file_metadata`, and ``chunk``, the number of samples that every input must be a multiple of,
    ``window``, ``padded_to`` and ``repeated_to`` (see `Step`).

    Args:
        window: Length in seconds of the window that keyword scores and speaker embeddings are computed from.
        checkpoint: Name of the checkpoint, for the metadata.

    Returns:
        The largest difference from PyTorch.

    Raises:
        UserError: the student is not causal, onnx or onnxruntime is not installed, or the graph differs from PyTorch.
    """
    load_onnx()
    model = model.eval()
    path, step = Path(path), Step(model, window).eval()
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = file_metadata(model, checkpoint, "float32", thresholds(model, model))
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        file = Path(folder) / "stream.onnx"
        metadata |= {"chunk": str(step.chunk), "window": str(window)}
        metadata |= {"padded_to": json.dumps(step.padded_to), "repeated_to": json.dumps(step.repeated_to)}
        write_onnx(trace_step(step), file, metadata)
        waveforms = speech_samples(model)
        long_enough = [waveform for waveform in with_halves(waveforms) if len(waveform) >= step.chunk]
        difference = check_stream(file, step, long_enough)
        os.replace(file, path)
    print(f"{path}: {file_size(path)}, differs by at most {difference:.1e} from PyTorch on {len(waveforms)} utterances")
    return difference
