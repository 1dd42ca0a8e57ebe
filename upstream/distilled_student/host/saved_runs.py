"""Reads checkpoints of s3prl's runner, and checks what s3prl would use without looking at it."""

from __future__ import annotations

import pickle
import zipfile
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from distilled_student.common.errors import UserError
from distilled_student.common.files import is_compressed, is_damaged, with_namespace
from distilled_student.common.settings import MAX_NESTING

# types of the arguments in a checkpoint
TEXT, TEXT_OR_NONE, NUMBER, NUMBER_OR_NONE = (str,), (str, type(None)), (int,), (int, type(None))
ARGUMENTS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("upstream", "downstream", "expdir", "upstream_feature_selection", "hub", "mode"), TEXT),
    **dict.fromkeys(("evaluate_split", "backend", "upstream_model_name"), TEXT),
    **dict.fromkeys(("config", "init_ckpt", "past_exp", "override", "expname", "device", "cache_dir"), TEXT_OR_NONE),
    **dict.fromkeys(("upstream_ckpt", "upstream_model_config", "upstream_revision"), TEXT_OR_NONE),
    **dict.fromkeys(("downstream_variant", "hf_hub_org"), TEXT_OR_NONE),
    **dict.fromkeys(("upstream_refresh", "upstream_trainable", "upstream_feature_normalize"), (bool,)),
    **dict.fromkeys(("auto_resume", "verbose", "disable_cudnn"), (bool,)),
    "push_to_hf_hub": (bool, str),
    "seed": NUMBER,
    "local_rank": NUMBER_OR_NONE,
    "upstream_layer_selection": NUMBER_OR_NONE,
}
STATES = ("Upstream", "Featurizer", "Downstream", "Optimizer")  # s3prl keeps random weights where one is None
COUNTS = ("Step", "Epoch", "WorldSize")
NOT_OURS = "not a checkpoint of run_downstream.py"


def _check_plain(value: Any, key: str, depth: int = 0) -> None:
    """Raise ValueError, naming the key, for a value that no YAML file can hold."""
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise ValueError(f"{key}: a number of more than 64 bits")
    if isinstance(value, str) and "\0" in value:
        raise ValueError(f"{key}: text with a NUL character")
    if depth > MAX_NESTING:
        raise ValueError(f"{key.partition('.')[0]}: more than {MAX_NESTING} nesting levels")
    if isinstance(value, dict):
        for name, inner in value.items():
            if not isinstance(name, str):
                raise ValueError(f"{key}: a key that is not text")
            _check_plain(inner, f"{key}.{name}", depth + 1)
    elif isinstance(value, list | tuple):
        for inner in value:
            _check_plain(inner, key, depth + 1)
    elif value is not None and not isinstance(value, str | int | float):
        raise ValueError(f"{key}: holds {type(value).__name__}")


def _check_arguments(args: Namespace) -> None:
    for name, value in vars(args).items():
        _check_plain(value, f"Args.{name}")
        types = ARGUMENTS.get(name, (object,))
        if not isinstance(value, types) or (isinstance(value, bool) and int in types):
            raise ValueError(f"Args.{name}: has the wrong type")


def _check_states(state: Mapping[str, Any]) -> None:
    for name in STATES:
        values = state.get(name, {})
        is_state = isinstance(values, dict)
        if is_state and name != "Optimizer":
            is_state = all(isinstance(key, str) for key in values)
        if not is_state:
            raise ValueError(f"{name}: is not the state of a module or an optimizer")
    for name in COUNTS:
        value = state.get(name, 1)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**63:
            raise ValueError(f"{name}: is not a number of steps, epochs or processes")


def check_saved(where: str, state: Mapping[str, Any]) -> None:
    """Check the settings, the counts and the states in a checkpoint.

    Raises:
        UserError: one has the wrong type or an impossible value; begins with ``where`` and names the key.
    """
    try:
        for name, needed in (("Args", Namespace), ("Config", dict)):
            if not isinstance(state[name], needed):
                raise ValueError(f"{name} has the wrong type")
        _check_arguments(state["Args"])
        _check_plain(state["Config"], "Config")
        _check_states(state)
    except ValueError as error:
        raise UserError(f"{where}: {NOT_OURS}: {error}") from None


def _load(path: str | Path) -> Any:
    """What ``torch.load`` reads, without running code. Raises UserError for a file that is missing or damaged."""
    try:
        if not zipfile.is_zipfile(path):
            raise UserError(f"{path}: {'not a checkpoint' if Path(path).is_file() else 'no such checkpoint'}")
        if is_damaged(Path(path)):
            raise UserError(f"{path}: damaged: its checksum is wrong")
        if is_compressed(Path(path)):  # torch compresses nothing, and a small file can unpack to any size
            raise UserError(f"{path}: {NOT_OURS}: holds compressed parts: refused")
        # no memory map: it would trust the sizes that the file states
        with with_namespace():
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise UserError(f"{path}: refused: holds Python objects other than weights and settings") from None
    except UserError:
        raise
    except Exception as error:  # a damaged file can raise anything
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
        raise UserError(f"{path}: {NOT_OURS} ({reason})") from None


def read_checkpoint(path: str | Path, needs: Sequence[str] = ("Args", "Config")) -> dict[str, Any]:
    """A checkpoint of the runner with at least the entries ``needs``. Raises UserError naming the file."""
    state = _load(path)
    missing = [key for key in needs if not isinstance(state, dict) or key not in state]
    if missing:
        raise UserError(f"{path}: {NOT_OURS}: lacks {', '.join(missing)}")
    for key, needed, names in (
        ("Args", Namespace, ("upstream", "downstream", "expdir")),
        ("Config", dict, ("runner",)),
    ):
        if key not in needs:
            continue
        if not isinstance(state[key], needed):
            raise UserError(f"{path}: {NOT_OURS}: {key} has the wrong type")
        for name in names:
            if name not in state[key]:  # works for a Namespace too
                raise UserError(f"{path}: {NOT_OURS}: {key} lacks {name}")
    if needs:
        check_saved(str(path), state)
    return state


def read_experiment(path: str | Path, mode: str) -> dict[str, Any]:
    """A checkpoint with the weights that ``mode`` needs; s3prl would use random ones where they are missing.

    Raises:
        UserError: they are missing, or it is not a checkpoint of the runner.
    """
    state = read_checkpoint(path)
    needed = ["Downstream", *(["Upstream"] if getattr(state["Args"], "upstream_trainable", False) else [])]
    missing = [key for key in needed + ["Optimizer", "Step"] * (mode == "train") if key not in state]
    if missing:
        what = "cannot resume" if mode == "train" else f"nothing to {mode}"
        raise UserError(f"{path}: lacks {', '.join(missing)}: {what}")
    return state
