"""Checks of a command that need neither torch nor s3prl: a simple mistake is answered before those are imported."""

from __future__ import annotations

import copy
import importlib
import os
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from distilled_student.checkpoints.hub import may_be_on_hub
from distilled_student.common.base_configs import read_config_file
from distilled_student.common.early_checks import CONFIG, check_device, check_no_data, check_student, held_instead
from distilled_student.common.errors import UserError, did_you_mean
from distilled_student.common.files import read_json
from distilled_student.common.settings import find_config
from distilled_student.common.shipped_models import model_path, other_models
from distilled_student.host.overrides import override
from distilled_student.host.s3prl_names import downstream_names, upstream_names
from distilled_student.host.superb import settings as superb
from distilled_student.host.yaml_sections import NAME, SPLITS, check_sections, source
from distilled_student.teachers.early_checks import check_teacher, teacher_path

UPSTREAMS = "give distilled_student, teacher, or an upstream of s3prl such as fbank"
TEACHER_FEATURES = ("hidden_states", "last_hidden_state", "concatenated")
FEATURES = {"distilled_student": (*TEACHER_FEATURES, "predictions", "all"), "teacher": TEACHER_FEATURES}
NEED_FILE = ("_local", "_url", "_custom", "_gdriveid")  # endings of upstreams that s3prl builds from a given file


def check_early(args: Namespace) -> None:
    """Raise UserError for what is wrong with a command, as far as its arguments and its YAML file show it."""
    if args.expdir is None and args.expname is None and not args.past_exp:
        raise UserError("-p: no experiment folder; give -p EXPDIR or -n NAME")
    folder = Path(args.expdir or f"result/downstream/{args.expname}").absolute()
    if args.past_exp or (args.auto_resume and any(folder.glob("states-*.ckpt"))):
        if args.past_exp and not Path(args.past_exp).exists():
            raise UserError(f"-e {args.past_exp}: no such checkpoint or folder")
        if args.past_exp and Path(args.past_exp).is_dir() and not any(Path(args.past_exp).glob("states-*.ckpt")):
            held = held_instead(Path(args.past_exp))
            raise UserError(f"-e {args.past_exp}: no states-*.ckpt in this folder{held}")
        if args.override:
            apply_overrides(args, args, {})
        return
    check_device("--device", args.device)
    check_arguments(apply_overrides(args, args, {})[0])
    start, config = read_start(args)
    check_mode(start)
    evaluated = [start.evaluate_split] if start.mode == "evaluate" else []
    check_sections(source(vars(start)), config, start.downstream, evaluated)
    if start.mode == "train" and config["runner"].get("weights_only") and not start.init_ckpt:
        raise UserError(f"{source(vars(start))}: runner.weights_only: needs -i CHECKPOINT, which has the weights")
    if start.downstream == "multitask":  # by name: it stands above this package
        multitask = importlib.import_module("distilled_student.multitask.settings")
        selected, is_trained = start.upstream_feature_selection, start.upstream_trainable
        multitask.check_early(config, selected, start.mode, source(vars(start)), is_trained)
        check_layers(start, config["downstream_expert"].get("layers", 1))
    if start.mode == "train" and config["runner"].get("layer_decay") and not start.upstream_trainable:
        raise UserError(f"{source(vars(start))}: runner.layer_decay: needs -f: without it the upstream is not trained")
    folder = Path(start.expdir).absolute() if start.expdir else folder
    if start.mode == "train" and ((folder / CONFIG).is_file() or (folder / "checkpoints").is_dir()):
        raise UserError(f"-p {folder}: holds a student or its distillation: choose another folder")
    check_no_data("-p", folder, data_folders(config["downstream_expert"]))
    check_writable(folder)


def data_folders(group: Mapping[str, Any], key: str = "downstream_expert") -> list[tuple[str, str]]:
    """The dotted keys in a group of settings whose values are folders, and these."""
    values = [(f"{key}.{name}", value) for name, value in group.items()]
    values += [(name, one) for name, several in values if isinstance(several, list) for one in several]
    inner = [found for name, value in values if isinstance(value, Mapping) for found in data_folders(value, name)]
    return inner + [
        (name, value) for name, value in values if isinstance(value, str) and value and Path(value).is_dir()
    ]


def check_layers(args: Namespace, layers: Any) -> None:
    """Raise UserError for a number of ``layers`` in the settings that is not that of the student or the teacher.

    Only of folders: without them the number of hidden states is not known before the upstream is built.
    """
    model = teacher_path(args.upstream_ckpt or args.upstream)
    if layers == 1 or args.upstream not in FEATURES or not model.is_dir():
        return
    found = check_teacher(str(model), f"-u {args.upstream} -k", upstream_names())
    if found is None:
        return
    predictions = read_json(model / CONFIG).get("targets", []) if args.upstream_feature_selection == "all" else []
    expected = found + 1 + len(predictions)
    if layers != expected:
        and_predictions = f", and {len(predictions)} predictions" if predictions else ""
        what = f"{found + 1} hidden states, those of the front end and of {found} layers{and_predictions}"
        what = f"-u {args.upstream} has {what}"
        reason = f"downstream_expert.layers: {layers}, but {what}: set {expected}, or 1 if all tasks use all of them"
        raise UserError(f"{source(vars(args))}: {reason}")


