"""The sections of a YAML file that s3prl's runner reads, checked without importing torch or s3prl."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from distilled_student.common.errors import UserError, did_you_mean
from distilled_student.host.optimizer_names import names_of, torch_optimizer_names
from distilled_student.host.superb import settings as superb

COUNTS = ("total_steps", "gradient_accumulate_steps", "log_step", "eval_step", "save_step", "max_keep")
FLAGS = ("fp16", "bf16", "weights_only")
OTHERS = ("gradient_clipping", "eval_dataloaders", "train_dataloader", "evaluate_ratio", "max_skipped")
OTHERS += ("upstream_lr", "layer_decay", "average")
RUNNER_KEYS = (*COUNTS, *OTHERS, *FLAGS)
SECTIONS = ("runner", "optimizer", "scheduler", "specaug", "downstream_expert")
# splits that a downstream can evaluate; others name their splits themselves
SPLITS = {"multitask": ("dev", "test"), **dict.fromkeys(superb.SETTINGS, ("train", "dev", "test"))}
# s3prl's experts evaluate the values of these keys as code, and the names of splits
CODE = ("select", "pooling", "module", "agg_module", "utter_module", "model_type")
CODE += ("ObjectiveLoss", "metric", "unk_weight")
NAME = re.compile(r"[\w.-]+")
WORDS = {"null": None, "true": True, "false": False}  # YAML's names of values that Python names otherwise


def is_number(value: Any) -> bool:
    """Whether a value of a YAML file is a number; true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _number(value: Any) -> Any:
    """The number that a string holds: PyYAML reads ``1e-3`` as a string, because it has no decimal point."""
    if not isinstance(value, str):
        return value
    try:
        return float(value) if re.search(r"[.einEIN]", value) else int(value)
    except ValueError:
        return value


def repair_numbers(config: dict[str, Any]) -> None:
    """Replace in place: strings that hold numbers, whole numbers written as 1e4, the words true and false."""
    for section in ("runner", "optimizer", "scheduler"):
        group = config.get(section)
        if isinstance(group, dict):
            config[section] = {key: _number(value) for key, value in group.items()}
    runner = config.get("runner")
    for key, value in runner.items() if isinstance(runner, dict) else ():
        if key in COUNTS and isinstance(value, float) and value.is_integer():
            runner[key] = int(value)
        if key in FLAGS and isinstance(value, str):
            runner[key] = WORDS.get(value.lower(), value)


def _check_runner(where: str, runner: Mapping[str, Any], downstream: str) -> None:
    for key in runner:
        if key not in RUNNER_KEYS:
            raise UserError(f"{where}: runner.{key}: no such key{did_you_mean(key, RUNNER_KEYS)}")
    for key in (*COUNTS, "gradient_clipping", "evaluate_ratio"):
        value = runner.get(key, 1 if key == "evaluate_ratio" else None)
        if not (is_number(value) and value > 0):
            raise UserError(f"{where}: runner.{key}: expected a number above 0, found {value!r}")
        if key in COUNTS and not isinstance(value, int):
            raise UserError(f"{where}: runner.{key}: expected a whole number, found {value!r}")
    limit = runner.get("max_skipped", 1)
    if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
        raise UserError(f"{where}: runner.max_skipped: expected a whole number above 0, found {limit!r}")
    rate = runner.get("upstream_lr")
    if rate is not None and not (is_number(rate) and 0 <= rate < math.inf):
        raise UserError(f"{where}: runner.upstream_lr: expected a number of at least 0, found {rate!r}")
    for key in ("layer_decay", "average"):
        factor = runner.get(key, 0.5)
        if factor is not None and not (is_number(factor) and 0 < factor < 1):
            raise UserError(f"{where}: runner.{key}: expected a number between 0 and 1, found {factor!r}")
    for key in FLAGS:
        if key == "weights_only" and runner.get(key) == "heads":
            continue
        if not isinstance(runner.get(key, False), bool):
            wanted = "true, false or heads" if key == "weights_only" else "true or false"
            raise UserError(f"{where}: runner.{key}: expected {wanted}, found {runner[key]!r}")
    if runner.get("fp16") and runner.get("bf16"):
        raise UserError(f"{where}: runner.bf16: cannot be used with fp16: set one of them to false")
    splits, known = runner.get("eval_dataloaders"), SPLITS.get(downstream)
    if not isinstance(splits, list) or not all(isinstance(split, str) for split in splits):
        raise UserError(f"{where}: runner.eval_dataloaders: expected a list of splits such as [dev], found {splits!r}")
    for split in splits:
        if split not in known if known else not NAME.fullmatch(split):
            raise UserError(f"{where}: runner.eval_dataloaders: '{split}' is not {' or '.join(known or ['a name'])}")
    if known is not None and runner.get("train_dataloader", "train") != "train":
        raise UserError(f"{where}: runner.train_dataloader: expected train, found {runner['train_dataloader']!r}")


