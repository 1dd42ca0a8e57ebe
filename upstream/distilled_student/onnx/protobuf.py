"""Reads and writes the fields of protobuf messages, of which .onnx files consist; needs no library."""

from __future__ import annotations

from collections.abc import Iterator

# A message consists of fields, each a tag (number * 8 + type) and a value.
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # types


def fields(content: bytes) -> Iterator[tuple[int, int, int, int]]:
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


def text_of(message: bytes, field: int) -> str:
    """The text of a field of a message; empty if it has none."""
    return next((message[value:end].decode() for number, _, value, end in fields(message) if number == field), "")


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


def entry(number: int, value: bytes) -> bytes:
    """A field of bytes, or of a message."""
    return _varint(number * 8 + BYTES) + _varint(len(value)) + value


def text(number: int, content: str) -> bytes:
    """A field of text."""
    return entry(number, content.encode())
