"""Augmentation of a task's training utterances: the effects that distillation has too, and speed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torch import Tensor

from distilled_student.common.effects import Effects
from distilled_student.multitask.tasks.settings import AugmentSettings, speed_ratio


def change_speed(waveform: Tensor, factor: float) -> Tensor:
    """``waveform`` ``(samples,)`` played ``factor`` times as fast."""
    from torchaudio.functional import resample

    ratio = speed_ratio(factor)
    return resample(waveform, ratio.numerator, ratio.denominator)


class Augmentation(Effects):
    """Effects and speed; the arguments are those of `Effects`, with the task's background noises as ``noises``."""

    def __init__(self, settings: AugmentSettings, key: str, noises: list[Path] | None = None) -> None:
        super().__init__(settings, key, noises)
        self.speed_probability, self.speed_factors = settings.speed, settings.speed_factors

    def speed(self, rng: np.random.Generator) -> float:
        """The speed factor for one utterance, or 1; drawn first, because the length of the crop depends on it."""
        drawn = self.speed_probability and rng.random() < self.speed_probability
        return float(rng.choice(self.speed_factors)) if drawn else 1.0
