"""A calibration of speaker verification with known numbers."""

from __future__ import annotations

from distilled_student.onnx import Calibration

# cosines of other people are normal with mean 0 and deviation 0.2
CALIBRATION = Calibration(
    {"cosine": 20.0, "bias": -10.0, "cosine*log_clips": 2.0, "log_seconds": 1.0},
    {0.05: {"bias": 0.3290}, 0.01: {"bias": 0.4653}, 0.001: {"bias": 0.6180}},
    {"clips": (1, 5)},
)
