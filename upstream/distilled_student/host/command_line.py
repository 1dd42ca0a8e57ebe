"""s3prl's command line: what it leaves open is filled in, and everything is checked before anything is written."""

from __future__ import annotations

import argparse
import copy
import importlib
import os
import shutil
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from distilled_student.common.devices import pick_device
from distilled_student.common.errors import UserError, did_you_mean
from distilled_student.common.files import newest_whole
from distilled_student.common.settings import find_config, read_yaml
from distilled_student.host.overrides import override
from distilled_student.host.saved_runs import checkpoints, read_checkpoint, read_experiment
from distilled_student.host.superb import settings as superb
from distilled_student.host.yaml_sections import NAME, SPLITS, check_config, repair_numbers, source

# what must be the same where a command is given once more
DECIDING = ("upstream", "upstream_ckpt", "upstream_model_config", "upstream_trainable", "upstream_feature_selection")
DECIDING += ("upstream_layer_selection", "upstream_feature_normalize", "downstream", "downstream_variant", "seed")
# what s3prl keeps of the command line where all else comes from a checkpoint
KEPT = ("mode", "evaluate_split", "override", "backend", "local_rank", "past_exp", "device", "expdir")


def _check_initial(path: str, mode: str) -> None:
    state = read_checkpoint(path, needs=())
    entries = state.keys() if isinstance(state, dict) else ()
    if not {"Upstream", "Downstream"} & set(entries):
        raise UserError(f"-i {path}: holds neither Upstream nor Downstream, the weights of a run_downstream.py run")
    if mode != "train" and "Downstream" not in entries:
        raise UserError(f"-i {path}: lacks Downstream: nothing to {mode}")


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
        suggestion = did_you_mean(args.upstream, hub.options()) or "; --help lists all"
        raise UserError(f"-u {args.upstream}: no such upstream{suggestion}")
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
    repair_numbers(config)
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
