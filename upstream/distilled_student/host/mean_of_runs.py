"""A run whose weights are the mean of those of several runs of the same model (Wortsman et al. 2022)."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distilled_student.common.errors import UserError
from distilled_student.common.files import read_json, save_torch, write_json
from distilled_student.common.provenance import FILE
from distilled_student.host.saved_runs import read_experiment

MODELS = ("Upstream", "Featurizer", "Downstream")  # the entries of a checkpoint with weights
LOG = "log.jsonl"


def evaluated_weights(state: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The weights in a checkpoint that an evaluation uses: with ``runner.average`` the averages over its steps."""
    averages = state.get("Average") or {}
    return {
        model: {name: averages.get(f"{model}.{name}", value) for name, value in state[model].items()}
        for model in MODELS
        if model in state
    }


def mean(values: Sequence[Any]) -> Any:
    """The mean of tensors of floating-point numbers of one shape; of other values the last one."""
    if not isinstance(values[-1], Tensor) or not values[-1].is_floating_point():
        return values[-1]
    return torch.stack([value.double() for value in values]).mean(dim=0).to(values[-1].dtype)


def average_runs(runs: Sequence[Path], output: Path, checkpoint: str) -> None:
    """Write a run with the mean weights of ``runs``, and with settings, log and provenance of the last one.

    The mean is often better than each run if all of them were fine-tuned from the same weights, for example with
    different augmentation (Wortsman et al. 2022, arXiv 2203.05482).

    Args:
        runs: Folders of ``run_downstream.py -d multitask``.
        output: The new folder.
        checkpoint: File in each of these folders, and in the new one.

    Raises:
        UserError: fewer than two runs, ``checkpoint`` is a path, a checkpoint is missing or damaged or has NaN weights,
            or the models differ.
    """
    if Path(checkpoint).name != checkpoint:  # a path would name a file of a run, which would be overwritten
        raise UserError(f"--checkpoint {checkpoint}: expected the name of a file that is in the folder of each run")
    if len(runs) < 2:
        raise UserError("RUNS: give two runs or more")
    files = [run / checkpoint for run in runs]
    states = [read_experiment(file, "evaluate") for file in files]
    for file, state in zip(files, states, strict=True):
        if not isinstance(state.get("Average") or {}, dict):
            raise UserError(f"{file}: Average: is not a mapping of weights: give another checkpoint of this run")
    weights = [evaluated_weights(state) for state in states]
    for file, one in zip(files, weights, strict=True):
        _check_numbers(one, str(file))
        _check_same(one, weights[-1], f"{file}: is not a run of the model of {files[-1]}")
    names = {model: list(values) for model, values in weights[-1].items()}
    means = {model: {name: mean([one[model][name] for one in weights]) for name in names[model]} for model in names}
    settings = {key: states[-1][key] for key in ("Args", "Config", "Step", "Epoch") if key in states[-1]}
    provenance = read_json(runs[-1] / FILE) if (runs[-1] / FILE).is_file() else None
    output.mkdir(parents=True, exist_ok=True)
    save_torch(settings | means, output / checkpoint)
    if (runs[-1] / LOG).is_file():
        shutil.copyfile(runs[-1] / LOG, output / LOG)
    if provenance is not None:
        write_json(output / FILE, {**provenance, "mean of": [str(run) for run in runs]})


def _shape(value: Any) -> Any:
    """The shape of a tensor, and the type of another value."""
    return tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__


def _check_numbers(weights: Mapping[str, Mapping[str, Any]], where: str) -> None:
    """Raise UserError for a weight that is NaN: the mean would be, too."""
    for model, values in weights.items():
        for name, value in values.items():
            if isinstance(value, Tensor) and value.isnan().any():
                raise UserError(f"{where}: {model} {name}: holds NaN: leave out this run")


def _check_same(one: Mapping[str, Mapping[str, Any]], other: Mapping[str, Mapping[str, Any]], where: str) -> None:
    """Raise UserError unless both have the same weights: models, names and shapes."""
    for model in MODELS:
        if (model in one) != (model in other):
            raise UserError(f"{where}: only one of them has trained its {model.lower()}")
        found, expected = one.get(model, {}), other.get(model, {})
        for name in sorted({*found, *expected}):
            if name.endswith("_extra_state"):  # the position in the data
                continue
            shapes = [_shape(values.get(name)) for values in (found, expected)]
            if shapes[0] != shapes[1]:
                raise UserError(f"{where}: {model} {name}: shapes {shapes[0]} and {shapes[1]}")
