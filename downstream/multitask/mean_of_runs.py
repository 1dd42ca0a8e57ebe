"""A run whose weights are the mean of those of several runs of the same model (Wortsman et al. 2022)."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distilled_student.checkpoints.folder import load_student
from distilled_student.common.early_checks import is_same_folder
from distilled_student.common.errors import UserError, short_reason
from distilled_student.common.files import read_json, save_torch, write_json
from distilled_student.common.provenance import FILE
from distilled_student.common.settings import typed
from distilled_student.common.shipped_models import DEFAULT
from distilled_student.host.saved_runs import read_experiment
from distilled_student.host.upstreams import PREDICTED
from distilled_student.multitask.resume import saved_classes
from distilled_student.multitask.settings import ExpertSettings, read_tasks
from distilled_student.student.config import DROPOUTS, StudentConfig

MODELS = ("Upstream", "Featurizer", "Downstream")  # the entries of a checkpoint with weights
LOG = "log.jsonl"
# options that decide what the weights mean, and their names in a checkpoint
OPTIONS = {"-u": "upstream", "-d": "downstream", "-f": "upstream_trainable", "-s": "upstream_feature_selection"}
OPTIONS |= {"-l": "upstream_layer_selection", "--upstream_feature_normalize": "upstream_feature_normalize"}
HEADS = ("head", "pooling", "layer", "branch", "standardize", "embedding_size", "center")  # settings of tasks


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
        UserError: fewer than two different runs, ``checkpoint`` is a path, a checkpoint is missing or damaged or has
            NaN weights, or the models differ in their weights, in the settings that decide what these mean, or in their
            classes.
    """
    if Path(checkpoint).name != checkpoint:  # a path would name a file of a run, which would be overwritten
        raise UserError(f"--checkpoint {checkpoint}: expected the name of a file that is in the folder of each run")
    if len(runs) < 2:
        raise UserError("RUNS: give two runs or more")
    if all(is_same_folder(run, runs[0]) for run in runs):
        raise UserError(f"RUNS: {runs[0]}: is the only run that is given: give two runs or more")
    files = [run / checkpoint for run in runs]
    states = [read_experiment(file, "evaluate") for file in files]
    for file, state in zip(files, states, strict=True):
        if not isinstance(state.get("Average") or {}, dict):
            raise UserError(f"{file}: Average: is not a mapping of weights: give another checkpoint of this run")
    weights = [evaluated_weights(state) for state in states]
    for file, one in zip(files, weights, strict=True):
        _check_numbers(one, str(file))
        _check_same(one, weights[-1], f"{file}: is not a run of the model of {files[-1]}")
    _check_same_settings(files, states)
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


def _check_same_settings(files: Sequence[Path], states: Sequence[Mapping[str, Any]]) -> None:
    """Raise UserError unless all runs have the same student, features, heads and classes; names the key."""
    last = _meaning(files[-1], states[-1])
    for file, state in zip(files[:-1], states[:-1], strict=True):
        found = _meaning(file, state)
        for key in (*found, *(key for key in last if key not in found)):
            one, other = (values.get(key, "not set") for values in (found, last))
            if one != other:
                reason = f"{key}: {_short(one, other)}, but {_short(other, one)} in {files[-1]}"
                raise UserError(f"{file}: {reason}: their weights have other meanings: leave out one of them")


def _meaning(file: Path, state: Mapping[str, Any]) -> dict[str, Any]:
    """What decides what the weights in a checkpoint mean, by the name of the option or setting.

    Settings of the data, of the training and of an evaluation may differ.
    """
    args = vars(state["Args"])
    found = {option: args.get(name) for option, name in OPTIONS.items()}
    if args["upstream"] != "distilled_student" or "Upstream" not in state:
        found["-k"] = args.get("upstream_ckpt")  # its weights are not in the checkpoint, or its kind is not known
    else:
        found |= {f"-k: {key}": value for key, value in asdict(_student_config(file, args)).items()}
    if args["downstream"] != "multitask":
        return found
    settings = typed(ExpertSettings, state["Config"].get("downstream_expert") or {}, f"{file}: downstream_expert")
    found |= {"downstream_expert.layers": settings.layers, "downstream_expert.gain_db": settings.gain_db}
    found["downstream_expert.schedule: branches in this order"] = settings.branched
    entries, saved = read_tasks(settings, str(file)), _saved_classes(file, state)
    for name in sorted(settings.schedule):
        task = entries[name].settings
        key = f"downstream_expert.tasks.{name}"
        found |= {f"{key}.{setting}": getattr(task, setting) for setting in HEADS if hasattr(task, setting)}
        found[f"{key}: classes"] = task.class_names() or saved.get(name)
    return found


def _student_config(file: Path, args: Mapping[str, Any]) -> StudentConfig:
    """The configuration of the student of ``-k``, without what only its training and its predictions have."""
    name = args.get("upstream_ckpt") or DEFAULT
    try:
        config = load_student(name).config
    except UserError as error:
        raise UserError(f"{file}: -k: cannot be compared with that of the other runs: {error}") from None
    unused = ["dropout", *DROPOUTS]
    if args.get("upstream_feature_selection") not in PREDICTED:
        unused += ["targets", "target_size", "prediction_size"]
    defaults = StudentConfig()
    return replace(config, **{key: getattr(defaults, key) for key in unused})


def _saved_classes(file: Path, state: Mapping[str, Any]) -> dict[str, list[str]]:
    """The names of the classes of each task in a checkpoint; empty for one of a version before 0.2."""
    try:
        return saved_classes(state["Downstream"].get("_extra_state", torch.empty(0, dtype=torch.uint8)))
    except (ValueError, AttributeError) as error:
        raise UserError(f"{file}: the names of its classes are damaged ({short_reason(error)})") from None


def _short(value: Any, other: Any) -> str:
    """A value for a message; of a long list what the ``other`` list has in another place or not at all."""
    if not isinstance(value, list) or not isinstance(other, list) or len(value) + len(other) < 20:
        return str(value)
    if len(value) != len(other):
        return f"{len(value)} names"
    place = next(place for place, (one, two) in enumerate(zip(value, other, strict=True)) if one != two)
    return f"number {place} is {value[place]}"


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
