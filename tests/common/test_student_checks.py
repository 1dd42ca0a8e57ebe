"""Whether a path can be a student, from names and the configuration alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import distilled_student as ds
from distilled_student.common.early_checks import (
    check_new_folder,
    check_packed_output,
    check_run,
    check_student,
    checkpoint_name,
)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "-k student: is not a student: the folder has no config.json"),
        ({"config.json": "{"}, "config.json: is not JSON"),
        ({"config.json": "{}"}, "config.json: model_type: missing"),
        (
            {"config.json": '{"model_type": "hubert"}'},
            "-k student: is not a student: the folder has no weights (*.safetensors or *.bin)",
        ),
    ],
)
def test_a_folder_that_is_no_student_is_named(
    files: dict[str, str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("student").mkdir()
    for name, content in files.items():
        Path("student", name).write_text(content)
    with pytest.raises(ds.UserError) as error:
        check_student("-k", Path("student"))
    assert message in str(error.value)


def test_a_file_that_is_no_checkpoint_is_named(tmp_path: Path) -> None:
    for content in (b"", b"text"):
        (tmp_path / "file").write_bytes(content)
        with pytest.raises(ds.UserError, match=r"file: is not a student: neither a folder with config\.json"):
            check_student("", tmp_path / "file")
    with pytest.raises(ds.UserError, match=r"-k gone: no such file or folder"):
        check_student("-k", Path("gone"))


@pytest.mark.parametrize("zipped", [True, False])
def test_saved_students_and_torch_files_are_accepted(zipped: bool, small_cnn: ds.StudentConfig, tmp_path: Path) -> None:
    student = ds.build_student(small_cnn)
    for format in ("distilled_student", "transformers"):
        ds.save_student(student, tmp_path / format, format=format)
        check_student("", tmp_path / format)
    torch.save({}, tmp_path / "file.pt", _use_new_zipfile_serialization=zipped)
    check_student("", tmp_path / "file.pt")


@pytest.mark.parametrize("given", ["states-3.ckpt", "runs/a/states-3.ckpt", "{here}/runs/a/states-3.ckpt"])
def test_a_checkpoint_is_named_by_its_name_or_by_its_path(
    given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for run in ("a", "b"):
        Path("runs", run).mkdir(parents=True)
    Path("runs/a/states-3.ckpt").touch()
    assert checkpoint_name(Path("runs/a"), given.format(here=tmp_path)) == "states-3.ckpt"
    if "/" in given:
        with pytest.raises(ds.UserError, match=r"^--checkpoint .*: is not in runs/b: give .*runs/a as the folder of"):
            checkpoint_name(Path("runs/b"), given.format(here=tmp_path))
    with pytest.raises(ds.UserError, match=r"^runs/b/gone/states-3\.ckpt: no such checkpoint"):
        check_run(Path("runs/b"), checkpoint_name(Path("runs/b"), "gone/states-3.ckpt"))


@pytest.mark.parametrize(
    ("file", "held"),
    [
        ("states-3.ckpt", "a joint training run"),
        ("best-dev.ckpt", "a joint training run"),
        ("checkpoints/step-3.pt", "a distillation"),
        ("config.json", "a student"),
    ],
)
def test_a_packed_model_is_not_mixed_with_what_a_folder_holds(file: str, held: str, tmp_path: Path) -> None:
    folder = tmp_path / "packed"
    check_packed_output("--output", folder)
    folder.mkdir()
    check_packed_output("--output", folder)
    (folder / file).parent.mkdir(exist_ok=True)
    (folder / file).touch()
    with pytest.raises(ds.UserError, match=rf"^--output {folder}: holds {held}: choose another folder for the packed"):
        check_packed_output("--output", folder)
    if file == "config.json":  # an earlier packed model, which is replaced
        (folder / "joint.json").touch()
        check_packed_output("--output", folder)


def test_a_folder_with_files_is_no_new_folder(tmp_path: Path) -> None:
    check_new_folder("--output", tmp_path)
    check_new_folder("--output", tmp_path / "new")
    (tmp_path / "file").touch()
    with pytest.raises(ds.UserError, match=rf"^--output {tmp_path}: is not empty: choose another folder, or remove"):
        check_new_folder("--output", tmp_path)
    with pytest.raises(ds.UserError, match=r"/file is a file; give a folder"):
        check_new_folder("--output", tmp_path / "file")
