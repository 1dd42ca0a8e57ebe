"""A manifest of ten million utterances (30,000 hours): time and memory of a new process until its first batch.

python tests/stress/corpus.py [LINES] [FOLDER]
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

LINES = 10_000_000
SECONDS, FILES, RATE = 10.8, 8, 16_000  # mean length of an utterance; audio files that the lines share; Hz


class Figures(NamedTuple):
    """Of a process that reads the first batch: seconds since its start, imports included, and peak memory."""

    lines: int
    seconds: float
    megabytes: float


def write_manifest(path: Path, lines: int) -> None:
    """Write ``lines`` cuts of a few audio files in the same folder. Each line has 380 bytes."""
    import numpy as np
    import soundfile

    numbers = np.random.default_rng(0)
    forms = []
    for number in range(FILES):
        file, duration = path.parent / f"{number}.flac", SECONDS + 0.25 * (number - FILES / 2)
        soundfile.write(file, 0.1 * numbers.standard_normal(int(duration * RATE)), RATE)
        source = {"type": "file", "channels": [0], "source": str(file)}
        samples = int(duration * RATE)
        recording = {"id": "@", "sources": [source], "sampling_rate": RATE, "num_samples": samples}
        recording |= {"duration": duration, "channel_ids": [0]}
        cut = {"id": "@", "start": 0.0, "duration": duration, "channel": 0, "supervisions": [], "recording": recording}
        forms.append(json.dumps({**cut, "type": "MonoCut"}).split('"@"'))
    with path.open("w") as out:
        for start in range(0, lines, 10_000):
            block = range(start, min(lines, start + 10_000))
            out.write("".join(f'"utterance-{i:09d}"'.join(forms[i % FILES]) + "\n" for i in block))


def first_batch(manifest: Path) -> tuple[float, int]:
    """The time (seconds since 1970) of the first batch, and the peak memory of the process in kilobytes."""
    import resource

    from distilled_student.distillation.data.cuts import DataConfig
    from distilled_student.distillation.data.shards import open_units
    from distilled_student.distillation.data.stream import make_stream

    config = DataConfig([str(manifest)], workers=0)
    units = open_units(config, limit=0)
    batch = next(make_stream(config, units, seed=0))
    assert len(batch.lengths) and not batch.failed, batch.failed
    return time.time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def measure(manifest: Path, lines: int) -> Figures:
    """Measure a new process that reads the first batch of a manifest."""
    start = time.time()
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, __file__, "--first", str(manifest)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env=environment,
    )
    end, kilobytes = done.stdout.split()[-2:]
    return Figures(lines, float(end) - start, int(kilobytes) / 1024)


def main(lines: int = LINES, folder: str | None = None) -> None:
    """Write a manifest of ``lines`` lines, measure, and print one line."""
    with tempfile.TemporaryDirectory(dir=folder) as place:
        manifest = Path(place) / "cuts.jsonl"
        write_manifest(manifest, lines)
        figures = measure(manifest, lines)
        size = manifest.stat().st_size / 1e9
    hours = lines * SECONDS / 3600
    print(
        f"{lines} lines ({size:.2f} GB, {hours:.0f} hours): first batch after {figures.seconds:.1f} s, "
        f"peak {figures.megabytes:.0f} MB"
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--first"]:
        print(*first_batch(Path(sys.argv[2])))
    else:
        main(*map(int, sys.argv[1:2]), *sys.argv[2:])
