"""Profiles a model: the most expensive operations of torch or of ONNX Runtime."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch.profiler import ProfilerActivity, profile

from distilled_student.speed.compare import COMPARED
from distilled_student.speed.measure import open_session, threads
from distilled_student.speed.models import Variant, feeds, loader, noise

RUNS, LINES = 5, 15


def _profile_torch(variant: Variant) -> str:
    run, waveforms = loader(variant, 1)(), noise(COMPARED)
    run(waveforms)
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        for _ in range(RUNS):
            run(waveforms)
    return profiled.key_averages().table(sort_by="self_cpu_time_total", row_limit=LINES, max_name_column_width=40)


def _profile_onnx(file: Path) -> str:
    with TemporaryDirectory() as folder:
        session = open_session(file, 1, profile=Path(folder) / "run")
        inputs = feeds(session, noise(COMPARED))
        for _ in range(RUNS):
            session.run(None, inputs)
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    kernels: list[dict[str, Any]] = [e for e in events if e.get("cat") == "Node" and e["name"].endswith("_kernel_time")]
    microseconds, calls = Counter[str](), Counter[str]()
    for event in kernels:
        microseconds[event["args"]["op_name"]] += event["dur"]
        calls[event["args"]["op_name"]] += 1
    lines = [f"{'operation':<32} {'ms a run':>10} {'share':>7} {'calls':>6}"]
    for name, duration in microseconds.most_common(LINES):
        share = duration / microseconds.total()
        lines.append(f"{name:<32} {duration / RUNS / 1000:>10.3f} {share:>7.1%} {calls[name] // RUNS:>6}")
    return "\n".join(lines)


def write_profile(file: Path, variant: Variant) -> None:
    """Write the operations of a model on one thread and `COMPARED` seconds of audio, the most expensive first."""
    with threads(1):
        text = _profile_torch(variant) if variant.graph is None else _profile_onnx(variant.graph)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"{variant.name}, {COMPARED} s, one thread, {RUNS} runs\n\n{text}\n", encoding="utf-8")
