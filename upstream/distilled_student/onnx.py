"""Runs exported models, keywords and speakers, with numpy and onnxruntime alone; works as a copy of this one file.

model = distilled_student.onnx.load("joint.onnx")
model.spot("command.wav")                                  # Spotted(label="stop", score=0.98)
model.verify("command.wav", ["owner1.wav", "owner2.wav"])  # Verified(accepted=True, ratio=5.1, cosine=0.71)
"""

from __future__ import annotations

import json
import wave
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
import onnxruntime
from numpy.typing import NDArray

Wav: TypeAlias = "str | Path | NDArray"  # a PCM .wav, or samples: floats in [-1, 1] or int16


class Spotted(NamedTuple):
    """``label``: the keyword, None where none was said. ``score``: the probability of the likeliest keyword."""

    label: str | None
    score: float


class Verified(NamedTuple):
    """``accepted``: the same speaker. ``ratio``: the log-likelihood ratio of that. ``cosine``: of the embeddings."""

    accepted: bool
    ratio: float
    cosine: float


def read_wav(path: str | Path, rate: int) -> NDArray[np.float32]:
    """``(samples,)`` in [-1, 1] of a PCM .wav of ``rate`` Hz, channels averaged. Raises ValueError naming the file."""
    try:
        with wave.open(str(path), "rb") as file:
            found, channels, width = file.getframerate(), file.getnchannels(), file.getsampwidth()
            data = np.frombuffer(file.readframes(file.getnframes()), np.uint8)
    except (OSError, EOFError, wave.Error) as error:
        raise ValueError(f"{path}: not readable as a PCM .wav ({error})") from None
    if found != rate:
        raise ValueError(f"{path}: has {found} Hz; needs {rate} Hz")
    data = data[: len(data) // (width * channels) * width * channels].reshape(-1, width)
    if width == 1:
        data = data ^ 128  # eight bits alone have no sign
    wide = np.zeros((len(data), 4), np.uint8)  # the most significant bytes of 32 bits
    wide[:, 4 - width :] = data
    return (wide.view("<i4")[:, 0] / 2**31).astype(np.float32).reshape(-1, channels).mean(axis=1)


def _unit(vectors: NDArray) -> NDArray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True).clip(min=1e-12)


