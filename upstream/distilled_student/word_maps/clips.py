"""Recordings of words and running speech, and what a model and its teacher make of them."""

from __future__ import annotations

import copy
import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soxr
from numpy.typing import NDArray

from distilled_student.common.audio import load
from distilled_student.corpora.keywords import BACKGROUND, SILENCE, UNKNOWN
from distilled_student.onnx import Model, Stream
from distilled_student.onnx.words import CONTEXT_SECONDS, PAUSE_SECONDS, WordClip, quiet_noise, word_clip

MOST_CLIPS = 60  # of a word
MOST_UNKNOWN = 250  # clips of unknown words
CONTEXTS = 5  # pairs of utterances that clips follow; as many clips follow noise
SPEEDS = (0.82, 1.2)  # of a file's second reading


class WordFile(NamedTuple):
    """A file with one word."""

    word: str
    speaker: str
    file: Path

    def read(self) -> NDArray[np.float32]:
        """The samples ``(samples,)`` at 16 kHz. Raises UserError."""
        return load(self.file).numpy()


class Clip(NamedTuple):
    """A recording of a word: its hidden states ``(frames, features)``, and where speech begins and ends, in frames."""

    word: str
    speaker: str
    hidden: NDArray
    start: float
    end: float

    @property
    def recording(self) -> WordClip:
        return WordClip(self.hidden, self.start, self.end)


def find_words(languages: Sequence[Sequence[Path]], without: Sequence[str] = ()) -> list[WordFile]:
    """The files of all words but ``without``.

    Args:
        languages: The folders of each language, with files ``WORD/SPEAKER_*.wav``. A word of the second language is
            another one than that of the first.
        without: Words to leave out, as ``NUMBER:WORD``; 0 is the first language.
    """
    found = []
    for number, folders in enumerate(languages):
        for file in sorted(file for folder in folders for file in folder.glob("*/*.wav")):
            word = file.parent.name
            name = word if word == UNKNOWN else f"{number}:{word}"
            if word not in (SILENCE, BACKGROUND) and name not in without:
                found.append(WordFile(name, file.name.split("_")[0], file))
    return found


def draw(files: Sequence[WordFile], seed: int = 0) -> list[WordFile]:
    """Up to `MOST_CLIPS` files of each word and `MOST_UNKNOWN` of unknown words."""
    rng, by_word = random.Random(seed), defaultdict(list)
    for one in files:
        by_word[one.word].append(one)
    drawn = []
    for word, same in by_word.items():
        most = MOST_UNKNOWN if word == UNKNOWN else MOST_CLIPS
        drawn += same if len(same) <= most else rng.sample(same, most)
    return drawn


def read_clips(model: Model, files: Sequence[WordFile], seed: int = 0) -> list[Clip]:
    """The model's hidden states of the files, after what `after_contexts` says."""
    rng = random.Random(seed)
    speech = [one.read() for one in rng.sample(files, min(2 * CONTEXTS, len(files)))]
    contexts = after_contexts(model, speech)
    return [read_clip(rng.choice(contexts), one.read(), one.word, one.speaker) for one in files]


def after_contexts(model: Model, speech: Sequence[NDArray[np.float32]]) -> list[Stream]:
    """Streams that have had quiet noise, louder noise, or two utterances of ``speech`` and a pause."""
    stream, length = model.stream(), round(CONTEXT_SECONDS * model.rate)
    pairs = [
        np.concatenate([*speech[at : at + 2], quiet_noise(round(PAUSE_SECONDS * model.rate))])
        for at in range(0, len(speech) - 1, 2)
    ]
    streams = []
    for context in [quiet_noise(length)] * len(pairs) + [quiet_noise(length, 0.003), *pairs]:
        fork = copy.copy(stream)
        fork.reset()
        fork.feed(context)
        streams.append(fork)
    return streams


def read_clip(stream: Stream, samples: NDArray[np.float32], word: str, speaker: str) -> Clip:
    """A recording that follows what the stream has had."""
    hidden, start, end = word_clip(stream, samples)
    return Clip(word, speaker, hidden.astype(np.float16), start, end)


def strips(
    files: Sequence[Path], samples: int, seed: int = 0, once: Sequence[Path] = ()
) -> Iterator[NDArray[np.float32]]:
    """All files twice, and those of ``once``, in random order, partly with pauses, cut into pieces of ``samples``.

    The second time a file is faster or slower, by `SPEEDS`, and so are half of those of ``once``. A piece that is not
    filled at the end is left out.
    """
    rng, waiting, count = np.random.default_rng(seed), list[NDArray[np.float32]](), 0
    readings = [(file, speed) for file in files for speed in (1.0, float(rng.uniform(*SPEEDS)))]
    readings += [(file, 1.0 if rng.random() < 0.5 else float(rng.uniform(*SPEEDS))) for file in once]
    for index in rng.permutation(len(readings)):
        file, speed = readings[index]
        audio = load(file).numpy()
        if speed != 1:
            audio = soxr.resample(audio, speed, 1.0).astype(np.float32)
        pause = rng.integers(0, samples // 20) if rng.random() < 0.5 else 0
        waiting += [audio, (3e-4 * rng.standard_normal(pause)).astype(np.float32)]
        count += len(audio) + pause
        while count >= samples:
            joined = np.concatenate(waiting)
            yield np.clip(joined[:samples], -1, 1)
            waiting, count = [joined[samples:]], count - samples
