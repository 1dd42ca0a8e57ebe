"""s3prl's command line: what it leaves open is filled in, and everything is checked before anything is written."""

from __future__ import annotations

import argparse
import ast
import copy
import difflib
import importlib
import os
import pickle
import re
import shutil
import zipfile
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from distilled_student import superb
from distilled_student.errors import UserError
from distilled_student.files import is_compressed, is_damaged, newest_whole
from distilled_student.runner_config import NAME, SPLITS, WORDS, check_config, mend_numbers, near
from distilled_student.saved_settings import check_saved
from distilled_student.settings import find_config, read_yaml

MODES = ("train", "evaluate", "inference")
# what s3prl keeps of the command line where all else comes from a checkpoint
# what must be the same where a command is given once more
DECIDING = ("upstream", "upstream_ckpt", "upstream_model_config", "upstream_trainable", "upstream_feature_selection")
DECIDING += ("upstream_layer_selection", "upstream_feature_normalize", "downstream", "downstream_variant", "seed")
KEPT = ("mode", "evaluate_split", "override", "backend", "local_rank", "past_exp", "device", "expdir")


def literal(text: str) -> Any:
    """A value of the command line: a Python literal, YAML's null, true or false, or else the text itself."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return WORDS.get(text.lower(), text)


def set_key(group: dict[str, Any], path: Sequence[str], value: Any, where: str) -> None:
    """Set the value at the end of ``path``, making the groups on the way. Raises UserError for a value among them."""
    *keys, name = path
    for key in keys:
        group = group.setdefault(key, {})
        if not isinstance(group, dict):
            raise UserError(f"{where}: {key} is a value, not a group of keys")
    group[name] = value


def _parse_override(string: str) -> list[tuple[list[str], Any]]:
    pairs = []
    for option in filter(None, map(str.strip, string.split(",,"))):
        key, equals, text = (part.strip() for part in option.partition("="))
        path = key.split(".")
        if not equals or path[0] not in ("args", "config") or len(path) < 2 or not all(path):
            raise UserError(f"-o {option}: expected args.NAME=VALUE or config.KEY.KEY=VALUE, parted by ,,")
        value = literal(text)
        if (path[0] == "args" and len(path) > 2) or (key == "args.mode" and value not in MODES):
            raise UserError(f"-o {option}: no such argument or value")
        pairs.append((path, value))
    return pairs


def _check_argument(name: str, value: Any, args: Namespace) -> None:
    """An ``args.NAME=VALUE`` of ``-o``: a known name, and a value of the kind that the command line would give it."""
    where = f"-o args.{name}={value}"
    if name not in vars(args):
        raise UserError(f"{where}: no such argument{near(name, vars(args))}")
    now = getattr(args, name)
    if name == "device":
        pick_device(str(value), where)
    elif isinstance(now, bool) and not isinstance(value, bool) and name != "push_to_hf_hub":
        raise UserError(f"{where}: expected true or false")
    elif name in ("seed", "local_rank", "upstream_layer_selection") and (now is not None or value is not None):
        if isinstance(value, bool) or not isinstance(value, int):
            raise UserError(f"{where}: expected a whole number")
    elif not isinstance(value, str | bool | None):
        raise UserError(f"{where}: expected a word")


def override(string: str, args: Namespace, config: dict[str, Any]) -> None:
    """s3prl's ``-o``: ``config.optimizer.lr=1.0e-3,,args.seed=1``.

    Values are Python literals, or YAML's null, true and false; other text is a string.

    Raises:
        UserError: a part that is not ``args.NAME=VALUE`` or ``config.KEY...=VALUE``, or leads through a plain value;
            an argument that does not exist, or cannot have this value.
    """
    for (room, *path), value in _parse_override(string):
        if room == "args":
            _check_argument(path[0], value, args)
        set_key(vars(args) if room == "args" else config, path, value, f"-o {'.'.join([room, *path])}")


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


def _check_initial(path: str, mode: str) -> None:
    state = read_checkpoint(path, needs=())
    entries = state.keys() if isinstance(state, dict) else ()
    if not {"Upstream", "Downstream"} & set(entries):
        raise UserError(f"-i {path}: holds neither Upstream nor Downstream, the weights of a run_downstream.py run")
    if mode != "train" and "Downstream" not in entries:
        raise UserError(f"-i {path}: lacks Downstream: nothing to {mode}")


def checkpoints(folder: Path) -> list[Path]:
    """The folder's ``states-STEP.ckpt``, fewest steps first: the last is the one to go on from."""
    found = [path for path in folder.glob("states-*.ckpt") if re.fullmatch(r"states-\d+", path.stem)]
    return sorted(found, key=lambda path: int(path.stem.removeprefix("states-")))


