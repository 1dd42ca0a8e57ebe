"""Speech of the embedded corpus, as a microphone records it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from distilled_student.corpora.shipped import read_index, read_voice


def spoken(voice: str, words: Sequence[str] = ()) -> np.ndarray:
    """Some seconds of a voice of the embedded corpus, ``(samples,)`` int16: keywords, other words and pauses."""
    audio, clips = read_voice(voice), [clip for clip in read_index() if clip.voice == voice and clip.kind == "word"]
    chosen = [clip for clip in clips if clip.text in words and clip.take == 1] if words else clips[:12]
    parts = [np.pad(audio[clip.start : clip.start + clip.samples], (800, 8_000)) for clip in chosen]
    return (np.concatenate([*parts, np.zeros(8_000, np.float32)]) * 32_767).astype(np.int16)
