"""Save and load students: our own folder (config.json and model.safetensors), other formats through `foreign`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from distilled_student.checkpoints.foreign import (
    CONFIG,
    StudentCheckpoint,
    read_torch_checkpoint,
    read_transformers,
    write_transformers,
)
from distilled_student.checkpoints.hub import hub_folder, hub_revision, may_be_on_hub
from distilled_student.checkpoints.weight_files import WEIGHTS
from distilled_student.common.early_checks import held_instead
from distilled_student.common.errors import UserError
from distilled_student.common.files import read_json, read_safetensors, write_files
from distilled_student.common.shipped_models import model_path, other_models
from distilled_student.student.config import StudentConfig
from distilled_student.student.network import Student

MODEL_TYPE = "distilled_student"
FORMATS = (MODEL_TYPE, "transformers")


def save_student(
    student: Student, path: str | Path, dtype: torch.dtype = torch.float32, format: str = MODEL_TYPE
) -> None:
    """Write a student folder.

    Args:
        student: The student.
        path: The folder.
        dtype: Type of the saved weights; float16 halves the files.
        format: ``distilled_student``, or ``transformers`` for a folder that ``transformers.AutoModel.from_pretrained``
            reads too, as a HubertModel.

    Raises:
        ValueError: there is no such format.
        UserError: `transformers` has no such network; names the key. Or the student has branches for tasks.
    """
    from safetensors.torch import save

    if format not in FORMATS:
        raise ValueError(f"format: '{format}' is not one of {', '.join(FORMATS)}")
    if len(student.branches):
        raise UserError(f"{path}: the student has branches for tasks, which are saved with their heads only")
    folder = Path(path)
    if format == "transformers":
        return write_transformers(student, folder, dtype)
    state = {name: value.detach().cpu().to(dtype).contiguous() for name, value in student.state_dict().items()}
    config = {
        "model_type": MODEL_TYPE,
        "dtype": str(dtype).removeprefix("torch."),
        **dataclasses.asdict(student.config),
        **({"targets": []} if student.predictions is None else {}),  # a joint model drops what no head uses
    }
    write_files(folder, {WEIGHTS: save(state), CONFIG: (json.dumps(config, indent=2) + "\n").encode()})


def _read_own_folder(folder: Path) -> StudentCheckpoint:
    file, weights = folder / CONFIG, folder / WEIGHTS
    values = read_json(file)
    del values["model_type"]
    values.pop("dtype", None)
    known = {f.name for f in dataclasses.fields(StudentConfig)}
    if unknown := sorted(set(values) - known):
        raise UserError(f"{file}: {unknown[0]}: unknown key")
    try:
        config = StudentConfig(**values)
    except (TypeError, ValueError) as error:
        raise UserError(f"{file}: {error}") from None
    stored = read_safetensors(weights)
    for name, value in stored.items():
        if value.is_complex():
            raise UserError(f"{weights}: {name}: complex numbers; a student has real weights")
    state = {name: value.float() for name, value in stored.items()}
    return StudentCheckpoint(config, state, str(weights))


def _read(path: Path) -> StudentCheckpoint:
    if path.is_file():
        return read_torch_checkpoint(path)
    if not (path / CONFIG).is_file():
        if not path.exists():
            raise UserError(f"{path}: no such file or folder{other_models(path)}")
        raise UserError(f"{path}: is neither a checkpoint file nor a folder with {CONFIG}{held_instead(path)}")
    is_own = read_json(path / CONFIG).get("model_type") == MODEL_TYPE
    return _read_own_folder(path) if is_own else read_transformers(path)


def _check_weights(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], source: str) -> None:
    """Raise UserError if weights are missing, unexpected or have the wrong shape; lists them by a student's names."""
    problems = {
        "missing": [n for n in expected if n not in found],
        "unexpected": [n for n in found if n not in expected],
        "wrong shape": [
            f"{n} {tuple(found[n].shape)} instead of {tuple(expected[n].shape)}"
            for n in expected
            if n in found and found[n].shape != expected[n].shape
        ],
    }
    lines = [f"{problem}: {', '.join(names)}" for problem, names in problems.items() if names]
    if lines:
        raise UserError(f"{source}: does not fit its configuration: {'; '.join(lines)}")


def load_student(path: str | Path) -> Student:
    """Read a student; float32 on the CPU, in eval mode.

    Args:
        path: One of these:

            * ``edge`` or ``tiny``, the models of this package;
            * a folder from `save_student`;
            * a `transformers` folder of HuBERT, wav2vec 2.0, DistilHuBERT or Whisper (its encoder);
            * a ``.ckpt`` of s3prl's DistilHuBERT;
            * a HuBERT or wav2vec 2.0 checkpoint that s3prl converted from fairseq;
            * the name on the `transformers` hub of a folder of the first two kinds (``ntu-spml/distilhubert``), which
              is downloaded if it is not in the hub's local cache.

            Only our own folders and the ``.ckpt`` of DistilHuBERT have prediction layers.

    Raises:
        UserError: none of these, damaged, or the weights do not fit; one line naming the file, its format and keys.
    """
    path = model_path(path)
    if not path.exists() and may_be_on_hub(str(path)):
        path = hub_folder(str(path))
    config, weights, source = _read(path)
    try:
        with torch.device("meta"):  # shapes only: before they are checked, a configuration can ask for any memory
            expected = Student(config).state_dict()
    except (RuntimeError, ValueError, ArithmeticError) as error:
        raise UserError(f"{source}: does not fit its configuration: {' '.join(str(error).split())}") from None
    _check_weights(expected, weights, source)
    student = Student(config)
    student.load_state_dict(weights)
    student.revision = hub_revision(path)
    return student.eval()