def source(args: Mapping[str, Any]) -> str:
    """Where the settings of a run come from, for messages: the checkpoint gone on from or the YAML file, with -o."""
    from_checkpoint = args.get("past_exp") and args.get("init_ckpt")
    name = str(args["init_ckpt"] if from_checkpoint else args.get("config") or "config")
    override = str(args.get("override") or "none")
    return name if override.lower() == "none" else f"{name} with -o"


def pick_device(wanted: str | None, where: str | None = None) -> str:
    """For None the best of this machine. Raises UserError naming ``where`` for a device that it does not have."""
    where = where or f"--device {wanted}"
    if wanted is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(wanted)
    except RuntimeError:
        raise UserError(f"{where}: unknown; use cpu, cuda or cuda:N") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"{where}: this machine has no such GPU; leave it out, or use cpu")
    return wanted


def _find_config(args: Namespace) -> str:
    local = Path("downstream", str(args.downstream), "config.yaml")
    kind = {"multitask": "multitask", "example": ""}.get(args.downstream, "superb")
    shipped = {"multitask": "default", "example": "example", **superb.CONFIGS}
    name = args.config or (local if local.is_file() else shipped.get(args.downstream, args.downstream))
    try:
        return str(find_config(name, kind).absolute())
    except UserError:
        if args.config:
            raise
        reason = f"no {local} here, and s3prl's package ships no YAML file for it: give one with -c FILE"
        raise UserError(f"-d {args.downstream}: {reason}") from None


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


def _check_mode(args: Namespace) -> None:
    if not 0 <= args.seed < 2**32:
        raise UserError(f"--seed {args.seed}: expected a whole number from 0 to 2**32 - 1")
    if args.mode == "inference" and not Path(args.evaluate_split).is_file():
        raise UserError(f"-t {args.evaluate_split}: no such audio file")
    splits, split = SPLITS.get(args.downstream), args.evaluate_split
    if args.mode == "evaluate" and (split not in splits if splits else not NAME.fullmatch(split)):
        raise UserError(f"-t {split}: expected {' or '.join(splits or ['the name of a split'])}")
    if splits and args.mode != "train" and not args.init_ckpt:
        raise UserError(f"-m {args.mode}: needs a trained checkpoint: give one with -e or -i")


def _overridden(args: Namespace, asked: Namespace, config: dict[str, Any]) -> tuple[Namespace, dict[str, Any]]:
    asked, config = copy.deepcopy((asked, config))  # s3prl reads and overrides its own
    if args.override and args.override.lower() != "none":
        override(args.override, asked, config)
    return asked, config


def _begin(args: Namespace) -> tuple[Namespace, dict[str, Any]]:
    """Settings of a run from its beginning."""
    if args.init_ckpt:
        _check_initial(args.init_ckpt, args.mode)
    check_names(args)
    args.config = _find_config(args)
    return _overridden(args, args, read_yaml(Path(args.config)))


