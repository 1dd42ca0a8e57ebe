"""Builds optimizer, scheduler and SpecAugment as s3prl will, for one step: wrong settings fail before training."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from distilled_student.common.errors import UserError, did_you_mean
from distilled_student.host.yaml_sections import check_sections, is_number

# what s3prl and torch raise for wrong settings
FAULTS = (TypeError, ValueError, AttributeError, KeyError, AssertionError, ArithmeticError, RuntimeError)
IGNORE_UNKNOWN_KEYS = ("Adam", "AdamW", "BertAdam_with_schedule")  # s3prl's own optimizers


def check_config(where: str, config: dict[str, Any], downstream: str, splits: Sequence[str] = ()) -> None:
    """`check_sections`, and that s3prl can build the optimizer, the scheduler and SpecAugment.

    Raises:
        UserError: naming ``where`` and the section, and the key where it can be found.
    """
    check_sections(where, config, downstream, splits)
    optimizer = _try_optimizer(where, config)
    if config.get("scheduler"):
        _try_scheduler(where, config, optimizer)
    if config.get("specaug"):
        _try_specaug(where, config["specaug"])


def _wrong_key(function: Callable[..., Any], values: Mapping[str, Any]) -> str | None:
    """The first key that ``function`` does not take, or whose value has another type than its default."""
    parameters = inspect.signature(function).parameters
    for key, value in values.items():
        if key not in parameters:
            return key
        default = parameters[key].default
        if isinstance(default, tuple) and not isinstance(value, list | tuple):
            return key
        if is_number(default) and not is_number(value):
            return key
    return None


def _build(where: str, section: str, function: Callable[..., Any], values: Mapping[str, Any], build: Callable) -> Any:
    """``build()``; its error names the key of ``values`` that ``function``, which gets them, cannot take."""
    try:
        return build()
    except FAULTS as error:
        key = _wrong_key(function, values)
        raise UserError(f"{where}: {section}{'' if key is None else f'.{key}'}: {error}") from None


def _try_optimizer(where: str, config: Mapping[str, Any]) -> torch.optim.Optimizer:
    from s3prl import optimizers

    steps, settings = config["runner"]["total_steps"], config["optimizer"]
    kind, values = settings["name"], {key: value for key, value in settings.items() if key != "name"}
    function = getattr(optimizers, f"get_{kind}")
    if kind == "TorchOptim":
        name = str(values.pop("torch_optim_name", None))
        function = getattr(torch.optim, name, None)
        if not (inspect.isclass(function) and issubclass(function, torch.optim.Optimizer)):
            reason = f"torch.optim has no {name}{did_you_mean(name, dir(torch.optim))}"
            raise UserError(f"{where}: optimizer.torch_optim_name: {reason}")
    elif kind in IGNORE_UNKNOWN_KEYS:
        known = ["name", *inspect.signature(function).parameters][:-1]
        for key in values:
            if key not in known:
                raise UserError(f"{where}: optimizer.{key}: no such key{did_you_mean(key, known)}")

    def build() -> torch.optim.Optimizer:
        model = torch.nn.ParameterList([torch.zeros(1, 1)])
        model[0].grad = torch.zeros(1, 1)
        optimizer = optimizers.get_optimizer([model], steps, dict(settings))
        optimizer.step()
        return optimizer

    return _build(where, "optimizer", function, values, build)


def _try_scheduler(where: str, config: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> None:
    from s3prl import schedulers

    settings = config["scheduler"]
    values = {key: value for key, value in settings.items() if key != "name"}

    def build() -> None:
        scheduler = schedulers.get_scheduler(optimizer, config["runner"]["total_steps"], dict(settings))
        optimizer.step()
        scheduler.step()

    _build(where, "scheduler", getattr(schedulers, f"get_{settings['name']}"), values, build)


def _try_specaug(where: str, values: Any) -> None:
    if not isinstance(values, dict):
        raise UserError(f"{where}: specaug: expected a group of keys, found {values!r}")
    try:
        specaug = importlib.import_module("s3prl.downstream.specaug").SpecAug
    except ModuleNotFoundError as error:
        reason = f"needs the Python package {error.name}, which is not installed"
        raise UserError(f"{where}: specaug: {reason}") from None
    _build(where, "specaug", specaug, values, lambda: specaug(**values))
