"""Google's speech embedding (Lin et al. 2020), an encoder of words, with weights from ``openwakeword``."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distilled_student.common.errors import UserError, short_reason
from distilled_student.teachers.early_checks import WORD_ENCODER, WORD_ENCODER_INSTALL
from distilled_student.teachers.encoders import EqualLengthEncoder
from distilled_student.teachers.onnx_encoder import open_graph

FILES = ("melspectrogram.onnx", "embedding_model.onnx")
MEL_FRAMES, MEL_SHIFT, MEL_WINDOW = 76, 160, 640  # of a window: frames; samples from one frame to the next, of a frame
STEP = 16  # mel frames from one window to the next; openwakeword has 8, but neighbours overlap by nine tenths
SHORTEST = (STEP - 1) * MEL_SHIFT + MEL_WINDOW  # samples that have `STEP` mel frames
FULL_SCALE = 32767.0
FLOOR = 1.0  # of the mel values after openwakeword's scaling: quiet noise. Digital silence would have -10 + 2
DEVIATION = 10.0  # features are divided by their standard deviation on speech, so that the L1 distance is about 1
WINDOWS = 64  # that are embedded at once: more need memory and are not faster


def find_weights_of_openwakeword() -> list[Path]:
    """The two files in the installed package ``openwakeword``, which is not imported: it needs large libraries.

    Raises:
        UserError: the package is missing, or is a later version, which downloads its files.
    """
    spec = find_spec(WORD_ENCODER)
    if spec is None or spec.origin is None:
        raise UserError(f"{WORD_ENCODER}: is not installed; {WORD_ENCODER_INSTALL}")
    files = [Path(spec.origin).parent / "resources" / "models" / name for name in FILES]
    for file in files:
        if not file.is_file():
            raise UserError(f"{file}: missing: only older versions hold the weights; {WORD_ENCODER_INSTALL}")
    return files


class _Graph(nn.Module):
    """An ONNX graph with one input and one output, run by onnxruntime on the CPU. Its weights are parameters."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.session, constants = open_graph(file)
        from onnx.numpy_helper import to_array

        try:
            arrays = [np.atleast_1d(to_array(constant)) for constant in constants]
        except Exception as error:  # constants in another file, or of a type that numpy does not have
            raise UserError(f"{file}: cannot be read as an ONNX model ({short_reason(error)})") from None
        for number, values in enumerate(arrays):
            if np.issubdtype(values.dtype, np.floating):
                self.register_parameter(f"constant_{number}", nn.Parameter(torch.from_numpy(values.copy())))
        inputs, outputs = self.session.get_inputs(), self.session.get_outputs()
        if len(inputs) != 1 or len(outputs) != 1:
            found = f"inputs {', '.join(one.name for one in inputs)}; outputs {', '.join(one.name for one in outputs)}"
            raise UserError(f"{file}: expected one input and one output, found {found}; {WORD_ENCODER_INSTALL}")
        self.file, self.input = file, inputs[0].name
        self.sha256 = hashlib.sha256(file.read_bytes()).hexdigest()

    def run(self, values: np.ndarray) -> np.ndarray:
        """The output for an input of float32."""
        return np.asarray(self.session.run(None, {self.input: values.astype(np.float32)})[0])

    def check(self, shape: Sequence[int], wanted: str, fits: Callable[[tuple[int, ...]], bool]) -> np.ndarray:
        """The output for an input of `FLOOR` in this shape.

        Args:
            shape: Of the input.
            wanted: What the shape of the output must be, for a message.
            fits: Whether a shape of the output is that.

        Raises:
            UserError: the graph does not take this input, or its output has another shape or is not finite.
        """
        try:
            found = self.run(np.full(shape, FLOOR))
        except Exception as error:  # of the runtime: any exception
            reason = f"the graph cannot run ({short_reason(error)})"
        else:
            if fits(found.shape) and found.dtype == np.float32 and np.isfinite(found).all():
                return found
            reason = f"found {found.dtype} {found.shape}" + (" with other values" if fits(found.shape) else "")
        expected = f"for an input of shape {tuple(shape)} expected finite float32 {wanted}"
        raise UserError(f"{self.file}: {expected}, {reason}; {WORD_ENCODER_INSTALL}")


class WordEncoder(EqualLengthEncoder):
    """96 features of what was said in the last 0.8 s, every 0.16 s, 0 for quiet noise: a teacher with one layer.

    The network was trained on words in many recordings of many people, and a small head on its output finds words from
    few examples. A feature describes a window of 76 mel frames. Quiet noise stands before an utterance, so that its
    first window ends with its first 16 mel frames.

    Args:
        files: The graphs of the mel spectrogram and of the embedding, see `find_weights_of_openwakeword`.

    Raises:
        UserError: onnxruntime or onnx is missing, a file is damaged, or it is another graph: with other inputs,
            outputs or sizes.
    """

    hidden_size, num_layers, frame_shift = 96, 1, STEP * MEL_SHIFT
    # a window counts as centred on its last sample: a causal student has not got later audio, and needs no earlier one
    first_centre = float(SHORTEST)

    def __init__(self, files: Sequence[Path]) -> None:
        super().__init__()
        self.mel, self.embedding = (_Graph(file) for file in files)
        # two utterances, so that a graph that takes only one is found
        mel = self.mel.check((2, SHORTEST), f"(2, 1, {STEP}, bands)", lambda shape: shape[:-1] == (2, 1, STEP))
        bands, features = mel.shape[-1], 2 * self.hidden_size
        wanted = f"(2, 1, 1, {self.hidden_size})"
        self.embedding.check((2, MEL_FRAMES, bands, 1), wanted, lambda shape: math.prod(shape) == features)
        self.of_noise = self.embedding.run(np.full((1, MEL_FRAMES, bands, 1), FLOOR))

    def encode(self, waveforms: Tensor) -> Sequence[Tensor]:
        samples = F.pad(waveforms.float(), (0, max(0, SHORTEST - waveforms.shape[1]))).cpu().numpy()
        mel = self.mel.run(samples * FULL_SCALE)[:, 0] / 10 + 2  # (batch, mel frames, bands)
        before = np.full((len(mel), MEL_FRAMES - STEP, mel.shape[2]), FLOOR, np.float32)
        mel = np.concatenate([before, mel.clip(min=FLOOR)], axis=1)
        starts = range(0, mel.shape[1] - MEL_FRAMES + 1, STEP)
        windows = np.stack([mel[:, start : start + MEL_FRAMES] for start in starts], axis=1)
        flat = windows.reshape(-1, MEL_FRAMES, mel.shape[2], 1)
        found = [self.embedding.run(flat[first : first + WINDOWS]) for first in range(0, len(flat), WINDOWS)]
        features = (np.concatenate(found) - self.of_noise) / DEVIATION
        features = torch.from_numpy(features).reshape(len(mel), len(starts), -1)
        return [features.to(waveforms.device)] * 2  # its input is no hidden state: layer 1 is the only one

    def normalization(self) -> dict[str, Any]:
        return {"normalize": False}

    def settings(self) -> str:
        return f"{STEP} {FLOOR} {DEVIATION} {self.mel.sha256} {self.embedding.sha256}"


def read_word_encoder() -> WordEncoder:
    """The encoder with the weights of the installed package ``openwakeword``.

    Raises:
        UserError: see `find_weights_of_openwakeword` and `WordEncoder`.
    """
    return WordEncoder(find_weights_of_openwakeword())
