"""What a checkpoint of s3prl's runner may hold beside weights: settings as its command line and a YAML file give them.

s3prl takes them up without a look at what they are.
"""

from __future__ import annotations

import pickle
import re
import zipfile
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from distilled_student.common.errors import UserError
from distilled_student.common.files import is_compressed, is_damaged
from distilled_student.common.settings import MAX_NESTING

WORD, WORD_OR_NONE, NUMBER, NUMBER_OR_NONE = (str,), (str, type(None)), (int,), (int, type(None))
KINDS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("upstream", "downstream", "expdir", "upstream_feature_selection", "hub", "mode"), WORD),
    **dict.fromkeys(("evaluate_split", "backend", "upstream_model_name"), WORD),
    **dict.fromkeys(("config", "init_ckpt", "past_exp", "override", "expname", "device", "cache_dir"), WORD_OR_NONE),
    **dict.fromkeys(("upstream_ckpt", "upstream_model_config", "upstream_revision"), WORD_OR_NONE),
    **dict.fromkeys(("downstream_variant", "hf_hub_org"), WORD_OR_NONE),
    **dict.fromkeys(("upstream_refresh", "upstream_trainable", "upstream_feature_normalize"), (bool,)),
    **dict.fromkeys(("auto_resume", "verbose", "disable_cudnn"), (bool,)),
    "push_to_hf_hub": (bool, str),
    "seed": NUMBER,
    "local_rank": NUMBER_OR_NONE,
    "upstream_layer_selection": NUMBER_OR_NONE,
}
STATES = (
    "Upstream",
    "Featurizer",
    "Downstream",
    "Optimizer",
)  # with None for one s3prl would go on with random weights
COUNTS = ("Step", "Epoch", "WorldSize")


def _check_plain(value: Any, key: str, depth: int = 0) -> None:
    """Raise ValueError naming the key of what no YAML file holds."""
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise ValueError(f"{key}: a number of more than 64 bits")
    if isinstance(value, str) and "\0" in value:
        raise ValueError(f"{key}: text with a NUL in it")
    if depth > MAX_NESTING:
        raise ValueError(f"{key.partition('.')[0]}: more than {MAX_NESTING} groups in each other")
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


def check_saved(where: str, state: Mapping[str, Any]) -> None:
    """``Args`` and ``Config`` of a checkpoint, how far it has come, and whether its states are states at all.

    Raises:
        UserError: they are not what they can be; begins with ``where`` and names the key.
    """
    try:
        for name, kind in (("Args", Namespace), ("Config", dict)):
            if not isinstance(state[name], kind):
                raise ValueError(f"{name} is of another kind")
        for name, value in vars(state["Args"]).items():
            _check_plain(value, f"Args.{name}")
            kinds = KINDS.get(name, (object,))
            if not isinstance(value, kinds) or (isinstance(value, bool) and int in kinds):
                raise ValueError(f"Args.{name}: is of another kind")
        _check_plain(state["Config"], "Config")
        for name in STATES:
            values = state.get(name, {})
            if not isinstance(values, dict) or (
                name != "Optimizer" and not all(isinstance(key, str) for key in values)
            ):
                raise ValueError(f"{name}: is not the state of a module or an optimiser")
        for name in COUNTS:
            value = state.get(name, 1)
            if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**63:
                raise ValueError(f"{name}: is not a number of steps, epochs or processes")
    except ValueError as error:
        raise UserError(f"{where}: not a checkpoint of run_downstream.py: {error}") from None


def read_checkpoint(path: str | Path, needs: Sequence[str] = ("Args", "Config")) -> dict[str, Any]:
    """A checkpoint of the runner. Raises UserError naming a file that is missing or something else."""
    try:
        if not zipfile.is_zipfile(path):
            raise UserError(f"{path}: {'not a checkpoint' if Path(path).is_file() else 'no such checkpoint'}")
        if is_damaged(Path(path)):
            raise UserError(f"{path}: damaged: its checksum is wrong")
        if is_compressed(Path(path)):  # torch compresses nothing, and a small file can unpack to any size
            raise UserError(f"{path}: not a checkpoint of run_downstream.py: holds compressed parts: refused")
        state = torch.load(path, map_location="cpu", weights_only=True)  # whole: a memory-map trusts the sizes it tells
    except pickle.UnpicklingError:
        raise UserError(f"{path}: refused: holds Python objects other than weights and settings") from None
    except UserError:
        raise
    except Exception as error:  # whatever a damaged file raises, it is that file's fault
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
        raise UserError(f"{path}: not a checkpoint of run_downstream.py ({reason})") from None
    missing = [key for key in needs if not isinstance(state, dict) or key not in state]
    if missing:
        raise UserError(f"{path}: not a checkpoint of run_downstream.py: lacks {', '.join(missing)}")
    for key, kind, names in (("Args", Namespace, ("upstream", "downstream", "expdir")), ("Config", dict, ("runner",))):
        found = state[key] if key in needs else None
        if found is not None and not isinstance(found, kind):
            raise UserError(f"{path}: not a checkpoint of run_downstream.py: {key} is of another kind")
        for name in names if found is not None else ():
            if name not in found:  # of a Namespace too
                raise UserError(f"{path}: not a checkpoint of run_downstream.py: {key} lacks {name}")
    if needs:
        check_saved(str(path), state)
    return state


def read_experiment(path: str | Path, mode: str) -> dict[str, Any]:
    """A checkpoint to go on from: with the weights that this mode needs, which s3prl would leave random without it."""
    state = read_checkpoint(path)
    needed = ["Downstream", *(["Upstream"] if getattr(state["Args"], "upstream_trainable", False) else [])]
    missing = [key for key in needed + ["Optimizer", "Step"] * (mode == "train") if key not in state]
    if missing:
        raise UserError(f"{path}: lacks {', '.join(missing)}: nothing to {'go on from' if mode == 'train' else mode}")
    return state


def checkpoints(folder: Path) -> list[Path]:
    """The folder's ``states-STEP.ckpt``, fewest steps first: the last is the one to go on from."""
    found = [path for path in folder.glob("states-*.ckpt") if re.fullmatch(r"states-\d+", path.stem)]
    return sorted(found, key=lambda path: int(path.stem.removeprefix("states-")))
