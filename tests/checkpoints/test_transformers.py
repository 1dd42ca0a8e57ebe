"""A student written as a `transformers` folder: it is the same network there, and when it is read back."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import transformers
from conftest import tone
from helpers.references import perturbed

import distilled_student as ds

WAVE = tone(1.0)[None]


def saved(config: ds.StudentConfig, folder: Path, **options: Any) -> ds.Student:
    torch.manual_seed(0)
    student = perturbed(ds.build_student(config))
    ds.save_student(student, folder, format="transformers", **options)
    return student


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"targets": [], "target_size": 768, "prediction_size": 768},  # the default sizes, as none are stored
        {"conv_norm": "layer", "conv_bias": True, "norm_first": True, "normalize": True, "normalize_epsilon": 1e-5},
        {"conv_dim": [4, 8, 4, 8, 4, 8, 6], "projection_norm": False, "layers": 3, "dropout": 0.05},
    ],
)
def test_a_student_is_written_as_a_hubert_model_and_read_back_exactly(
    changes: dict[str, Any], small_cnn: ds.StudentConfig, tmp_path: Path
) -> None:
    student = saved(dataclasses.replace(small_cnn, **changes), tmp_path)
    model, loading = transformers.AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert type(model) is transformers.HubertModel
    assert not any(loading.values())
    waveforms = values = 40 * WAVE  # so loud that the epsilon added to the variance has no effect
    if student.config.normalize:
        extractor = transformers.AutoFeatureExtractor.from_pretrained(tmp_path)
        values = extractor(waveforms[0].numpy(), sampling_rate=16_000, return_tensors="pt").input_values
    with torch.inference_mode():  # in double precision, so that rounding errors hide no difference
        expected = copy.deepcopy(student).double()(waveforms.double())
        output = model.double().eval()(values.double(), output_hidden_states=True)
    theirs = [*output.hidden_states[:-1], output.last_hidden_state]
    for one, other in zip(expected.hidden_states, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)
    again = ds.load_student(tmp_path)
    assert again.config == student.config
    assert again.state_dict().keys() == student.state_dict().keys()
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in student.state_dict().items())


def test_the_paper_student_is_written_for_transformers_and_read_back(tmp_path: Path) -> None:
    student = saved(ds.named_size("paper"), tmp_path)
    model = transformers.AutoModel.from_pretrained(tmp_path)
    assert model.num_parameters() == 23_492_992  # ours, and HubertModel's embedding of masked frames
    again = ds.load_student(tmp_path)
    assert round(sum(p.numel() for p in again.parameters()) / 1e6, 2) == 27.04
    with torch.inference_mode():
        expected, found, theirs = student(WAVE), again(WAVE), model(WAVE)
    assert torch.equal(found.predictions, expected.predictions)
    torch.testing.assert_close(theirs.last_hidden_state, expected.last_hidden_state, atol=1e-5, rtol=0)


def test_half_precision_halves_the_folder(small_cnn: ds.StudentConfig, tmp_path: Path) -> None:
    student = saved(small_cnn, tmp_path, dtype=torch.float16)
    files = ("model.safetensors", "predictions.safetensors")
    stored = [value.dtype for file in files for value in safetensors.torch.load_file(tmp_path / file).values()]
    assert set(stored) == {torch.float16}
    again = ds.load_student(tmp_path).state_dict()
    assert all(torch.equal(again[name], value.half().float()) for name, value in student.state_dict().items())


def test_prediction_layers_of_an_earlier_student_are_deleted(small_cnn: ds.StudentConfig, tmp_path: Path) -> None:
    saved(small_cnn, tmp_path)
    saved(dataclasses.replace(small_cnn, targets=[]), tmp_path)
    assert ds.load_student(tmp_path).predictions is None


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"conv_norm": "none"}, "conv_norm"),
        ({"positions": "none"}, "positions"),
        ({"conv_dim": [8] * 6 + [16], "projection": False}, "projection"),
        ({"frontend": "logmel", "conv_norm": "layer"}, "frontend"),
    ],
)
def test_a_student_that_hubert_model_does_not_support_is_refused_and_the_key_is_named(
    changes: dict[str, Any], key: str, small_cnn: ds.StudentConfig, tmp_path: Path
) -> None:
    with pytest.raises(ds.UserError, match=rf"cannot be written as a transformers folder: {key}: "):
        saved(dataclasses.replace(small_cnn, **changes), tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


def test_an_unknown_format_is_refused_and_known_ones_are_listed(small_cnn: ds.StudentConfig, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="distilled_student, transformers"):
        ds.save_student(ds.build_student(small_cnn), tmp_path, format="onnx")


def test_a_foreign_file_of_prediction_layers_is_refused(small_cnn: ds.StudentConfig, tmp_path: Path) -> None:
    saved(small_cnn, tmp_path)
    safetensors.torch.save_file({"weight": torch.zeros(3)}, tmp_path / "predictions.safetensors")
    with pytest.raises(ds.UserError, match=r"predictions.safetensors: does not contain prediction layers"):
        ds.load_student(tmp_path)
