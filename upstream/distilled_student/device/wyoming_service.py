"""What the clients of a server of wake words share: the model, the enrolled people, and what can be detected."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from wyoming.info import Attribution, Info, WakeModel, WakeProgram

from distilled_student import __version__
from distilled_student.common.shipped_models import shipped_models
from distilled_student.device.commands import check_fitted
from distilled_student.device.enrolled import Enrolled
from distilled_student.onnx import Detector, DetectorSettings, Stream

if TYPE_CHECKING:
    from distilled_student.onnx import Enrolment, Model


class WakeService:
    """What all clients share: the model, the enrolled people and the threads that compute.

    Args:
        model: A model with a stream.
        model_name: How ``info`` names it.
        profiles: See `profiles_folder`.
        false_accepts: See `Model.identify`.
        settings: Of the detectors; default: those of the model.

    Raises:
        UserError: a profile is damaged, or the model has no thresholds for so many false accepts.
        ValueError: the model has no stream or no keywords.
    """

    def __init__(
        self,
        model: Model,
        model_name: str,
        profiles: Path | None = None,
        false_accepts: float = 0.01,
        settings: DetectorSettings | None = None,
    ) -> None:
        self.model, self.model_name, self.false_accepts = model.stream().model, model_name, false_accepts
        if "keyword_scores" not in self.model.output_shapes:
            raise ValueError(f"{self.model.file}: has no keyword_scores")
        self.settings = settings or self.model.detector_settings
        check_fitted(self.model, false_accepts)
        self.enrolled = Enrolled(self.model, profiles, with_words=True)
        self.threads = ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="stream")

    @property
    def speakers(self) -> dict[str, Enrolment]:
        """The enrolled people; none for a model that does not tell speakers apart."""
        can_compare = "speaker_embedding" in self.model.output_shapes and self.model.calibration is not None
        return dict(self.enrolled.speakers) if can_compare else {}

    def words(self) -> list[str]:
        """The names of all words that can be detected."""
        return [*(label for label in self.model.labels if not label.startswith("_")), *self.enrolled.words]

    def set_words(self, stream: Stream, wanted: set[str] | None) -> None:
        """Let a stream report the wanted words alone: the others do not hold them off. None: all words."""
        labels = [label if wanted is None or label in wanted else f"_{label}" for label in self.model.labels]
        stream.detector = Detector(labels, self.settings, stream.hop / self.model.rate)
        self.set_own_words(stream, wanted)

    def set_own_words(self, stream: Stream, wanted: set[str] | None) -> None:
        """Let a stream report the wanted words of one's own, as they are now."""
        words = self.enrolled.words.items()
        stream.watch({name: word for name, word in words if wanted is None or name in wanted})

    def info(self) -> Info:
        """What ``describe`` is answered with."""
        source = Attribution("distilled-student", "https://arxiv.org/abs/2210.16611")
        languages = ["en"] if self.model_name in shipped_models() else []
        words = [
            WakeModel(
                name=word,
                attribution=source,
                installed=True,
                description=word,
                version=__version__,
                languages=[] if word in self.enrolled.words else languages,
                phrase=word,
            )
            for word in self.words()
        ]
        description = "Spots keywords and says who of the enrolled people spoke"
        program = WakeProgram(
            name="distilled-student",
            attribution=source,
            installed=True,
            description=description,
            version=__version__,
            models=words,
        )
        return Info(wake=[program])
