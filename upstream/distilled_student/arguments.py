"""s3prl's command line: what it leaves open is filled in, and everything is checked before anything is written."""

from __future__ import annotations

import argparse
import ast
import copy
import difflib
import importlib
import os
import pickle
import zipfile
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from distilled_student.errors import UserError
from distilled_student.settings import find_config, read_yaml

MODES = ("train", "evaluate", "inference")
RUNNER_KEYS = (
    *("total_steps", "gradient_clipping", "gradient_accumulate_steps"),
    *("log_step", "eval_step", "save_step", "max_keep"),
)


def _parse_override(string: str) -> list[tuple[list[str], Any]]:
    pairs = []
    for option in filter(None, map(str.strip, string.split(",,"))):
        key, equals, text = (part.strip() for part in option.partition("="))
        path = key.split(".")
        if not equals or path[0] not in ("args", "config") or len(path) < 2 or not all(path):
            raise UserError(f"-o {option}: expected args.NAME=VALUE or config.KEY.KEY=VALUE, parted by ,,")
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            value = text  # a bare word is a string, as in s3prl
        if (path[0] == "args" and len(path) > 2) or (key == "args.mode" and value not in MODES):
            raise UserError(f"-o {option}: no such argument or value")
        pairs.append((path, value))
    return pairs


def override(string: str, args: Namespace, config: dict[str, Any]) -> None:
    """s3prl's ``-o``: ``config.optimizer.lr=1.0e-3,,args.seed=1``; values are Python literals, other text is a string.

    Raises:
        UserError: a part that is not ``args.NAME=VALUE`` or ``config.KEY...=VALUE``, or leads through a plain value.
    """
    for (room, *path, name), value in _parse_override(string):
        target: Any = vars(args) if room == "args" else config
        for key in path:
            target = target.setdefault(key, {})
            if not isinstance(target, dict):
                raise UserError(f"-o {'.'.join([room, *path, name])}: {key} is a value, not a group of keys")
        target[name] = value


def read_checkpoint(path: str | Path, needs: Sequence[str] = ("Args", "Config")) -> dict[str, Any]:
    """A checkpoint of the runner, memory-mapped. Raises UserError naming a file that is missing or something else."""
    try:
        if not zipfile.is_zipfile(path):
            raise UserError(f"{path}: {'not a checkpoint' if Path(path).is_file() else 'no such checkpoint'}")
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError:
        raise UserError(f"{path}: refused: holds Python objects other than weights and settings") from None
    except (RuntimeError, OSError, KeyError) as error:
        raise UserError(f"{path}: not a checkpoint of run_downstream.py ({str(error).splitlines()[0]})") from None
    missing = [key for key in needs if not isinstance(state, dict) or key not in state]
    if missing:
        raise UserError(f"{path}: not a checkpoint of run_downstream.py: lacks {', '.join(missing)}")
    return state


def checkpoints(folder: Path) -> list[Path]:
    """The folder's ``states-STEP.ckpt``, fewest steps first: the last is the one s3prl goes on from."""
    return sorted(folder.glob("states-*.ckpt"), key=lambda path: int(path.stem.split("-")[-1]))


def pick_device(wanted: str | None) -> str:
    if wanted is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(wanted)
    except RuntimeError:
        raise UserError(f"--device {wanted}: unknown; use cpu, cuda or cuda:N") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"--device {wanted}: this machine has no such GPU; leave --device out, or use --device cpu")
    return wanted


def _find_config(args: Namespace) -> str:
    local = Path("downstream", str(args.downstream), "config.yaml")
    kind = {"multitask": "multitask", "example": ""}.get(args.downstream, "superb")
    name = args.config or (local if local.is_file() else "default" if kind == "multitask" else args.downstream)
    try:
        return str(find_config(name, kind).absolute())
    except UserError:
        if args.config:
            raise
        raise UserError(f"-d {args.downstream}: no {local} here and no shipped config; name one with -c") from None


def check_names(args: Namespace) -> None:
    from s3prl import hub

    if args.upstream not in hub.options():
        near = ", ".join(difflib.get_close_matches(str(args.upstream), hub.options())) or "--help lists all"
        raise UserError(f"-u {args.upstream}: no such upstream ({near})")
    needs_file = args.upstream.endswith(("_local", "_url", "_custom", "_gdriveid"))
    if needs_file and not (args.upstream_ckpt or args.upstream_model_config):
        raise UserError(f"-u {args.upstream}: needs -k (a checkpoint) or -g (its configuration)")
    room = f"s3prl.downstream.{args.downstream}"
    try:
        importlib.import_module(f"{room}.expert")
    except ModuleNotFoundError as error:
        if error.name and f"{room}.expert".startswith(error.name):
            raise UserError(f"-d {args.downstream}: no such downstream") from None
        raise UserError(
            f"-d {args.downstream}: needs the Python package {error.name}, which is not installed"
        ) from None


