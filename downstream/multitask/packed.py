"""A joint model as a small folder: a student with its heads, without the run that trained them. Needs no s3prl.

The folder is a student folder too (``config.json``, ``model.safetensors``), so that ``-k FOLDER`` takes the fine-tuned
student. ``joint.json`` says what the heads are, ``heads.safetensors`` holds their weights, and the student's branches
for tasks.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from distilled_student import __version__
from distilled_student.checkpoints.folder import load_student, save_student
from distilled_student.common.early_checks import JOINT
from distilled_student.common.errors import UserError, short_reason
from distilled_student.common.files import read_json, read_safetensors, write_files
from distilled_student.common.progress import note
from distilled_student.common.settings import typed
from distilled_student.common.shipped_models import DEFAULT, model_path
from distilled_student.multitask.heads import LayerChoice
from distilled_student.multitask.settings import ExpertSettings, read_tasks
from distilled_student.onnx.calibration import KEY, Calibration
from distilled_student.student.network import Student

HEADS = "heads.safetensors"
FEATURE_WEIGHTS = "features.weights"
BRANCHES = "branches."
TRAINING_ONLY = "objective."  # the loss: its weights are one vector for each training speaker
NOT_PACKED = ("augment", "loss", "train_root", "test_root", "root", "trials", "trials_root", "extra_roots")
NOT_PACKED += ("teacher", "teacher_weight", "teacher_temperature")
NOT_PACKED += ("data", "layout", "dev_people", "test_people")  # names of people are nobody else's business


@dataclass
class PackedModel:
    """The parts of a joint model.

    Attributes:
        student: With its prediction layers if ``features`` uses them.
        features: ``key``, ``layer`` and ``normalize`` of `distilled_student.multitask.device_model.Features`.
        weights: Of the sum of layers, if ``features`` is one.
        gain: What every waveform is multiplied by.
        tasks, choices: The expert's tasks and choices of layers, by name.
        thresholds: Of the decisions on a device, by the task's name.
    """

    student: Student
    features: dict[str, Any]
    weights: Tensor | None
    gain: float
    tasks: Mapping[str, nn.Module]
    choices: Mapping[str, nn.Module]
    thresholds: dict[str, float]


def _heads(
    tasks: Mapping[str, nn.Module], choices: Mapping[str, nn.Module], branches: Sequence[nn.Module] = ()
) -> nn.ModuleDict:
    parts = {"tasks": nn.ModuleDict(tasks), "choices": nn.ModuleDict(choices), "branches": nn.ModuleList(branches)}
    return nn.ModuleDict(parts)


def save_packed(model: PackedModel, folder: Path) -> None:
    """Write a joint model; the folder need not exist. The student's weights are rounded to half precision."""
    from safetensors.torch import save

    state = _heads(model.tasks, model.choices, model.student.branches).state_dict()
    state |= {name: value.half() for name, value in state.items() if name.startswith(BRANCHES)}
    kept = {name: value for name, value in state.items() if isinstance(value, Tensor) and TRAINING_ONLY not in name}
    if model.weights is not None:
        kept[FEATURE_WEIGHTS] = model.weights
    description = {
        "version": __version__,
        "features": model.features,
        "layers": next(choice.layers for choice in model.choices.values()),  # the same for all tasks
        "gain": model.gain,
        "tasks": {name: _described(task.settings) for name, task in model.tasks.items()},
        "thresholds": model.thresholds,
    }
    calibrations = {name: task.speaker_calibration for name, task in model.tasks.items()}
    if found := {name: json.loads(c.to_json()) for name, c in calibrations.items() if c is not None}:
        description[KEY] = found
    save_student(model.student.without_branches(), folder, torch.float16)
    content = save({name: value.detach().cpu().contiguous() for name, value in kept.items()})
    write_files(folder, {HEADS: content, JOINT: (json.dumps(description, indent=2) + "\n").encode()})


def _described(settings: Any) -> dict[str, Any]:
    """The settings of a task that differ from their defaults, without those of training and its folders."""
    values, defaults = dataclasses.asdict(settings), dataclasses.asdict(type(settings)())
    return {key: value for key, value in values.items() if key not in NOT_PACKED and value != defaults[key]}


