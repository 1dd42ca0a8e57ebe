"""Tests that take too long for the suite; prints what was tried and how many failures there were: `make stress`.

python tests/stress/run.py [--short]
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).parent
TESTS = HERE.parent


def run_python(command: Sequence[str], **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a Python program in the project's folder; print its output if it fails."""
    done = subprocess.run(
        [sys.executable, *command],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        cwd=TESTS.parent,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        print(done.stdout[-4000:], done.stderr[-4000:], sep="\n")
    return done


def kills(short: bool) -> tuple[str, int]:
    """Trainings that are interrupted in every way, compared with an uninterrupted training."""
    done = run_python([str(HERE / "kills.py"), "--kills", "12", "--rounds", "2" if short else "12"])
    interruptions, lost = collections.Counter(), [] if done.returncode == 0 else [f"exit status {done.returncode}"]
    for line in done.stdout.splitlines():
        if line.startswith("{"):
            for found in json.loads(line).values():
                interruptions.update(found["kills"])
                lost += found["lost"]
    ways = ", ".join(f"{count} {kind}" for kind, count in sorted(interruptions.items()))
    return f"{interruptions.total()} interruptions of 3 kinds of training ({ways})", len(lost)


def damage(short: bool) -> tuple[str, int]:
    """Checkpoints with a flipped bit, a cut, reversed bytes or extra bytes: each must be recognised as damaged."""
    import random
    import tempfile

    import torch

    from distilled_student.common.files import is_damaged, save_torch

    rng, count, missed = random.Random(0), 500 if short else 5_000, 0
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "a.pt"
        save_torch({"weights": torch.randn(20_000), "names": ["a", "b"]}, file)
        intact = file.read_bytes()
        for _ in range(count):
            content, position = bytearray(intact), rng.randrange(len(intact))
            match rng.randrange(4):
                case 0:
                    content[position] ^= 1 << rng.randrange(8)
                case 1:
                    del content[position:]
                case 2:
                    content[position : position + 512] = bytes(reversed(content[position : position + 512])) + b"\1"
                case 3:
                    content += rng.randbytes(1 + position % 100)
            file.write_bytes(content)
            missed += not is_damaged(file)
    return f"{count} damaged checkpoints", missed


def fuzz(short: bool) -> tuple[str, int]:
    """The fuzz tests with more cases, which differ from run to run."""
    cases = "500" if short else "3000"
    done = run_python(["-m", "pytest", str(TESTS / "fuzz")], FUZZ_CASES=cases)
    tried = re.search(r"\d+ bad inputs tried", done.stdout)
    return tried[0] if tried else "bad inputs", len(re.findall(r"^FAILED", done.stdout, re.MULTILINE))


def slow(short: bool) -> tuple[str, int]:
    """The tests that the suite leaves out: trainings that are killed, programs of ExecuTorch, measurements of speed."""
    done = run_python(["-m", "pytest", "-m", "slow", str(TESTS)])
    passed = re.search(r"(\d+) passed", done.stdout)
    failed = len(re.findall(r"^(?:FAILED|ERROR)", done.stdout, re.MULTILINE))
    return f"{passed[1] if passed else 0} slow tests passed", failed or int(passed is None)


def corpus(short: bool) -> tuple[str, int]:
    """The first batch of a manifest that is larger than memory."""
    done = run_python([str(HERE / "corpus.py"), *(["1000000"] if short else [])])
    found = re.search(r"after ([\d.]+) s, peak (\d+) MB", done.stdout)
    passed = found is not None and float(found[1]) < 10 and int(found[2]) < 1000
    return done.stdout.strip() or "the corpus", int(not passed)


def servers(short: bool) -> tuple[str, int]:
    """Twenty clients of the Wyoming server for a minute, among others that send garbage."""
    done = run_python([str(HERE / "wake_words.py"), *(["--seconds", "15"] if short else [])])
    return f"Wyoming: {done.stdout.strip()[-500:]}", int(done.returncode != 0)


def golden(short: bool) -> tuple[str, int]:
    """The same audio through PyTorch, ONNX, the Wyoming server and the browser."""
    done = run_python([str(HERE / "golden.py"), "--minutes", "2" if short else "10"])
    print(done.stdout)
    return "the same audio on four paths", int(done.returncode != 0)


def small_distribution(short: bool) -> tuple[str, int]:
    """An installation of distilled-student-run, which needs a network."""
    done = run_python([str(HERE / "run_alone.py")])
    return f"distilled-student-run: {done.stdout.strip()[-500:]}", int(done.returncode != 0)


# the longest one first
PARTS: Sequence[Callable[[bool], tuple[str, int]]] = (
    kills,
    fuzz,
    slow,
    golden,
    corpus,
    servers,
    small_distribution,
    damage,
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true", help="A few minutes instead of twenty.")
    short = parser.parse_args().short

    def timed(part: Callable[[bool], tuple[str, int]]) -> tuple[str, int]:
        start = time.monotonic()
        tried, failures = part(short)
        line = f"{tried}: {failures} lost, {time.monotonic() - start:.0f} s"
        print(line, flush=True)
        return line, failures

    with ThreadPoolExecutor(2) as pool:  # one core each; every program is a process of its own
        lines, failures = zip(*pool.map(timed, PARTS), strict=True)
    print("", "Tried:", *lines, f"Lost: {sum(failures)}", sep="\n")
    sys.exit(sum(failures) > 0)


if __name__ == "__main__":
    main()
