"""Puts the weights that an .onnx file reads from another file into the file itself; needs no library for ONNX."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from .protobuf import entry, fields, text_of

GRAPH, INITIALIZER = 7, 5  # fields of a ``ModelProto`` and of a ``GraphProto``
RAW_DATA, EXTERNAL_DATA, DATA_LOCATION = 9, 13, 14  # of a ``TensorProto``
KEY, VALUE = 1, 2  # of an entry of ``external_data``


class WeightsError(ValueError):
    """The weights that a file reads from another file cannot be read; the message is one line."""


def with_all_weights(file: str | Path) -> bytes:
    """The bytes of an .onnx file that needs no other file: with the weights that it reads from files in its folder.

    Raises:
        WeightsError: such a file is missing, too short or in another folder.
        ValueError: it is not an .onnx file.
    """
    file, read = Path(file), dict[str, bytes]()

    def weights(location: str, offset: int, length: int) -> bytes:
        if Path(location).name != location:
            raise WeightsError(f"{file}: its weights are in another folder: {location}")
        if location not in read:
            try:
                read[location] = file.with_name(location).read_bytes()
            except FileNotFoundError:
                raise WeightsError(
                    f"{file}: needs {location} in its folder, which has its weights: keep both"
                ) from None
        found = read[location][offset : offset + length]
        if len(found) < length:
            raise WeightsError(f"{file}: {location} is shorter than the weights in it: keep the files of one model")
        return found

    def with_weights(tensor: bytes) -> bytes:
        parts = [(number, tensor[start:end], tensor[value:end]) for number, start, value, end in fields(tensor)]
        entries = [content for number, _, content in parts if number == EXTERNAL_DATA]
        where = {text_of(content, KEY): text_of(content, VALUE) for content in entries}
        if not where:
            return tensor
        kept = [field for number, field, _ in parts if number not in (RAW_DATA, EXTERNAL_DATA, DATA_LOCATION)]
        raw = weights(where["location"], int(where.get("offset", 0)), int(where["length"]))
        return b"".join([*kept, entry(RAW_DATA, raw)])

    try:
        return _changed(file.read_bytes(), GRAPH, lambda graph: _changed(graph, INITIALIZER, with_weights))
    except WeightsError:
        raise
    except (IndexError, KeyError, UnicodeDecodeError, ValueError):
        raise ValueError(f"{file}: not readable as an ONNX file") from None


def _changed(message: bytes, field: int, change: Callable[[bytes], bytes]) -> bytes:
    """The message with what ``change`` makes of each field of this number."""
    parts = []
    for number, start, value, end in fields(message):
        parts.append(entry(field, change(message[value:end])) if number == field else message[start:end])
    return b"".join(parts)
