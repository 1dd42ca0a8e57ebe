"""Files of weights and settings: read without running what is in them, written whole or not at all."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import logging
import os
import pickle
import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from distilled_student.common.errors import UserError

log = logging.getLogger(__name__)
CHECKSUM = b"sha256:"


def read_json(file: Path) -> dict[str, Any]:
    """The mapping in a JSON file. Raises UserError naming the file."""
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file}: is not JSON ({error})") from None
    if not isinstance(values, dict):
        raise UserError(f"{file}: is not a mapping")
    return values


def read_safetensors(file: Path) -> dict[str, Tensor]:
    """The tensors in a safetensors file, on the CPU. Raises UserError naming the file."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{file}: cannot be read as safetensors ({error})") from None


def is_compressed(file: Path) -> bool:
    """Whether a zip archive has parts that would take more memory than they take on the disk."""
    try:
        with zipfile.ZipFile(file) as archive:
            return any(part.compress_type != zipfile.ZIP_STORED for part in archive.infolist())
    except Exception:  # none at all, or damaged in any way: torch is to say so
        return False


def read_torch(file: Path) -> Any:
    """What ``torch.save`` wrote, if it is tensors, plain values and argparse's settings (s3prl keeps its own there).

    Raises:
        UserError: damaged, or with any other pickled object, since loading one can run code; names the file.
    """
    known = argparse.Namespace in torch.serialization.get_safe_globals()
    # torch's context takes a name away at its end even where it was there before, as once s3prl is registered
    safe = contextlib.nullcontext() if known else torch.serialization.safe_globals([argparse.Namespace])
    if is_compressed(file):
        raise UserError(f"{file}: holds compressed parts, which torch.save does not write: refused")
    try:
        with safe:
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        what = f"holds the pickled object {found[1]}, which could run code: refused" if found else "is not a torch file"
        raise UserError(f"{file}: {what}") from None
    except Exception as error:  # whatever a damaged file raises, it is that file's fault
        reason = f"{type(error).__name__}: {str(error)[:160]}"
        raise UserError(f"{file}: cannot be read as a torch file ({reason})") from None


def write_bytes(file: Path, content: bytes) -> None:
    """Write a file that is on the disk, and not in its cache alone, when this returns."""
    with file.open("wb") as out:
        out.write(content)
        out.flush()
        os.fsync(out.fileno())


def put_in_place(part: Path, file: Path) -> None:
    """Rename a file that was written beside its place; the name, too, is on the disk when this returns."""
    os.replace(part, file)
    folder = os.open(file.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    except OSError:  # some network disks cannot, and keep names at once
        pass
    finally:
        os.close(folder)


def write_whole(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Write files of a folder, each beside its place and then renamed, so that the folder never holds half of one.

    Raises:
        UserError: the folder cannot be written, or the disk is full.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            write_bytes(folder / f"{name}.new", content)
        for name in contents:
            put_in_place(folder / f"{name}.new", folder / name)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror})") from None


def write_json(file: Path, content: Any) -> None:
    """A JSON file, whole or not at all."""
    write_whole(file.parent, {file.name: f"{json.dumps(content, indent=2)}\n".encode()})


def _digest(file: BinaryIO, size: int) -> bytes:
    """The checksum of a file's first ``size`` bytes, as `save_torch` notes it."""
    file.seek(0)
    found = hashlib.sha256()
    while part := file.read(min(size, 1 << 20)):
        found.update(part)
        size -= len(part)
    return CHECKSUM + found.hexdigest().encode()


def save_torch(content: Any, file: str | Path) -> None:
    """``torch.save`` with a checksum: whole or not at all, on the disk when this returns.

    The checksum is the zip archive's comment, so that ``torch.load`` and everybody else reads the file as ever.

    Raises:
        UserError: the disk is full, or the folder cannot be written; what was there is left as it was.
    """
    part = Path(f"{file}.{os.getpid()}.part")
    try:
        with part.open("w+b") as out:
            torch.save(content, out)
            size = out.seek(0, os.SEEK_END) - 2  # the length of the comment comes last, and is 0 yet
            comment = _digest(out, size)
            out.seek(size)
            out.write(len(comment).to_bytes(2, "little") + comment)
            out.flush()
            os.fsync(out.fileno())
        put_in_place(part, Path(file))
    except OSError as error:
        raise UserError(f"{file}: cannot be written ({error.strerror}); the checkpoints before it are kept") from None
    except RuntimeError as error:  # torch's own writer, when the file underneath it fails
        raise UserError(f"{file}: cannot be written ({str(error).splitlines()[0]})") from None
    finally:
        part.unlink(missing_ok=True)  # it is not there but where something went wrong


def is_damaged(file: Path) -> bool:
    """Whether a torch file is not as it was written: its checksum, or, of one that has none, each of its parts' own."""
    length = len(CHECKSUM) + 2 * hashlib.sha256().digest_size
    try:
        with file.open("rb") as found:
            size = found.seek(0, os.SEEK_END) - length - 2
            if size > 0:
                found.seek(size)
                tail = found.read()
                if tail[2:].startswith(CHECKSUM):
                    return tail != length.to_bytes(2, "little") + _digest(found, size)
        with zipfile.ZipFile(file) as archive:
            return bool(archive.comment) or archive.testzip() is not None
    except Exception:  # whatever a damaged archive raises
        return True


def newest_whole(files: Sequence[Path]) -> Path | None:
    """The last of these checkpoints, oldest first, that is not damaged; says which are.

    Raises:
        UserError: all are.
    """
    for file in reversed(files):
        if not is_damaged(file):
            return file
        log.warning("%s: damaged (its checksum is wrong): the checkpoint before it is used", file)
    if files:
        raise UserError(f"{files[-1]}: damaged (its checksum is wrong), and no whole checkpoint is beside it")
    return None
