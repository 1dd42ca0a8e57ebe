"""What ``--model`` means: shipped models, exported files, packed folders and runs, which are exported once."""

from __future__ import annotations

import shutil
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace

import pytest

from distilled_student import UserError, load, load_student
from distilled_student.common.early_checks import check_model
from distilled_student.common.shipped_models import MODELS
from distilled_student.device import model_files
from distilled_student.device.model_files import open_model, open_stream
from distilled_student.export import stream, utterance
from distilled_student.host.early_checks import check_names
from distilled_student.multitask import device_model


def test_a_shipped_model_its_folder_and_its_file_are_one_model() -> None:
    names = ("tiny", MODELS / "tiny", MODELS / "tiny" / "utterance.onnx")
    assert len({open_model(name).fingerprint for name in names}) == 1


def test_a_folder_with_a_joint_model_is_exported_once_for_its_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DISTILLED_STUDENT_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "own"
    folder.mkdir()
    for name in ("config.json", "joint.json", "model.safetensors", "heads.safetensors"):
        shutil.copy(MODELS / "tiny" / name, folder)
    exports = []

    def export(run: Path, target: Path) -> None:
        exports.append(run)
        shutil.copytree(MODELS / "tiny", target)

    monkeypatch.setattr(model_files, "_export", export)
    for _ in range(2):
        assert len(open_model(folder).labels) == 12
    assert exports == [folder]
    (folder / "heads.safetensors").write_bytes(b"other weights")
    open_model(folder)
    assert len(exports) == 2


def test_the_export_of_a_run_prints_nothing_on_standard_output_and_names_no_folder_that_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DISTILLED_STUDENT_CACHE", str(tmp_path / "cache"))
    shutil.copytree(MODELS / "tiny", folder := tmp_path / "own", ignore=shutil.ignore_patterns("*.onnx"))

    def open_joint(run: Path, checkpoint: str) -> SimpleNamespace:
        print("[Runner] - Loading Upstream weights from the previous experiment")
        return SimpleNamespace(tasks={"kws": None}, student=SimpleNamespace(config=SimpleNamespace(causal=True)))

    def export(model: SimpleNamespace, file: Path) -> None:
        print(f"{file}: float32")
        shutil.copy(MODELS / "tiny" / file.name, file)

    monkeypatch.setattr(device_model, "open_joint", open_joint)
    monkeypatch.setattr(utterance, "export_onnx", export)
    monkeypatch.setattr(stream, "export_stream", export)
    assert open_model(folder).labels
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1 and f"{folder}: exporting it once to {tmp_path / 'cache'}" in printed.err


def test_a_misspelt_model_is_answered_with_the_closest_one_wherever_a_model_is_named(tmp_path: Path) -> None:
    wanted = r"tinyy: no such f\w+ or f\w+; edge, tiny ship with the package; did you mean `tiny`\?"
    student = Namespace(upstream="distilled_student", upstream_ckpt="tinyy", hub="torch", upstream_model_config=None)
    for attempt in (
        lambda: open_model("tinyy"),
        lambda: open_stream("tinyy"),
        lambda: check_model(Path("tinyy"), "best-dev.ckpt"),  # of export and stream
        lambda: load_student("tinyy"),
        lambda: check_names(student, ["distilled_student"], ["multitask"]),  # -k
        lambda: load("tinyy"),
    ):
        with pytest.raises((UserError, ValueError), match=wanted):
            attempt()
    with pytest.raises(ValueError, match=r": the folder has no utterance.onnx; `distilled-student pack` writes it"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("stream.onnx", "is a stream"),
        ("text.txt", "expected a name that ends with .onnx"),
        ("text.onnx", "not readable as an ONNX file"),
        ("none.onnx", "no such file or folder; edge, tiny ship with the package"),
        (".", "has neither a checkpoint of a joint training run"),
    ],
)
def test_what_is_no_model_is_refused_in_one_line(
    name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for text in ("text.txt", "text.onnx"):
        (tmp_path / text).write_text("text")
    monkeypatch.chdir(tmp_path)
    path = MODELS / "tiny" / name if name == "stream.onnx" else Path(name)
    with pytest.raises(UserError, match=message) as error:
        open_model(path)
    assert "\n" not in str(error.value)


def test_a_checkpoint_without_a_number_of_steps_in_its_name_is_not_opened(tmp_path: Path) -> None:
    (tmp_path / "states-abc.ckpt").write_bytes(b"")
    with pytest.raises(UserError, match=r"has no checkpoint: neither best-dev\.ckpt nor states-\*\.ckpt"):
        open_model(tmp_path)
    for step in (9, 10):
        (tmp_path / f"states-{step}.ckpt").write_bytes(b"")
    assert model_files._checkpoint(tmp_path).name == "states-10.ckpt"
