"""The models that ship are found by name, unless a model here has that name."""

from __future__ import annotations

from pathlib import Path

import pytest

import distilled_student as ds
from distilled_student.common.settings import find_config
from distilled_student.common.shipped_models import ASSETS, DEFAULT, MODELS, model_path, shipped_models
from distilled_student.teachers.early_checks import teacher_path


def test_the_default_model_ships() -> None:
    assert DEFAULT in shipped_models()
    assert model_path(DEFAULT) == MODELS / DEFAULT


def test_a_model_here_comes_before_one_that_ships_and_another_folder_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("edge").mkdir()
    assert model_path("edge") == MODELS / "edge"
    Path("edge/states-10.ckpt").touch()
    assert model_path("edge") == Path("edge")
    Path("tiny").touch()
    assert model_path("tiny") == Path("tiny")
    with pytest.raises(ds.UserError, match=r"edge: is neither a checkpoint file nor a folder with config\.json"):
        ds.load_student("edge")


def test_a_config_that_ships_is_found_beside_a_folder_of_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own").mkdir()
    assert find_config("own", "multitask").parts[-2:] == ("multitask", "own.yaml")


def test_other_names_are_paths() -> None:
    assert model_path("exp/joint") == Path("exp/joint")
    assert model_path("EDGE") == Path("EDGE")


def test_teachers_are_found_by_the_same_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert teacher_path("edge") == teacher_path("distilled_student") == MODELS / "edge"
    assert teacher_path("shipped") == teacher_path("teacher") == ASSETS / "teacher"
    Path("edge").mkdir()
    Path("edge/config.json").touch()
    assert teacher_path("edge") == Path("edge") and teacher_path("distilled_student") == MODELS / "edge"
    assert teacher_path("facebook/hubert-base-ls960") == Path("facebook/hubert-base-ls960")


def test_cards_state_the_licence_of_a_model_that_ships() -> None:
    from distilled_student.distillation.model_card import _licence
    from distilled_student.multitask.model_card import _licence as licence_of_run

    arguments = {"upstream": "distilled_student", "upstream_ckpt": "tiny"}
    assert licence_of_run(arguments) == "MIT, as Whisper's weights (tiny)"
    assert _licence("edge", "edge") == "MIT, as Whisper's weights (edge)"
