"""The embedded corpus, which ships in ``assets/corpus``: synthetic speech, one file per voice, and an index."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

PACKED = Path(__file__).resolve().parents[1] / "assets" / "corpus"


@dataclass(frozen=True)
class PackedClip:
    """One row of the index: an excerpt of a voice's file. ``start`` and ``samples`` are in samples at 16 kHz."""

    voice: str
    split: str
    kind: str
    text: str
    take: int
    start: int
    samples: int


def read_index(packed: Path = PACKED) -> list[PackedClip]:
    """All clips of the packed corpus, in the order of the index."""
    with (packed / "index.csv").open(newline="", encoding="utf-8") as file:
        return [
            PackedClip(r["voice"], r["split"], r["kind"], r["text"], int(r["take"]), int(r["start"]), int(r["samples"]))
            for r in csv.DictReader(file)
        ]


def read_voice(voice: str, packed: Path = PACKED) -> NDArray[np.float32]:
    """The whole file of a voice, ``(samples,)`` at 16 kHz."""
    return soundfile.read(packed / f"{voice}.ogg", dtype="float32")[0]
