"""A student on disk: a folder with config.json and model.safetensors."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import torch

from distilled_student.config import StudentConfig
from distilled_student.errors import UserError
from distilled_student.student import Student

MODEL_TYPE = "distilled_student"
CONFIG, WEIGHTS = "config.json", "model.safetensors"


def shipped_student() -> Path:
    """The pre-distilled student that comes with the package."""
    return Path(__file__).with_name("assets") / "student"


def is_student(path: str | Path) -> bool:
    """Whether ``path`` is a folder that `save_student` wrote."""
    try:
        return json.loads((Path(path) / CONFIG).read_text(encoding="utf-8")).get("model_type") == MODEL_TYPE
    except (OSError, ValueError, AttributeError):
        return False


def save_student(student: Student, path: str | Path, dtype: torch.dtype = torch.float32) -> None:
    """Write a student folder; ``dtype`` float16 halves the file.

    Each file is written beside and renamed, so that a folder never holds half of one.
    """
    from safetensors.torch import save

    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: value.detach().cpu().to(dtype).contiguous() for name, value in student.state_dict().items()}
    config = {
        "model_type": MODEL_TYPE,
        "dtype": str(dtype).removeprefix("torch."),
        **dataclasses.asdict(student.config),
    }
    (folder / f"{WEIGHTS}.new").write_bytes(save(state))  # its save_file makes files that nobody else can read
    (folder / f"{CONFIG}.new").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    for name in (WEIGHTS, CONFIG):
        os.replace(folder / f"{name}.new", folder / name)


def read_config(path: str | Path) -> StudentConfig:
    """The configuration in a student folder. Raises UserError naming the file and key."""
    file = Path(path) / CONFIG
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror}); expected a student folder") from None
    except ValueError as error:
        raise UserError(f"{file}: is not JSON ({error})") from None
    if not isinstance(values, dict) or values.pop("model_type", None) != MODEL_TYPE:
        raise UserError(f"{file}: model_type: is not '{MODEL_TYPE}'")
    values.pop("dtype", None)
    known = {f.name for f in dataclasses.fields(StudentConfig)}
    if unknown := sorted(set(values) - known):
        raise UserError(f"{file}: {unknown[0]}: unknown key")
    try:
        return StudentConfig(**values)
    except (TypeError, ValueError) as error:
        raise UserError(f"{file}: {error}") from None


def load_student(path: str | Path) -> Student:
    """Read a student folder; float32 on the CPU, in eval mode.

    Raises:
        UserError: not a student folder, damaged weights, or weights of another shape; names the file.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    student = Student(read_config(path))
    file = Path(path) / WEIGHTS
    try:
        state = load_file(file)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{file}: cannot be read as safetensors ({error})") from None
    try:
        student.load_state_dict({name: value.float() for name, value in state.items()})
    except RuntimeError as error:
        raise UserError(f"{file}: does not fit its config.json: {error}") from None
    return student.eval()
