"""The history: a file with a line for each run, which shows the commit that made something slower."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from distilled_student.common.errors import UserError
from distilled_student.common.provenance import git_output
from distilled_student.speed.compare import COMPARED

# Entries with the same values here are of one machine. Versions are left out, so that a slower torch is reported too.
SAME = ("cpu", "cores", "threads")
KEPT = 3  # a run is compared with the median of so many entries
VERSIONS = ("torch", "onnxruntime", "transformers", "s3prl")


def machine() -> dict[str, Any]:
    """Processor, its cores, torch's threads, and the versions of the libraries."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    cpu = names[0] if names else platform.processor() or platform.machine()
    versions = {name: importlib.metadata.version(name) for name in VERSIONS}
    return {"cpu": cpu, "cores": os.cpu_count(), "threads": torch.get_num_threads(), "versions": versions}


def stamp() -> dict[str, Any]:
    """Date, git revision, whether files other than documents differ from it, and machine."""
    changed = git_output("status", "--porcelain", "--", ":/", ":(exclude,top)docs")
    now = datetime.datetime.now().isoformat(timespec="minutes")
    revision = git_output("rev-parse", "--short=12", "HEAD")
    return {"date": now, "revision": revision, "dirty": bool(changed), "machine": machine()}


def ratios(figures: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """For each figure: how many times as fast as its reference of the same run; more is better.

    ``distillation`` compares the fastest precision of each side, ``distillation, fp32`` both in fp32.

    Args:
        figures: By part.
    """
    found = {}
    for row in figures.get("models", {}).get("rows", []):
        for count, times in row["times"].items():
            name = f"{row['model']}, {row['form']}, threads: {count}"
            found[name] = times[f"{COMPARED} s"]["speed"]["median"]
    if "distillation" in figures:
        found["distillation"] = figures["distillation"]["ratio"]["median"]
        if "ratio_fp32" in figures["distillation"]:
            found["distillation, fp32"] = figures["distillation"]["ratio_fp32"]["median"]
    if "joint" in figures:
        found["joint training"] = 1 / (1 + figures["joint"]["overhead"]["median"])
    for name, start in figures.get("startup", {}).items():
        found[name] = start["reference"] / start["seconds"]
    return {name: round(value, 4) for name, value in found.items()}


def read_history(file: Path) -> list[dict[str, Any]]:
    """Every entry, oldest first; an empty list if there is no file.

    Raises:
        UserError: a line is not an entry; names file and line.
    """
    entries = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines() if file.exists() else [], start=1):
        try:
            entry = json.loads(line)
            entry["machine"], entry["ratios"]
        except (ValueError, KeyError, TypeError):
            raise UserError(
                f"{file}, line {number}: is not an entry of the speed history (JSON with machine and ratios): remove it"
            ) from None
        entries.append(entry)
    return entries


def slower(entry: Mapping[str, Any], history: Sequence[Mapping[str, Any]], tolerance: float = 0.1) -> list[str]:
    """A line for each ratio that is worse than before by more than ``tolerance``, a share.

    Before: the median of the last `KEPT` entries of the same machine.
    """
    where = [entry["machine"][key] for key in SAME]
    before = [old for old in history if [old["machine"].get(key) for key in SAME] == where]
    lines = []
    for name, now in entry["ratios"].items():
        last = [old for old in before if name in old["ratios"]][-KEPT:]
        then = statistics.median(old["ratios"][name] for old in last) if last else now
        if now < (1 - tolerance) * then:
            lines.append(f"{name}: {now:.2f} times as fast as its reference, before {then:.2f}")
    return lines


def append(file: Path, entry: Mapping[str, Any]) -> list[str]:
    """Add an entry to the file; returns what became slower, see `slower`."""
    lines = slower(entry, read_history(file))
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as open_file:
        open_file.write(json.dumps(entry) + "\n")
    return lines
