"""Models and streams: files that `distilled-student export` has written, run by onnxruntime."""

from __future__ import annotations

import copy
import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from . import speakers
from .calibration import Calibration
from .detector import HOP_SECONDS, Detector, DetectorSettings, Hit, Spotted, decide, decide_words, owner_said
from .speakers import FALSE_ACCEPTS, Enrolment, Identified, Verified
from .wav import Wav, read_samples
from .words import (
    CONTEXT_SECONDS,
    PAUSE_SECONDS,
    STREAM_FALSE_ACCEPTS,
    WORDS,
    Word,
    WordMaps,
    WordTracker,
    quiet_noise,
    template,
    word_clip,
)
from .words import FALSE_ACCEPTS as WORD_FALSE_ACCEPTS

UTTERANCE, STREAM = "utterance.onnx", "stream.onnx"  # files of a packed model
SHIPPED = Path(__file__).parents[1] / "assets" / "models"  # not there next to a copy of this folder


class Model:
    """A file that ``distilled-student export`` has written.

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

    Raises:
        ValueError: from all methods too: a file, a sample rate or a shape is not usable; the message is one line.
    """

    def __init__(self, file: str | Path, threads: int = 1) -> None:
        import onnxruntime  # here, so that the rest of the module can be imported without it

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = threads, 3
        try:
            self.session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's errors have no other common base class
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
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from None

    def run(self, wav: Wav, output: str) -> NDArray[np.float32]:
        """One output for one utterance, without the batch dimension.

        Args:
            output: ``hidden_state (frames, features)``, ``keyword_scores (classes,)`` or
                ``speaker_embedding (embedding,)``.
        """
        if self.chunk:
            raise ValueError(f"{self.file}: is a stream; run it with Stream")
        if output not in self.output_shapes:
            raise ValueError(f"{self.file}: has no {output}, only {', '.join(self.output_shapes)}")
        samples = read_samples(wav, self.rate)
        padded = np.pad(samples, (0, max(0, self._shortest - len(samples))))
        inputs = {"waveforms": padded[None], "lengths": np.array([len(samples)])}
        return self.session.run([output], inputs)[0][0]

    def scores(self, wav: Wav) -> dict[str, float]:
        """The probability of each label."""
        return self.named_scores(self.run(wav, "keyword_scores"))

    def named_scores(self, keyword_scores: NDArray[np.float32]) -> dict[str, float]:
        """The probability of each label, from ``keyword_scores (classes,)``."""
        return dict(zip(self.labels, keyword_scores.tolist(), strict=True))

    def spot(
        self, wav: Wav, words: Mapping[str, Word] | None = None, false_accepts: float = WORD_FALSE_ACCEPTS
    ) -> Spotted:
        """The keyword of an utterance, if one is said.

        Args:
            words: Words of one's own by name, see `enrol_word`.
            false_accepts: The share of utterances of other words that are taken for a word of one's own.
        """
        if not words:
            return self.decide(self.scores(wav))
        samples = read_samples(wav, self.rate)
        return decide_words(self.decide(self.scores(samples)), self.word_scores(samples, words, false_accepts))

    def enrol_word(self, recordings: Sequence[Wav]) -> Word:
        """The template of a word of one's own, from three to five recordings of this word alone.

        Silence before and behind the word does no harm; another word does.
        """
        if not len(recordings):
            raise ValueError("recordings: none given")
        vectors, frames = zip(*map(self.word_vector, recordings), strict=True)
        return template(np.stack(vectors), frames)

    def word_scores(
        self, wav: Wav, words: Mapping[str, Word], false_accepts: float = WORD_FALSE_ACCEPTS
    ) -> dict[str, float]:
        """The score of each word of one's own in an utterance: 0.5 or more if it counts as said.

        The hidden states are those after `CONTEXT_SECONDS` of quiet noise. Without any earlier frames they would differ
        from those in a stream.
        """
        return self.word_maps.scores(
            words, self._after_noise.peek(read_samples(wav, self.rate))["hidden_state"], false_accepts
        )

    @cached_property
    def word_maps(self) -> WordMaps:
        """What words of one's own need: the file ``words.npz`` in the folder of the model. Raises ValueError."""
        maps = WordMaps.read(self.file.with_name(WORDS))
        if maps.fingerprint != self.fingerprint:
            raise ValueError(f"{self.file.with_name(WORDS)}: was made for another model than {self.file}")
        return maps

    def word_vector(self, wav: Wav) -> tuple[NDArray[np.float32], float]:
        """The vector ``(size,)``, of length 1, of a recording of a word, and the word's length in frames.

        It is the mean of two: after quiet noise, and after the recording itself and a pause. Hidden states depend on
        what was said before, so that a template of the first alone misses words in running speech.
        """
        samples, pause = read_samples(wav, self.rate), quiet_noise(round(PAUSE_SECONDS * self.rate))
        after_speech = copy.copy(self._after_noise)
        after_speech.reset()
        after_speech.feed(np.concatenate([quiet_noise(round(CONTEXT_SECONDS * self.rate)), samples, pause]))
        clips = [word_clip(stream, samples) for stream in (self._after_noise, after_speech)]
        vectors = [self.word_maps.clip_vector(clip) for clip in clips]
        return speakers.unit_length(np.mean(vectors, axis=0)), clips[0].end - clips[0].start

    @cached_property
    def _after_noise(self) -> Stream:
        stream = self.stream()
        stream.feed(quiet_noise(round(CONTEXT_SECONDS * self.rate)))
        return stream

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

    def embed(self, wav: Wav) -> NDArray[np.float32]:
        """The speaker embedding ``(embedding,)``, of length 1: the dot product of two is their cosine."""
        return speakers.unit_length(self.run(wav, "speaker_embedding"))

    def enrol(self, enrolment: Enrolment | Wav | Sequence[Wav]) -> Enrolment:
        """One speaker, from one or several utterances or embeddings of theirs.

        Args:
            enrolment: One, or a list or tuple of them, or an array ``(number, embedding)``. An array counts as an
                embedding, not as samples, if it has the size of one. What this method returned stays as it is.
        """
        if isinstance(enrolment, Enrolment):
            return enrolment
        is_matrix = isinstance(enrolment, np.ndarray) and enrolment.shape[1:] == self._embedding_shape
        items = enrolment if is_matrix or isinstance(enrolment, list | tuple) else [enrolment]
        if not len(items):
            raise ValueError("enrolment: is empty; give at least one utterance or embedding")
        vectors, seconds = zip(*map(self._embedded, items), strict=True)
        return speakers.mean_enrolment(vectors, seconds)

    def similarity(self, a: Enrolment | Wav, b: Enrolment | Wav) -> float:
        """The cosine similarity of two utterances, embeddings or enrolled speakers, from -1 to 1."""
        return float(self._embedded(a)[0] @ self._embedded(b)[0])

    def verify(
        self,
        wav: Wav,
        enrolment: Enrolment | Wav | Sequence[Wav],
        false_accepts: float = FALSE_ACCEPTS,
        same_word: bool | None = None,
        threshold: float | None = None,
    ) -> Verified:
        """Whether an utterance is from the enrolled speaker.

        Args:
            enrolment: See `enrol`.
            false_accepts: The share of other speakers' utterances that are accepted.
            same_word: Whether the utterance has the words of the enrolled ones; None if it is not known.
            threshold: The smallest log-likelihood ratio that is accepted, instead of ``false_accepts``.
        """
        calibration, (vector, seconds) = self._needed_calibration(), self._embedded(wav)
        found = speakers.verify(calibration, vector, seconds, self.enrol(enrolment), false_accepts, same_word)
        if threshold is None:
            return found
        notes = tuple(note for note in found.notes if note != speakers.UNSTATED)
        return found._replace(accepted=found.ratio >= threshold, notes=notes)

    def identify(
        self,
        wav: Wav,
        enrolments: Mapping[str, Enrolment],
        false_accepts: float = FALSE_ACCEPTS,
        same_word: bool | None = None,
    ) -> Identified:
        """Which of the enrolled speakers an utterance is from, or nobody of them.

        Args:
            enrolments: What `enrol` returned, by the speaker's name.
            false_accepts: The share of the utterances of people who are not enrolled that get any name.
            same_word: See `verify`.
        """
        calibration, (vector, seconds) = self._needed_calibration(), self._embedded(wav)
        enrolled = {name: self.enrol(enrolment) for name, enrolment in enrolments.items()}
        return speakers.identify(calibration, vector, seconds, enrolled, false_accepts, same_word)

    @property
    def _embedding_shape(self) -> tuple[int, ...]:
        return tuple(self.output_shapes.get("speaker_embedding", [0, 0])[1:])

    def _embedded(self, item: Enrolment | Wav) -> tuple[NDArray[np.float32], float]:
        """The embedding, of length 1, of an utterance, an embedding or an enrolled speaker, and its seconds, or NaN."""
        if isinstance(item, Enrolment):
            return item.vector, item.seconds
        if not isinstance(item, str | Path) and np.shape(item) == self._embedding_shape:
            return speakers.unit_length(np.asarray(item)), math.nan
        samples = read_samples(item, self.rate)
        return self.embed(samples), len(samples) / self.rate

    def _needed_calibration(self) -> Calibration:
        if self.calibration is None:
            raise ValueError(f"{self.file}: has no calibration of speaker verification; `embed` works without one")
        return self.calibration

    def who(
        self,
        embedding: NDArray,
        seconds: float,
        enrolments: Mapping[str, Enrolment],
        false_accepts: float = FALSE_ACCEPTS,
    ) -> Identified:
        """`identify` by an embedding ``(embedding,)`` of any length, from ``seconds`` of audio."""
        vector = speakers.unit_length(embedding)
        return speakers.identify(self._needed_calibration(), vector, seconds, enrolments, false_accepts)

    def stream(self) -> Stream:
        """A new stream of the same model: of the file ``stream.onnx`` in the folder of this one."""
        file = self.file if self.chunk else self.file.with_name(STREAM)
        if not file.is_file():
            raise ValueError(f"{file}: no such file; `distilled-student export --streaming` writes a stream")
        return Stream(file, self.threads)


