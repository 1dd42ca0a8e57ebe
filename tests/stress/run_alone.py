"""Installs distilled-student-run from a wheel into a fresh environment, with a network: its size and its start.

python tests/stress/run_alone.py; prints a line of JSON; the exit code is 1 if it has torch, or 200 MB or more, or if
`spot` needs 0.5 s or more of CPU time.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # the package of helpers

import soundfile
from helpers.spoken import spoken

ROOT = Path(__file__).parents[2]
LIST = """
import importlib.metadata, json, os
found = {}
for one in importlib.metadata.distributions():
    files = (one.locate_file(file) for file in one.files or ())
    found[one.name] = sum(os.path.getsize(file) for file in files if os.path.exists(file)) / 1e6
print(json.dumps(found))
"""


def cpu_and_seconds(command: list[str]) -> tuple[float, float]:
    """CPU seconds and seconds of a command, the least of five runs each."""
    found = []
    for _ in range(5):
        before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
        subprocess.run(command, check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        found.append((cpu, time.monotonic() - start))
    return min(cpu for cpu, _ in found), min(seconds for _, seconds in found)


def main() -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        subprocess.run([sys.executable, "-m", "venv", str(folder / "venv")], check=True)
        python = str(folder / "venv/bin/python")
        subprocess.run([python, "-m", "pip", "wheel", "-q", "--no-deps", str(ROOT / "run"), "-w", name], check=True)
        wheel = next(folder.glob("*.whl"))
        subprocess.run([python, "-m", "pip", "install", "-q", f"{wheel}[wyoming]"], check=True)
        sizes = json.loads(subprocess.run([python, "-c", LIST], check=True, capture_output=True, text=True).stdout)
        sizes = {name: size for name, size in sizes.items() if name not in ("pip", "setuptools")}
        soundfile.write(folder / "yes.wav", spoken("am_adam", ["yes"]), 16_000)
        cpu, seconds = cpu_and_seconds([str(folder / "venv/bin/distilled-student"), "spot", str(folder / "yes.wav")])
    total = sum(sizes.values())
    largest = dict(sorted(((name, round(size)) for name, size in sizes.items()), key=lambda item: -item[1])[:4])
    found = {
        "mb": round(total, 1),
        "largest": largest,
        "spot_cpu_seconds": round(cpu, 3),
        "spot_seconds": round(seconds, 3),
    }
    print(json.dumps(found))
    sys.exit(total >= 200 or "torch" in sizes or cpu >= 0.5)


if __name__ == "__main__":
    main()
