"""Files of weights and settings: read without running what is in them, written whole or not at all."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distilled_student.errors import UserError


def read_json(file: Path) -> dict[str, Any]:
    """The mapping in a JSON file. Raises UserError naming the file."""
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})") from None
    except ValueError as error:
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


def read_torch(file: Path) -> Any:
    """What ``torch.save`` wrote, if it is tensors, plain values and argparse's settings (s3prl keeps its own there).

    Raises:
        UserError: damaged, or with any other pickled object, since loading one can run code; names the file.
    """
    known = argparse.Namespace in torch.serialization.get_safe_globals()
    # torch's context takes a name away at its end even where it was there before, as once s3prl is registered
    safe = contextlib.nullcontext() if known else torch.serialization.safe_globals([argparse.Namespace])
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


def write_whole(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Write files of a folder, each beside its place and then renamed, so that the folder never holds half of one."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (folder / f"{name}.new").write_bytes(content)
    for name in contents:
        os.replace(folder / f"{name}.new", folder / name)


def write_json(file: Path, content: Any) -> None:
    """A JSON file, whole or not at all."""
    write_whole(file.parent, {file.name: f"{json.dumps(content, indent=2)}\n".encode()})


def save_torch(content: Any, file: str | Path) -> None:
    """``torch.save``, whole or not at all: another process may wait for the file, or this one be killed."""
    part = Path(f"{file}.{os.getpid()}")
    try:
        torch.save(content, part)
        os.replace(part, file)
    finally:
        part.unlink(missing_ok=True)  # it is not there but where something went wrong
