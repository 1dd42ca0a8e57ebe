"""Spots words of one's own from a few recordings, without training: templates of words, and the scores of audio.

A word is compared in time order. A small network turns hidden states into features of sounds. Those of a window are
averaged in segments of equal length that follow each other, and mapped to one vector. The network answers for a frame
some frames later, so that it knows the frames behind it. Network and map are in the file
`WORDS` of a model, with vectors of many words; ``distilled_student.word_maps`` makes it. The template of a word is the
mean vector of its recordings. The score of a window is its cosine to the template, minus its mean cosine to the most
similar other words, so that one threshold holds for all words.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from .speakers import unit_length

if TYPE_CHECKING:
    from .chunks import ChunkStream

Name = TypeVar("Name")  # of a word
WORDS = "words.npz"  # in the folder of a model
FORMAT = 3
WEIGHTS = ("front", "front_bias", "depth", "depth_bias", "mix", "mix_bias", "mapping", "mapping_bias")  # of `WordMaps`
LARGE = ("front", "mapping")  # of them
TABLES = ("clips", "rates", "thresholds", "agreements", "alarms", "margins")
SCALARS = ("fingerprint", "segments", "delay", "rate", "slope")
CONCATENATED = "concatenated_states"  # output of a stream: the input of the first layer, then the output of each layer
LEAST_WORDS = 20  # that the file is made from; better hundreds
FALSE_ACCEPTS = 0.01  # share of utterances of other words
FALSE_ALARMS = 2.0  # of a word in an hour of running speech
STEP = 2  # frames between the ends of two windows
LENGTHS = (0.85, 1.0, 1.18)  # of the windows, times the length of the recordings
CLOSEST = 10  # other words that a window is compared with
SAME_WORD = 0.75  # cosine of a template to another word of the file that is taken for the same word
CONTEXT_SECONDS = 2.0  # before an utterance: what the attention of the shipped models covers
PAUSE_SECONDS = 0.3  # after an utterance that is a context
ALARM_SECONDS = 1.0  # of running speech, in which two alarms count as one
SPEECH_FRAMES = 2  # of running speech that are kept as their mean
LARGEST = 5  # differences in running speech whose mean is the level of a word
BEHIND_SECONDS = 0.24  # of quiet noise behind an utterance; longer than the delay of the network
SMALL_ROWS = 32
ONE_THREAD = 2**18  # multiplications up to which OpenBLAS uses no further threads (its interface/gemm.c)
LEVEL_HOP = 320  # samples of a level of `speech_bounds`


class Word(NamedTuple):
    """The template of a word.

    Attributes:
        vector: The mean vector of its recordings ``(size,)``, of length 1.
        clips: Their number.
        frames: Their mean length, without the silence before and behind, in frames.
        agreement: The length of the mean of their vectors, at most 1. It is larger for recordings of one speaker.
        maps: `WordMaps.digest` of the maps of the vectors; empty: not known.
        level: See `WordMaps.level`; None: a stream computes it.
    """

    vector: NDArray[np.float32]
    clips: int
    frames: float
    agreement: float = 1.0
    maps: str = ""
    level: float | None = None


class WordClip(NamedTuple):
    """A recording of a word and some noise behind it: its hidden states ``(frames, features)``, and where speech begins
    and ends, in frames."""

    hidden: NDArray
    start: float
    end: float


def product(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
    """``a @ b``; the few rows of a step of a stream in parts that OpenBLAS computes on one thread.

    Its threads wait for each other by polling. In so small a product this takes more of all cores than the product.
    """
    if len(a) > SMALL_ROWS:
        return a @ b
    columns = max(1, ONE_THREAD // max(1, a.size))
    parts = [a @ b[:, start : start + columns] for start in range(0, b.shape[1], columns)]
    return np.concatenate(parts, axis=1)


def template(vectors: NDArray[np.float32], frames: Sequence[float], maps: str = "") -> Word:
    """The template from the vectors ``(recordings, size)`` of a word and its lengths in frames, for ``maps``."""
    mean = np.mean(vectors, axis=0)
    return Word(unit_length(mean), len(vectors), float(np.mean(frames)), float(np.linalg.norm(mean)), maps)


@dataclass(frozen=True)
class WordMaps:
    """The network, the map and the other words of a model: the content of its file `WORDS`.

    The network is causal: a linear layer, then blocks that each add to their input the rectified result of a depthwise
    convolution over ``taps`` frames, mixed by a linear layer.

    Attributes:
        fingerprint: `Model.fingerprint` of the model whose hidden states they are for.
        segments: Segments of a window.
        delay: Frames after which the network answers for a frame.
        rate: Frames in a second.
        front, front_bias: The first layer, ``(features, width)`` and ``(width,)``.
        depth, depth_bias: The convolutions ``(blocks, taps, width)``, the earliest frame first; ``(blocks, width)``.
        mix, mix_bias: The linear layers behind them, ``(blocks, width, width)`` and ``(blocks, width)``.
        mapping, mapping_bias: Of joined segments to a vector, ``(segments * width, size)`` and ``(size,)``.
        others: Vectors of other words and of parts of running speech ``(words, size)``, of length 1.
        clips: Numbers of recordings of the thresholds ``(numbers,)``, ascending.
        rates: Shares of false accepts of ``thresholds`` ``(rates,)``, ascending.
        thresholds: Of utterances, ``(2, rates, numbers)``, for recordings of many speakers and of one. The latter are
            larger, since other words of this speaker are similar too.
        agreements: The mean `Word.agreement` of both, ``(2, numbers)``.
        speech: Features of minutes of running speech ``(strips, frames, width)``, means of `SPEECH_FRAMES` frames each.
        alarms: False alarms in an hour of running speech ``(alarms,)``, ascending.
        margins: What the thresholds of streams for them are above the level of a word ``(alarms,)``.
        slope: Of the log-likelihood ratio of the word to other words, by the difference to the threshold.
    """

    fingerprint: str
    segments: int
    delay: int
    rate: float
    front: NDArray[np.float32]
    front_bias: NDArray[np.float32]
    depth: NDArray[np.float32]
    depth_bias: NDArray[np.float32]
    mix: NDArray[np.float32]
    mix_bias: NDArray[np.float32]
    mapping: NDArray[np.float32]
    mapping_bias: NDArray[np.float32]
    others: NDArray[np.float32]
    clips: NDArray[np.float32]
    rates: NDArray[np.float32]
    thresholds: NDArray[np.float32]
    agreements: NDArray[np.float32]
    speech: NDArray[np.float32]
    alarms: NDArray[np.float32]
    margins: NDArray[np.float32]
    slope: float

    @classmethod
    def read(cls, file: str | Path) -> WordMaps:
        """Raises ValueError: the file is missing, damaged or of a later version."""
        try:
            with np.load(file, allow_pickle=False) as arrays:
                found = dict(arrays)
            if int(found.pop("format")) != FORMAT:
                raise ValueError("written by another version")
            scalars = {name: found.pop(name).item() for name in SCALARS}
            found |= {name: found[name] * found.pop(f"{name}_scale") for name in (*LARGE, "speech")}
            found["others"] = unit_length(found["others"].astype(np.float32))
            maps = cls(**scalars, **{name: array.astype(np.float32) for name, array in found.items()})
            maps._check()
        except FileNotFoundError:
            remedy = f"`python -m distilled_student.word_maps` makes it, from {LEAST_WORDS} other words or more"
            raise ValueError(f"{file}: no such file; words of one's own need it: {remedy}") from None
        except Exception as error:  # damaged archives raise errors of many kinds
            raise ValueError(f"{file}: not readable as the maps of words ({error})") from None
        return maps

    def _check(self) -> None:
        (_, width), (blocks, taps, _), size = self.front.shape, self.depth.shape, self.mapping.shape[1]
        shapes = {
            "front": self.front.shape,
            "front_bias": (width,),
            "depth": (blocks, taps, width),
            "depth_bias": (blocks, width),
            "mix": (blocks, width, width),
            "mix_bias": (blocks, width),
            "mapping": (self.segments * width, size),
            "mapping_bias": (size,),
            "others": (len(self.others), size),
            "thresholds": (2, *self.rates.shape, *self.clips.shape),
            "agreements": (2, *self.clips.shape),
            "speech": (*self.speech.shape[:2], width),
            "margins": self.alarms.shape,
        }
        for name, shape in shapes.items():
            if (array := getattr(self, name)).shape != shape or not np.isfinite(array).all():
                raise ValueError(f"{name}: expected finite numbers of shape {shape}, found {array.shape}")
        if len(self.others) < CLOSEST:
            raise ValueError(f"others: expected at least {CLOSEST}")

    @cached_property
    def digest(self) -> str:
        """Names these maps: vectors of other ones are not to be compared with theirs."""
        return hashlib.sha256(self.front.tobytes() + self.mapping.tobytes()).hexdigest()[:16]

    def write(self, file: str | Path) -> None:
        """Write the file: other words and the two large matrices in 8 bits, speech in 4, the other weights in 16."""
        small = {name: getattr(self, name).astype(np.float16) for name in WEIGHTS if name not in LARGE}
        for name in LARGE:  # each column has its scale
            scale = np.abs(matrix := getattr(self, name)).max(axis=0) / 127 + 1e-12
            small |= {name: np.round(matrix / scale).astype(np.int8), f"{name}_scale": scale}
        scale = self.speech.std(axis=(0, 1)) * 3 / 7 + 1e-12  # values are clipped at three standard deviations
        small |= {"speech": np.clip(np.round(self.speech / scale), -7, 7).astype(np.int8), "speech_scale": scale}
        others = np.round(self.others * 127).astype(np.int8)
        rest = {name: np.array(getattr(self, name)) for name in (*TABLES, *SCALARS)}
        np.savez_compressed(file, format=np.array(FORMAT), others=others, **small, **rest)

    def start(self) -> NDArray[np.float32]:
        """What `encode` has before the first frame."""
        blocks, taps, width = self.depth.shape
        return np.zeros((blocks * (taps - 1), width), np.float32)

    def encode(
        self, hidden: NDArray, past: NDArray[np.float32] | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """The network on ``(frames, features)``, after ``past``, which is `start` if it is None.

        Returns:
            ``(frames, width)``, and the past of the frames that follow.
        """
        past = self.start() if past is None else past
        x = np.concatenate([past, product(np.asarray(hidden, np.float32), self.front) + self.front_bias])
        past = x[len(x) - len(past) :]
        taps = self.depth.shape[1]
        for depth, depth_bias, mix, mix_bias in zip(self.depth, self.depth_bias, self.mix, self.mix_bias, strict=True):
            frames = len(x) - taps + 1
            y = sum(x[tap : tap + frames] * depth[tap] for tap in range(taps)) + depth_bias
            x = x[taps - 1 :] + product(np.maximum(y, 0), mix) + mix_bias
        return x, past

    def vectors(self, encoded: NDArray, starts: NDArray, ends: NDArray) -> NDArray[np.float32]:
        """The vectors ``(windows, size)``, of length 1, of windows between two times in frames."""
        sums = np.concatenate([np.zeros((1, encoded.shape[1])), np.cumsum(encoded, axis=0, dtype=np.float64)])
        shares = np.arange(self.segments + 1) / self.segments
        bounds = starts[:, None] + (ends - starts)[:, None] * shares  # (windows, segments + 1)
        before = np.minimum(bounds.astype(int), len(encoded) - 1)
        at_bounds = sums[before] + (bounds - before)[..., None] * encoded[before]
        means = np.diff(at_bounds, axis=1) / ((ends - starts) / self.segments)[:, None, None]
        joined = means.reshape(len(starts), -1).astype(np.float32)
        return unit_length(product(joined, self.mapping) + self.mapping_bias)

    def clip_vector(self, clip: WordClip) -> NDArray[np.float32]:
        """The vector ``(size,)``, of length 1, of the word in a clip."""
        encoded = self.encode(clip.hidden)[0]
        start, end = (np.array([bound + self.delay]) for bound in (clip.start, clip.end))
        return self.vectors(encoded, start, np.minimum(end, len(encoded)))[0]

    def word(self, clips: Sequence[WordClip]) -> Word:
        """The template of a word from its clips."""
        vectors = np.stack([self.clip_vector(clip) for clip in clips])
        return template(vectors, [clip.end - clip.start for clip in clips], self.digest)

    def check_words(self, words: Mapping[str, Word]) -> None:
        """Raise ValueError if one of these is the template of a word of another model."""
        for name, word in words.items():
            if word.maps not in ("", self.digest):
                raise ValueError(f"{name}: is a word of another model: enrol it with this model")

    def raw_scores(
        self, word: Word, encoded: NDArray, ends: NDArray, same: NDArray[np.intp] | None = None
    ) -> NDArray[np.float32]:
        """The largest difference of cosines ``(ends,)`` over the lengths of the windows that end at these frames.

        ``same``: as in `differences`.
        """
        lengths = word.frames * np.array(LENGTHS)
        stops = np.repeat(ends.astype(np.float64), len(lengths))
        starts = stops - np.tile(lengths, len(ends))
        fits = (starts >= 0) | (np.tile(lengths, len(ends)) == lengths[0])  # the shortest one is cut at the beginning
        starts = np.maximum(starts, 0)
        vectors = self.vectors(encoded, starts[fits], stops[fits])
        differences = np.full(len(stops), -np.inf, np.float32)
        differences[fits] = self.differences(vectors, word.vector, same)
        return differences.reshape(len(ends), -1).max(axis=1)

    def differences(
        self, vectors: NDArray, template: NDArray, same: NDArray[np.intp] | None = None
    ) -> NDArray[np.float32]:
        """The cosine of ``vectors (n, size)`` to the template, minus the mean one to their closest other words.

        ``same``: the result of `same_words`, which are left out.
        """
        cosines = product(vectors, self.others.T)
        cosines[:, self.same_words(template) if same is None else same] = -1
        closest = np.partition(cosines, -CLOSEST, axis=1)[:, -CLOSEST:]
        return vectors @ template - closest.mean(axis=1)

    def same_words(self, template: NDArray) -> NDArray[np.intp]:
        """Which other words are as similar to a template as its own recordings: they are the same word.

        None if fewer than `CLOSEST` others would be left.
        """
        same = np.flatnonzero(self.others @ template >= SAME_WORD)
        return same if len(self.others) - len(same) >= CLOSEST else same[:0]

    def threshold(self, word: Word, false_accepts: float) -> float:
        """The difference of cosines that this share of utterances of other words reaches.

        It is interpolated between what was measured: over the logarithm of the share, over that of the number of
        recordings, and over their agreement. Outside it is that of the nearest.
        """
        at, clips = math.log(word.clips), np.log(self.clips)
        by_kind = [
            np.interp(math.log(false_accepts), np.log(self.rates), [np.interp(at, clips, row) for row in rows])
            for rows in self.thresholds
        ]
        many, one = (np.interp(at, clips, row) for row in self.agreements)
        share = np.clip((word.agreement - many) / (one - many), 0, 1) if one > many else 1.0
        return float(by_kind[0] + share * (by_kind[1] - by_kind[0]))

    def stream_threshold(self, word: Word, false_alarms: float) -> float:
        """The difference of cosines that an hour of running speech reaches so many times.

        Some words sound like parts of frequent words, others like no other word. So each has a threshold of its own.
        """
        level = self.level(word) if word.level is None else word.level
        return level + float(np.interp(math.log(false_alarms), np.log(self.alarms), self.margins))

    def level(self, word: Word) -> float:
        """The mean of the `LARGEST` largest differences in the file's running speech; 0 for a word of many seconds."""
        found = [self.largest_differences(word, np.repeat(strip, SPEECH_FRAMES, axis=0)) for strip in self.speech]
        largest = np.sort(np.concatenate(found))[-LARGEST:]
        return float(largest.mean()) if len(largest) else 0.0

    def largest_differences(self, word: Word, encoded: NDArray) -> NDArray[np.float32]:
        """The largest difference of cosines in each `ALARM_SECONDS` of the network's features ``(frames, width)``."""
        ends = np.arange(math.ceil(word.frames * LENGTHS[0]), len(encoded) + 1, STEP)
        if not len(ends):
            return np.zeros(0, np.float32)
        scores = self.raw_scores(word, encoded, ends)
        return np.maximum.reduceat(scores, np.arange(0, len(scores), round(ALARM_SECONDS * self.rate / STEP)))

    def probability(self, difference: float, threshold: float) -> float:
        """A score in [0, 1]: 0.5 or more if this difference of cosines reaches the threshold."""
        log_odds = self.slope * (difference - threshold)
        return 1 / (1 + math.exp(-min(max(log_odds, -500.0), 500.0)))

    def scores(
        self, words: Mapping[str, Word], hidden: NDArray, false_accepts: float = FALSE_ACCEPTS
    ) -> dict[str, float]:
        """The score of each word in an utterance with these hidden states ``(frames, features)``.

        Raises:
            ValueError: see `check_words`.
        """
        self.check_words(words)
        best = self.best_differences(words, hidden)
        limits = {name: self.threshold(word, false_accepts) for name, word in words.items()}
        return {name: self.probability(best[name], limit) for name, limit in limits.items()}

    def best_differences(self, words: Mapping[Name, Word], hidden: NDArray) -> dict[Name, float]:
        """The largest difference of cosines, see `best`, of each word in an utterance with these hidden states."""
        encoded, _ = self.encode(hidden)
        ends = np.arange(len(encoded), 0, -STEP)[::-1]
        return {name: float(self.best(word, encoded, ends)) for name, word in words.items()}

    def best(self, word: Word, encoded: NDArray, ends: NDArray) -> float:
        """The largest difference of cosines of all windows that end at one of ``ends``, at the last one at least."""
        shortest = min(word.frames * LENGTHS[0], ends[-1])
        return self.raw_scores(word, encoded, ends[ends >= shortest]).max()


