"""All that a result depends on, beside it: command, settings, versions, revision, data, seed, machine."""

from __future__ import annotations

import hashlib
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from distilled_student.common import audio
from distilled_student.common.files import write_json
from distilled_student.common.processes import count_processes

FILE = "provenance.json"
PACKAGES = (
    "distilled-student",
    "torch",
    "torchaudio",
    "s3prl",
    "numpy",
    "lhotse",
    "accelerate",
    "transformers",
    "soundfile",
)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git(*command: str) -> str | None:
    """What git says in the folder of this package; None where it is no clone, or there is no git."""
    where = Path(__file__).resolve().parent
    try:
        done = subprocess.run(["git", "-C", str(where), *command], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def revision() -> str | None:
    """The commit that runs, with ``+changes`` where files differ from it; None where the package is no clone."""
    inside = _git("ls-files", "--error-unmatch", Path(__file__).name)  # not a clone of something around it
    commit = _git("rev-parse", "HEAD") if inside else None
    return f"{commit}+changes" if commit and _git("status", "--porcelain", "--untracked-files=no") else commit


def fingerprint(utterances: Iterable[tuple[str | Path, float]]) -> dict[str, Any]:
    """Of ``(file, seconds)`` of each utterance: how many, how long, and a hash of the list, whatever its order."""
    lines = sorted(f"{name}\t{seconds:.4f}" for name, seconds in utterances)
    total = sum(float(line.rpartition("\t")[2]) for line in lines)
    listed = hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()
    return {"utterances": len(lines), "seconds": round(total, 2), "sha256": listed}


def units_fingerprint(units: Iterable[Any]) -> dict[str, Any]:
    """Of the parts of a streamed corpus, whose utterances nobody has counted: how many, and a hash of the list."""
    lines = [f"{unit}" for unit in units]
    return {"parts": len(lines), "sha256": hashlib.sha256("\n".join(lines).encode()).hexdigest()}


def files_fingerprint(files: Iterable[Path]) -> dict[str, Any]:
    """`fingerprint` of whole files, each once; their headers are read by many threads, since a disk may be far away."""
    unique = sorted(set(files))
    with ThreadPoolExecutor(16) as pool:
        return fingerprint(zip(unique, pool.map(audio.seconds, unique), strict=True))


def write_provenance(
    folder: Path, settings: Mapping[str, Any], seed: int, data: Mapping[str, Any], name: str = FILE
) -> None:
    """Write ``provenance.json``, or another ``name``.

    Args:
        settings: As resolved, with all defaults. data: What was read, each by its `fingerprint`.
    """
    content = {
        "command": shlex.join(sys.argv),
        "seed": seed,
        "revision": revision(),
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        "machine": {
            "system": platform.platform(),
            "threads": torch.get_num_threads(),
            "processes": count_processes(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
        "data": dict(data),
        "settings": settings,
    }
    write_json(folder / name, content)
