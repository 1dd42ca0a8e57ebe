"""Reads events of the Wyoming protocol with limits on what a client may send, and checks their values."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Mapping
from typing import Any

from wyoming.event import Event

from distilled_student.device.pcm import PcmFormat

# The first line of an event has at most the 64 KiB of asyncio's StreamReader.
MAX_DATA = 64 * 1024  # bytes
MAX_PAYLOAD = 4 * 1024 * 1024  # bytes: 131 s at 16 kHz
MAX_NAMES = 1_000


class ProtocolError(Exception):
    """What a client sent is not an event of the protocol, or exceeds a limit; the message is for the client."""


async def read_event(reader: asyncio.StreamReader) -> Event | None:
    """The next event; None at the end, also in the middle of an event.

    Raises:
        ProtocolError: see there.
    """
    try:
        line = await reader.readline()
        if not line.endswith(b"\n"):
            return None
        header = _parse(line)
        data = _checked_object(header.get("data") or {}, "data")
        if size := _checked_size(header, "data_length", MAX_DATA):
            data = {**data, **_parse(await reader.readexactly(size))}
        size = _checked_size(header, "payload_length", MAX_PAYLOAD)
        payload = await reader.readexactly(size) if size else None
    except asyncio.IncompleteReadError:
        return None
    except ValueError:  # of StreamReader: the line is too long
        raise ProtocolError("the first line of an event is too long") from None
    if not isinstance(header.get("type"), str):
        raise ProtocolError("type: expected a text")
    return Event(header["type"], data, payload)


def _parse(text: bytes) -> dict[str, Any]:
    try:
        found = _checked_object(json.loads(text), "event")
        json.dumps(found, ensure_ascii=False).encode()  # half of a surrogate pair cannot be sent back
        return found
    except UnicodeEncodeError:
        raise ProtocolError("expected Unicode text, found half of a surrogate pair") from None
    except (ValueError, RecursionError):  # not UTF-8, not JSON, or nested too deeply
        raise ProtocolError("expected JSON") from None


def _checked_object(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ProtocolError(f"{name}: expected a JSON object")
    return value


def _checked_size(header: Mapping[str, Any], key: str, largest: int) -> int:
    size = header.get(key) or 0
    if not isinstance(size, int) or not 0 <= size <= largest:
        raise ProtocolError(f"{key}: expected a whole number of at most {largest}")
    return size


def audio_format(data: Mapping[str, Any]) -> PcmFormat:
    """The format in the data of ``audio-start`` or ``audio-chunk``. Raises ProtocolError."""
    form = PcmFormat(*(data.get(key) for key in PcmFormat._fields))
    try:
        form.check()
    except ValueError as error:
        raise ProtocolError(str(error)) from None
    return form


def timestamp(data: Mapping[str, Any]) -> float | None:
    """The milliseconds in the data of an event; None if there are none. Raises ProtocolError."""
    value = data.get("timestamp")
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 2**53:  # NaN too
        raise ProtocolError("timestamp: expected milliseconds")
    return value


def wanted_names(data: Mapping[str, Any]) -> set[str] | None:
    """The words that ``detect`` asks for; None for all. Raises ProtocolError."""
    names = data.get("names")
    if not names:
        return None
    if not isinstance(names, list) or len(names) > MAX_NAMES or not all(isinstance(name, str) for name in names):
        raise ProtocolError(f"names: expected a list of at most {MAX_NAMES} texts")
    return set(names)


def finite(value: float | None) -> float | None:
    """A number rounded for JSON; None for one that JSON does not have."""
    return round(value, 4) if value is not None and math.isfinite(value) else None
