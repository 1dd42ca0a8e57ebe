"""The models that ship are found by name, unless something here has that name."""

from __future__ import annotations

from pathlib import Path

import pytest

import distilled_student as ds
from distilled_student.common.shipped_models import DEFAULT, MODELS, model_path, shipped_models


def test_the_default_model_ships() -> None:
    assert DEFAULT in shipped_models()
    assert model_path(DEFAULT) == MODELS / DEFAULT


def test_a_file_or_folder_here_comes_before_a_model_that_ships(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("edge").mkdir()
    assert model_path("edge") == Path("edge")
    with pytest.raises(ds.UserError, match=r"edge: is neither a checkpoint file nor a folder with config\.json"):
        ds.load_student("edge")


def test_other_names_are_paths() -> None:
    assert model_path("exp/joint") == Path("exp/joint")
    assert model_path("EDGE") == Path("EDGE")
