"""A student's own folder: saved and loaded, damaged or wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import tone

import distilled_student as ds


def test_a_saved_student_is_loaded_unchanged(student_variant: ds.Student, tmp_path: Path) -> None:
    folder = tmp_path / "a folder"
    ds.save_student(student_variant, folder)
    loaded = ds.load_student(folder)
    assert loaded.config == student_variant.config
    wave = tone(1.0)[None]
    torch.testing.assert_close(loaded(wave).predictions, student_variant(wave).predictions, atol=0, rtol=0)
    permissions = {file.stat().st_mode for file in folder.iterdir()}
    assert len(permissions) == 1, "weights and configuration must have the same permissions"


def _change_settings(folder: Path, **values: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **values}))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"width": 3}, "config.json: width: unknown key"),
        ({"frontend": "mfcc"}, "config.json: frontend"),
        ({"heads": 5}, "config.json: heads"),
        ({"model_type": "hubert"}, "config.json: model_type"),
        ({"hidden_size": 32}, "model.safetensors: does not fit"),
    ],
)
def test_a_wrong_student_folder_is_refused_in_one_line(
    small_cnn: ds.StudentConfig, tmp_path: Path, values: dict[str, object], message: str
) -> None:
    ds.save_student(ds.build_student(small_cnn), tmp_path)
    _change_settings(tmp_path, **values)
    with pytest.raises(ds.UserError, match=message) as error:
        ds.load_student(tmp_path)
    assert "\n" not in str(error.value)


def test_truncated_weights_are_refused(small_cnn: ds.StudentConfig, tmp_path: Path) -> None:
    ds.save_student(ds.build_student(small_cnn), tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ds.UserError, match=r"model\.safetensors"):
        ds.load_student(tmp_path)
