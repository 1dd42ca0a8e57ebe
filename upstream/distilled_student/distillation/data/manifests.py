"""lhotse's manifests of cuts and recordings, read so that a line can neither run a program nor ask for any memory.

lhotse itself runs a source of the type ``command``, and the path of an ``.sph`` file, as commands of the shell.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from lhotse import Recording
from lhotse.audio.backend import LibsndfileBackend, get_current_audio_backend, set_current_audio_backend
from lhotse.cut import Cut
from lhotse.serialization import deserialize_item

from distilled_student.common.audio import LONGEST, check_rate
from distilled_student.common.errors import UserError

LINE = 2**20  # bytes of the longest line
SOURCES = ("file", "url")
TRANSFORMS = ("Speed", "Tempo", "Volume", "Resample")
FACTORS = 0.1, 10.0  # of speed, tempo and volume


def _check_transform(transform: Any) -> None:
    name, values = transform["name"], transform.get("kwargs", {})
    if name not in TRANSFORMS:
        raise ValueError(f"transforms: {name}: is none of {', '.join(TRANSFORMS)}")
    for key, value in values.items():
        if key == "factor" and not FACTORS[0] <= value <= FACTORS[1]:
            raise ValueError(
                f"transforms: {name}: a factor of {value}, which is not within {FACTORS[0]} to {FACTORS[1]}"
            )
        if key.endswith("sampling_rate"):
            check_rate(value)


def _check_values(values: dict[str, Any]) -> None:
    """Raise ValueError for a source that is no file, wherever it is in a line, and for any other transform."""
    groups: list[Any] = [values]
    while groups:
        group = groups.pop()
        if isinstance(group, dict):
            kind = group.get("type")
            if "source" in group and kind not in SOURCES:
                raise ValueError(f"a source of type '{kind}', not {' or '.join(SOURCES)}: refused")
            for transform in group.get("transforms") or ():
                _check_transform(transform)
        groups += group.values() if isinstance(group, dict) else group if isinstance(group, list) else ()


def _check_size(cut: Cut) -> None:
    for part in (cut, *(track.cut for track in getattr(cut, "tracks", ()))):
        check_rate(part.sampling_rate)
        if not 0 < part.duration <= LONGEST:
            raise ValueError(f"{cut.id}: a duration of {part.duration} s, which is not within 0 to {LONGEST}")
        if not 0 <= getattr(part, "start", 0) <= LONGEST:
            raise ValueError(f"{cut.id}: a start of {part.start} s, which is not within 0 to {LONGEST}")


def parse_cut(line: str | bytes) -> Cut:
    """The cut, or all of the recording, that a manifest's line describes.

    Raises:
        ValueError: neither of these, damaged, or with a source, a rate, a duration or a transform that is refused.
    """
    try:
        values = json.loads(line)
        _check_values(values)
        found = deserialize_item(values)
        cut = found.to_cut() if isinstance(found, Recording) else found
        if not isinstance(cut, Cut) or not cut.has_recording:
            raise ValueError(f"holds {type(found).__name__}; expected cuts or recordings")
        _check_size(cut)
    except ValueError:
        raise
    except Exception as error:  # whatever lhotse raises on a foreign line; of one nested too deep, Python's own error
        raise ValueError(f"{type(error).__name__}: {' '.join(str(error).split())[:200]}") from None
    return cut


def read_manifest(path: Path) -> Iterator[Cut]:
    """The cuts of a manifest, ``.jsonl`` or ``.jsonl.gz``, in their order; memory does not depend on its length.

    Raises:
        UserError: damaged, or a line that `parse_cut` refuses; names file and line.
    """
    number = 0
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            while line := file.readline(LINE + 1):
                number += 1
                if len(line) > LINE:
                    raise ValueError(f"is longer than {LINE} bytes")
                if line.strip():
                    yield parse_cut(line)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read as a lhotse manifest ({error})") from None
    except ValueError as error:
        raise UserError(f"{path}: line {number}: cannot be read as a lhotse manifest ({error})") from None


def load_audio(cut: Cut) -> np.ndarray:
    """``(channels, samples)`` of a cut at its own rate, by libsndfile alone: other readers of lhotse start programs."""
    before = get_current_audio_backend()
    set_current_audio_backend(LibsndfileBackend())
    try:
        return cut.load_audio()
    finally:  # lhotse's own context does not come here after an error
        set_current_audio_backend(before)
