"""Reads and changes the metadata of an .onnx file, and no other byte of it; needs no library for ONNX."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from .protobuf import entry, fields, text, text_of

# Of a ``ModelProto``, field 14 is an entry of the metadata, a message with the fields key (1) and value (2).
METADATA_FIELD, KEY_FIELD, VALUE_FIELD = 14, 1, 2


def write_metadata(file: str | Path, values: Mapping[str, str]) -> None:
    """Set keys of a file's metadata. The file is replaced by a complete one; the position of its weights stays.

    Raises:
        ValueError: it is not an .onnx file.
        OSError: it cannot be written.
    """
    file = Path(file)
    try:
        content = with_metadata(file.read_bytes(), values)
    except (IndexError, UnicodeDecodeError, ValueError):
        raise ValueError(f"{file}: not readable as an ONNX file") from None
    temporary = file.with_name(f"{file.name}.new")
    temporary.write_bytes(content)
    os.replace(temporary, file)


def read_metadata(file: str | Path) -> dict[str, str]:
    """The metadata of an .onnx file. Raises ValueError: it is not an .onnx file."""
    try:
        content = Path(file).read_bytes()
        entries = [content[value:end] for number, _, value, end in fields(content) if number == METADATA_FIELD]
        return {text_of(one, KEY_FIELD): text_of(one, VALUE_FIELD) for one in entries}
    except (IndexError, UnicodeDecodeError, ValueError):
        raise ValueError(f"{file}: not readable as an ONNX file") from None


def with_metadata(content: bytes, values: Mapping[str, str]) -> bytes:
    """The bytes of an .onnx file with these keys in its metadata, instead of what it has for them."""
    kept = []
    for number, start, value, end in fields(content):
        is_replaced = number == METADATA_FIELD and text_of(content[value:end], KEY_FIELD) in values
        if not is_replaced:
            kept.append(content[start:end])
    entries = [entry(METADATA_FIELD, text(KEY_FIELD, key) + text(VALUE_FIELD, values[key])) for key in values]
    return b"".join([*kept, *entries])
