"""Models and streams: files that `distilled-student export` has written, run by onnxruntime."""

from __future__ import annotations

import copy
import difflib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from . import speakers
from .band import band_limit
from .calibration import Calibration, check_above_zero
from .chunks import ChunkStream
from .detector import HOP_SECONDS, TAIL_SECONDS, Detector, Hit, Spotted, UndecidedHits, decide_words, owner_said
from .model_file import STREAM, UTTERANCE, ModelFile
from .speakers import FALSE_ACCEPTS, Enrolment, Identified, Verified
from .wav import Wav, read_samples
from .words import (
    CONCATENATED,
    CONTEXT_SECONDS,
    FALSE_ALARMS,
    PAUSE_SECONDS,
    WORDS,
    Word,
    WordMaps,
    WordTracker,
    quiet_noise,
    template,
    word_clip,
)
from .words import FALSE_ACCEPTS as WORD_FALSE_ACCEPTS

# Seconds of an utterance, which is encoded as a whole: with attention over all frames, memory grows with the square of
# the length. `edge` takes 0.6 GB for 60 s, 1.4 GB for 100 s and 29 GB for 600 s.
MAX_SECONDS = 60
SHIPPED = Path(__file__).parents[1] / "assets" / "models"  # not there next to a copy of this folder


class Model(ModelFile):
    """A file that ``distilled-student export`` has written, with its decisions on utterances and on speakers.

    Arguments, attributes, and the errors of all methods: see `ModelFile`.
    """

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
        samples = self._read_utterance(wav)
        padded = np.pad(samples, (0, max(0, self._shortest - len(samples))))
        inputs = {"waveforms": padded[None], "lengths": np.array([len(samples)])}
        return self.run_graph([output], inputs)[0][0]

    def _read_utterance(self, wav: Wav) -> NDArray[np.float32]:
        """The checked samples ``(samples,)`` of an utterance. Raises ValueError: longer than `MAX_SECONDS`."""
        samples = read_samples(wav, self.rate)
        if len(samples) > MAX_SECONDS * self.rate:
            name = f"{wav}" if isinstance(wav, str | Path) else "samples"
            limit = f"an utterance, which is encoded as a whole, has at most {MAX_SECONDS} s"
            raise ValueError(f"{name}: {len(samples) / self.rate:.1f} s: {limit}: cut it, or use `Model.stream`")
        return samples

    def scores(self, wav: Wav) -> dict[str, float]:
        """The probability of each label."""
        return self.named_scores(self.run(wav, "keyword_scores"))

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
        samples = self._read_utterance(wav)
        return decide_words(self.decide(self.scores(samples)), self.word_scores(samples, words, false_accepts))

    def enrol_word(self, recordings: Sequence[Wav]) -> Word:
        """The template of a word of one's own, from three to five recordings of this word alone.

        Silence before and behind the word does no harm; another word does.
        """
        if not len(recordings):
            raise ValueError("recordings: none given")
        vectors, frames = zip(*map(self.word_vector, recordings), strict=True)
        word = template(np.stack(vectors), frames, self.word_maps.digest)
        return word._replace(level=self.word_maps.level(word))  # a second; a stream would compute it in each `watch`

    def word_scores(
        self, wav: Wav, words: Mapping[str, Word], false_accepts: float = WORD_FALSE_ACCEPTS
    ) -> dict[str, float]:
        """The score of each word of one's own in an utterance: 0.5 or more if it counts as said.

        The hidden states are those after `CONTEXT_SECONDS` of quiet noise. Without any earlier frames they would differ
        from those in a stream.
        """
        check_above_zero("false_accepts", false_accepts, 1)
        clip = word_clip(self._after_noise, self._read_utterance(wav))
        return self.word_maps.scores(words, clip.hidden, false_accepts)

    def word_vector(self, wav: Wav) -> tuple[NDArray[np.float32], float]:
        """The vector ``(size,)``, of length 1, of a recording of a word, and the word's length in frames.

        It is the mean of two: after quiet noise, and after the recording itself and a pause. Hidden states depend on
        what was said before, so that a template of the first alone misses words in running speech.
        """
        samples, pause = self._read_utterance(wav), quiet_noise(round(PAUSE_SECONDS * self.rate))
        after_speech = copy.copy(self._after_noise)
        after_speech.reset()
        after_speech.feed(np.concatenate([quiet_noise(round(CONTEXT_SECONDS * self.rate)), samples, pause]))
        clips = [word_clip(stream, samples) for stream in (self._after_noise, after_speech)]
        vectors = [self.word_maps.clip_vector(clip) for clip in clips]
        return speakers.unit_length(np.mean(vectors, axis=0)), clips[0].end - clips[0].start

    @cached_property
    def word_maps(self) -> WordMaps:
        """What words of one's own need: the file `WORDS` in the folder of the model. Raises ValueError."""
        if not self.chunk:
            return self._after_noise.model.word_maps
        maps = WordMaps.read(file := self.file.with_name(WORDS))
        if maps.fingerprint != self.fingerprint:
            raise ValueError(f"{file}: was made for another model than {self.file}")
        states = self.output_shapes.get(CONCATENATED)
        if states is None or states[-1] != len(maps.front):
            raise ValueError(f"{self.file}: has not the {CONCATENATED} that {WORDS} needs: export it again")
        return maps

    @cached_property
    def _after_noise(self) -> Stream:
        stream = self.stream()
        stream.feed(quiet_noise(round(CONTEXT_SECONDS * self.rate)))
        return stream

    def embed(self, wav: Wav) -> NDArray[np.float32]:
        """The speaker embedding ``(embedding,)``, of length 1: the dot product of two is their cosine."""
        return speakers.unit_length(self.run(wav, "speaker_embedding"))

    def enrol(self, enrolment: Enrolment | Wav | Sequence[Wav]) -> Enrolment:
        """One speaker, from one or several utterances or embeddings of theirs.

        Args:
            enrolment: One, or a list or tuple of them, or an array ``(number, embedding)``. An array counts as an
                embedding, not as samples, if it has the size of one. What this method returned stays as it is. In a
                list it counts as all of its clips, each with their mean vector, which has length 1: the vector of all
                is nearly that of the clips enrolled at once.
        """
        if isinstance(enrolment, Enrolment):
            self.check_enrolment(enrolment)
            return enrolment
        is_matrix = isinstance(enrolment, np.ndarray) and enrolment.shape[1:] == (self.embedding_size,)
        items = enrolment if is_matrix or isinstance(enrolment, list | tuple) else [enrolment]
        if not len(items):
            raise ValueError("enrolment: is empty; give at least one utterance or embedding")
        return speakers.mean_enrolment(list(map(self._embedded, items)), self.fingerprint)

    def check_enrolment(self, enrolment: Enrolment) -> None:
        """Raise ValueError if this is a speaker whom another model has enrolled."""
        if enrolment.model not in ("", self.fingerprint):
            raise ValueError("enrolment: is of another model: enrol the speaker with this model")

    def similarity(self, a: Enrolment | Wav, b: Enrolment | Wav) -> float:
        """The cosine similarity of two utterances, embeddings or enrolled speakers, from -1 to 1."""
        return float(self._embedded(a).vector @ self._embedded(b).vector)

    def verify(
        self,
        wav: Enrolment | Wav,
        enrolment: Enrolment | Wav | Sequence[Wav],
        false_accepts: float = FALSE_ACCEPTS,
        same_word: bool | None = None,
        threshold: float | None = None,
    ) -> Verified:
        """Whether an utterance is from the enrolled speaker.

        Args:
            wav: The utterance, or what `enrol` returned of it. An array counts as an embedding if it has the size of
                one.
            enrolment: See `enrol`.
            false_accepts: The share of other speakers' utterances that are accepted.
            same_word: Whether the utterance has the words of the enrolled ones; None if it is not known.
            threshold: The smallest log-likelihood ratio that is accepted, instead of ``false_accepts``.
        """
        if threshold is not None and math.isnan(threshold):
            raise ValueError("threshold: is not a number")
        calibration, (vector, _, seconds, _, band) = self._needed_calibration(), self._embedded(wav)
        found = speakers.verify(calibration, vector, seconds, self.enrol(enrolment), false_accepts, same_word, band)
        if threshold is None:
            return found
        notes = tuple(note for note in found.notes if note != speakers.UNSTATED)
        accepted = found.ratio >= threshold and band is None
        return found._replace(accepted=accepted, notes=notes, needed_ratio=threshold)

    def identify(
        self,
        wav: Enrolment | Wav,
        enrolments: Mapping[str, Enrolment],
        false_accepts: float = FALSE_ACCEPTS,
        same_word: bool | None = None,
    ) -> Identified:
        """Which of the enrolled speakers an utterance is from, or nobody of them.

        Args:
            wav: See `verify`.
            enrolments: What `enrol` returned, by the speaker's name.
            false_accepts: The share of the utterances of people who are not enrolled that get any name.
            same_word: See `verify`.
        """
        calibration, (vector, _, seconds, _, band) = self._needed_calibration(), self._embedded(wav)
        enrolled = {name: self.enrol(enrolment) for name, enrolment in enrolments.items()}
        return speakers.identify(calibration, vector, seconds, enrolled, false_accepts, same_word, band)

    def _embedded(self, item: Enrolment | Wav) -> Enrolment:
        """One utterance, embedding or enrolled speaker."""
        if isinstance(item, Enrolment):
            self.check_enrolment(item)
            return item
        if not isinstance(item, str | Path) and np.shape(item) == (self.embedding_size,):
            return Enrolment(speakers.unit_length(np.asarray(item)), 1, math.nan)
        samples = self._read_utterance(item)
        seconds, band = len(samples) / self.rate, band_limit(samples)
        return Enrolment(self.embed(samples), 1, seconds, band_limit=band)

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
        band: float | None = None,
    ) -> Identified:
        """`identify` by an embedding ``(embedding,)`` of any length, of ``seconds`` of audio with this `band_limit`."""
        vector, calibration = speakers.unit_length(embedding), self._needed_calibration()
        return speakers.identify(calibration, vector, seconds, enrolments, false_accepts, band_limit=band)

    def stream(self) -> Stream:
        """A new stream of the same model: of the file ``stream.onnx`` in the folder of this one.

        Raises:
            ValueError: there is none, or it is of another model.
        """
        if self.chunk:
            return Stream(self.file, self.threads)
        file = self.file.with_name(STREAM)
        if not file.is_file():
            remedy = "`distilled-student export --streaming` writes a stream"
            raise ValueError(f"{self.file}: is not a stream, and its folder has no {STREAM}; {remedy}")
        stream = Stream(file, self.threads)
        prints = self._fingerprint, stream.model._fingerprint  # None: of an older version
        if None not in prints and prints[0] != prints[1]:
            raise ValueError(f"{file}: is the stream of another model than {self.file}")
        return stream


