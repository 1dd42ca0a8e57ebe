"""Runs the graph of a stream on chunks of samples, and keeps its state from one call to the next."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .model_file import ModelFile
from .wav import read_samples


class ChunkStream:
    """The outputs of a stream for samples as they arrive.

    Attributes:
        model: The file of the stream.
    """

    model: ModelFile

    def __init__(self, model: ModelFile) -> None:
        self.model = model
        self.reset()

    def reset(self) -> None:
        """Discard the state: the next sample is the first of a new stream."""
        types = {"tensor(float)": np.float32, "tensor(int64)": np.int64}
        _, *state = self.model.session.get_inputs()
        self._state = {tensor.name: np.zeros(tensor.shape, types[tensor.type]) for tensor in state}
        self._waiting, self._processed = np.zeros(0, np.float32), 0
        self._beginning = np.zeros(0, np.float32)  # the first samples, as many as are repeated

    @property
    def window_seconds(self) -> float:
        """The seconds of audio that the latest scores and embeddings were computed from."""
        return min(self.model.window, self._processed / self.model.rate)

    def feed(self, samples: NDArray) -> dict[str, NDArray[np.float32]] | None:
        """Process any number of samples ``(samples,)``, floats in [-1, 1] or int16.

        Samples that do not complete a frame wait for the next call. Outputs for less audio than in training are those
        of this audio followed by silence (`Model.padded_to`), or repeated (`Model.repeated_to`). What is added does not
        become part of the stream.

        Returns:
            ``hidden_state (frames, features)`` of the new frames; ``keyword_scores (classes,)`` and
            ``speaker_embedding (embedding,)``, if the model has them, of the window that ends with the last new frame.
            None if the samples complete no frame.
        """
        if (outputs := self.advance(samples)) is None:
            return None
        for name, length in self.model.padded_to.items():
            if self._processed < length:
                outputs[name] = self._step(np.zeros(length - self._processed, np.float32))[0][name]
        for name, length in self.model.repeated_to.items():
            if self._processed < length:  # np.resize repeats
                outputs[name] = self._step(np.resize(self._beginning, length)[self._processed :])[0][name]
        return outputs

    def advance(self, samples: NDArray) -> dict[str, NDArray[np.float32]] | None:
        """`feed` for a caller that needs only the state and ``hidden_state``: adds nothing to audio that is too short.

        While less audio than in training has arrived, the other outputs are those of an incomplete window.
        """
        if not np.size(samples):
            return None
        waiting = np.concatenate([self._waiting, read_samples(samples, self.model.rate)])
        ready = len(waiting) // self.model.chunk * self.model.chunk
        self._waiting = waiting[ready:]
        if not ready:
            return None
        outputs, self._state = self._step(waiting[:ready])
        self._processed += ready
        if len(self._beginning) < max(self.model.repeated_to.values(), default=0):
            self._beginning = np.concatenate([self._beginning, waiting[:ready]])
        return outputs

    def peek(self, samples: NDArray) -> dict[str, NDArray[np.float32]]:
        """The outputs, see `feed`, for samples that follow; they do not become part of the stream.

        They are padded with zeros to whole chunks.
        """
        following = np.concatenate([self._waiting, read_samples(samples, self.model.rate)])
        return self._step(np.pad(following, (0, -len(following) % self.model.chunk)))[0]

    def inputs(self, samples: NDArray[np.float32]) -> dict[str, NDArray]:
        """The inputs of the file for whole chunks ``(samples,)``: these and the state."""
        return {"samples": samples[None], **self._state}

    def _step(self, samples: NDArray[np.float32]) -> tuple[dict[str, NDArray[np.float32]], dict[str, NDArray]]:
        """The outputs for whole chunks ``(samples,)``, and the next state; the stream's own state is not changed."""
        arrays = self.model.run_graph(None, self.inputs(samples))
        outputs = dict(zip(self.model.output_shapes, arrays, strict=True))
        state = {name: outputs.pop(name.replace("state_", "next_", 1)) for name in self._state}
        return {name: output[0] for name, output in outputs.items()}, state
