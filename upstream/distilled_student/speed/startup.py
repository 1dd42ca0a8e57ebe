"""Start-up: seconds of a fresh interpreter until the package is usable, beyond those of the libraries under it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from statistics import median
from typing import Any

from distilled_student.speed.measure import interleaved

# s3prl alone asks today's torchaudio for two names that are gone; without them it cannot be imported at all
HUB = """
import sys, types, torchaudio
torchaudio.set_audio_backend = print
torchaudio.sox_effects = sys.modules["torchaudio.sox_effects"] = types.ModuleType("torchaudio.sox_effects")
torchaudio.sox_effects.apply_effects_file = torchaudio.sox_effects.apply_effects_tensor = print
import s3prl.hub
"""
HELP = "import sys; sys.argv[1:] = ['--help']; from distilled_student.host.launch import main; main()"
COMPARED = {  # name: what is started, and what it is compared with
    "import distilled_student": ("import distilled_student; distilled_student.Student", "import torch"),
    "run_downstream.py --help": (HELP, HUB),
    "import distilled_student.onnx": ("import distilled_student.onnx", "import onnxruntime"),
}


def _start(code: str) -> None:
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True)


def startup(rounds: int = 5) -> dict[str, Any]:
    """Fresh interpreters in turns.

    Returns:
        Of each start in `COMPARED`: ``seconds``, those of what it is compared with (``reference``), both medians of
        ``rounds``, and ``beyond``, the median of the differences in each round. None in it for what is not installed.
    """
    found = {name: pair for name, pair in COMPARED.items() if "onnx" not in name or find_spec("onnxruntime")}
    starts: dict[str, Callable[[], None]] = {code: partial(_start, code) for pair in found.values() for code in pair}
    times = interleaved(starts, rounds)
    result = {}
    for name, (code, reference) in found.items():
        beyond = [one - other for one, other in zip(times[code], times[reference], strict=True)]
        result[name] = {
            "seconds": median(times[code]),
            "reference": median(times[reference]),
            "beyond": median(beyond),
        }
    return result
