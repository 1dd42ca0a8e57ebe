"""Reads and changes the metadata of an .onnx file, and no other byte of it; needs no library for ONNX."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

# ONNX files are protobuf messages: fields, each a tag (number * 8 + type) and a value. Of a ``ModelProto``, field 14 is
# an entry of the metadata, a message with the fields key (1) and value (2).
METADATA_FIELD, KEY_FIELD, VALUE_FIELD = 14, 1, 2
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # types


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
        entries = [content[value:end] for number, _, value, end in _fields(content) if number == METADATA_FIELD]
        return {_part(entry, KEY_FIELD): _part(entry, VALUE_FIELD) for entry in entries}
    except (IndexError, UnicodeDecodeError, ValueError):
        raise ValueError(f"{file}: not readable as an ONNX file") from None


def with_metadata(content: bytes, values: Mapping[str, str]) -> bytes:
    """The bytes of an .onnx file with these keys in its metadata, instead of what it has for them."""
    kept = []
    for number, start, value, end in _fields(content):
        is_replaced = number == METADATA_FIELD and _part(content[value:end], KEY_FIELD) in values
        if not is_replaced:
            kept.append(content[start:end])
    entries = [_entry(METADATA_FIELD, _text(KEY_FIELD, key) + _text(VALUE_FIELD, values[key])) for key in values]
    return b"".join([*kept, *entries])


def _fields(content: bytes) -> Iterator[tuple[int, int, int, int]]:
    """Of each field of a message: its number, and where it, its value and the next field begin."""
    start = 0
    while start < len(content):
        tag, value = _read_varint(content, start)
        number, kind = divmod(tag, 8)
        if kind == VARINT:
            _, end = _read_varint(content, value)
        elif kind == BYTES:
            size, value = _read_varint(content, value)
            end = value + size
        elif kind in (FIXED32, FIXED64):
            end = value + (4 if kind == FIXED32 else 8)
        else:
            raise ValueError(f"unknown type {kind} of a field")
        if end > len(content) or not number:
            raise ValueError("truncated")
        yield number, start, value, end
        start = end


def _part(entry: bytes, field: int) -> str:
    """The text of a field of an entry; empty if it has none."""
    return next((entry[value:end].decode() for number, _, value, end in _fields(entry) if number == field), "")


def _read_varint(content: bytes, start: int) -> tuple[int, int]:
    """A number of seven bits a byte, the lowest first, and where the next one begins."""
    number, shift = 0, 0
    while True:
        byte = content[start]
        number |= (byte & 127) << shift
        start, shift = start + 1, shift + 7
        if byte < 128:
            return number, start


def _varint(number: int) -> bytes:
    low, rest = number & 127, number >> 7
    return bytes([low | 128]) + _varint(rest) if rest else bytes([low])


def _entry(number: int, value: bytes) -> bytes:
    return _varint(number * 8 + BYTES) + _varint(len(value)) + value


def _text(number: int, text: str) -> bytes:
    return _entry(number, text.encode())
