"""Writes recordings to try the commands on, of two voices of the embedded corpus: ``python -m MODULE FOLDER``."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

from distilled_student.common.sample_rate import SAMPLE_RATE
from distilled_student.corpora.shipped import read_index, read_voice

PEOPLE = {"anna": "if_sara", "ben": "am_onyx"}  # file name -> voice; two that do not sound alike
WORDS = ("yes", "no", "left", "right", "stop", "go")
PAUSE = 3 * SAMPLE_RATE  # samples between the words of two people


def words_of(voice: str) -> dict[str, NDArray[np.float32]]:
    """Each word as a voice says it, with silence around it to 1 s."""
    audio = read_voice(voice)
    clips = {clip.text: clip for clip in read_index() if clip.voice == voice and clip.take == 1 and clip.text in WORDS}
    found = {}
    for word in WORDS:
        speech = audio[clips[word].start : clips[word].start + clips[word].samples]
        missing = max(0, SAMPLE_RATE - len(speech))
        found[word] = np.pad(speech, (missing // 2, missing - missing // 2))
    return found


def write_examples(folder: Path) -> None:
    """Write ``anna-WORD.wav`` and ``ben-WORD.wav``, and ``both.wav``, in which anna says "stop" and ben says "go"."""
    folder.mkdir(parents=True, exist_ok=True)
    words = {name: words_of(voice) for name, voice in PEOPLE.items()}
    for name, clips in words.items():
        for word, samples in clips.items():
            soundfile.write(folder / f"{name}-{word}.wav", samples, SAMPLE_RATE)
    pause = np.zeros(PAUSE, np.float32)
    both = np.concatenate([pause, words["anna"]["stop"], pause, words["ben"]["go"], pause])
    soundfile.write(folder / "both.wav", both, SAMPLE_RATE)
    print(f"{folder}: {len(PEOPLE) * len(WORDS) + 1} recordings")


if __name__ == "__main__":
    write_examples(Path(sys.argv[1] if len(sys.argv) > 1 else "clips"))
