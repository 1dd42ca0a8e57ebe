"""Checks of command-line values that import no large library: a simple mistake is reported within a second."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from distilled_student.common.errors import UserError, did_you_mean


def check_choice(option: str, value: str, known: Iterable[str]) -> None:
    """Raise UserError for a value that is not one of ``known``; ``option`` is empty for an argument."""
    known = list(known)
    if value not in known:
        where = f"{option} {value}".strip()
        raise UserError(f"{where}: not one of {', '.join(known)}{did_you_mean(value, known)}")


def check_positive(option: str, value: int | None) -> None:
    """Raise UserError for a count below 1; None is an option that was not given."""
    if value is not None and value < 1:
        raise UserError(f"{option} {value}: must be 1 or more")


def check_file(option: str, file: Path | None) -> None:
    """Raise UserError for a path that is not a file; None is an option that was not given."""
    if file is not None and not file.is_file():
        raise UserError(f"{option} {file}: no such file".strip())


def check_run(folder: Path, checkpoint: str, default: str) -> None:
    """Raise UserError if the folder of a joint training run has no checkpoint to open.

    Args:
        checkpoint: File in the folder. If it is the ``default`` name and missing, a ``states-STEP.ckpt`` can be used.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    if (folder / checkpoint).is_file():
        return
    if checkpoint != default:
        names = (file.name for file in folder.glob("*.ckpt"))
        raise UserError(f"{folder / checkpoint}: no such checkpoint{did_you_mean(checkpoint, names)}")
    if not any(folder.glob("states-*.ckpt")):
        raise UserError(f"{folder}: has no checkpoint: neither {default} nor states-*.ckpt")


def check_model(path: Path, checkpoint: str, default: str) -> None:
    """Raise UserError for a path that is neither the folder of a joint training run nor a student (folder or file)."""
    if not path.exists():
        raise UserError(f"{path}: no such file or folder")
    if path.is_dir() and any(path.glob("*.ckpt")):
        check_run(path, checkpoint, default)
    elif path.is_dir() and not (path / "config.json").is_file():
        raise UserError(
            f"{path}: has neither a checkpoint of a joint training run (*.ckpt) nor a student (config.json)"
        )