def _check_optimizer(where: str, config: Mapping[str, Any]) -> None:
    """Optimizer and scheduler: known names; finite numbers; nothing negative where it must not be."""
    for section in ("optimizer", "scheduler"):
        values = config.get(section) or {}
        if not isinstance(values, dict):
            raise UserError(f"{where}: {section}: expected a group of keys, found {values!r}")
        is_used = bool(values) or section == "optimizer"
        name = values.get("name")
        if is_used and name not in (known := names_of(section)):  # s3prl evaluates the name as code
            raise UserError(f"{where}: {section}.name: s3prl has no {section} {name!r}{did_you_mean(name, known)}")
        for key, value in values.items():
            must_be_number = key == "lr" or (section == "scheduler" and key != "name")
            if must_be_number and not (is_number(value) and value >= 0):
                raise UserError(f"{where}: {section}.{key}: expected a number of at least 0, found {value!r}")
            if is_number(value) and not math.isfinite(value):
                raise UserError(f"{where}: {section}.{key}: expected a finite number, found {value!r}")
    optimizer = config["optimizer"]
    name, known = optimizer.get("torch_optim_name"), torch_optimizer_names()
    is_unknown = name not in known and "torch" not in sys.modules  # a program can add its own to torch.optim
    if optimizer["name"] == "TorchOptim" and known and is_unknown:
        reason = f"torch.optim has no {name}{did_you_mean(name, known)}"
        raise UserError(f"{where}: optimizer.torch_optim_name: {reason}")


def _check_code(where: str, key: str, value: Any) -> None:
    """Allow only names where s3prl evaluates the value as code: settings may come from a foreign checkpoint."""
    for name, inner in value.items() if isinstance(value, Mapping) else ():
        _check_code(where, f"{key}.{name}", inner)
    words = value if isinstance(value, list) else [value]
    is_code = key.rpartition(".")[2] in CODE
    if is_code and not all(NAME.fullmatch(word) for word in words if isinstance(word, str)):
        raise UserError(f"{where}: {key}: expected a name, found {value!r}")


def check_sections(where: str, config: dict[str, Any], downstream: str, splits: Sequence[str] = ()) -> None:
    """What can be checked without importing torch or s3prl; repairs numbers in place.

    All sections but ``downstream_expert``, whose keys belong to the downstream; of SUPERB's tasks that section too.

    Args:
        splits: Splits to evaluate, in addition to those of the runner.

    Raises:
        UserError: naming ``where`` and the key.
    """
    repair_numbers(config)
    for section in ("runner", "optimizer", "downstream_expert"):
        if not isinstance(config.get(section), dict):
            raise UserError(f"{where}: {section}: missing, or not a group of keys")
    for section in config if downstream == "multitask" else ():
        if section not in SECTIONS:
            raise UserError(f"{where}: {section}: no such section{did_you_mean(section, SECTIONS)}")
    _check_runner(where, config["runner"], downstream)
    _check_optimizer(where, config)
    if downstream != "multitask":
        _check_code(where, "downstream_expert", config["downstream_expert"])
    if downstream in superb.SETTINGS:
        evaluated = [*splits, *config["runner"]["eval_dataloaders"]]
        superb.check(where, downstream, config["downstream_expert"], evaluated)


def source(args: Mapping[str, Any]) -> str:
    """Where the settings of a run come from, for messages: the resumed checkpoint or the YAML file, and ``-o``."""
    from_checkpoint = args.get("past_exp") and args.get("init_ckpt")
    name = str(args["init_ckpt"] if from_checkpoint else args.get("config") or "config")
    override = str(args.get("override") or "none")
    return name if override.lower() == "none" else f"{name} with -o"
