"""What ``--model`` means: a model that ships, an exported file, a packed folder, or the folder of a joint run."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from distilled_student.common.early_checks import (
    BEST,
    JOINT,
    check_file,
    check_model,
    checkpoints,
    held_instead,
)
from distilled_student.common.errors import UserError
from distilled_student.common.shipped_models import model_path, other_models, shipped_models

if TYPE_CHECKING:
    from distilled_student.onnx import Model, Stream

CACHE = "DISTILLED_STUDENT_CACHE"  # environment variable: a folder for exported runs
WEIGHTS = ("model.safetensors", "heads.safetensors", JOINT)  # of a folder with a joint model and without graphs
EXPORTER = 2  # changes when a run has to be exported again


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Raise the ValueErrors of `distilled_student.onnx`, whose messages are one line, as UserErrors."""
    try:
        yield
    except ValueError as error:
        raise UserError(error) from None


def open_model(name: str | Path, threads: int = 1) -> Model:
    """A model for utterances; its ``stream()`` is one for streams, if it has one.

    Args:
        name: ``edge`` or ``tiny``, an ``.onnx`` file, a folder of ``distilled-student pack``, or the folder of a joint
            run, which is exported once (`exported_run`).
        threads: Threads of onnxruntime.

    Raises:
        UserError: it is none of these, or a stream alone.
    """
    from distilled_student.onnx import UTTERANCE, load

    path = model_path(name)
    if path.is_dir() and not (path / UTTERANCE).is_file():
        path = exported_run(path)
    elif not path.is_dir():
        _check_onnx_file(str(name), path)
    with one_line_errors():
        model = load(path, threads)
    if model.chunk:
        raise UserError(
            f"{name}: is a stream; give the file that `distilled-student export` writes without --streaming"
        )
    return model


def open_stream(name: str | Path, threads: int = 1) -> Stream:
    """The stream of a model; ``name``: see `open_model`, or the file of a stream alone.

    Raises:
        UserError: see `open_model`; or the model cannot stream, or has no keyword task.
    """
    from distilled_student.onnx import Stream, load

    path = model_path(name)
    with one_line_errors():
        if path.is_file() and path.suffix == ".onnx":
            found = load(path, threads)
            stream = Stream(path, threads) if found.chunk else found.stream()
        else:
            stream = open_model(name, threads).stream()
    if not stream.model.labels:
        raise UserError(f"{name}: has no keywords; give a model with a keyword head")
    return stream


def _check_onnx_file(name: str, path: Path) -> None:
    if not path.exists():
        raise UserError(f"--model {name}: no such file or folder{other_models(name)}")
    check_file("--model", path)
    if path.suffix != ".onnx":
        wanted = "a name that ends with .onnx, a folder of a joint run, or " + " or ".join(shipped_models())
        raise UserError(f"--model {name}: expected {wanted}")


def exported_run(folder: Path) -> Path:
    """The folder with the graphs of a joint run, for utterances and, if its student is causal, for streams.

    They are exported in float32 at the first call for these weights, which imports torch, and kept in the user's cache
    folder.

    Raises:
        UserError: the folder is not of a joint run.
    """
    from distilled_student.onnx import UTTERANCE

    check_model(folder)
    weights = _weight_files(folder)
    if not weights:
        raise UserError(
            f"--model {folder}: is not a joint run: it has no keyword or speaker head{held_instead(folder)}"
        )
    target = _cache() / _fingerprint(weights)
    if not (target / UTTERANCE).is_file():
        _export(folder, target)
    return target


def _weight_files(folder: Path) -> list[Path]:
    """The files whose content makes the model: the checkpoint of a run, or the files of a packed folder."""
    if any(folder.glob("*.ckpt")):
        return [_checkpoint(folder)]
    return [folder / name for name in WEIGHTS] if (folder / JOINT).is_file() else []


def _checkpoint(folder: Path) -> Path:
    """The best checkpoint, or the last one of a run without evaluations."""
    return folder / BEST if (folder / BEST).is_file() else checkpoints(folder)[-1]


def _cache() -> Path:
    import platformdirs

    return Path(os.environ.get(CACHE) or platformdirs.user_cache_dir("distilled-student", appauthor=False)) / "models"


def _fingerprint(files: list[Path]) -> str:
    digest = hashlib.sha256(b"%d" % EXPORTER)
    for file in files:
        with file.open("rb") as opened:
            while block := opened.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()[:32]


def _export(run: Path, target: Path) -> None:
    """Write the graphs of a run into ``target``, which exists with all of them or not at all."""
    import contextlib
    import io
    import shutil
    import sys
    import tempfile

    from distilled_student.export.stream import export_stream
    from distilled_student.export.utterance import export_onnx
    from distilled_student.multitask.device_model import open_joint
    from distilled_student.onnx import STREAM, UTTERANCE

    print(f"{run}: exporting it once to {target}", file=sys.stderr)
    # what s3prl and the export print is not the result of the command, and names folders that are removed
    printed = contextlib.redirect_stdout(io.StringIO())
    with printed:
        model = open_joint(run, _checkpoint(run).name if any(run.glob("*.ckpt")) else BEST)
    if not model.tasks:
        raise UserError(f"--model {run}: has no keyword or speaker head: give the folder of a joint run")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f"{target.name}.") as name:
        folder = Path(name, "graphs")
        folder.mkdir()
        with printed:
            export_onnx(model, folder / UTTERANCE)
            if model.student.config.causal:
                export_stream(model, folder / STREAM)
        try:
            os.replace(folder, target)
        except OSError:  # another process was faster
            if not (target / UTTERANCE).is_file():
                shutil.rmtree(target)
                os.replace(folder, target)
