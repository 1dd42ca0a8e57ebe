"""One chunk of a stream as an ONNX graph: samples and state in, outputs and the next state out."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from distilled_student.export.graph import compare
from distilled_student.export.utterance import as_onnx, describe, load_onnx, recordings, size, write
from distilled_student.multitask.device_model import JointModel, thresholds
from distilled_student.streaming import WINDOW_SECONDS, Step

CHUNKS = (320, 640, 1_600, 777)  # samples of a chunk of which exports are checked


class _Flat(nn.Module):
    """A step with its state as arguments and results of their own: a graph has no dictionaries and no None."""

    def __init__(self, step: Step) -> None:
        super().__init__()
        self.step, self.state = step, list(step.start())

    def named(self, samples: Tensor, *state: Tensor) -> dict[str, Tensor]:
        """What the graph gives, by name; of the state, ``next_`` and its name."""
        output = self.step(samples, dict(zip(self.state, state, strict=True)))
        after = {f"next_{name}": tensor for name, tensor in output.state.items()}
        return {"hidden_state": output.output.last_hidden_state, **output.tasks, **after}

    def forward(self, samples: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.named(samples, *state).values())


def trace(step: Step) -> Any:
    """The step's graph, an onnx ``ModelProto``, for any multiple of the chunk.

    Inputs are ``samples`` and the state, ``state_`` and its name, zeros at first; outputs see `_Flat`.
    """
    flat, start = _Flat(step).eval(), step.start()
    with torch.no_grad():
        names = list(flat.named(torch.zeros(1, step.chunk), *start.values()))
    length = step.chunk * torch.export.Dim("chunks", min=1)
    shapes = ({1: length}, tuple({} for _ in start))
    program = torch.export.export(flat, (torch.zeros(1, 5 * step.chunk), *start.values()), dynamic_shapes=shapes)
    return as_onnx(program, ["samples", *(f"state_{name}" for name in start)], names).model_proto


@torch.no_grad()
def check(file: Path, step: Step, waveforms: Sequence[Tensor]) -> float:
    """The largest difference of a stream's outputs from those of the whole in PyTorch, in chunks of several lengths.

    Raises:
        UserError: it is too large, see `compare`.
    """
    from distilled_student.onnx import Stream  # here: its imports are an extra's

    model, stream, worst = step.model, Stream(file), 0.0
    for i, wave in enumerate(waveforms):
        wave, size = wave[: len(wave) // step.chunk * step.chunk], CHUNKS[i % len(CHUNKS)]
        stream.reset()
        given = [new for part in wave.split(size) if (new := stream.feed(part.numpy())) is not None]
        whole = model.student(model.gain * wave[None])
        window = model.features(whole)[:, -step.window :]
        heads = model.heads(window, torch.tensor([window.shape[1]]))
        ours = {"hidden_state": whole.last_hidden_state, **heads}
        theirs = {**given[-1], "hidden_state": np.concatenate([new["hidden_state"] for new in given])}
        for name, found in theirs.items():
            worst = max(worst, compare(name, ours[name][0], torch.from_numpy(found), f"in chunks of {size} samples"))
    return worst


def export_stream(model: JointModel, path: str | Path, window: float = WINDOW_SECONDS, checkpoint: str = "") -> float:
    """Write a stream of a causal model, checked on speech against whole utterances; no wrong file is left behind.

    Its metadata are those of `export_onnx` and ``chunk``, samples that ``samples`` has a multiple of.

    Args:
        window: Seconds that keyword scores are of.
        checkpoint: Its name, for the metadata.

    Returns:
        The largest difference.

    Raises:
        UserError: the student is not causal, onnx or onnxruntime are missing, or the graph differs from PyTorch.
    """
    load_onnx()
    model = model.eval()
    path, step = Path(path), Step(model, window).eval()
    path.parent.mkdir(parents=True, exist_ok=True)
    about = describe(model, checkpoint, "float32", thresholds(model, model))
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        file = Path(folder) / "stream.onnx"
        write(trace(step), file, about | {"chunk": str(step.chunk), "window": str(window)})
        waveforms = [wave for wave in recordings(model) if len(wave) >= step.chunk]
        difference = check(file, step, waveforms)
        os.replace(file, path)
    print(f"{path}: {size(path)}, at most {difference:.1e} from PyTorch on {len(waveforms)} utterances")
    return difference
