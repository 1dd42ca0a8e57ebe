"""Augmentation of a task's training utterances: the effects of distillation, speed, and other speech before them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from distilled_student.common.audio import SAMPLE_RATE
from distilled_student.common.effects import Effects, files_of, gain_to, random_cut
from distilled_student.multitask.tasks.settings import AugmentSettings, speed_ratio

PAST_STEP = SAMPLE_RATE // 50  # 20 ms, the distance of most upstreams' frames: an utterance begins with a frame


def change_speed(waveform: Tensor, factor: float) -> Tensor:
    """``waveform`` ``(samples,)`` played ``factor`` times as fast."""
    from torchaudio.functional import resample

    ratio = speed_ratio(factor)
    return resample(waveform, ratio.numerator, ratio.denominator)


class Augmentation(Effects):
    """Effects, speed and other speech before an utterance.

    The arguments are those of `Effects`, with the task's background noises as ``noises``.
    """

    def __init__(self, settings: AugmentSettings, key: str, noises: list[Path] | None = None) -> None:
        super().__init__(settings, key, noises)
        self.speed_probability, self.speed_factors = settings.speed, settings.speed_factors
        self.speech = files_of(Path(settings.past_root), f"{key}.past_root") if settings.past else []

    def speed(self, rng: np.random.Generator) -> float:
        """The speed factor for one utterance, or 1; drawn first, because the length of the crop depends on it."""
        drawn = self.speed_probability and rng.random() < self.speed_probability
        return float(rng.choice(self.speed_factors)) if drawn else 1.0

    def with_past(self, waveform: Tensor, rng: np.random.Generator) -> tuple[Tensor, int]:
        """The effects on an utterance ``(samples,)``, which may follow other speech: the waveform, and samples of that.

        Both have the same noise, reverberation and gain.
        """
        s = self.settings
        if not s.past or rng.random() >= s.past:
            return self(waveform, rng), 0
        samples = PAST_STEP * round(rng.uniform(*s.past_seconds) * SAMPLE_RATE / PAST_STEP)
        past = random_cut(self.speech[rng.integers(len(self.speech))], samples, rng)
        gain = gain_to(waveform, past, -rng.uniform(*s.past_db))
        if gain is not None:  # an item of the class of silence may be silent
            past = past * gain
        return self(torch.cat([past, waveform]), rng), samples
