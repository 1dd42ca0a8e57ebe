"""Checkpoints of other libraries that are read as students."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import transformers
from conftest import tone
from helpers.references import FORMS, SMALL, save_distiller, save_fairseq, save_transformers, transformers_model

import distilled_student as ds

WAVE = tone(1.0)[None]
GROUP_POST, LAYER_PRE = FORMS["group-post"], FORMS["layer-pre"]


def last_hidden_state(path: Path) -> torch.Tensor:
    with torch.inference_mode():
        return ds.load_student(path)(WAVE).last_hidden_state


def edit(file: Path, **values: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


@pytest.fixture
def hubert(tmp_path: Path) -> Path:
    return save_transformers(transformers_model("hubert", **SMALL), tmp_path / "hubert")


def shard(folder: Path) -> None:
    state = safetensors.torch.load_file(folder / "model.safetensors")
    names = {name: f"model-{1 + i % 2:05d}-of-00002.safetensors" for i, name in enumerate(sorted(state))}
    for file in set(names.values()):
        safetensors.torch.save_file({n: state[n] for n in state if names[n] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    (folder / "model.safetensors").unlink()


def pickle_with_old_weight_norm_names(folder: Path) -> None:
    state = safetensors.torch.load_file(folder / "model.safetensors")
    ending = {"original0": "weight_g", "original1": "weight_v"}
    old = {re.sub(r"parametrizations\.weight\.(\w+)$", lambda m: ending[m[1]], n): v for n, v in state.items()}
    assert set(old) != set(state)
    torch.save(old, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


@pytest.mark.parametrize("rewrite", [shard, pickle_with_old_weight_norm_names])
def test_weights_are_read_from_every_file_format(rewrite: Callable[[Path], None], hubert: Path) -> None:
    expected = last_hidden_state(hubert)
    rewrite(hubert)
    torch.testing.assert_close(last_hidden_state(hubert), expected, atol=0, rtol=0)


@pytest.mark.parametrize(
    "name",
    [
        "HubertForCTC",
        "HubertForSequenceClassification",
        "Wav2Vec2ForPreTraining",
        "Wav2Vec2ForXVector",
        "Wav2Vec2ForAudioFrameClassification",
    ],
)
def test_a_model_with_a_head_is_read_without_its_head(name: str, tmp_path: Path) -> None:
    model_class = getattr(transformers, name)
    torch.manual_seed(0)
    model = model_class(model_class.config_class(**SMALL, use_weighted_layer_sum=True)).eval()
    save_transformers(model, tmp_path)
    with torch.inference_mode():
        expected = model.base_model(WAVE).last_hidden_state
    torch.testing.assert_close(last_hidden_state(tmp_path), expected, atol=1e-5, rtol=0)


# the keys of ntu-spml/distilhubert's config.json that affect the network
DISTILHUBERT = {
    "apply_spec_augment": False,
    "conv_bias": False,
    "do_stable_layer_norm": False,
    "feat_extract_norm": "group",
    "feat_proj_dropout": 0.0,
    "feat_proj_layer_norm": False,
    "layerdrop": 0.0,
    "mask_time_prob": 0.05,
    "num_hidden_layers": 2,
}


def test_distilhuberts_folder_is_read(tmp_path: Path) -> None:
    model = transformers_model("hubert", **{**SMALL, **DISTILHUBERT})
    save_transformers(model, tmp_path)
    with torch.inference_mode():
        expected = model(WAVE).last_hidden_state
    torch.testing.assert_close(last_hidden_state(tmp_path), expected, atol=1e-5, rtol=0)
    config = ds.load_student(tmp_path).config
    assert (config.layers, config.projection_norm, config.targets) == (2, False, [])


@pytest.mark.parametrize("processor", [False, True])
def test_normalisation_of_waveforms_is_read_from_either_file_of_transformers(processor: bool, tmp_path: Path) -> None:
    model = transformers_model("wav2vec2", **SMALL, **LAYER_PRE)
    save_transformers(model, tmp_path, normalize=True)
    extractor = transformers.Wav2Vec2FeatureExtractor.from_pretrained(tmp_path)
    if processor:  # as transformers 5 saves a processor
        preprocessor = tmp_path / "preprocessor_config.json"
        values = {"feature_extractor": json.loads(preprocessor.read_text()), "processor_class": "Wav2Vec2Processor"}
        (tmp_path / "processor_config.json").write_text(json.dumps(values))
        preprocessor.unlink()
    values = extractor(WAVE[0].numpy(), sampling_rate=16_000, return_tensors="pt").input_values
    with torch.inference_mode():
        expected, without_normalisation = model(values).last_hidden_state, model(WAVE).last_hidden_state
    assert (expected - without_normalisation).abs().max() > 1e-3
    torch.testing.assert_close(last_hidden_state(tmp_path), expected, atol=1e-5, rtol=0)


def test_a_folder_without_settings_for_normalisation_causes_a_warning(
    hubert: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (hubert / "preprocessor_config.json").unlink()
    with caplog.at_level(logging.WARNING):
        assert ds.load_student(hubert).config.normalize is False
    assert "no preprocessor_config.json" in caplog.text


@pytest.fixture(params=["transformers", "distilhubert", "fairseq"])
def foreign(request: pytest.FixtureRequest, hubert: Path, tmp_path: Path) -> Path:
    if request.param == "distilhubert":
        return save_distiller(tmp_path / "d.ckpt", SMALL, GROUP_POST)
    if request.param == "fairseq":
        return save_fairseq(tmp_path / "w.pt", "wav2vec2", SMALL, LAYER_PRE, normalize=True)
    return hubert


def test_a_foreign_checkpoint_can_be_an_upstream_and_a_teacher(foreign: Path) -> None:
    ds.register()
    from s3prl import hub

    student = ds.load_student(foreign)
    with torch.inference_mode():
        expected = student(WAVE)
        features = hub.distilled_student(ckpt=str(foreign)).eval()(list(WAVE))
        teacher = hub.teacher(ckpt=str(foreign)).eval()(list(WAVE))
    for found in (features, teacher):
        for ours, theirs in zip(found["hidden_states"], expected.hidden_states, strict=True):
            assert torch.equal(ours[:, :49], theirs)
    assert ("predictions" in features) == (student.predictions is not None)


def test_a_foreign_checkpoint_saved_in_our_format_is_the_same_student(foreign: Path, tmp_path: Path) -> None:
    student = ds.load_student(foreign)
    ds.save_student(student, tmp_path / "ours")
    again = ds.load_student(tmp_path / "ours")
    assert again.config == student.config
    assert torch.equal(again(WAVE).last_hidden_state, student(WAVE).last_hidden_state)