class Stream:
    """A file that ``distilled-student export --streaming`` has written, run on samples as they arrive.

    Use either `listen` or `feed` and `spot` between two calls of `reset`.

    Args:
        file: The .onnx file, or the `Stream.model` of another stream: both then share its weights, from threads too.
        threads: Threads of onnxruntime.

    Attributes:
        model: The file.
        hop: Samples between two decisions of `listen`: `HOP_SECONDS`, or the next multiple of the model's chunk.
        detector: Decides for `listen`; another one may be set, with ``hop / model.rate`` as its seconds.

    Raises:
        ValueError: see `Model`; or the file is not a stream.
    """

    def __init__(self, file: str | Path | Model, threads: int = 1) -> None:
        self.model = file if isinstance(file, Model) else Model(file, threads)
        if not self.model.chunk:
            raise ValueError(f"{self.model.file}: is not a stream; `distilled-student export --streaming` writes one")
        self.hop = math.ceil(round(HOP_SECONDS * self.model.rate) / self.model.chunk) * self.model.chunk
        self.detector = Detector(self.model.labels, self.model.detector_settings, self.hop / self.model.rate)
        self._own_words: WordTracker | None = None
        self.reset()

    def reset(self) -> None:
        """Discard the state: the next sample is the first of a new stream."""
        types = {"tensor(float)": np.float32, "tensor(int64)": np.int64}
        _, *state = self.model.session.get_inputs()
        self._state = {tensor.name: np.zeros(tensor.shape, types[tensor.type]) for tensor in state}
        self._waiting, self._processed = np.zeros(0, np.float32), 0
        self._beginning = np.zeros(0, np.float32)  # the first samples, as many as are repeated
        self._of_hop = np.zeros(0, np.float32)  # samples of `listen` that complete no hop
        self.detector.reset()
        if self._own_words is not None:
            self._own_words.reset()

    def watch(self, words: Mapping[str, Word], false_accepts: float = STREAM_FALSE_ACCEPTS) -> None:
        """Let `listen` report words of one's own too, from the next sample on, see `Model.enrol_word`.

        Args:
            words: By name; they replace earlier ones.
            false_accepts: The share of other words of one second that are taken for one of these.
        """
        self._own_words = WordTracker(self.model.word_maps, words, false_accepts) if words else None

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
        arrays = self.model.session.run(None, self.inputs(samples))
        outputs = dict(zip(self.model.output_shapes, arrays, strict=True))
        state = {name: outputs.pop(name.replace("state_", "next_", 1)) for name in self._state}
        return {name: output[0] for name, output in outputs.items()}, state

    def spot(self, samples: NDArray) -> Spotted | None:
        """The keyword, if one is said, in the window that ends with these samples; None if they complete no frame."""
        if (outputs := self.feed(samples)) is None:
            return None
        return self.model.decide(self.model.named_scores(outputs["keyword_scores"]))

    def listen(
        self,
        samples: NDArray,
        speakers: Mapping[str, Enrolment] | None = None,
        owner: Enrolment | None = None,
        false_accepts: float = FALSE_ACCEPTS,
    ) -> list[Hit]:
        """Process any number of samples ``(samples,)``, floats in [-1, 1] or int16, and report each keyword once.

        The stream is scored after every `hop`, so that the hits do not depend on how the samples arrive. Samples that
        complete no hop wait for the next call.

        Args:
            speakers: Enrolled speakers: each hit says which of them spoke, or that nobody of them did.
            owner: Report only the keywords of this speaker. Word and speaker are decided separately, and each can
                veto: the keyword reaches its threshold, and the owner is accepted by `Model.verify` from the speaker
                embedding of the window at the time of the hit. It is decided once for each keyword.
            false_accepts: See `Model.identify`.

        Raises:
            ValueError: see `Model`; the model has no keyword or speaker output that is needed.
        """
        if "keyword_scores" not in self.model.output_shapes:
            raise ValueError(f"{self.model.file}: has no keyword_scores; read its outputs with `feed`")
        if speakers is not None and owner is not None:
            raise ValueError("speakers, owner: give one of them")
        hits = []
        for hop, outputs in self.hops([samples]):
            own = {} if self._own_words is None else self._own_words.step(outputs["hidden_state"])
            hit = self.detector.step(outputs["keyword_scores"], hop, own)
            if hit is not None and (hit := self._by_speaker(hit, outputs, speakers, owner, false_accepts)) is not None:
                hits.append(hit)
        return hits

    def hops(self, blocks: Iterable[NDArray]) -> Iterator[tuple[NDArray[np.float32], dict[str, NDArray[np.float32]]]]:
        """Cut blocks of any number of samples into hops; the samples ``(hop,)`` and the outputs of each, see `feed`."""
        for samples in blocks:
            if np.size(samples):
                self._of_hop = np.concatenate([self._of_hop, read_samples(samples, self.model.rate)])
            while len(self._of_hop) >= self.hop:
                hop, self._of_hop = np.split(self._of_hop, [self.hop])
                yield hop, self.feed(hop)

    def _by_speaker(
        self,
        hit: Hit,
        outputs: Mapping[str, NDArray[np.float32]],
        speakers: Mapping[str, Enrolment] | None,
        owner: Enrolment | None,
        false_accepts: float,
    ) -> Hit | None:
        """The hit with its speaker; None if the owner did not say it."""
        enrolled = speakers if owner is None else {"owner": owner}
        if not enrolled:
            return hit
        found = self._who(enrolled, outputs, false_accepts)
        if owner is not None and found.name is None:
            return None
        score = hit.score if owner is None else owner_said(hit.score, found.ratio)
        return hit._replace(score=score, speaker=found.name, ratio=found.ratio)

    def _who(
        self, enrolled: Mapping[str, Enrolment], outputs: Mapping[str, NDArray[np.float32]], false_accepts: float
    ) -> Identified:
        """Who spoke in the window that a hop's outputs were computed from."""
        if "speaker_embedding" not in outputs:
            raise ValueError(f"{self.model.file}: has no speaker_embedding; it cannot tell who spoke")
        seconds = min(self.model.window, self._processed / self.model.rate)
        return self.model.who(outputs["speaker_embedding"], seconds, enrolled, false_accepts)

    def is_from(
        self, owner: Enrolment, outputs: Mapping[str, NDArray[np.float32]], false_accepts: float = FALSE_ACCEPTS
    ) -> bool:
        """Whether `listen` would accept a keyword after this hop as the owner's; ``outputs``: the latest of `hops`."""
        return self._who({"owner": owner}, outputs, false_accepts).name is not None


def load(file: str | Path, threads: int = 1) -> Model:
    """Open a file that ``distilled-student export`` has written, a folder of ``distilled-student pack``, or a model.

    Args:
        file: The file, the folder, or ``edge`` or ``tiny``, the models that ship with the package.
        threads: Threads of onnxruntime.

    Raises:
        ValueError: it is none of these.
    """
    shipped = SHIPPED / str(file) / UTTERANCE
    path = shipped if not Path(file).exists() and shipped.is_file() else Path(file)
    return Model(path / UTTERANCE if path.is_dir() else path, threads)