def check_arguments(args: Namespace) -> None:
    """What the arguments alone show, after ``-o`` has replaced some of them."""
    check_names(args, upstream_names(), downstream_names())
    selected, known = args.upstream_feature_selection, FEATURES.get(args.upstream)
    if known and selected not in known:
        hint = did_you_mean(selected, known)
        raise UserError(f"-s {selected}: -u {args.upstream} has only {', '.join(known)}{hint}")
    if args.init_ckpt and not Path(args.init_ckpt).exists():
        raise UserError(f"-i {args.init_ckpt}: no such checkpoint")
    if args.upstream == "distilled_student" and args.upstream_ckpt and Path(args.upstream_ckpt).exists():
        check_student("-u distilled_student -k", Path(args.upstream_ckpt))
    if args.upstream == "teacher" and args.upstream_ckpt:
        check_teacher(args.upstream_ckpt, "-u teacher -k", upstream_names())


def check_names(args: Namespace, upstreams: Sequence[str], downstreams: Sequence[str]) -> None:
    """``-u`` and ``-d``: known names, and a file for the upstreams that need one."""
    if args.upstream not in upstreams and not (args.upstream and args.hub == "huggingface"):  # there: any repository
        if args.upstream is None:
            raise UserError(f"-u: missing: {UPSTREAMS}")
        hint = did_you_mean(args.upstream, upstreams) or f"; {UPSTREAMS}"
        raise UserError(f"-u {args.upstream}: no such upstream{hint}")
    if args.upstream.endswith(NEED_FILE) and not (args.upstream_ckpt or args.upstream_model_config):
        raise UserError(f"-u {args.upstream}: needs -k (a checkpoint) or -g (its configuration)")
    student = args.upstream_ckpt if args.upstream == "distilled_student" else None
    if student and not model_path(student).exists() and not may_be_on_hub(student):
        raise UserError(f"-u distilled_student -k {student}: no such folder or file{other_models(student)}")
    if args.downstream is None:
        raise UserError("-d: missing: give multitask, or a downstream of s3prl such as speech_commands")
    if args.downstream not in downstreams:
        raise UserError(f"-d {args.downstream}: no such downstream{did_you_mean(args.downstream, downstreams)}")


def _kind(args: Namespace) -> str:
    """The folder of ``configs/`` with the YAML files of the downstream."""
    return {"multitask": "multitask", "example": ""}.get(args.downstream, "superb")


def read_file(args: Namespace) -> dict[str, Any]:
    """The settings in the YAML file of ``args.config`` and its base, without ``-o``."""
    return read_config_file(Path(args.config), _kind(args))


def _find_config(args: Namespace) -> str:
    """``-c``, or the YAML file that s3prl would read, or the one that ships for this downstream."""
    local = Path("downstream", str(args.downstream), "config.yaml")
    shipped = {"multitask": "default", "example": "example", **superb.CONFIGS}
    name = args.config or (local if local.is_file() else shipped.get(args.downstream, args.downstream))
    try:
        return str(find_config(name, _kind(args)).absolute())
    except UserError:
        if args.config:
            raise
        reason = f"no {local} here, and s3prl's package ships no YAML file for it: give one with -c FILE"
        raise UserError(f"-d {args.downstream}: {reason}") from None


def apply_overrides(args: Namespace, onto: Namespace, config: dict[str, Any]) -> tuple[Namespace, dict[str, Any]]:
    """Copies of arguments and configuration after ``-o``: s3prl reads and overrides its own."""
    onto, config = copy.deepcopy((onto, config))
    if args.override and args.override.lower() != "none":
        override(args.override, onto, config)
    return onto, config


def read_start(args: Namespace) -> tuple[Namespace, dict[str, Any]]:
    """Arguments and configuration of a run that does not start from a checkpoint; sets ``args.config``."""
    args.config = _find_config(args)
    return apply_overrides(args, args, read_file(args))


def check_mode(args: Namespace) -> None:
    """``--seed``, and ``-t`` for the mode."""
    if not 0 <= args.seed < 2**32:
        raise UserError(f"--seed {args.seed}: expected a whole number from 0 to 2**32 - 1")
    if args.mode == "inference" and not Path(args.evaluate_split).is_file():
        raise UserError(f"-t {args.evaluate_split}: no such audio file")
    splits, split = SPLITS.get(args.downstream), args.evaluate_split
    if args.mode == "evaluate" and (split not in splits if splits else not NAME.fullmatch(split)):
        raise UserError(f"-t {split}: expected {' or '.join(splits or ['the name of a split'])}")
    if splits and args.mode != "train" and not args.init_ckpt:
        raise UserError(f"-m {args.mode}: needs a trained checkpoint: give one with -e or -i")


def check_writable(folder: Path) -> None:
    """The experiment folder, or the closest folder above it that exists."""
    parent = next(path for path in [folder, *folder.parents] if path.exists())
    if not (parent.is_dir() and os.access(parent, os.W_OK)):
        raise UserError(f"-p {folder}: cannot be written: {parent} is not a writable folder")