def _go_on(
    args: Namespace, past: str, begun: tuple[Namespace, dict[str, Any]] | None
) -> tuple[Namespace, dict[str, Any]]:
    """Settings of a run from a checkpoint, or a folder's newest that is whole: those ``begun``, if they are given."""
    path = newest_whole(checkpoints(Path(past))) if Path(past).is_dir() else Path(past)
    if path is None:
        raise UserError(f"-e {past}: no states-*.ckpt in this folder")
    args.past_exp, args.expdir = str(path), str(path.absolute().parent)  # where it lies now, not where it was made
    state = read_experiment(path, args.mode)
    if begun:
        _check_same(args.expdir, state, *begun)
    asked = Namespace(**vars(args) | vars(state["Args"]) | {name: getattr(args, name) for name in KEPT})
    asked.init_ckpt, config = str(path), state["Config"]
    processes, now = state.get("WorldSize", 1), int(os.environ.get("WORLD_SIZE", 1))
    if args.mode == "train" and processes != now:
        raise UserError(f"{path}: was trained by {processes} processes, cannot go on with {now}")
    return _overridden(args, asked, config)


def _check_same(expdir: str, state: Mapping[str, Any], asked: Namespace, config: dict[str, Any]) -> None:
    """Raise UserError where the experiment folder holds another run, which this command would write over."""
    before, now = vars(state["Args"]), vars(asked)
    mend_numbers(config)
    changed = [f"args.{key}" for key in DECIDING if before.get(key) != now.get(key)]
    changed += [key for key in {**config, **state["Config"]} if config.get(key) != state["Config"].get(key)]
    if changed:
        what = f"holds another run, of other settings ({', '.join(changed)})"
        raise UserError(f"-p {expdir}: {what}: choose another folder, or go on with that run: -a")


def _finish(args: Namespace) -> tuple[Namespace, Path]:
    """What s3prl leaves open: defaults for this machine, absolute paths, and every check before anything is written.

    Also the experiment folder, which ``-e`` and ``-o`` can change.
    """
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
    begun = None if past else _begin(args)
    if begun and args.mode == "train" and checkpoints(Path(args.expdir)):  # the same command once more goes on
        past = args.expdir
    args.auto_resume = False  # s3prl would look again, and trip over a states-NAME.ckpt
    asked, config = _go_on(args, past, begun) if past else begun
    try:
        check_names(asked)
    except UserError as error:
        raise UserError(f"{args.past_exp}: {error}" if past else error) from None
    _check_mode(asked)
    evaluated = [asked.evaluate_split] if asked.mode == "evaluate" else []
    check_config(source(vars(asked)), config, asked.downstream, evaluated)

    parent = next(folder for folder in [Path(asked.expdir), *Path(asked.expdir).parents] if folder.exists())
    if not (parent.is_dir() and os.access(parent, os.W_OK)):
        raise UserError(f"-p {asked.expdir}: cannot be written: {parent} is not a writable folder")

    if args.local_rank is None and "LOCAL_RANK" in os.environ:  # set by torchrun
        if torch.device(args.device).type == "cuda":
            args.local_rank = int(os.environ["LOCAL_RANK"])
        elif not dist.is_initialized():
            dist.init_process_group("gloo")  # s3prl's own start needs a GPU: see runner.py
    return args, Path(asked.expdir)


class Parser(argparse.ArgumentParser):
    """s3prl's own parser; what it parsed goes through :func:`_finish`."""

    def __init__(self, argv: Sequence[str] | None) -> None:
        super().__init__(prog="run_downstream.py")
        self._argv = argv
        self.new_folder: Path | None = None

    def parse_args(self) -> Namespace:
        self.set_defaults(device=None)
        args, folder = _finish(super().parse_args(self._argv))
        if not folder.exists():
            try:
                folder.mkdir(parents=True)
            except FileExistsError:  # another process of this run was first
                return args
            except OSError as error:
                raise UserError(f"-p {folder}: cannot be written: {error.strerror}") from None
            self.new_folder = folder
        return args

    def undo(self) -> None:
        """Remove an experiment folder that this run made, as long as it holds no checkpoint."""
        if self.new_folder and self.new_folder.is_dir() and not any(self.new_folder.rglob("*.ckpt")):
            shutil.rmtree(self.new_folder)
