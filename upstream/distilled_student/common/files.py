"""Files of weights and settings: reading runs no code from a file, writing replaces a file completely or not at all."""

from __future__ import annotations

import argparse
import codecs
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
from typing import TYPE_CHECKING, Any, BinaryIO

from distilled_student.common.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

# torch is imported by the functions that need it: JSON files are checked before it is imported

log = logging.getLogger(__name__)
CHECKSUM_PREFIX = b"sha256:"


def read_utf8(file: Path, kind: str) -> str:
    """The text of a file that a user has written, without a byte order mark.

    Args:
        kind: What the file is, for messages, such as ``a trial list``.

    Raises:
        UserError: there is no such file, or it is not UTF-8.
    """
    try:
        content = file.read_bytes()
    except OSError as error:
        raise UserError(f"{file}: cannot be read as {kind} ({error})") from None
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in content[:1000]:
        raise UserError(f"{file}: is UTF-16, not UTF-8: convert it: iconv -f UTF-16 -t UTF-8 {file.name} > NEW")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        remedy = "save it as UTF-8, or convert it: iconv -f ENCODING -t UTF-8"
        raise UserError(f"{file}: cannot be read as {kind}, is not UTF-8 ({error}): {remedy}") from None


def read_json(file: Path, remedy: str = "") -> dict[str, Any]:
    """The mapping in a JSON file. Raises UserError naming the file, and the ``remedy`` for a damaged one."""
    remedy = f"; {remedy}" if remedy else ""
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file}: is not JSON ({error}){remedy}") from None
    if not isinstance(values, dict):
        raise UserError(f"{file}: is not a mapping{remedy}")
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
    """Whether a zip archive has compressed parts, which can take much more memory than disk space."""
    try:
        with zipfile.ZipFile(file) as archive:
            return any(part.compress_type != zipfile.ZIP_STORED for part in archive.infolist())
    except Exception:  # not a zip archive, or damaged: torch's own error says so
        return False


def with_namespace() -> contextlib.AbstractContextManager[Any]:
    """A context in which ``torch.load(weights_only=True)`` reads argparse's Namespace, which holds s3prl's settings."""
    import torch

    if argparse.Namespace in torch.serialization.get_safe_globals():
        return contextlib.nullcontext()  # torch's context would remove the class at its end
    return torch.serialization.safe_globals([argparse.Namespace])


def read_torch(file: Path) -> Any:
    """Content of a ``torch.save`` file with tensors, plain values and argparse's Namespace (s3prl's settings).

    Raises:
        UserError: damaged, or with any other pickled object, because loading one can run code; names the file.
    """
    import torch

    if is_compressed(file):
        raise UserError(f"{file}: holds compressed parts, which torch.save does not write: refused")
    try:
        with with_namespace():
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        what = f"holds the pickled object {found[1]}, which could run code: refused" if found else "is not a torch file"
        raise UserError(f"{file}: {what}") from None
    except Exception as error:  # a damaged file can raise any exception
        reason = f"{type(error).__name__}: {str(error)[:160]}"
        raise UserError(f"{file}: cannot be read as a torch file ({reason})") from None


def write_bytes(file: Path, content: bytes, is_private: bool = False) -> None:
    """Write a file and flush it to disk. ``is_private``: only the user may read and write it (mode 600)."""
    with open(file, "wb", opener=_open_private if is_private else None) as out:
        out.write(content)
        out.flush()
        os.fsync(out.fileno())


def _open_private(path: str, flags: int) -> int:
    descriptor = os.open(path, flags, 0o600)
    os.chmod(path, 0o600)  # it may exist, left by an interrupted command
    return descriptor


