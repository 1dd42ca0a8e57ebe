"""A plugin for OVOS that accepts wake words of enrolled people alone: entry point group ``opm.wake_word.verifier``."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from ovos_plugin_manager.templates.hotwords import HotWordVerifier

from distilled_student.common.errors import UserError
from distilled_student.device.commands import check_fitted, parse_share
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
            all), ``false_accepts`` (0.01, or 1%) and ``fail_open`` (true).

    Raises:
        UserError: a value of ``config`` cannot be used; names its key.
    """

    def __init__(self, config: dict[str, Any] | None = None) -> None:
        super().__init__(config)
        self.fail_open = _flag("fail_open", self.config.get("fail_open", True))
        self._false_accepts = parse_share(str(self.config.get("false_accepts", 0.01)), "false_accepts")
        self._wanted = _names("people", self.config.get("people"))
        self._missing: list[str] = []  # of those, who were not enrolled at the latest look
        self._folder = _folder("profiles", self.config.get("profiles"))
        try:
            self._enrolled.refresh()  # so that the first wake word does not wait for the model
        except Exception as error:  # it is tried again at the first wake word
            log.warning("%s", error)
            return
        check_fitted(self._model, self._false_accepts, "false_accepts")
        self._people()  # says who is not enrolled

    def verify(self, chunk: bytes) -> bool:
        """Whether an enrolled person spoke.

        Args:
            chunk: The recording of the wake word: 16 bits, 16 kHz, mono, or a .wav file.
        """
        try:
            people = self._people()
            if not people and self._wanted is not None:
                return False
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
        return Enrolled(self._model, self._folder)

    def _people(self) -> dict[str, Any]:
        """Those of the enrolled people who are accepted; a warning names others that are wanted."""
        self._enrolled.refresh()
        speakers = self._enrolled.speakers
        if self._wanted is None:
            return dict(speakers)
        missing = [name for name in self._wanted if name not in speakers]
        if missing and missing != self._missing:
            log.warning("people: not enrolled and never accepted: %s%s", ", ".join(missing), _known(speakers))
        self._missing = missing
        return {name: speakers[name] for name in self._wanted if name in speakers}


def _known(names: Iterable[str]) -> str:
    return f"; enrolled: {', '.join(names)}" if names else "; nobody is enrolled"


def _flag(key: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise UserError(f"{key}: expected true or false, found {value!r}")
    return value


def _names(key: str, value: Any) -> list[str] | None:
    """A name or a list of names; None: all people."""
    names = [value] if isinstance(value, str) else value
    if names is None:
        return None
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and name for name in names):
        raise UserError(f"{key}: expected a name or a list of names, found {value!r}; without it all are accepted")
    return list(dict.fromkeys(names))


def _folder(key: str, value: Any) -> Path | None:
    if value is not None and not (isinstance(value, str | Path) and str(value)):
        raise UserError(f"{key}: expected a folder, found {value!r}")
    return None if value is None else Path(value)


def _samples(chunk: bytes, rate: int) -> NDArray[np.float32]:
    if chunk[:4] == b"RIFF":
        import soundfile

        samples, found = soundfile.read(io.BytesIO(chunk), dtype="float32", always_2d=True)
        if found != rate:
            raise ValueError(f"a sample rate of {found} Hz, expected {rate}")
        return samples.mean(axis=1)[-MAX_SECONDS * rate :]
    return pcm_samples(chunk[: len(chunk) // 2 * 2], 2)[-MAX_SECONDS * rate :]
