"""Runs exported models for keywords and speakers with numpy and onnxruntime alone; a copy of this folder works too.

model = distilled_student.onnx.load("joint.onnx")
model.spot("command.wav")                                  # Spotted(label="stop", score=0.98)
model.verify("command.wav", ["owner1.wav", "owner2.wav"])  # Verified(accepted=True, ratio=5.1, cosine=0.71, ...)

The folder may be copied to a device under any name: its modules import each other relatively.
"""

from __future__ import annotations

from .calibration import Calibration, Condition
from .detector import (
    HOP_SECONDS,
    SPEAKER_SECONDS,
    TAIL_SECONDS,
    Detector,
    DetectorSettings,
    Hit,
    Spotted,
    decide,
    owner_said,
    stream_threshold,
)
from .metadata import read_metadata, write_metadata
from .model import MAX_SECONDS, SHIPPED, STREAM, UTTERANCE, Model, Stream, load
from .speakers import Enrolment, Identified, Verified
from .wav import MAX_PEAK, Wav, read_wav
from .words import WORDS, Word, WordMaps, WordTracker

__all__ = [
    "HOP_SECONDS",
    "MAX_PEAK",
    "MAX_SECONDS",
    "SHIPPED",
    "SPEAKER_SECONDS",
    "STREAM",
    "TAIL_SECONDS",
    "UTTERANCE",
    "WORDS",
    "Calibration",
    "Condition",
    "Detector",
    "DetectorSettings",
    "Enrolment",
    "Hit",
    "Identified",
    "Model",
    "Spotted",
    "Stream",
    "Verified",
    "Wav",
    "Word",
    "WordMaps",
    "WordTracker",
    "decide",
    "load",
    "owner_said",
    "read_metadata",
    "read_wav",
    "stream_threshold",
    "write_metadata",
]
