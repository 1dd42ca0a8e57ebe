"""A plugin for OVOS that accepts wake words of enrolled people alone: entry point group ``opm.wake_word.verifier``."""

from __future__ import annotations

import io
import logging
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from ovos_plugin_manager.templates.hotwords import HotWordVerifier

from distilled_student.device.enrolled import Enrolled
from distilled_student.device.model_files import open_model
from distilled_student.onnx import Model
from distilled_student.onnx.wav import pcm_samples

MAX_SECONDS = 10  # the last ones of a longer recording are used

log = logging.getLogger(__name__)


class SpeakerVerifier(HotWordVerifier):
    """Compares the speaker of a wake word with the enrolled people.

    It fails open, as the plugins of this kind do: without enrolled people and after an error it accepts.

    Args:
        config: ``model`` (edge), ``profiles`` (a folder; default: that of the user), ``people`` (their names; default:
            all), ``false_accepts`` (0.01) and ``fail_open`` (true).
    """

    def __init__(self, config: dict[str, Any] | None = None) -> None:
        super().__init__(config)
        self.fail_open = bool(self.config.get("fail_open", True))
        try:
            _ = self._enrolled  # so that the first wake word does not wait for the model
        except Exception as error:  # it is tried again at the first wake word
            log.warning("%s", error)

    def verify(self, chunk: bytes) -> bool:
        """Whether an enrolled person spoke.

        Args:
            chunk: The recording of the wake word: 16 bits, 16 kHz, mono, or a .wav file.
        """
        try:
            people = self._people()
            if not people:
                log.warning("nobody is enrolled: %s", "accepted" if self.fail_open else "rejected")
                return self.fail_open
            found = self._model.identify(_samples(chunk, self._model.rate), people, self._false_accepts)
        except Exception as error:
            log.warning("the speaker was not compared (%s): %s", error, "accepted" if self.fail_open else "rejected")
            return self.fail_open
        return found.name is not None

    @cached_property
    def _model(self) -> Model:
        return open_model(str(self.config.get("model", "edge")))

    @cached_property
    def _enrolled(self) -> Enrolled:
        folder = self.config.get("profiles")
        return Enrolled(self._model, None if folder is None else Path(folder))

    @property
    def _false_accepts(self) -> float:
        return float(self.config.get("false_accepts", 0.01))

    def _people(self) -> dict[str, Any]:
        self._enrolled.refresh()
        wanted = self.config.get("people")
        return {name: one for name, one in self._enrolled.speakers.items() if wanted is None or name in wanted}


def _samples(chunk: bytes, rate: int) -> NDArray[np.float32]:
    if chunk[:4] == b"RIFF":
        import soundfile

        samples, found = soundfile.read(io.BytesIO(chunk), dtype="float32", always_2d=True)
        if found != rate:
            raise ValueError(f"a sample rate of {found} Hz, expected {rate}")
        return samples.mean(axis=1)[-MAX_SECONDS * rate :]
    return pcm_samples(chunk[: len(chunk) // 2 * 2], 2)[-MAX_SECONDS * rate :]