class Model:
    """A file of ``distilled-student export``.

    Attributes:
        labels: Classes of the keyword scores; those that begin with ``_`` are no keywords.
        threshold: Of a keyword's probability; None where none was measured: then it must be the likeliest class.

    Raises:
        ValueError: of all methods too: a file, a rate or a shape that cannot be used; one line.
    """

    def __init__(self, file: str | Path, threads: int = 1) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = threads, 3
        try:
            self.session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's errors have no other base
            raise ValueError(f"{file}: not readable as an ONNX file ({str(error).splitlines()[0]})") from None
        self.file, self._outputs = file, {output.name: output.shape for output in self.session.get_outputs()}
        about = self.session.get_modelmeta().custom_metadata_map
        if not {"sample_rate", "shortest"} <= about.keys():
            raise ValueError(f"{file}: was not written by distilled-student export")
        self.rate, self._shortest = int(about["sample_rate"]), int(about["shortest"])
        self.labels: list[str] = json.loads(about.get("labels", "[]"))
        self.threshold = float(about["keyword_threshold"]) if "keyword_threshold" in about else None
        self.chunk = int(about.get("chunk", 0))  # samples; 0: not a stream
        self._line = (float(about["sv_slope"]), float(about["sv_offset"])) if "sv_slope" in about else None

    def run(self, wav: Wav, output: str) -> NDArray[np.float32]:
        """An output for one utterance, without the batch: ``keyword_scores``, ``hidden_state (frames, features)``."""
        if self.chunk:
            raise ValueError(f"{self.file}: is a stream; Stream runs it")
        if output not in self._outputs:
            raise ValueError(f"{self.file}: has no {output}, only {', '.join(self._outputs)}")
        samples = self._samples(wav)
        padded = np.pad(samples, (0, max(0, self._shortest - len(samples))))
        given = {"waveforms": padded[None], "lengths": np.array([len(samples)])}
        return self.session.run([output], given)[0][0]

    def _samples(self, wav: Wav) -> NDArray[np.float32]:
        name = f"{wav}" if isinstance(wav, str | Path) else "samples"
        samples = read_wav(wav, self.rate) if isinstance(wav, str | Path) else np.asarray(wav)
        if samples.ndim != 1 or not len(samples):
            raise ValueError(f"{name}: expected one channel (samples,), found shape {samples.shape}")
        if samples.dtype == np.int16:
            samples = samples / 32768
        if not np.issubdtype(samples.dtype, np.floating):
            raise ValueError(f"{name}: expected floats in [-1, 1] or int16, found {samples.dtype}")
        if not np.isfinite(samples).all():
            raise ValueError(f"{name}: NaN or infinite")
        return samples.astype(np.float32)

    def scores(self, wav: Wav) -> dict[str, float]:
        """The probability of each label."""
        return dict(zip(self.labels, self.run(wav, "keyword_scores").tolist(), strict=True))

    def spot(self, wav: Wav) -> Spotted:
        """The keyword that is said, if one is."""
        return self.decide(self.scores(wav))

    def decide(self, scores: dict[str, float]) -> Spotted:
        """The keyword of such scores, if there is one."""
        label = max((label for label in scores if not label.startswith("_")), key=scores.__getitem__)
        least = max(scores.values()) if self.threshold is None else self.threshold
        return Spotted(label if scores[label] >= least else None, scores[label])

    def embed(self, wav: Wav) -> NDArray[np.float32]:
        """``(embedding,)`` of length 1; the cosine of two is their product."""
        return _unit(self.run(wav, "speaker_embedding"))

    def enrol(self, enrolment: Wav | Sequence[Wav]) -> NDArray[np.float32]:
        """The mean ``(embedding,)`` of one or several utterances, or of embeddings, which are told by their size."""
        size = self._outputs.get("speaker_embedding", [0, 0])[1]
        rows = isinstance(enrolment, np.ndarray) and enrolment.shape[1:] == (size,)
        several = enrolment if rows or isinstance(enrolment, list | tuple) else [enrolment]
        if not len(several):
            raise ValueError("enrolment: is empty")
        vectors = [_unit(np.asarray(one)) if np.shape(one) == (size,) else self.embed(one) for one in several]
        return _unit(np.mean(vectors, axis=0))

    def verify(self, wav: Wav, enrolment: Wav | Sequence[Wav], threshold: float = 0.0) -> Verified:
        """Whether the speaker is the enrolled one (see `enrol`): a log-likelihood ratio of ``threshold`` or more."""
        if self._line is None:
            raise ValueError(f"{self.file}: has no calibration of speaker verification; `embed` works")
        cosine = float(self.embed(wav) @ self.enrol(enrolment))
        ratio = self._line[0] * cosine + self._line[1]
        return Verified(ratio >= threshold, ratio, cosine)


class Stream:
    """A file of ``distilled-student export --streaming``, on samples as they come.

    Raises:
        ValueError: as of `Model`; not a stream.
    """

    def __init__(self, file: str | Path, threads: int = 1) -> None:
        self.model = Model(file, threads)
        if not self.model.chunk:
            raise ValueError(f"{file}: is not a stream; distilled-student export --streaming writes one")
        self.reset()

    def reset(self) -> None:
        """Forget everything: the next sample is the first."""
        kinds = {"tensor(float)": np.float32, "tensor(int64)": np.int64}
        _, *state = self.model.session.get_inputs()
        self._state = {tensor.name: np.zeros(tensor.shape, kinds[tensor.type]) for tensor in state}
        self._waiting = np.zeros(0, np.float32)

    def feed(self, samples: NDArray) -> dict[str, NDArray[np.float32]] | None:
        """Take ``(samples,)``, as many as there are: floats in [-1, 1] or int16.

        Returns:
            ``hidden_state (frames, features)`` of the frames that they complete, and of the window that ends with these
            ``keyword_scores (classes,)`` and ``speaker_embedding (embedding,)``, those that the model has; None where
            they complete no frame.
        """
        waiting = np.concatenate([self._waiting, self.model._samples(samples)])
        ready = len(waiting) // self.model.chunk * self.model.chunk
        self._waiting = waiting[ready:]
        if not ready:
            return None
        found = self.model.session.run(None, {"samples": waiting[None, :ready], **self._state})
        outputs = dict(zip(self.model._outputs, found, strict=True))
        self._state = {name: outputs.pop(name.replace("state_", "next_", 1)) for name in self._state}
        return {name: output[0] for name, output in outputs.items()}

    def spot(self, samples: NDArray) -> Spotted | None:
        """The keyword in the window that ends with these samples, if one is said; None where they complete no frame."""
        if (new := self.feed(samples)) is None:
            return None
        return self.model.decide(dict(zip(self.model.labels, new["keyword_scores"].tolist(), strict=True)))


def load(file: str | Path, threads: int = 1) -> Model:
    """A model from a file of ``distilled-student export``. Raises ValueError."""
    return Model(file, threads)
