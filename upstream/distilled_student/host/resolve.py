"""What a command leaves open: this machine's defaults, a checkpoint to resume. Checked before a file is written."""

from __future__ import annotations

import importlib
import os
import shutil
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from distilled_student.common.devices import pick_device
from distilled_student.common.early_checks import checkpoints
from distilled_student.common.errors import UserError
from distilled_student.common.files import newest_undamaged
from distilled_student.common.settings import changes
from distilled_student.host.early_checks import apply_overrides, check_mode, check_names, check_writable, read_start
from distilled_student.host.s3prl_names import downstream_names
from distilled_student.host.saved_runs import read_checkpoint, read_experiment
from distilled_student.host.trial_step import check_config
from distilled_student.host.yaml_sections import repair_numbers, source

# arguments that must be the same where a command is given again and resumes
SAME = ("upstream", "upstream_ckpt", "upstream_model_config", "upstream_trainable", "upstream_feature_selection")
SAME += ("upstream_layer_selection", "upstream_feature_normalize", "downstream", "downstream_variant", "seed")
# arguments of the command line that count where all others come from a checkpoint, as in s3prl
KEPT = ("mode", "evaluate_split", "override", "backend", "local_rank", "past_exp", "device", "expdir")
PATHS = ("past_exp", "init_ckpt", "upstream_ckpt", "upstream_model_config")

Start = tuple[Namespace, dict[str, Any]]  # arguments and configuration of a run


def check_imports(args: Namespace) -> None:
    """``-u`` against s3prl's own list, and whether the downstream can be imported."""
    from s3prl import hub

    check_names(args, hub.options(), downstream_names())
    package = f"s3prl.downstream.{args.downstream}"
    try:
        importlib.import_module(f"{package}.expert")
    except ModuleNotFoundError as error:
        if error.name and f"{package}.expert".startswith(error.name):
            raise UserError(f"-d {args.downstream}: no such downstream") from None
        reason = f"needs the Python package {error.name}, which is not installed"
        raise UserError(f"-d {args.downstream}: {reason}") from None


def _check_initial_weights(path: str, mode: str) -> None:
    """``-i``."""
    state = read_checkpoint(path, needs=())
    entries = state.keys() if isinstance(state, dict) else ()
    if not {"Upstream", "Downstream"} & set(entries):
        raise UserError(f"-i {path}: holds neither Upstream nor Downstream, the weights of a run_downstream.py run")
    if mode != "train" and "Downstream" not in entries:
        raise UserError(f"-i {path}: lacks Downstream: nothing to {mode}")


def _start(args: Namespace) -> Start:
    """A run that does not resume."""
    if args.init_ckpt:
        _check_initial_weights(args.init_ckpt, args.mode)
    check_imports(args)
    return read_start(args)


def _resume(args: Namespace, past: str, start: Start | None) -> Start:
    """A run from a checkpoint, or from a folder's newest one that is not damaged.

    With ``start``, what the same command would begin, it must be the same run.
    """
    path = newest_undamaged(checkpoints(Path(past))) if Path(past).is_dir() else Path(past)
    if path is None:
        raise UserError(f"-e {past}: no states-*.ckpt in this folder")
    args.past_exp, args.expdir = str(path), str(path.absolute().parent)  # where it is now, not where it was written
    state = read_experiment(path, args.mode)
    if start:
        _check_same(args.expdir, state, *start)
    resumed = Namespace(**vars(args) | vars(state["Args"]) | {name: getattr(args, name) for name in KEPT})
    resumed.init_ckpt, config = str(path), state["Config"]
    processes, now = state.get("WorldSize", 1), int(os.environ.get("WORLD_SIZE", 1))
    if args.mode == "train" and processes != now:
        raise UserError(f"{path}: was trained by {processes} processes, cannot resume with {now}")
    return apply_overrides(args, resumed, config)


def _check_same(expdir: str, state: Mapping[str, Any], args: Namespace, config: dict[str, Any]) -> None:
    """Raise UserError where the experiment folder holds another run, which this command would overwrite."""
    before, now = vars(state["Args"]), vars(args)
    repair_numbers(config)
    if args.downstream == "multitask":  # a folder of recordings stands for its words and people
        own_data = importlib.import_module("distilled_student.multitask.own_data")
        own_data.resolve_data(config["downstream_expert"], f"{source(vars(args))}: downstream_expert")
    sections = [{name: group for name, group in c.items() if group is not None} for c in (state["Config"], config)]
    old = {"args": {key: before.get(key) for key in SAME}, "config": sections[0]}
    if changed := changes(old, {"args": {key: now.get(key) for key in SAME}, "config": sections[1]}):
        what = f"holds another run, with other settings ({changed})"
        raise UserError(f"-p {expdir}: {what}: choose another folder, or resume that run with -e {expdir}")


def resolve(args: Namespace) -> tuple[Namespace, Path]:
    """The arguments as s3prl's ``main`` needs them, and the experiment folder, which ``-e`` and ``-o`` can change.

    Raises:
        UserError: anything that can be found wrong before training; nothing is written by then.
    """
    args.device = pick_device(args.device)
    if args.hub == "huggingface" or args.push_to_hf_hub:
        import huggingface_hub

        _ = huggingface_hub.HfFolder.get_token  # an error now, not after hours of training
    args.expdir = os.path.abspath(args.expdir or f"result/downstream/{args.expname}")
    for name in PATHS:
        value = getattr(args, name)
        if value and os.path.exists(value):  # not a URL or a model's name: stays valid from any other folder
            setattr(args, name, os.path.abspath(value))

    past = args.past_exp or (args.expdir if args.auto_resume and checkpoints(Path(args.expdir)) else None)
    start = None if past else _start(args)
    if start and args.mode == "train" and checkpoints(Path(args.expdir)):  # the same command again resumes
        past = args.expdir
    args.auto_resume = False  # s3prl would search again, and fail at a states-NAME.ckpt
    resolved, config = _resume(args, past, start) if past else start
    try:
        check_imports(resolved)
    except UserError as error:
        raise UserError(f"{args.past_exp}: {error}" if past else error) from None
    check_mode(resolved)
    evaluated = [resolved.evaluate_split] if resolved.mode == "evaluate" else []
    check_config(source(vars(resolved)), config, resolved.downstream, evaluated)
    check_writable(Path(resolved.expdir))

    if args.local_rank is None and "LOCAL_RANK" in os.environ:  # set by torchrun
        if torch.device(args.device).type == "cuda":
            args.local_rank = int(os.environ["LOCAL_RANK"])
        elif not dist.is_initialized():
            dist.init_process_group("gloo")  # s3prl's main starts processes on GPUs only
    return args, Path(resolved.expdir)


class ResolvedArguments:
    """Stands for s3prl's ``ArgumentParser``: its ``parse_args`` gives the arguments that we have resolved."""

    def __init__(self, args: Namespace) -> None:
        self._args = args
        self.new_folder: Path | None = None

    def add_argument(self, *_: Any, **__: Any) -> None:
        """s3prl's own options are those of `command_line.make_parser`."""

    def parse_args(self) -> Namespace:
        """Resolve, then make the experiment folder."""
        args, folder = resolve(self._args)
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
