"""The same audio through every runtime: the same hits at the same times, and how far their scores differ.

    python tests/stress/golden_hour.py [RECORDING.wav] [--minutes 60] [--model edge]

Without a recording: the embedded corpus, repeated. A stream in float32 is exported, so that the differences of the int8
file, which come from rounding, can be distinguished from those of the runtimes.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parents[1]))

from helpers.browser import drive, missing, served, traced, write_local_site

from distilled_student.common import audio
from distilled_student.common.sample_rate import SAMPLE_RATE
from distilled_student.common.shipped_models import model_path
from distilled_student.corpora.shipped import read_index, read_voice
from distilled_student.export.stream import export_stream
from distilled_student.multitask.device_model import open_joint
from distilled_student.onnx import Stream
from distilled_student.streaming import Stream as TorchStream
from distilled_student.streaming import listen


class Run(NamedTuple):
    """What one runtime gives: (seconds, label, score) of each hit, and milliseconds of work for a hop."""

    hits: list[tuple[float, str, float]]
    milliseconds: float


def embedded_audio(samples: int) -> NDArray[np.float32]:
    """The voices of the embedded corpus, repeated."""
    voices = sorted({clip.voice for clip in read_index()})
    return np.resize(np.concatenate([read_voice(voice) for voice in voices]), samples)


def in_pytorch(model: str, file: Path, samples: NDArray[np.float32], folder: Path) -> Run:
    settings = Stream(file).model.detector_settings
    begin = time.perf_counter()
    hits = list(listen(TorchStream(open_joint(model_path(model))), torch.from_numpy(samples), settings=settings))
    return Run([tuple(hit) for hit in hits], per_hop(begin, samples))


def in_python(model: str, file: Path, samples: NDArray[np.float32], folder: Path) -> Run:
    begin = time.perf_counter()
    hits, _ = traced(Stream(file), samples)
    return Run([hit[:3] for hit in hits], per_hop(begin, samples))


def in_browser(model: str, file: Path, samples: NDArray[np.float32], folder: Path) -> Run:
    write_local_site(folder / file.stem, file)
    samples.tofile(folder / "samples.f32")
    with served(folder / file.stem) as url:
        task = {"url": url, "name": "samples", "samples": str(folder / "samples.f32"), "size": 16_000}
        (found,) = drive([task], folder)
    assert "failed" not in found, found["failed"]
    hits = [(hop["hit"]["seconds"], hop["hit"]["label"], hop["hit"]["score"]) for hop in found["hops"] if hop["hit"]]
    return Run(hits, float(np.median([hop["milliseconds"] for hop in found["hops"]])))


RUNTIMES: dict[str, Callable[[str, Path, NDArray[np.float32], Path], Run]] = {
    "Python, onnxruntime": in_python,  # the others are compared with the first
    "PyTorch": in_pytorch,
    "browser, onnxruntime-web": in_browser,
}


def per_hop(begin: float, samples: NDArray[np.float32]) -> float:
    return 1000 * (time.perf_counter() - begin) / (len(samples) / SAMPLE_RATE / 0.08)


def row(name: str, precision: str, found: Run, expected: Run) -> str:
    """A row of the table: hits, those of them that the first runtime has too, and the scores of these."""
    scores = {hit[:2]: hit[2] for hit in expected.hits}
    common = [abs(score - scores[seconds, label]) for seconds, label, score in found.hits if (seconds, label) in scores]
    cells = [name, precision, f"{len(found.hits)}", f"{len(common)} of {len(scores)}"]
    return f"| {' | '.join([*cells, f'{max(common, default=0):.1e}', f'{found.milliseconds:.1f}'])} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recording", type=Path, nargs="?")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--model", default="edge", help="edge or tiny")
    options = parser.parse_args()
    torch.set_num_threads(1)
    wanted = round(options.minutes * 60 * SAMPLE_RATE)
    samples = embedded_audio(wanted) if options.recording is None else audio.load(options.recording).numpy()[:wanted]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        exact = folder / "float32.onnx"
        export_stream(open_joint(model_path(options.model)), exact)
        print("| runtime | weights | hits | hits of the first runtime | largest difference of scores | ms per 80 ms |")
        print("|---|---|---|---|---|---|")
        for precision, file in (("float32", exact), ("int8", model_path(options.model) / "stream.onnx")):
            expected = None
            for runtime, run in RUNTIMES.items():
                if run is in_browser and (reason := missing()):
                    print(f"| {runtime} | {precision} | not run: {reason} | | | |")
                elif run is not in_pytorch or precision == "float32":
                    found = run(options.model, file, samples, folder)
                    expected = expected or found
                    print(row(runtime, precision, found, expected), flush=True)


if __name__ == "__main__":
    main()
