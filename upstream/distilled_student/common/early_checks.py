"""Checks of command-line values that import no large library: a simple mistake is reported within a second."""

from __future__ import annotations

import importlib.util
import math
import os
import re
from collections.abc import Iterable
from pathlib import Path

from distilled_student.common.errors import UserError, did_you_mean
from distilled_student.common.files import read_json
from distilled_student.common.shipped_models import model_path, other_models

CONFIG = "config.json"
JOINT = "joint.json"  # of a joint model without its run
BEST = "best-dev.ckpt"  # of a joint run: the checkpoint with the best score on development data
WEIGHTS = ("*.safetensors", "*.bin")
DEVICES = ("cpu", "cuda", "mps", "xpu", "hpu", "npu", "xla", "mtia", "privateuseone")  # kinds of torch.device


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


def check_between(option: str, value: float | None, low: float, high: float, unit: str = "") -> None:
    """Raise UserError for a number that is not from ``low`` to ``high``; None is an option that was not given.

    ``unit`` follows the limits in the message, as in ``from 0 to 3600 seconds``.
    """
    if value is not None and not low <= value <= high:  # NaN neither
        raise UserError(f"{option} {value:.6g}: must be from {low:.6g} to {high:.6g} {unit}".rstrip())


def check_probability(option: str, value: float | None) -> None:
    """Raise UserError for a number that is no probability; None is an option that was not given."""
    check_between(option, value, 0, 1, "(a probability)")


def check_rate(option: str, value: float | None) -> None:
    """Raise UserError for a number that is not positive and finite; None is an option that was not given."""
    if value is not None and not 0 < value < math.inf:
        raise UserError(f"{option} {value:g}: must be a positive number")


def check_device(option: str, value: str | None) -> None:
    """Raise UserError for a name that no device of torch has; None is an option that was not given."""
    if value is not None and value.partition(":")[0] not in DEVICES:
        raise UserError(f"{option} {value}: unknown; use cpu, cuda or cuda:N")


def check_file(option: str, file: Path | None) -> None:
    """Raise UserError for a path that is not a file; None is an option that was not given."""
    if file is not None and not file.is_file():
        reason = "is no regular file" if file.exists() else "no such file"
        reason = "is a folder; give a file" if file.is_dir() else reason
        raise UserError(f"{option} {file}: {reason}".strip())


def check_folder(option: str, folder: Path | None) -> None:
    """Raise UserError for a path that is not a folder; None is an option that was not given."""
    if folder is not None and not folder.is_dir():
        reason = "is a file; give a folder" if folder.exists() else "no such folder"
        raise UserError(f"{option} {folder}: {reason}".strip())


def check_output_folder(option: str, folder: Path | None) -> None:
    """Raise UserError for a folder that a command cannot make or write in; None is an option that was not given."""
    if folder is None:
        return
    parent = next(path for path in [folder.absolute(), *folder.absolute().parents] if path.exists())
    if not parent.is_dir():
        raise UserError(f"{option} {folder}: cannot be written: {parent} is a file; give a folder".strip())
    if not os.access(parent, os.W_OK):
        raise UserError(f"{option} {folder}: cannot be written: {parent} is not a writable folder".strip())


def check_new_folder(option: str, folder: Path) -> None:
    """Raise UserError for a folder that a command cannot make, or that holds files, which the command would replace."""
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"{option} {folder}: is not empty: choose another folder, or remove this one first")
    check_output_folder(option, folder)


def check_packed_output(option: str, folder: Path) -> None:
    """Raise UserError for a folder that holds a run or a student, with which a packed model would be mixed.

    An earlier packed model is replaced.
    """
    check_output_folder(option, folder)
    held = "a joint training run" if any(folder.glob("*.ckpt")) else None
    if held is None and (folder / "checkpoints").is_dir():
        held = "a distillation"
    if held is None and (folder / CONFIG).is_file() and not (folder / JOINT).is_file():
        held = "a student"
    if held is not None:
        raise UserError(f"{option} {folder}: holds {held}: choose another folder for the packed model")


def is_same_folder(folder: str | Path, other: str | Path) -> bool:
    """Whether two paths name one folder, whatever links and letter case are in them; it need not exist."""
    try:
        return os.path.samefile(folder, other)
    except OSError:  # one of them does not exist
        return os.path.abspath(folder) == os.path.abspath(other)


def check_no_data(where: str, folder: Path, data: Iterable[tuple[str, str]]) -> None:
    """Raise UserError for an output folder that is a folder of data too.

    Args:
        data: The keys of settings or the options that name data, with their values.
    """
    for key, name in data:
        if is_same_folder(folder, name):
            raise UserError(f"{where} {folder}: is the folder of {key} too: choose another folder")


def check_output_file(option: str, file: Path | None) -> None:
    """Raise UserError for a file that a command cannot write: its folder must exist. None: it was not given."""
    if file is None:
        return
    if file.is_dir():
        raise UserError(f"{option} {file}: is a folder; give the name of a file")
    if not file.parent.is_dir():
        raise UserError(f"{option} {file}: {file.parent}: no such folder; make it first")
    if not os.access(file.parent, os.W_OK):
        raise UserError(f"{option} {file}: {file.parent} is not a writable folder")