class WordTracker:
    """The scores of words in a stream, after each hop.

    Args:
        maps: Of the model.
        words: Templates by name.
        false_alarms: See `WordMaps.stream_threshold`.

    Raises:
        ValueError: see `WordMaps.check_words`.
    """

    def __init__(self, maps: WordMaps, words: Mapping[str, Word], false_alarms: float = FALSE_ALARMS) -> None:
        self.maps, self.words = maps, dict(words)
        maps.check_words(words)
        self._same = {name: maps.same_words(word.vector) for name, word in words.items()}
        self._limits = {name: maps.stream_threshold(word, false_alarms) for name, word in words.items()}
        self._longest = math.ceil(max((word.frames for word in words.values()), default=0) * LENGTHS[-1]) + 1
        self.reset()

    def reset(self) -> None:
        """Forget all frames."""
        self._past = self.maps.start()
        self._recent = np.zeros((0, self.maps.front.shape[1]), np.float32)

    def step(self, hidden: NDArray) -> dict[str, float]:
        """The score of each word in the windows that end with the new frames ``(frames, features)``."""
        encoded, self._past = self.maps.encode(hidden, self._past)
        recent = np.concatenate([self._recent, encoded])
        self._recent = recent[-self._longest :]
        scores = {}
        for name, word in self.words.items():
            ends = np.arange(len(recent), len(recent) - len(hidden), -STEP)[::-1]
            ends = ends[ends >= word.frames * LENGTHS[0]]
            best = self.maps.raw_scores(word, recent, ends, self._same[name]).max() if len(ends) else -math.inf
            scores[name] = self.maps.probability(float(best), self._limits[name])
        return scores


