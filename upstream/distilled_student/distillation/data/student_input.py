"""The student's input: the utterance with noise, reverberation or gain, while the teachers encode the clean one."""

from __future__ import annotations

import hashlib

import numpy as np
from lhotse.cut import Cut
from torch import Tensor

from distilled_student.common.effects import Effects
from distilled_student.common.errors import UserError


class StudentInput:
    """Applies the effects to an utterance (RobustDistiller, Guimarães et al. 2023); picklable, for the data workers.

    What is drawn depends on the seed, the pass and the utterance alone. It is the same for any number of processes and
    data workers, in a resumed run too.

    Args:
        effects: Noise, reverberation and gain with their probabilities.
        seed: The run's.
    """

    def __init__(self, effects: Effects, seed: int) -> None:
        self.effects, self.seed = effects, seed

    def __call__(self, waveform: Tensor, cut: Cut, epoch: int, failed: dict[str, str]) -> Tensor:
        """``(samples,)`` -> ``(samples,)``.

        Args:
            waveform: The decoded utterance.
            cut: Where it is from.
            epoch: Number of the pass over the data.
            failed: Receives a noise or impulse response that cannot be used, with the reason. The utterance then stays
                clean.
        """
        described = f"{self.seed} {epoch} {cut.start} {cut.recording_id if cut.has_recording else cut.id}"
        digest = hashlib.sha256(described.encode()).digest()
        try:
            return self.effects(waveform, np.random.default_rng(int.from_bytes(digest, "little")))
        except UserError as error:
            file, _, reason = str(error).partition(": ")
            failed[file] = reason
            return waveform
