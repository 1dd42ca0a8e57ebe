"""Functions that patched experts and recipes of s3prl import in place of packages that are not dependencies."""

from __future__ import annotations

import hashlib
import importlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch

from distilled_student.common import audio
from distilled_student.common.audio_folders import audio_files
from distilled_student.common.errors import UserError
from distilled_student.common.settings import cache_folder


class DistributedSamplerWrapper(torch.utils.data.DistributedSampler):
    """Each process's share of what another sampler draws; s3prl's ``speech_commands`` imports it from catalyst."""

    def __iter__(self) -> Iterator[int]:
        drawn = list(self.dataset)
        return iter([drawn[index] for index in super().__iter__()])


def find_files(folder: str | Path) -> list[str]:
    """``librosa.util.find_files``: absolute paths of all audio files below a folder, sorted.

    Unlike librosa's, it finds the audio files that this package reads.
    """
    return sorted(str(path.absolute()) for path in audio_files(folder, str(folder)))


def _cached(kind: str, ending: str, *parts: Any) -> Path:
    key = hashlib.sha256(repr(parts).encode()).hexdigest()
    path = cache_folder() / "superb" / f"{kind}-{key[:16]}{ending}"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def lengths_file(root: str | Path) -> Path:
    """The cache file for the lengths of the utterances below ``root``; a changed file there gives another name."""
    files = [(path, os.path.getsize(path)) for path in find_files(root)]
    return _cached("lengths", ".pt", str(Path(root).resolve()), files)


def list_file(mode: str, root: str | Path, meta_data: str | Path) -> str:
    """The cache file for the list of a split's files; another folder or list gives another name."""
    return str(_cached(mode, ".pkl", str(Path(root).resolve()), Path(meta_data).read_text(encoding="utf-8")))


class _Absent:
    """Replaces a package that is not installed; using it is an error, importing it is not."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> _Absent:
        if attribute.startswith("__"):  # inspecting an object is not using it
            raise AttributeError(attribute)
        return self

    def __call__(self, *args: object, **kwargs: object) -> NoReturn:
        raise UserError(f"this recipe needs the Python package {self._name}, which is not installed")


def optional(name: str) -> Any:
    """The package; if it is not installed, an object whose first call raises UserError."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return _Absent(name)


def load_audio(path: str, sr: int, offset: float = 0.0, duration: float | None = None) -> tuple[np.ndarray, int]:
    """``librosa.load``: ``(samples,)`` float32 and the rate; the recipes only ask for 16 kHz."""
    return audio.load(path, offset, duration).numpy(), sr
