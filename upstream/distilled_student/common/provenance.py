"""Provenance of a result: command, settings, versions, git revision, models, data, seed and machine, in a JSON file."""

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
from torch import nn

from distilled_student.common import audio_reading
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


def git_output(*arguments: str) -> str | None:
    """Output of a git command in the folder of this package; None if that is not in a clone or git is missing."""
    folder = Path(__file__).resolve().parent
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def revision() -> str | None:
    """The commit of this package, with ``+changes`` if files differ from it; None if the package is not in a clone."""
    # the package may be installed inside a clone of another project, which does not track this file
    tracked = git_output("ls-files", "--error-unmatch", Path(__file__).name)
    commit = git_output("rev-parse", "HEAD") if tracked else None
    return f"{commit}+changes" if commit and git_output("status", "--porcelain", "--untracked-files=no") else commit


def utterances_fingerprint(utterances: Iterable[tuple[str | Path, float]]) -> dict[str, Any]:
    """Number, total seconds and hash of a list of utterances ``(name, seconds)``, independent of their order."""
    lines = sorted(f"{name}\t{seconds:.4f}" for name, seconds in utterances)
    total = sum(float(line.rpartition("\t")[2]) for line in lines)
    listed = hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()
    return {"utterances": len(lines), "seconds": round(total, 2), "sha256": listed}


def units_fingerprint(units: Iterable[Any]) -> dict[str, Any]:
    """Number and hash of the parts of a streamed corpus, whose utterances are not counted."""
    lines = [f"{unit}" for unit in units]
    return {"parts": len(lines), "sha256": hashlib.sha256("\n".join(lines).encode()).hexdigest()}


def weights_fingerprint(model: nn.Module) -> dict[str, Any]:
    """Number and hash of a model's values: parameters and buffers, whatever file they were read from.

    The hash is SHA-256 over each tensor in the order of the names: a line ``NAME TYPE SHAPE``, such as
    ``norm.weight float32 [768]``, then its values in the memory order of a contiguous array, little-endian. What all
    names begin with, such as ``student.`` of an upstream around a student, is left out.
    """
    tensors = {name: value for name, value in model.state_dict().items() if isinstance(value, torch.Tensor)}
    while len({name.partition(".")[0] for name in tensors}) == 1 and all("." in name for name in tensors):
        tensors = {name.partition(".")[2]: value for name, value in tensors.items()}
    return {"values": sum(value.numel() for value in tensors.values()), "sha256": tensors_hash(tensors)}


def tensors_hash(tensors: Mapping[str, torch.Tensor]) -> str:
    """The hash of `weights_fingerprint`."""
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        dtype = str(value.dtype).removeprefix("torch.")
        digest.update(f"{name} {dtype} {list(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def files_fingerprint(files: Iterable[Path]) -> dict[str, Any]:
    """`utterances_fingerprint` of audio files, each counted once. Threads read the headers: a disk may be slow."""
    unique = sorted(set(files))
    with ThreadPoolExecutor(16) as pool:
        return utterances_fingerprint(zip(unique, pool.map(audio_reading.seconds, unique), strict=True))


def write_provenance(
    folder: Path,
    settings: Mapping[str, Any],
    seed: int,
    data: Mapping[str, Any],
    name: str = FILE,
    models: Mapping[str, Any] | None = None,
) -> None:
    """Write ``provenance.json`` (or ``name``) into ``folder``.

    Args:
        settings: All settings, defaults included.
        data: Name -> fingerprint of each data set that was read.
        models: Name -> `weights_fingerprint` of each model, with its name and, from the hub, its revision.
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
        "models": dict(models or {}),
        "data": dict(data),
        "settings": settings,
    }
    write_json(folder / name, content)
