"""An opened file that `distilled-student export` has written: its metadata, and what follows from them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .calibration import KEY as CALIBRATION
from .calibration import Calibration
from .detector import DetectorSettings, Spotted, decide
from .external_weights import WeightsError, with_all_weights

UTTERANCE, STREAM = "utterance.onnx", "stream.onnx"  # files of a packed model


class ModelFile:
    """A file that ``distilled-student export`` has written, of utterances or of streams.

    Args:
        file: The .onnx file.
        threads: Threads of onnxruntime.

    Attributes:
        file: The file.
        labels: Classes of the keyword scores; labels that begin with ``_`` are not keywords.
        threshold: Probability from which on a keyword counts as said. None if the export did not measure one: then a
            keyword counts as said if it is the most likely of all classes.
        rate: Sample rate in Hz.
        chunk: For a stream, the number of samples that every input must be a multiple of; else 0.
        padded_to: For a stream, samples that an utterance is padded to with silence, by the output that needs it.
        repeated_to: For a stream, samples that an utterance is repeated to, by the output that needs it.
        window: For a stream, the seconds of audio that scores and embeddings are computed from.
        calibration: Of speaker verification; None if the export fitted none.
        detector_settings: Of `Stream.listen`.
        output_shapes: The shape of each output, by name.

    Raises:
        ValueError: from all methods too: a file, a sample rate or a shape is not usable; the message is one line.
    """

    def __init__(self, file: str | Path, threads: int = 1) -> None:
        os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # version 1.29 reports to Microsoft when it is imported
        import onnxruntime  # here, so that the rest of the module can be imported without it

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = threads, 3
        try:
            self.session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's errors have no other common base class
            _check_weights(Path(file))
            raise ValueError(f"{file}: not readable as an ONNX file ({str(error).splitlines()[0]})") from None
        self.file, self.threads = Path(file), threads
        self.output_shapes = {output.name: output.shape for output in self.session.get_outputs()}
        metadata = self.session.get_modelmeta().custom_metadata_map
        if not {"sample_rate", "shortest"} <= metadata.keys():
            raise ValueError(f"{file}: was not written by `distilled-student export`")
        self.rate, self._shortest = int(metadata["sample_rate"]), int(metadata["shortest"])
        self.labels: list[str] = json.loads(metadata.get("labels", "[]"))
        self.threshold = float(metadata["keyword_threshold"]) if "keyword_threshold" in metadata else None
        self.chunk = int(metadata.get("chunk", 0))
        self.window = float(metadata.get("window", 1.0))
        self.padded_to: dict[str, int] = json.loads(metadata.get("padded_to", "{}"))
        self.repeated_to: dict[str, int] = json.loads(metadata.get("repeated_to", "{}"))
        self._fingerprint: str | None = metadata.get("fingerprint")
        try:
            self.calibration = Calibration.from_metadata(metadata)
            self.detector_settings = DetectorSettings.from_metadata(metadata)
            self._check_mean_voice()
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from None

    def __repr__(self) -> str:
        kind = f"a stream in chunks of {self.chunk} samples" if self.chunk else "of utterances"
        keywords = " ".join(label for label in self.labels if not label.startswith("_"))
        size = f"embeddings of {self.embedding_size} numbers" if self.embedding_size else "no embeddings"
        return f"<{type(self).__name__} {self.file}: {kind}; keywords: {keywords or 'none'}; {size}>"

    def _check_mean_voice(self) -> None:
        """Raise ValueError if the calibration's mean voice is no vector of the size of an embedding."""
        shape = self.output_shapes.get("speaker_embedding")
        voice = () if self.calibration is None else self.calibration.mean_voice
        if voice and shape and isinstance(shape[-1], int) and len(voice) != shape[-1]:
            raise ValueError(f"{CALIBRATION}: mean_voice: {len(voice)} numbers, but embeddings have {shape[-1]}")

    @property
    def embedding_size(self) -> int | None:
        """The size of a speaker embedding; None if the file has none."""
        size = self.output_shapes.get("speaker_embedding", [None])[-1]
        return size if isinstance(size, int) else None

    def run_graph(self, outputs: Sequence[str] | None, inputs: Mapping[str, NDArray]) -> list[NDArray]:
        """Outputs of the graph, all if None, with their batch dimension. Raises ValueError if onnxruntime fails."""
        try:
            return self.session.run(outputs, inputs)
        except Exception as error:  # such as too little memory; onnxruntime's errors have no other common base class
            raise ValueError(f"{self.file}: onnxruntime failed ({' '.join(str(error).split())})") from None

    def named_scores(self, keyword_scores: NDArray[np.float32]) -> dict[str, float]:
        """The probability of each label, from ``keyword_scores (classes,)``."""
        return dict(zip(self.labels, keyword_scores.tolist(), strict=True))

    def decide(self, scores: dict[str, float]) -> Spotted:
        """The keyword, if one is said, by the probability of each label."""
        return decide(scores, self.threshold)

    @cached_property
    def fingerprint(self) -> str:
        """Names the weights that embeddings depend on: those of two models are not to be compared.

        All exports of a model have the same one, in 8 bits too. For a file of an older version it is a hash of the
        file; the two files of a packed folder, which share their weights, then have that of the stream.
        """
        if self._fingerprint is not None:
            return self._fingerprint
        pair = [self.file.with_name(name) for name in (UTTERANCE, STREAM)]
        is_packed = self.file in pair and all(file.is_file() for file in pair)
        return hashlib.sha256((pair[1] if is_packed else self.file).read_bytes()).hexdigest()[:16]


def _check_weights(file: Path) -> None:
    """Raise ValueError if the file reads weights from another file that cannot be used."""
    try:
        with_all_weights(file)
    except WeightsError:
        raise
    except (OSError, ValueError):
        return
