"""Checks of a distillation's settings that need no torch: a wrong path, teacher or student is reported quickly."""

from __future__ import annotations

import re
from pathlib import Path

from distilled_student.checkpoints.foreign_config import why_not_a_student
from distilled_student.checkpoints.hub import may_be_on_hub
from distilled_student.common.audio_folders import AudioFolders
from distilled_student.common.early_checks import CONFIG, check_no_data, check_output_folder, check_student
from distilled_student.common.errors import UserError, did_you_mean
from distilled_student.common.files import read_json
from distilled_student.common.shipped_models import model_path, shipped_models
from distilled_student.distillation.config import UTTERANCE, DistillConfig, student_config_for
from distilled_student.distillation.data.config import MANIFESTS, TARS
from distilled_student.host.s3prl_names import upstream_names
from distilled_student.teachers.early_checks import (
    SHIPPED,
    WORD_ENCODER,
    check_on_hub,
    check_speaker_encoder,
    check_teacher,
    is_speaker_encoder,
)

MODEL_TYPE = "distilled_student"  # of the config.json of our own students
STARTS = "edge, tiny, the folder or file of a student, or its name on the hub, OWNER/NAME"


def check_output(config: DistillConfig, where: str | Path) -> None:
    """Raise UserError for an output folder that holds something else than an earlier part of this distillation."""
    output = Path(config.output)
    named = [("data.paths", name) for name in config.data.paths]
    named += [("data.held_out", name) for name in config.data.held_out]
    teachers = [config.teacher, *(one.teacher for one in config.teachers)]
    named += [("teacher", name) for name in teachers if Path(name).is_dir()]
    if config.cache:
        check_no_data(f"{where}: cache:", Path(config.cache), named)
        named.append(("cache", config.cache))
    check_no_data(f"{where}: output:", output, named)
    if audio := AudioFolders().files(output, depth=0):
        raise UserError(f"{where}: output: {output}: holds audio, such as {audio[0].name}: choose another folder")
    if any(output.glob("states-*.ckpt")) or (output / "best-dev.ckpt").is_file():
        raise UserError(f"{where}: output: {output}: holds a joint training run: choose another folder")
    if (output / CONFIG).is_file() and not any((output / "checkpoints").glob("step-*.pt")):
        reason = "holds a model without the checkpoints of a distillation, which this run would replace"
        raise UserError(f"{where}: output: {output}: {reason}: choose another folder")


def check_settings(config: DistillConfig, where: str | Path) -> None:
    """Check the data, the teacher and its layers, the student's configuration and the output folder.

    URLs and patterns are checked when they are opened.

    Raises:
        UserError: a folder or file is missing or holds no audio, the teacher cannot be found or lacks a layer, the
            student is wrong, or a folder cannot be written; begins with ``where`` and names the key.
    """
    check_output(config, where)
    student_config_for(config, target_size=1, where=where)  # raises for an unknown size or a wrong field
    for name in config.data.paths:
        _check_data(name, f"{where}: data.paths")
    for name in config.data.held_out:
        _check_data(name, f"{where}: data.held_out")
    if config.start_from:
        _check_start(config.start_from, f"{where}: start_from")
    if not config.teachers:
        _check_layers(config.teacher, config.targets, f"{where}: ")
    for number, teacher in enumerate(config.teachers):
        key = f"{where}: teachers[{number}]."
        if teacher.embeds_utterances:
            check_speaker_encoder(teacher.teacher, f"{key}teacher", upstream_names())
        else:
            if number and is_speaker_encoder(teacher.teacher):
                reason = f"is a speaker encoder: set targets: {UTTERANCE}"
                raise UserError(f"{key}teacher: {teacher.teacher}: {reason}")
            _check_layers(teacher.teacher, teacher.targets, key)
    config.data.augment.check_folders(f"{where}: data.augment")
    check_output_folder(f"{where}: output:", Path(config.output))
    check_output_folder(f"{where}: cache:", Path(config.cache) if config.cache else None)


def _check_start(name: str, where: str) -> None:
    """``start_from``: a student, as ``-k`` takes it. Teachers that are no student cannot be trained further."""
    path = model_path(name)
    if path.exists():
        check_student(f"{where}:", path)
        values = read_json(path / CONFIG) if path.is_dir() else {"model_type": MODEL_TYPE}
        if values["model_type"] != MODEL_TYPE and (reason := why_not_a_student(values)):
            raise UserError(f"{where}: {name}: {reason}: give {STARTS}")
    elif may_be_on_hub(name):
        check_on_hub(name, where, f"; give {STARTS}")
    elif name in (*SHIPPED, WORD_ENCODER, *upstream_names()):
        raise UserError(f"{where}: {name}: is the name of a teacher, which is not trained further: give {STARTS}")
    else:
        hint = did_you_mean(name, shipped_models())
        raise UserError(f"{where}: {name}: no such file or folder: give {STARTS}{hint}")


def _check_layers(teacher: str, targets: list[int], where: str) -> None:
    """A teacher of hidden states and its layers; ``where`` is what the keys of messages follow."""
    layers = check_teacher(teacher, f"{where}teacher", upstream_names())
    if not targets or min(targets) < 1 or (layers is not None and max(targets) > layers):
        known = "layers, counted from 1" if layers is None else f"layers 1 to {layers}"
        raise UserError(f"{where}targets: {targets}: the teacher has {known}")


def _check_data(name: str, where: str) -> None:
    """An entry of ``data.paths`` or ``data.held_out``."""
    path = Path(name)
    if path.is_dir():
        folders = AudioFolders()
        if not folders.has_audio(path):
            problems = f" ({folders.problems()})" if folders.problems() else ""
            raise UserError(f"{where}: {name}: no audio files in this folder{problems}")
    elif path.exists():
        if not name.lower().endswith(MANIFESTS + TARS):
            known = ", ".join(MANIFESTS + TARS)
            raise UserError(f"{where}: {name}: is neither a folder nor a manifest or shard ({known})")
    elif not re.search(r"://|[*?\[{]", name):
        key = where.rpartition(": ")[2]
        raise UserError(f"{where}: {name}: no such file or folder: give {key}=[FOLDER], recordings without labels")
