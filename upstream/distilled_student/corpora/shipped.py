"""The corpus that ships with the package, ``assets/corpus``: synthetic speech, a file for each voice and an index."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

PACKED = Path(__file__).resolve().parents[1] / "assets" / "corpus"


@dataclass(frozen=True)
class Clip:
    """One row of the packed index. ``start`` and ``samples`` are in samples of the voice's file, at 16 kHz."""

    voice: str
    split: str
    kind: str
    text: str
    take: int
    start: int
    samples: int


def read_index(packed: Path = PACKED) -> list[Clip]:
    """All clips of the packed corpus, in the index's order."""
    with (packed / "index.csv").open(newline="", encoding="utf-8") as file:
        return [
            Clip(r["voice"], r["split"], r["kind"], r["text"], int(r["take"]), int(r["start"]), int(r["samples"]))
            for r in csv.DictReader(file)
        ]


def read_voice(voice: str, packed: Path = PACKED) -> NDArray[np.float32]:
    """A voice's whole file, ``(samples,)``."""
    return soundfile.read(packed / f"{voice}.ogg", dtype="float32")[0]
