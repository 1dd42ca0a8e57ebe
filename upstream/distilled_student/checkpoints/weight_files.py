"""The files that hold the weights of a `transformers` folder: one or several, safetensors or pickled, any variant."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from distilled_student.common.errors import UserError
from distilled_student.common.files import read_json, read_safetensors, read_torch
from distilled_student.common.untrusted import leads_outside

log = logging.getLogger(__name__)
WEIGHTS, PICKLED = "model.safetensors", "pytorch_model.bin"
OTHER_FORMATS = ("tf_model*.h5", "flax_model*.msgpack", "*.gguf", "*.onnx", "model.ckpt.index", "consolidated*.pth")


class WeightFile(NamedTuple):
    """The file of all weights, or the index of several files.

    Attributes:
        variant: `transformers`' name for weights of another type, such as ``fp16`` in ``model.fp16.safetensors``.
    """

    file: Path
    variant: str | None

    @property
    def is_index(self) -> bool:
        return self.file.suffix == ".json"


def find_weights(folder: Path) -> WeightFile:
    """The weights of a folder: those without a variant first, safetensors before pickled files.

    Raises:
        UserError: there are none; names what was looked for, and weights of other libraries that are there.
    """
    for name in (WEIGHTS, f"{WEIGHTS}.index.json", PICKLED, f"{PICKLED}.index.json"):
        if (folder / name).is_file():
            return WeightFile(folder / name, None)
    variants = r"(?:model\.(\w+)\.safetensors|pytorch_model\.(\w+)\.bin|.*\.index\.(\w+)\.json)"
    found = [(file, re.fullmatch(variants, file.name)) for file in sorted(folder.iterdir(), reverse=True)]
    matches = [WeightFile(file, next(filter(None, match.groups()))) for file, match in found if match]
    if matches:
        best = min(matches, key=lambda match: (match.file.name.startswith(PICKLED.split(".")[0]), match.is_index))
        log.info("%s: the weights are those of %s", folder, best.file.name)
        return best
    message = f"{folder}: has no {WEIGHTS}, {WEIGHTS}.index.json, {PICKLED} or {PICKLED}.index.json"
    if others := sorted(file.name for pattern in OTHER_FORMATS for file in folder.glob(pattern)):
        message += f"; {others[0]} is not read: save it as safetensors with its own library"
    raise UserError(message)


def checked_mapping(value: Any, source: str) -> dict[str, Any]:
    """``value``, if it is a mapping. Raises UserError."""
    if not isinstance(value, dict):
        raise UserError(f"{source}: is not a mapping")
    return value


def checked_tensors(value: Any, source: str) -> dict[str, Tensor]:
    """``value``, if it is a mapping of names to tensors that the file stores. Raises UserError."""
    for name, tensor in checked_mapping(value, source).items():
        if not isinstance(tensor, Tensor):
            raise UserError(f"{source}: {name}: is not a tensor")
        # a file of a few bytes can declare a tensor of any size
        if tensor.layout != torch.strided or tensor.nbytes > tensor.untyped_storage().nbytes():
            raise UserError(f"{source}: {name}: the file does not store all values of this tensor")
    return value


def _read_pickled(file: Path) -> dict[str, Tensor]:
    return checked_tensors(read_torch(file), str(file))


def read_weights(folder: Path) -> tuple[dict[str, Tensor], Path]:
    """The state dict in a `transformers` folder, and the file to name in messages. Raises UserError."""
    found = find_weights(folder)
    read = _read_pickled if ".bin" in found.file.name else read_safetensors
    return _read_shards(folder, found.file, read) if found.is_index else read(found.file), found.file


def _read_shards(folder: Path, index: Path, read: Callable[[Path], dict[str, Tensor]]) -> dict[str, Tensor]:
    """The state dict in several files, which ``index`` lists."""
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(name, str) for name in shards.values()):
        raise UserError(f"{index}: weight_map: missing, or not a mapping of weights to files")
    if outside := [name for name in shards.values() if leads_outside(name)]:
        raise UserError(f"{index}: weight_map: {outside[0]}: is outside the folder")
    state: dict[str, Tensor] = {}
    for name in sorted(set(shards.values())):
        state |= read(folder / name)
    if absent := sorted(set(shards) - set(state)):
        raise UserError(f"{index}: weight_map: {absent[0]}: is not in {shards[absent[0]]}")
    return state