def replace_file(temporary: Path, file: Path) -> None:
    """Rename a temporary file to ``file`` and flush the folder, so that the new name is on disk too."""
    os.replace(temporary, file)
    folder = os.open(file.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    except OSError:  # some network file systems cannot flush a folder; they store names at once
        pass
    finally:
        os.close(folder)


def write_files(folder: Path, contents: Mapping[str, bytes], is_private: bool = False) -> None:
    """Write files (name -> content) into a folder: each to a temporary file, which is then renamed.

    After an interruption the folder holds the complete old file or the complete new one.

    Args:
        is_private: Only the user may read the files (mode 600), and open the folder if it is made here (mode 700).

    Raises:
        UserError: the folder cannot be written, or the disk is full.
    """
    try:
        if is_private and not folder.exists():
            folder.parent.mkdir(parents=True, exist_ok=True)
            folder.mkdir(mode=0o700, exist_ok=True)
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            write_bytes(folder / f"{name}.new", content, is_private)
        for name in contents:
            replace_file(folder / f"{name}.new", folder / name)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror})") from None


def write_json(file: Path, content: Any) -> None:
    """Write a JSON file as `write_files` does."""
    write_files(file.parent, {file.name: f"{json.dumps(content, indent=2)}\n".encode()})


def _checksum(file: BinaryIO, size: int) -> bytes:
    """The checksum of a file's first ``size`` bytes, in the form that `save_torch` stores."""
    file.seek(0)
    digest = hashlib.sha256()
    while part := file.read(min(size, 1 << 20)):
        digest.update(part)
        size -= len(part)
    return CHECKSUM_PREFIX + digest.hexdigest().encode()


def save_torch(content: Any, file: str | Path) -> None:
    """``torch.save`` with a checksum, to a temporary file that is flushed to disk and then renamed.

    The checksum is the comment of the zip archive, so ``torch.load`` reads the file as usual.

    Raises:
        UserError: the disk is full, or the folder cannot be written; an existing file is unchanged.
    """
    import torch

    part = Path(f"{file}.{os.getpid()}.part")
    try:
        with part.open("w+b") as out:
            torch.save(content, out)
            size = out.seek(0, os.SEEK_END) - 2  # the last two bytes are the length of the comment, still 0
            comment = _checksum(out, size)
            out.seek(size)
            out.write(len(comment).to_bytes(2, "little") + comment)
            out.flush()
            os.fsync(out.fileno())
        replace_file(part, Path(file))
    except OSError as error:
        raise UserError(f"{file}: cannot be written ({error.strerror}); earlier checkpoints are kept") from None
    except RuntimeError as error:  # raised by torch's writer when writing to the file fails
        raise UserError(f"{file}: cannot be written ({str(error).splitlines()[0]})") from None
    finally:
        part.unlink(missing_ok=True)  # it still exists after an error


def is_damaged(file: Path) -> bool:
    """Whether a torch file differs from what was written.

    Compares the checksum of `save_torch`; in a file without one, the checksums of the zip archive's parts.
    """
    length = len(CHECKSUM_PREFIX) + 2 * hashlib.sha256().digest_size
    try:
        with file.open("rb") as found:
            size = found.seek(0, os.SEEK_END) - length - 2
            if size > 0:
                found.seek(size)
                tail = found.read()
                if tail[2:].startswith(CHECKSUM_PREFIX):
                    return tail != length.to_bytes(2, "little") + _checksum(found, size)
        with zipfile.ZipFile(file) as archive:
            return bool(archive.comment) or archive.testzip() is not None
    except Exception:  # a damaged archive can raise any exception
        return True


def newest_undamaged(files: Sequence[Path]) -> Path | None:
    """The newest undamaged checkpoint of ``files``, oldest first; None for no files. Logs the damaged ones.

    Raises:
        UserError: all are damaged.
    """
    for file in reversed(files):
        if not is_damaged(file):
            return file
        log.warning("%s: damaged (its checksum is wrong): the previous checkpoint is used", file)
    if files:
        raise UserError(f"{files[-1]}: damaged (its checksum is wrong), and so are all older checkpoints")
    return None
