"""The sections of a YAML file that s3prl's runner reads: checked whole before anything is written."""

from __future__ import annotations

import importlib
import inspect
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from distilled_student.common.errors import UserError, did_you_mean
from distilled_student.host.superb import settings as superb

COUNTS = ("total_steps", "gradient_accumulate_steps", "log_step", "eval_step", "save_step", "max_keep")
FLAGS = ("fp16", "bf16")
OTHERS = ("gradient_clipping", "eval_dataloaders", "train_dataloader", "evaluate_ratio", "upstream_lr", "max_skipped")
RUNNER_KEYS = (*COUNTS, *OTHERS, *FLAGS)
SECTIONS = ("runner", "optimizer", "scheduler", "specaug", "downstream_expert")
# what may be evaluated
SPLITS = {"multitask": ("dev", "test"), **dict.fromkeys(superb.SETTINGS, ("train", "dev", "test"))}
# what s3prl's experts run as code: values of these keys of downstream_expert, and names of splits
CODE = ("select", "pooling", "module", "agg_module", "utter_module", "model_type")
CODE += ("ObjectiveLoss", "metric", "unk_weight")
NAME = re.compile(r"[\w.-]+")
WORDS = {"null": None, "true": True, "false": False}  # YAML's, beside Python's


def _number(value: Any) -> Any:
    """A string that is a number as that number: PyYAML reads ``1e-3`` as a string, for want of a point."""
    if not isinstance(value, str):
        return value
    try:
        return float(value) if re.search(r"[.einEIN]", value) else int(value)
    except ValueError:
        return value


def repair_numbers(config: dict[str, Any]) -> None:
    """In place: strings that are numbers, whole numbers written as 1e4, and words that are true or false."""
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
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            raise UserError(f"{where}: runner.{key}: expected a number above 0, found {value!r}")
        if key in COUNTS and not isinstance(value, int):
            raise UserError(f"{where}: runner.{key}: expected a whole number, found {value!r}")
    limit = runner.get("max_skipped", 1)
    if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
        raise UserError(f"{where}: runner.max_skipped: expected a whole number above 0, found {limit!r}")
    rate = runner.get("upstream_lr")
    is_number = isinstance(rate, int | float) and not isinstance(rate, bool)
    if rate is not None and not (is_number and 0 <= rate < math.inf):
        raise UserError(f"{where}: runner.upstream_lr: expected a number of at least 0, found {rate!r}")
    for key in FLAGS:
        if not isinstance(runner.get(key, False), bool):
            raise UserError(f"{where}: runner.{key}: expected true or false, found {runner[key]!r}")
    splits, known = runner.get("eval_dataloaders"), SPLITS.get(downstream)
    if not isinstance(splits, list) or not all(isinstance(split, str) for split in splits):
        raise UserError(f"{where}: runner.eval_dataloaders: expected a list of splits such as [dev], found {splits!r}")
    for split in splits:
        if split not in known if known else not NAME.fullmatch(split):
            raise UserError(f"{where}: runner.eval_dataloaders: '{split}' is not {' or '.join(known or ['a name'])}")
    if known is None:  # another downstream names its splits itself
        return
    if runner.get("train_dataloader", "train") != "train":
        raise UserError(f"{where}: runner.train_dataloader: expected train, found {runner['train_dataloader']!r}")


def _check_code(where: str, key: str, value: Any) -> None:
    """Names alone, without a call, where s3prl would run any expression; a checkpoint's settings are not ours."""
    for name, inner in value.items() if isinstance(value, Mapping) else ():
        _check_code(where, f"{key}.{name}", inner)
    words = value if isinstance(value, list) else [value]
    is_code = key.rpartition(".")[2] in CODE
    if is_code and not all(NAME.fullmatch(word) for word in words if isinstance(word, str)):
        raise UserError(f"{where}: {key}: expected a name, found {value!r}")


def _try(where: str, section: str, values: Mapping[str, Any], build: Callable[[dict[str, Any]], Any]) -> Any:
    """What ``build`` makes of a section; of an error the key is told apart by leaving each out in turn."""
    faults = (TypeError, ValueError, AttributeError, KeyError, AssertionError, ArithmeticError, RuntimeError)
    try:
        return build(dict(values))
    except faults as error:
        for key in values:
            try:
                build({other: value for other, value in values.items() if other != key})
            except faults:
                continue
            section = f"{section}.{key}"
            break
        raise UserError(f"{where}: {section}: {error}") from None


