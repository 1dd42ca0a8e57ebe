"""Start-up time: seconds of a fresh interpreter until the package is usable, beyond its libraries' own imports."""

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

# today's torchaudio lacks two names that s3prl imports: without them s3prl alone cannot be imported
HUB = """
import sys, types, torchaudio
torchaudio.set_audio_backend = print
torchaudio.sox_effects = sys.modules["torchaudio.sox_effects"] = types.ModuleType("torchaudio.sox_effects")
torchaudio.sox_effects.apply_effects_file = torchaudio.sox_effects.apply_effects_tensor = print
import s3prl.hub
"""
PLUGIN = "from distilled_student.host.plugin import register; register(); import s3prl.hub"
COMPARED = {  # name: code that is timed, code that it is compared with
    "import distilled_student": ("import distilled_student; distilled_student.Student", "import torch"),
    "run_downstream.py, before it reads data": (PLUGIN, HUB),
    "import distilled_student.onnx": ("import distilled_student.onnx, onnxruntime", "import onnxruntime"),
}


def _run_code(code: str) -> None:
    """Run the code in a fresh interpreter."""
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True)


def compare_startup(rounds: int = 5) -> dict[str, Any]:
    """Time fresh interpreters in turn.

    Returns:
        For each entry of `COMPARED`: ``seconds``, and ``reference``, the seconds of the code that it is compared with,
        both medians of ``rounds``; ``beyond``, the median of the differences in each round. An entry whose library is
        not installed is left out.
    """
    found = {name: pair for name, pair in COMPARED.items() if "onnx" not in name or find_spec("onnxruntime")}
    starts: dict[str, Callable[[], None]] = {code: partial(_run_code, code) for pair in found.values() for code in pair}
    times = interleaved(starts, rounds, what="start-up")
    result = {}
    for name, (code, reference) in found.items():
        beyond = [one - other for one, other in zip(times[code], times[reference], strict=True)]
        result[name] = {
            "seconds": median(times[code]),
            "reference": median(times[reference]),
            "beyond": median(beyond),
        }
    return result