def _check_config(where: str, config: Mapping[str, Any]) -> None:
    from s3prl import optimizers, schedulers

    for section in ("runner", "optimizer", "downstream_expert"):
        if not isinstance(config.get(section), dict):
            raise UserError(f"{where}: {section}: missing, or not a group of keys")
    runner = config["runner"]
    for key in RUNNER_KEYS:
        if isinstance(runner.get(key), bool) or not isinstance(runner.get(key), int | float) or runner[key] <= 0:
            raise UserError(f"{where}: runner.{key}: expected a number above 0, found {runner.get(key)!r}")
    for section, module in (("optimizer", optimizers), ("scheduler", schedulers)):
        name = (config.get(section) or {}).get("name")
        if config.get(section) and not hasattr(module, f"get_{name}"):  # s3prl would run the name as code
            raise UserError(f"{where}: {section}.name: s3prl has no {section} {name!r}")


def _finish(args: Namespace) -> Namespace:
    """What s3prl leaves open: defaults for this machine, absolute paths, and every check before anything is written."""
    args.device = pick_device(args.device)
    if args.hub == "huggingface" or args.push_to_hf_hub:
        import huggingface_hub

        _ = huggingface_hub.HfFolder.get_token  # says so now, not after hours of training, where it is a stand-in
    if args.expdir is None and args.expname is None and not args.past_exp:
        raise UserError("-p: no experiment folder; give -p EXPDIR or -n NAME")
    args.expdir = os.path.abspath(args.expdir or f"result/downstream/{args.expname}")
    for name in ("past_exp", "init_ckpt", "upstream_ckpt", "upstream_model_config"):
        value = getattr(args, name)
        if value and os.path.exists(value):  # not a URL or a model's name: stays valid from any other folder
            setattr(args, name, os.path.abspath(value))

    past = args.past_exp or (args.expdir if args.auto_resume and checkpoints(Path(args.expdir)) else None)
    if past:
        found = checkpoints(Path(past)) if Path(past).is_dir() else [Path(past)]
        if not found:
            raise UserError(f"-e {past}: no states-*.ckpt in this folder")
        path = found[-1]
        state = read_checkpoint(path)
        asked, config, where = state["Args"], state["Config"], str(path)
        processes, now = state.get("WorldSize", 1), int(os.environ.get("WORLD_SIZE", 1))
        if args.mode == "train" and processes != now:
            raise UserError(f"{path}: was trained by {processes} processes, cannot go on with {now}")
    else:
        if args.init_ckpt:
            read_checkpoint(args.init_ckpt, needs=())
        check_names(args)
        args.config = where = _find_config(args)
        asked, config = args, read_yaml(Path(where))
    if args.override and args.override.lower() != "none":
        asked, config = copy.deepcopy((asked, config))
        override(args.override, asked, config)
    check_names(asked)
    _check_config(where, config)

    parent = next(folder for folder in [Path(asked.expdir), *Path(asked.expdir).parents] if folder.exists())
    if not (parent.is_dir() and os.access(parent, os.W_OK)):
        raise UserError(f"-p {asked.expdir}: cannot be written: {parent} is not a writable folder")

    if args.local_rank is None and "LOCAL_RANK" in os.environ:  # set by torchrun
        if torch.device(args.device).type == "cuda":
            args.local_rank = int(os.environ["LOCAL_RANK"])
        elif not dist.is_initialized():
            dist.init_process_group("gloo")  # s3prl's own start needs a GPU: see host.py, _MendedRunner
    return args


class Parser(argparse.ArgumentParser):
    """s3prl's own parser; what it parsed goes through :func:`_finish`."""

    def __init__(self, argv: Sequence[str] | None) -> None:
        super().__init__(prog="run_downstream.py")
        self._argv = argv
        self.new_folder: Path | None = None

    def parse_args(self) -> Namespace:
        self.set_defaults(device=None)
        args = _finish(super().parse_args(self._argv))
        self.new_folder = None if args.past_exp or Path(args.expdir).exists() else Path(args.expdir)
        return args

    def undo(self) -> None:
        """Remove an experiment folder that this run made, if it holds no more than s3prl's record of the settings."""
        made = list(self.new_folder.glob("*")) if self.new_folder else []
        if self.new_folder and self.new_folder.exists() and all(path.suffix == ".yaml" for path in made):
            for path in made:
                path.unlink()
            self.new_folder.rmdir()