def _check_steps(where: str, config: Mapping[str, Any]) -> None:
    """Optimizer, scheduler and SpecAug are built as s3prl will, and make a step on one number."""
    import torch
    from s3prl import optimizers, schedulers

    steps, groups = config["runner"]["total_steps"], {}
    for section, module in (("optimizer", optimizers), ("scheduler", schedulers)):
        groups[section] = values = config.get(section) or {}
        if not isinstance(values, dict):
            raise UserError(f"{where}: {section}: expected a group of keys, found {values!r}")
        if (values or section == "optimizer") and not hasattr(
            module, f"get_{values.get('name')}"
        ):  # s3prl would run the name as code
            raise UserError(f"{where}: {section}.name: s3prl has no {section} {values.get('name')!r}")
        for key, value in values.items():
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if (key == "lr" or (section == "scheduler" and key != "name")) and not (is_number and value >= 0):
                raise UserError(f"{where}: {section}.{key}: expected a number of at least 0, found {value!r}")
            if is_number and not math.isfinite(value):
                raise UserError(f"{where}: {section}.{key}: expected a finite number, found {value!r}")
    kind, values = groups["optimizer"]["name"], groups["optimizer"]
    if kind == "TorchOptim":
        name = str(values.get("torch_optim_name"))
        found = getattr(torch.optim, name, None)
        if not (inspect.isclass(found) and issubclass(found, torch.optim.Optimizer)):
            raise UserError(
                f"{where}: optimizer.torch_optim_name: torch.optim has no {name}{did_you_mean(name, dir(torch.optim))}"
            )
    elif kind in ("Adam", "AdamW", "BertAdam_with_schedule"):  # these drop what they do not know
        known = ["name", *inspect.signature(getattr(optimizers, f"get_{kind}")).parameters][:-1]
        for key in values:
            if key not in known:
                raise UserError(f"{where}: optimizer.{key}: no such key{did_you_mean(key, known)}")

    def optimizer(values: dict[str, Any]) -> torch.optim.Optimizer:
        model = torch.nn.ParameterList([torch.zeros(1, 1)])
        model[0].grad = torch.zeros(1, 1)
        made = optimizers.get_optimizer([model], steps, values)
        made.step()
        return made

    made = _try(where, "optimizer", values, optimizer)

    def scheduler(values: dict[str, Any]) -> None:
        made_of = schedulers.get_scheduler(made, steps, values)
        made.step()
        made_of.step()

    if groups["scheduler"]:
        _try(where, "scheduler", groups["scheduler"], scheduler)
    if config.get("specaug"):
        try:
            specaug = importlib.import_module("s3prl.downstream.specaug").SpecAug
        except ModuleNotFoundError as error:
            raise UserError(
                f"{where}: specaug: needs the Python package {error.name}, which is not installed"
            ) from None
        _try(where, "specaug", config["specaug"], lambda values: specaug(**values))


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
    if downstream != "multitask":
        _check_code(where, "downstream_expert", config["downstream_expert"])
    if downstream in superb.SETTINGS:
        evaluated = [*splits, *config["runner"]["eval_dataloaders"]]
        superb.check(where, downstream, config["downstream_expert"], evaluated)


def check_config(where: str, config: dict[str, Any], downstream: str, splits: Sequence[str] = ()) -> None:
    """`check_sections`, and that s3prl can build the optimizer, the scheduler and SpecAugment."""
    check_sections(where, config, downstream, splits)
    _check_steps(where, config)


def source(args: Mapping[str, Any]) -> str:
    """Where the settings of a run come from, for messages: the checkpoint gone on from or the YAML file, with -o."""
    from_checkpoint = args.get("past_exp") and args.get("init_ckpt")
    name = str(args["init_ckpt"] if from_checkpoint else args.get("config") or "config")
    override = str(args.get("override") or "none")
    return name if override.lower() == "none" else f"{name} with -o"