class Stream(ChunkStream):
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

    model: Model

    def __init__(self, file: str | Path | Model, threads: int = 1) -> None:
        self.model = file if isinstance(file, Model) else Model(file, threads)
        if not self.model.chunk:
            raise ValueError(f"{self.model.file}: is not a stream; `distilled-student export --streaming` writes one")
        self.hop = math.ceil(round(HOP_SECONDS * self.model.rate) / self.model.chunk) * self.model.chunk
        self.detector = Detector(self.model.labels, self.model.detector_settings, self.hop / self.model.rate)
        self._own_words: WordTracker | None = None
        self._window_alone = ChunkStream(self.model)
        super().__init__(self.model)

    def reset(self) -> None:
        """Discard the state: the next sample is the first of a new stream."""
        super().reset()
        self._of_hop = np.zeros(0, np.float32)  # samples of `listen` that complete no hop
        self._of_window = np.zeros(0, np.float32)  # those of the window that ends with the latest hop
        self._undecided = UndecidedHits()
        self.detector.reset()
        if self._own_words is not None:
            self._own_words.reset()

    def watch(self, words: Mapping[str, Word], false_alarms: float = FALSE_ALARMS) -> None:
        """Let `listen` report words of one's own too, from the next sample on, see `Model.enrol_word`.

        Args:
            words: By name; they replace earlier ones.
            false_alarms: Of each word, in an hour of running speech; above 0.
        """
        check_above_zero("false_alarms", false_alarms)
        self._own_words = WordTracker(self.model.word_maps, words, false_alarms) if words else None

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
        is_last: bool = False,
    ) -> list[Hit]:
        """Process any number of samples ``(samples,)``, floats in [-1, 1] or int16, and report each keyword once.

        The stream is scored after every `hop`, so that the hits do not depend on how the samples arrive. Samples that
        complete no hop wait for the next call.

        At the time of a hit the window may hold only a part of the word. With ``speakers`` or ``owner`` the hit
        therefore waits for the first window that accepts one of them, for `SPEAKER_SECONDS` at most; if none does, it
        was nobody of them. The hit keeps its time and keyword score. Without enrolled people it is reported at once.
        Speakers are compared by the embedding of the window alone, as of an utterance: people are enrolled with
        utterances, and the embedding in the outputs depends on what came before the window too.

        Args:
            speakers: Enrolled speakers: each hit says which of them spoke, or that nobody of them did.
            owner: Report only the keywords of this speaker. Word and speaker are decided separately, and each can
                veto: the keyword reaches its threshold, and the owner is accepted by `Model.verify`. It is decided once
                for each keyword.
            false_accepts: See `Model.identify`.
            is_last: No samples follow these. `TAIL_SECONDS` of silence are processed too, so that a keyword at the end
                of a recording is reported; then hits that still wait are, decided by the latest window. Call `reset`
                before another recording.

        Raises:
            ValueError: see `Model`; the model has no keyword or speaker output that is needed; a person is not what
                `Model.enrol` returned.
        """
        if "keyword_scores" not in self.model.output_shapes:
            raise ValueError(f"{self.model.file}: has no keyword_scores; read its outputs with `feed`")
        if speakers is not None and owner is not None:
            raise ValueError("speakers, owner: give one of them")
        enrolled = speakers if owner is None else {"owner": owner}
        for name, person in (enrolled or {}).items():
            if not isinstance(person, Enrolment):
                raise ValueError(f"{name}: expected what `Model.enrol` returned, found {type(person).__name__}")
            self.model.check_enrolment(person)
        hits: list[Hit] = []
        blocks = [samples]
        if is_last:
            blocks.append(np.zeros(round(TAIL_SECONDS * self.model.rate), np.float32))
        for hop, outputs in self.hops(blocks):
            self._undecided.step(self.detector.step(outputs["keyword_scores"], hop, self.word_scores(outputs)))
            hits += self._decided(enrolled, false_accepts, self.detector.speaker_hops)
        if is_last:
            hits += self._decided(enrolled, false_accepts, hops_to_wait=0)
        if owner is None:
            return hits
        return [hit._replace(score=owner_said(hit.score, hit.ratio)) for hit in hits if hit.speaker is not None]

    def hops(self, blocks: Iterable[NDArray]) -> Iterator[tuple[NDArray[np.float32], dict[str, NDArray[np.float32]]]]:
        """Cut blocks of any number of samples into hops; the samples ``(hop,)`` and the outputs of each, see `feed`."""
        for samples in blocks:
            if np.size(samples):
                self._of_hop = np.concatenate([self._of_hop, read_samples(samples, self.model.rate)])
            while len(self._of_hop) >= self.hop:
                hop, self._of_hop = np.split(self._of_hop, [self.hop])
                self._of_window = np.concatenate([self._of_window, hop])[-self._window_samples :]
                yield hop, self.feed(hop)

    def word_scores(self, outputs: Mapping[str, NDArray[np.float32]]) -> dict[str, float]:
        """The score of each word of `watch` after the next hop, with the outputs of `hops`: once for each hop."""
        return {} if self._own_words is None else self._own_words.step(outputs[CONCATENATED])

    def _decided(self, enrolled: Mapping[str, Enrolment] | None, false_accepts: float, hops_to_wait: int) -> list[Hit]:
        """The hits whose speaker the latest window decides: all if it accepts one, else those that waited so long."""
        if not enrolled or not self._undecided:
            return self._undecided.due(0)
        found = self._who(enrolled, false_accepts)
        hits = self._undecided.due(hops_to_wait if found.name is None else 0)
        of_speaker = {"speaker": found.name, "ratio": found.ratio, "needed_ratio": found.needed_ratio}
        return [hit._replace(**of_speaker) for hit in hits]

    def _who(self, enrolled: Mapping[str, Enrolment], false_accepts: float) -> Identified:
        """Who spoke in the latest window."""
        if "speaker_embedding" not in self.model.output_shapes:
            raise ValueError(f"{self.model.file}: has no speaker_embedding; it cannot tell who spoke")
        self._window_alone.reset()
        embedding = self._window_alone.feed(self._of_window)["speaker_embedding"]
        seconds, band = self._window_alone.window_seconds, band_limit(self._of_window)
        return self.model.who(embedding, seconds, enrolled, false_accepts, band)

    @property
    def _window_samples(self) -> int:
        """Those of a window, a multiple of the model's chunk."""
        return max(1, round(self.model.window * self.model.rate) // self.model.chunk) * self.model.chunk

    def is_from(self, owner: Enrolment, false_accepts: float = FALSE_ACCEPTS) -> bool:
        """Whether the window that ends with the latest hop of `hops` is accepted as the owner's, see `listen`."""
        return self._who({"owner": owner}, false_accepts).name is not None


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
    if not path.exists():
        raise ValueError(f"{file}: no such file or folder{_other_models(str(file))}")
    if path.is_dir() and not (path / UTTERANCE).is_file():
        raise ValueError(f"{file}: the folder has no {UTTERANCE}; `distilled-student pack` writes it")
    return Model(path / UTTERANCE if path.is_dir() else path, threads)


def _other_models(name: str) -> str:
    """The end of a message about a model that does not exist; empty next to a copy of this folder."""
    names = sorted(folder.name for folder in SHIPPED.glob("*/"))
    close = difflib.get_close_matches(name.lower(), names, n=1)
    known = f"; {', '.join(names)} ship with the package" if names else ""
    return known + "".join(f"; did you mean `{found}`?" for found in close)
