"""Packs a joint run into a folder that people use without the run: weights, int8 graphs, results, model card."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from distilled_student.common.errors import UserError
from distilled_student.export.graph import load_onnx
from distilled_student.export.stream import export_stream
from distilled_student.export.utterance import export_onnx
from distilled_student.multitask.device_model import as_packed, open_joint
from distilled_student.multitask.packed import save_packed
from distilled_student.onnx import STREAM, UTTERANCE

LARGE = 1024  # bytes; smaller tensors are not shared
COPIED = ("README.md", "results.json")  # what `evaluate` wrote into the run


def pack(
    run: Path, folder: Path, checkpoint: str, window: float, max_loss: float, calibrate: Sequence[Path] = ()
) -> None:
    """Write the model of ``run``, a folder of ``run_downstream.py -d multitask``, into ``folder``.

    Prints what each graph loses on development data, for each task.

    Args:
        checkpoint: File in the folder of the run.
        window: Seconds of audio that a score of a stream covers.
        max_loss: Points of accuracy or EER that int8 may lose on development data.
        calibrate: Folders with a folder for each person: speaker scores are calibrated on these people instead of the
            development speakers of the run, see `folder_pieces`.

    Raises:
        UserError: the run was not evaluated, has no heads or no causal student, or a folder of
            ``calibrate`` cannot be used; see `export_onnx` and `export_stream`.
    """
    model = open_joint(run, checkpoint)
    for name in COPIED:
        if not (run / name).is_file():
            has_no_test = any(t.settings.data is not None and not t.settings.test_people for t in model.tasks.values())
            option = " --split dev" * has_no_test
            raise UserError(f"{run}: has no {name}: run `distilled-student evaluate {run}{option}` first")
    if not model.tasks:
        raise UserError(f"{run}: is a student without heads: give the folder of a joint training run")
    packed = as_packed(model, calibrate)
    folder.parent.mkdir(parents=True, exist_ok=True)
    # in a folder beside it: a model whose int8 graphs lose too much is not left there without graphs
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as name:
        work = Path(name)
        save_packed(packed, work)
        model.student.load_state_dict(open_joint(work).student.state_dict())  # rounded, as it is stored
        export_onnx(model, work / UTTERANCE, True, max_loss, checkpoint, splits=("dev",), printed_as=UTTERANCE)
        export_stream(model, work / STREAM, window, checkpoint, int8=True, max_loss=max_loss, printed_as=STREAM)
        share_weights(work / UTTERANCE, work / STREAM)
        for copied in COPIED:
            shutil.copyfile(run / copied, work / copied)
        folder.mkdir(exist_ok=True)
        for file in work.iterdir():
            file.replace(folder / file.name)
    print(
        f"{folder}: PyTorch reads *.safetensors; {STREAM} is the int8 graph of streams, {UTTERANCE} that of utterances"
    )
    print(f"{folder / UTTERANCE}: reads its weights from {STREAM}: keep both in one folder")


def share_weights(file: Path, other: Path) -> None:
    """Let a graph read from the ``other`` file, in the same folder, the weights that both have.

    They are the same bytes twice: a packed model is half as large without the second ones. ONNX calls this external
    data. `onnx.external_weights.with_all_weights` makes a graph with all of its weights again.
    """
    onnx, _ = load_onnx()
    from onnx.external_data_helper import set_external_data

    model, content = onnx.load(file), other.read_bytes()
    for tensor in model.graph.initializer:
        raw = tensor.raw_data
        if len(raw) >= LARGE and (offset := content.find(raw)) >= 0:
            set_external_data(tensor, other.name, offset, len(raw))
            tensor.ClearField("raw_data")
    file.write_bytes(model.SerializeToString())