def load_packed(folder: Path) -> PackedModel:
    """Read what `save_packed` wrote; on the CPU.

    Raises:
        UserError: the folder is damaged, or of another version; names the file.
    """
    file = folder / JOINT
    description, tensors = read_json(file), read_safetensors(folder / HEADS)
    try:
        layers, gain, features = int(description["layers"]), float(description["gain"]), description["features"]
        features = {name: features[name] for name in ("key", "layer", "normalize")}
        thresholds = {name: float(value) for name, value in description["thresholds"].items()}
        groups = {"tasks": dict(description["tasks"]), "layers": layers}
        groups["schedule"] = dict.fromkeys(groups["tasks"], 1)
        saved = {name: Calibration.from_json(json.dumps(found)) for name, found in description.get(KEY, {}).items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{file}: damaged, or of another version ({short_reason(error)})") from None
    settings, student = typed(ExpertSettings, groups, str(file)), load_student(folder)
    branched = settings.branched
    if branched:
        student.add_branches(len(branched))
    tasks, choices, width = {}, {}, _width(student, features["key"])
    for name, entry in read_tasks(settings, str(file)).items():
        tasks[name] = entry.module.Task(entry.settings, entry.width(width, layers, len(branched)), 0, entry.key)
        tasks[name].speaker_calibration = saved.get(name)
        choices[name] = LayerChoice(layers, entry.layer(layers, branched), len(branched))
    weights = tensors.pop(FEATURE_WEIGHTS, None)
    _load_heads(_heads(tasks, choices, student.branches), tensors, folder / HEADS)
    return PackedModel(student, features, weights, gain, tasks, choices, thresholds)


def start_heads(
    name: str | None,
    tasks: Mapping[str, nn.Module],
    choices: Mapping[str, nn.Module],
    branched: Sequence[str],
    key: str,
) -> None:
    """Copy the weights of a packed model's heads to heads of the same shape; the others keep theirs, as of new words.

    Args:
        name: Of ``-k``: a model that ships, or a folder that `save_packed` wrote; None: the default upstream.
        branched: The tasks that have a branch of the student.
        key: ``FILE: dotted.key`` of the setting, for messages.

    Raises:
        UserError: it is no packed model, or is damaged, or has a branch for a task that has none here.
    """
    folder = model_path(name or DEFAULT)
    if not (folder / JOINT).is_file():
        remedy = f"give -k {DEFAULT} or a folder of `distilled-student pack`, or set it to false"
        raise UserError(f"{key}: -k {name}: has no {JOINT}, the description of its heads: {remedy}")
    heads = _heads(tasks, choices)
    saved = {k: v for k, v in read_safetensors(folder / HEADS).items() if not k.startswith(BRANCHES)}
    own = heads.state_dict()
    fitting = {k: v for k, v in saved.items() if isinstance(own.get(k), Tensor) and own[k].shape == v.shape}
    for task in _packed_branches(folder):
        if task not in branched and any(k.startswith(f"tasks.{task}.") for k in fitting):
            reason = f"-k {name or DEFAULT}: its head of '{task}' was trained behind a branch of the student"
            raise UserError(f"{key}: {reason}: set tasks.{task}.branch to true, or this to false")
    heads.load_state_dict(own | fitting)
    note(f"{key}: {len(fitting)} of {len(saved)} tensors of the heads start from {folder.name}")


def start_branches(name: str | None, branched: Sequence[str], branches: Sequence[nn.Module]) -> None:
    """Copy the weights of a packed model's branches to those of the same tasks; the others keep theirs.

    Args:
        name: See `start_heads`, which also says what is wrong with it.
        branched: The tasks of ``branches``.

    Raises:
        UserError: the packed model is damaged, or its branches have another shape.
    """
    folder = model_path(name or DEFAULT)
    if not (folder / JOINT).is_file():
        return
    if not (saved := _packed_branches(folder)):
        return
    tensors = read_safetensors(folder / HEADS)
    for task, branch in zip(branched, branches, strict=True):
        if task in saved:
            prefix = f"{BRANCHES}{saved.index(task)}."
            state = {k.removeprefix(prefix): v.float() for k, v in tensors.items() if k.startswith(prefix)}
            try:
                branch.load_state_dict(state)
            except RuntimeError as error:
                reason = short_reason(error)
                raise UserError(f"{folder / HEADS}: its branch does not fit the student's ({reason})") from None


def _packed_branches(folder: Path) -> list[str]:
    """The tasks of a packed model that have a branch, in the order of the branches."""
    try:
        return [task for task, settings in read_json(folder / JOINT)["tasks"].items() if settings.get("branch")]
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{folder / JOINT}: damaged, or of another version ({short_reason(error)})") from None


def _load_heads(heads: nn.ModuleDict, tensors: dict[str, Tensor], file: Path) -> None:
    """Raise UserError if the tensors are not those of the heads."""
    try:
        missing, unexpected = heads.load_state_dict(tensors, strict=False)
    except RuntimeError as error:
        raise UserError(f"{file}: does not fit {JOINT} ({short_reason(error)})") from None
    if wrong := [name for name in [*missing, *unexpected] if TRAINING_ONLY not in name]:
        raise UserError(f"{file}: does not fit {JOINT}: missing or unexpected: {', '.join(wrong)}")


def _width(student: Student, key: str) -> int:
    """The number of features of a frame."""
    config, states = student.config, student.config.layers + 1 + len(student.branches)
    layers = {"concatenated": states, "all": states + len(config.targets)}
    return (config.target_size if key == "predictions" else config.hidden_size) * layers.get(key, 1)