def speech_bounds(samples: NDArray) -> tuple[float, float]:
    """Where speech begins and ends in a clip ``(samples,)``, in units of `LEVEL_HOP` samples.

    Speech is what is less than 30 dB below the loudest hop, and more than 10 dB above the quietest tenth of the clip if
    that is possible.
    """
    hops = max(1, len(samples) // LEVEL_HOP)
    rows = (
        np.resize(samples, (hops, LEVEL_HOP))
        if len(samples) < LEVEL_HOP
        else samples[: hops * LEVEL_HOP].reshape(hops, -1)
    )
    levels = 10 * np.log10(np.square(rows, dtype=np.float64).mean(axis=1) + 1e-10)
    limit = max(levels.max() - 30, min(np.percentile(levels, 10) + 10, levels.max() - 10))
    loud = np.flatnonzero(levels > limit)
    return float(max(0, loud[0] - 1)), float(min(hops, loud[-1] + 2))


def quiet_noise(number: int, level: float = 0.0003) -> NDArray[np.float32]:
    """White noise ``(number,)``, the same one in each call."""
    return (level * np.random.default_rng(0).standard_normal(number)).astype(np.float32)


def word_clip(stream: ChunkStream, samples: NDArray[np.float32]) -> WordClip:
    """A recording of a word that follows what the stream has had."""
    behind = quiet_noise(round(BEHIND_SECONDS * stream.model.rate))
    hidden = stream.peek(np.concatenate([samples, behind]))[CONCATENATED]
    stride = max(1, round((len(samples) + len(behind)) / LEVEL_HOP / len(hidden)))  # levels for each frame
    start, end = speech_bounds(samples)
    return WordClip(hidden, start / stride, min(end / stride, len(hidden)))
