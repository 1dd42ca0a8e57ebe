"""Whether an audio file is as long as it declares: libsndfile reads most truncated files without an error."""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterator
from typing import BinaryIO

import soundfile

from distilled_student.common.audio_folders import WITHOUT_LENGTH

# 32-bit sizes from here on, and 0, stand for "unknown": programs write them when they write to a pipe
UNKNOWN_SIZE = 0x7FFFF000
# recorders declare the size of the whole file as that of the audio: mostly 44 bytes too many
USUAL_EXCESS, MAX_EXCESS = 44, 128
MAX_CHUNKS = 10_000
MAX_PAGE = 27 + 255 + 255 * 255  # bytes of the longest page of an OGG file
MP3_BITRATES = {  # (MPEG version 1?, layer) -> kbit/s by the index in the frame's header
    (True, 1): (0, 32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, 2): (0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (0, 32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
MP3_RATES = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}  # by the version


def check_length(opened: soundfile.SoundFile) -> None:
    """Compare the length that a file declares with its size. Reads headers only; of an MP3 file, those of all frames.

    A FLAC file has no size in its header: `check_last_sample` decodes its end.

    Raises:
        RuntimeError: the file is truncated, or its length cannot be known.
    """
    try:
        if isinstance(opened.name, str | bytes | os.PathLike):
            with open(opened.name, "rb") as file:
                _check(file, opened)
        elif hasattr(opened.name, "seek"):
            position = opened.name.tell()
            _check(opened.name, opened)
            opened.name.seek(position)
    except struct.error as error:
        raise RuntimeError(f"damaged header: {error}") from None


def check_last_sample(opened: soundfile.SoundFile) -> None:
    """Decode the last sample of a FLAC file, and return to the first one. Raises RuntimeError if it is truncated."""
    if opened.format == "FLAC" and opened.frames > 0:
        opened.seek(opened.frames - 1)
        found = len(opened.read(1))
        opened.seek(0)
        if found == 0:
            raise RuntimeError(f"truncated: it does not have the {opened.frames} samples that its header says")


def _check(file: BinaryIO, opened: soundfile.SoundFile) -> None:
    size = file.seek(0, os.SEEK_END)
    if opened.format in WITHOUT_LENGTH:
        raise RuntimeError(f"{opened.format}: its length cannot be checked: convert it to WAV or FLAC")
    if opened.format in ("WAV", "WAVEX", "RF64", "AIFF", "SVX", "W64", "AU", "NIST", "CAF"):
        found = _declared_bytes(file, opened.format)
        if found is not None:
            _check_bytes(*found, size)
    elif opened.format == "OGG":
        _check_last_page(file, size)
    elif opened.format == "MP3":
        _check_mp3(file, size, opened.frames)
    else:
        _check_log(opened)


def _check_bytes(start: int, declared: int, size: int) -> None:
    tolerated = max(USUAL_EXCESS, min(start, MAX_EXCESS))
    if start + declared > size + tolerated:
        found = max(0, size - start)
        raise RuntimeError(f"truncated: {found} bytes of audio, but the header says {declared}")


def _declared_bytes(file: BinaryIO, kind: str) -> tuple[int, int] | None:
    """The position and the declared size of the audio in bytes; None if the file does not say a size."""
    if kind == "AU":
        file.seek(0)
        magic, *numbers = file.read(4), file.read(8)
        start, declared = struct.unpack("<II" if magic == b"dns." else ">II", *numbers)
        return (start, declared) if 0 < declared < UNKNOWN_SIZE else None
    if kind == "NIST":
        return _declared_by_sphere(file)
    size_64 = None
    for name, start, declared in _chunks(file, kind):
        if name == b"ds64":
            file.seek(start + 8)
            size_64 = struct.unpack("<Q", file.read(8))[0]
        elif name[:4] in (b"data", b"SSND", b"BODY"):
            if declared == 0xFFFFFFFF and size_64 is not None:
                declared = size_64
            is_known = declared < UNKNOWN_SIZE or (kind in ("RF64", "W64", "CAF") and declared < 1 << 62)
            return (start, declared) if declared and is_known else None
    return None


def _chunks(file: BinaryIO, kind: str) -> Iterator[tuple[bytes, int, int]]:
    """The chunks of a file: name, position of the content, declared size of the content."""
    file.seek(0)
    is_big_endian = file.read(4) in (b"FORM", b"RIFX")
    name_size, form, align = 4, ">I" if is_big_endian else "<I", 2
    position, head = 12, 8
    if kind == "W64":
        name_size, form, align, position, head = 16, "<Q", 8, 40, 24
    elif kind == "CAF":
        name_size, form, align, position, head = 4, ">Q", 1, 8, 12
    for _ in range(MAX_CHUNKS):
        file.seek(position)
        found = file.read(head)
        if len(found) < head:
            return
        size = struct.unpack(form, found[name_size:])[0]
        if kind == "W64":  # counts its own header
            size = max(0, size - head)
        yield found[:name_size], position + head, size
        position += head + size + -size % align


def _declared_by_sphere(file: BinaryIO) -> tuple[int, int] | None:
    file.seek(0)
    text = file.read(1024).decode("latin-1")
    fields = dict(re.findall(r"^(\w+) -(?:i|s\d+) (.+?)\s*$", text, re.MULTILINE))
    start = re.match(r"NIST_1A\n\s*(\d+)", text)
    try:
        count, channels, width = (int(fields[f]) for f in ("sample_count", "channel_count", "sample_n_bytes"))
    except (KeyError, ValueError):
        return None
    if start is None or "embedded" in fields.get("sample_coding", ""):  # compressed
        return None
    return int(start[1]), count * channels * width


def _check_last_page(file: BinaryIO, size: int) -> None:
    """The last page of an OGG file must be complete and marked as the last one (RFC 3533, section 6)."""
    start = max(0, size - 2 * MAX_PAGE)
    file.seek(start)
    tail = file.read()
    position = tail.rfind(b"OggS")
    page = tail[position:] if position >= 0 else b""
    segments = page[26] if len(page) > 26 else 0
    is_complete = len(page) >= 27 + segments and len(page) >= 27 + segments + sum(page[27 : 27 + segments])
    if not is_complete or not page[5] & 4:
        raise RuntimeError("truncated: the page that ends the audio is missing")


def _mp3_frame(head: bytes) -> tuple[int, int] | None:
    """Bytes and samples of the frame with this header; None if it is not the header of a frame."""
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0:
        return None
    version, layer, bitrate, rate = head[1] >> 3 & 3, 4 - (head[1] >> 1 & 3), head[2] >> 4, head[2] >> 2 & 3
    if version == 1 or layer == 4 or bitrate in (0, 15) or rate == 3:
        return None
    padding, is_first = head[2] >> 1 & 1, version == 3
    samples = 384 if layer == 1 else 1152 if layer == 2 or is_first else 576
    bits = samples * MP3_BITRATES[is_first, layer][bitrate] * 1000 // MP3_RATES[version][rate]
    return (bits // 32 + padding) * 4 if layer == 1 else bits // 8 + padding, samples


def _mp3_start(file: BinaryIO) -> int:
    """The position behind the ID3 tags at the beginning."""
    position = 0
    while True:
        file.seek(position)
        head = file.read(10)
        if len(head) < 10 or head[:3] != b"ID3":
            return position
        position += 10 + sum((byte & 0x7F) << shift for byte, shift in zip(head[6:], (21, 14, 7, 0), strict=True))


def _mp3_declared(tag: bytes) -> tuple[int | None, int | None]:
    """Frames and bytes that the first frame of an MP3 file declares, from its ``Xing``, ``Info`` or ``VBRI`` on."""
    if tag[:4] == b"VBRI":
        return int.from_bytes(tag[14:18], "big"), int.from_bytes(tag[10:14], "big")
    has_frames, has_bytes = tag[7] & 1, tag[7] & 2
    frames = int.from_bytes(tag[8:12], "big") if has_frames else None
    start = 12 if has_frames else 8
    return frames, int.from_bytes(tag[start : start + 4], "big") if has_bytes else None


def _check_mp3(file: BinaryIO, size: int, samples: int) -> None:
    """Count the frames, and compare with the number in the first frame; without one, with libsndfile's estimate."""
    position, declared, count, per_frame = _mp3_start(file), None, 0, 1152
    is_first = True
    while position < size:
        file.seek(position)
        head = file.read(4)
        if (frame := _mp3_frame(head)) is None:
            found = (head + file.read(4096)).find(b"\xff", 1)
            position += found if found > 0 else 4096 + len(head)
            continue
        length, per_frame = frame
        if is_first and (tag := re.search(rb"Xing|Info|VBRI", content := head + file.read(length - 4))):
            declared, declared_bytes = _mp3_declared(content[tag.start() :])
            if declared and declared_bytes and position + declared_bytes <= size:
                return  # complete: its frames need not be counted
        elif position + length <= size:
            count += 1
        is_first, position = False, position + length
    if declared:
        if count < declared - 1:
            raise RuntimeError(f"truncated: {count} frames of MP3, but the header says {declared}")
    elif abs(count * per_frame - samples) > 2 * per_frame:
        raise RuntimeError("an MP3 file of variable bit rate that does not say its length: convert it to WAV or FLAC")


def _check_log(opened: soundfile.SoundFile) -> None:
    """Of rare formats: what libsndfile has logged about the header."""
    log = opened.extra_info
    declared = re.search(r"^\s*Frames\s*: (\d+)$", log, re.MULTILINE)
    if declared and int(declared[1]) > opened.frames:
        raise RuntimeError(f"truncated: {opened.frames} samples, but the header says {declared[1]}")
    if re.search(r"Seems to be a truncated file|File seems to be truncated|Data length \d+ should be \d+", log):
        raise RuntimeError("truncated: it is shorter than the header says")
