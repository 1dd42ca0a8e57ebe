"""The same audio through PyTorch, ONNX in Python, the Wyoming server and the browser: one table of hits. `make golden`

python tests/stress/golden.py [--model edge] [--minutes 60] [AUDIO...]

In float32 all four have to find the same hits, at the same times, with scores within 1e-3 of those of PyTorch. The
graph in int8 has other scores than PyTorch. There the server is compared with ONNX in Python within 1e-3 too, and the
browser within 0.03: rounding errors of float32, which differ between CPUs and WebAssembly, move single activations by
one of 256 steps.
"""

from __future__ import annotations

import argparse
import functools
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parents[1]))  # the package of helpers

HOP = 0.08  # seconds
TOLERANCE, INT8_IN_BROWSER = 1e-3, 0.03


class Found(NamedTuple):
    """A hit: seconds, word and score."""

    seconds: float
    label: str
    score: float


class Row(NamedTuple):
    """A row of the table: why it was skipped, or the hits, compared with those of the first row of its graph."""

    graph: str
    path: str
    hits: list[Found]
    cpu: float
    skipped: str = ""
    tolerance: float = TOLERANCE
    hop_tolerance: float = 0.0


def embedded_speech(minutes: float) -> NDArray[np.int16]:
    """Words and sentences of all test voices of the embedded corpus, with pauses and weak noise, ``(samples,)``."""
    from distilled_student.corpora.shipped import read_index, read_voice

    rng, length, parts, total = np.random.default_rng(0), round(60 * minutes * 16_000), [], 0
    clips = [clip for clip in read_index() if clip.split == "test"]
    audio = {voice: read_voice(voice) for voice in sorted({clip.voice for clip in clips})}
    while total < length:
        clip = clips[rng.integers(len(clips))]
        gain, pause = 10 ** rng.uniform(-0.8, 0.2), rng.integers(1_600, 24_000)
        speech = audio[clip.voice][clip.start : clip.start + clip.samples]
        parts.append(np.pad(gain * speech, (0, pause)))
        total += len(parts[-1])
    samples = np.concatenate(parts)[:length]
    return (32_767 * (samples + 5e-4 * rng.standard_normal(length)).clip(-1, 1)).astype(np.int16)


def read_audio(files: Sequence[str]) -> NDArray[np.int16]:
    """All files, one after the other, in 16 bits at 16 kHz: the server's clients send integers."""
    from distilled_student.device.recordings import recording_blocks

    samples = np.concatenate([block for file in files for block in recording_blocks(file)])
    return (32_767 * samples.clip(-1, 1)).astype(np.int16)


def with_torch(model: str, samples: NDArray[np.int16], settings: object) -> list[Found]:
    import torch

    from distilled_student.multitask.device_model import open_joint
    from distilled_student.streaming import Stream, listen

    torch.set_num_threads(1)
    waveform = torch.from_numpy(samples / np.float32(32_768))
    return [Found(*hit) for hit in listen(Stream(open_joint(model)), waveform, settings=settings)]


def with_onnx(file: Path, samples: NDArray[np.int16]) -> list[Found]:
    from distilled_student.onnx import Stream

    return [Found(*hit[:3]) for hit in Stream(file).listen(samples, is_last=True)]


def with_wyoming(file: Path, samples: NDArray[np.int16], folder: Path) -> list[Found]:
    """Chunks of 1,000 samples, as fast as the server takes them."""
    from helpers.wyoming_clients import ask, chunks, with_server

    answers = with_server(lambda port: ask(port, chunks(samples.tobytes(), 2_000)), folder, str(file), seconds=36_000)
    hits = [event.data for event in answers if event.type == "detection"]
    return [Found(hit["timestamp"] / 1000, hit["name"], hit["score"]) for hit in hits]


def with_browser(file: Path, samples: NDArray[np.int16], folder: Path) -> list[Found]:
    from helpers.browser import drive, served, write_local_site

    (samples / np.float32(32_768)).tofile(folder / "samples.f32")
    site = write_local_site(folder / "site", file)
    with served(site) as url:
        (result,) = drive([{"url": url, "name": "samples", "samples": str(folder / "samples.f32")}], folder)
    if "failed" in result:
        raise RuntimeError(result["failed"])
    return [Found(hit["seconds"], hit["label"], hit["score"]) for hit in result["hits"]]