def checkpoint_name(folder: Path, checkpoint: str) -> str:
    """The name of a checkpoint in the folder of its run, from this name or from a path to the file.

    Raises:
        UserError: the path leads to a file in another folder.
    """
    file = Path(checkpoint)
    if file.name == checkpoint or not file.is_file():
        return checkpoint
    if not is_same_folder(file.parent, folder):
        raise UserError(f"--checkpoint {checkpoint}: is not in {folder}: give {file.parent} as the folder of the run")
    return file.name


def checkpoints(folder: Path) -> list[Path]:
    """The folder's ``states-STEP.ckpt`` by number of steps; the last one is resumed."""
    found = [path for path in folder.glob("states-*.ckpt") if re.fullmatch(r"states-\d+", path.stem)]
    return sorted(found, key=lambda path: int(path.stem.removeprefix("states-")))


def check_run(folder: Path, checkpoint: str = BEST) -> None:
    """Raise UserError if the folder of a joint training run has no checkpoint to open.

    Args:
        checkpoint: File in the folder. If `BEST` is missing, a ``states-STEP.ckpt`` can be used.
    """
    if folder.is_file():
        raise UserError(f"{folder}: is a file; give the folder of the run, and the file with --checkpoint")
    check_folder("", folder)
    if (folder / checkpoint).is_file():
        return
    if checkpoint != BEST:
        names = (file.name for file in folder.glob("*.ckpt"))
        raise UserError(f"{folder / checkpoint}: no such checkpoint{did_you_mean(checkpoint, names)}")
    if not checkpoints(folder):
        raise UserError(f"{folder}: has no checkpoint: neither {BEST} nor states-*.ckpt{held_instead(folder)}")


def held_instead(folder: Path) -> str:
    """The end of a message about a folder that is not what a command needs: what it holds, and what to do with that.

    An interrupted distillation, an interrupted joint training, a student and a joint training run differ. Empty for a
    folder with none of these.
    """
    steps = sorted((folder / "checkpoints").glob("step-*.pt"))
    if not (folder / CONFIG).is_file() and (steps or (folder / "checkpoints").is_dir()):
        step = f"at step {int(steps[-1].stem.removeprefix('step-'))}" if steps else "before its first checkpoint"
        return f"; it holds a distillation that was interrupted {step}: run its command again to resume it"
    if any(folder.glob("states-*.ckpt")) or (folder / BEST).is_file():
        return "; it holds a joint training run, which `distilled-student evaluate` and `export` take"
    if (folder / CONFIG).is_file():
        return (
            f"; it holds a student: train it with run_downstream.py -m train -u distilled_student -k {folder}"
            " -d multitask -p EXPDIR"
        )
    if (folder / "provenance.json").is_file() or any(folder.glob("events.out.tfevents*")):
        return "; it holds a training that was interrupted before its first checkpoint: run its command again"
    inner = sorted(file.parent.name for file in folder.glob("*/*.ckpt"))
    return f"; did you mean {folder / inner[0]}?" if inner else ""


def check_model(path: Path, checkpoint: str = BEST) -> None:
    """Raise UserError for a path that is neither the folder of a joint training run nor a student (folder or file)."""
    path = model_path(path)
    if path.is_dir() and any(path.glob("*.ckpt")):
        check_run(path, checkpoint)
    elif path.is_dir() and not (path / CONFIG).is_file():
        raise UserError(
            f"{path}: has neither a checkpoint of a joint training run (*.ckpt) nor a student (config.json)"
            f"{held_instead(path)}"
        )
    else:
        check_student("", path)


def has_weights(folder: Path) -> bool:
    """Whether a folder has weights that `load_student` reads."""
    return any(file for pattern in WEIGHTS for file in folder.glob(pattern))


def is_installed(library: str) -> bool:
    try:
        return importlib.util.find_spec(library) is not None
    except ModuleNotFoundError:
        return False


def check_student(option: str, path: Path) -> None:
    """Raise UserError for a path that `load_student` cannot read, as far as names and the configuration show it.

    ``option`` is empty for an argument.
    """
    where, path = f"{option} {path}".strip(), model_path(path)
    if path.is_dir():
        if not (path / CONFIG).is_file():
            raise UserError(f"{where}: is not a student: the folder has no {CONFIG}{held_instead(path)}")
        if "model_type" not in read_json(path / CONFIG):
            raise UserError(f"{path / CONFIG}: model_type: missing: not the configuration of a student")
        if not has_weights(path) and (path / JOINT).is_file():
            raise UserError(
                f"{where}: has no float weights, only int8 graphs, as `pip install ./run` installs it: `pip install .`"
                " in a clone installs the weights, and torch, which uses them"
            )
        if not has_weights(path):
            raise UserError(f"{where}: is not a student: the folder has no weights ({' or '.join(WEIGHTS)})")
    elif not path.is_file():
        raise UserError(f"{where}: no such file or folder{other_models(path)}")
    elif not is_torch_file(path):
        raise UserError(f"{where}: is not a student: neither a folder with {CONFIG} nor a checkpoint of torch")


def is_torch_file(file: Path) -> bool:
    """Whether a file begins as ``torch.save`` begins one: a zip archive, or a pickle of torch before 1.6."""
    try:
        with file.open("rb") as opened:
            start = opened.read(2)
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})") from None
    return start == b"PK" or start[:1] == b"\x80"