def why_no_browser() -> str:
    try:
        from helpers.browser import missing
    except ModuleNotFoundError:
        return "there is no driver of the browser"
    return missing() or ""


def measure(graph: str, path: str, find: Callable[[], list[Found]], **row: object) -> Row:
    """Run one path; its CPU seconds are those of this process, so not of a browser."""
    print(f"{graph}, {path} ...", file=sys.stderr, flush=True)
    start = time.process_time()
    return Row(graph, path, find(), time.process_time() - start, **row)


def all_rows(model: str, samples: NDArray[np.int16], folder: Path) -> list[Row]:
    """Every path, for both graphs."""
    from distilled_student import onnx
    from distilled_student.export.stream import export_stream
    from distilled_student.multitask.device_model import open_joint

    int8, float32 = onnx.load(model).stream().model, folder / "float32" / "stream.onnx"
    export_stream(open_joint(model), float32)
    settings = int8.detector_settings
    onnx.write_metadata(float32, {"detector": settings.to_json()})
    without = why_no_browser()
    rows = [measure("float32", "PyTorch", functools.partial(with_torch, model, samples, settings))]
    for graph, file in (("float32", float32), ("int8", int8.file)):
        own = folder / f"{graph} site"
        own.mkdir()
        rows.append(measure(graph, "ONNX in Python", functools.partial(with_onnx, file, samples)))
        rows.append(measure(graph, "Wyoming", functools.partial(with_wyoming, file, samples, folder / "nobody")))
        limits = {"tolerance": INT8_IN_BROWSER, "hop_tolerance": HOP} if graph == "int8" else {}
        if without:
            rows.append(Row(graph, "browser", [], 0.0, without))
        else:
            browser = functools.partial(with_browser, file, samples, own)
            rows.append(measure(graph, "browser", browser, **limits))
    return rows


def compare(row: Row, reference: Row) -> tuple[str, bool]:
    """The cells of a row about its differences from the reference, and whether they are within the limits."""
    if row.skipped:
        return f"skipped: {row.skipped} | |", True
    if [hit.label for hit in row.hits] != [hit.label for hit in reference.hits]:
        mine, its = ({(round(hit.seconds, 1), hit.label) for hit in each.hits} for each in (row, reference))
        return f"other hits: {sorted(mine ^ its)[:6]} | |", False
    pairs = list(zip(row.hits, reference.hits, strict=True))
    times = max((abs(mine.seconds - its.seconds) for mine, its in pairs), default=0.0)
    scores = max((abs(mine.score - its.score) for mine, its in pairs), default=0.0)
    # the server rounds times to milliseconds
    return f"the same | {times:.3f} | {scores:.1e}", times <= row.hop_tolerance + 1e-3 and scores <= row.tolerance


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("audio", nargs="*", help="Audio files; default: words of the embedded corpus.")
    parser.add_argument("--model", default="edge", help="edge, tiny, or a folder of `distilled-student pack`.")
    parser.add_argument("--minutes", type=float, default=60.0, help="Length of the default audio.")
    options = parser.parse_args()
    samples = read_audio(options.audio) if options.audio else embedded_speech(options.minutes)
    with tempfile.TemporaryDirectory() as folder:
        rows = all_rows(options.model, samples, Path(folder))
    minutes = len(samples) / 16_000 / 60
    print(f"{options.model}, {minutes:.1f} minutes of audio\n")
    print(
        "| graph | path | hits | compared with the first of its graph | largest difference: time, s | score | CPU, s |"
    )
    print("|---|---|---|---|---|---|---|")
    good = True
    for row in rows:
        reference = next(first for first in rows if first.graph == row.graph)
        cells, is_good = compare(row, reference) if row is not reference else ("(the reference) | |", True)
        good &= is_good
        print(f"| {row.graph} | {row.path} | {len(row.hits)} | {cells} | {row.cpu:.0f} |")
    float32, int8 = ({(hit.label, round(hit.seconds)) for hit in row.hits} for row in (rows[1], rows[4]))
    common, more = len(int8 & float32), len(int8 - float32)
    print(f"\nint8 has {common} of the {len(float32)} hits of float32 in the same second, and {more} more")
    if not any(row.hits for row in rows):
        print("no hits: nothing was compared")
        good = False
    sys.exit(not good)


if __name__ == "__main__":
    main()
