"""Folders of `transformers` in every form that the hub has: heads, shards, variants, names on the hub, positions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import transformers
from conftest import tone
from helpers.references import SMALL, perturbed, save_transformers, transformers_model
from torch import Tensor, nn

import distilled_student as ds
from distilled_student.checkpoints.hub import hub_revision, may_be_on_hub
from distilled_student.host.upstreams import student_upstream, teacher_upstream
from distilled_student.teachers.open import open_teacher

WAVE = tone(1.0)[None]
HEADS = {
    "HubertForCTC": {"vocab_size": 8},
    "HubertForSequenceClassification": {"use_weighted_layer_sum": True, "num_labels": 3},
    "Wav2Vec2ForCTC": {"vocab_size": 8},
    "Wav2Vec2ForSequenceClassification": {"use_weighted_layer_sum": True, "num_labels": 3},
    "Wav2Vec2ForAudioFrameClassification": {"use_weighted_layer_sum": True, "num_labels": 3},
    "Wav2Vec2ForXVector": {"tdnn_dim": [8, 8, 8, 8, 12], "xvector_output_dim": 8, "num_labels": 3},
    "Wav2Vec2ForPreTraining": {"codevector_dim": 8, "proj_codevector_dim": 8, "num_codevectors_per_group": 4},
}
WHISPER = {
    "d_model": 32,
    "encoder_layers": 3,
    "encoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_layers": 1,
    "decoder_attention_heads": 4,
    "decoder_ffn_dim": 48,
    "vocab_size": 100,
    "pad_token_id": 1,
    "bos_token_id": 2,
    "eos_token_id": 3,
    "decoder_start_token_id": 4,
}


def whisper(name: str = "WhisperForConditionalGeneration", **keys: Any) -> nn.Module:
    torch.manual_seed(0)
    return perturbed(getattr(transformers, name)(transformers.WhisperConfig(**WHISPER, **keys)))


def whispers_last_state(encoder: nn.Module, wave: Tensor) -> Tensor:
    features = transformers.WhisperFeatureExtractor()(wave[0].numpy(), sampling_rate=16_000, return_tensors="pt")
    with torch.no_grad():
        return encoder(features.input_features).last_hidden_state


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("read", ["load_student", "open_teacher"])
@torch.no_grad()
def test_a_model_with_a_head_is_read_without_it(name: str, read: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = getattr(transformers, f"{name.partition('For')[0]}Config")(**SMALL, **HEADS[name])
    model = perturbed(getattr(transformers, name)(config))
    save_transformers(model, tmp_path)
    expected = getattr(model, model.base_model_prefix)(WAVE).last_hidden_state
    found = {"load_student": ds.load_student, "open_teacher": open_teacher}[read](tmp_path)(WAVE).hidden_states[-1]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("weighted", [False, True])
@torch.no_grad()
def test_whisper_with_a_classification_head_is_read_without_it(weighted: bool, tmp_path: Path) -> None:
    model = whisper("WhisperForAudioClassification", use_weighted_layer_sum=weighted, num_labels=3)
    model.save_pretrained(tmp_path)
    wave = torch.nn.functional.pad(WAVE, (0, 480_000 - WAVE.shape[1]))
    found = ds.load_student(tmp_path)(wave).last_hidden_state
    torch.testing.assert_close(found, whispers_last_state(model.encoder, wave), atol=1e-4, rtol=1e-4)


def test_a_model_with_an_adapter_is_read_without_it(tmp_path: Path) -> None:
    model = transformers_model("wav2vec2", **SMALL, add_adapter=True)
    student = ds.load_student(save_transformers(model, tmp_path))
    with torch.no_grad():
        expected = model(WAVE, output_hidden_states=True).hidden_states
        found = student(WAVE)
    assert found.lengths.tolist() == [49]
    for ours, theirs in zip(found.hidden_states, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def pickled(state: dict[str, Tensor], file: Path) -> None:
    torch.save(state, file)


def safe(state: dict[str, Tensor], file: Path) -> None:
    safetensors.torch.save_file(state, file, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("whole", "shard", "index", "save"),
    [
        ("pytorch_model.bin", "pytorch_model-{}.bin", "pytorch_model.bin.index.json", pickled),
        ("model.fp16.safetensors", "model.fp16-{}.safetensors", "model.safetensors.index.fp16.json", safe),
        ("pytorch_model.fp16.bin", "pytorch_model.fp16-{}.bin", "pytorch_model.bin.index.fp16.json", pickled),
    ],
)
@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("family", ["Hubert", "WavLM"])
@torch.no_grad()
def test_weights_in_other_files_are_read(
    family: str, sharded: bool, whole: str, shard: str, index: str, save: Any, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = getattr(transformers, f"{family}Model")(getattr(transformers, f"{family}Config")(**SMALL))
    save_transformers(perturbed(model), tmp_path)
    state = safetensors.torch.load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    names = sorted(state)
    if sharded:
        parts = {shard.format("00001-of-00002"): names[::2], shard.format("00002-of-00002"): names[1::2]}
        for file, part in parts.items():
            save({name: state[name] for name in part}, tmp_path / file)
        weight_map = {name: file for file, part in parts.items() for name in part}
        (tmp_path / index).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    else:
        save(state, tmp_path / whole)
    torch.testing.assert_close(
        open_teacher(tmp_path)(WAVE).hidden_states[-1], model(WAVE).last_hidden_state, atol=1e-5, rtol=0
    )


def test_weights_of_float16_and_without_a_variant_are_preferred_in_the_right_order(tmp_path: Path) -> None:
    model = transformers_model("hubert", **SMALL)
    save_transformers(model, tmp_path)
    state = safetensors.torch.load_file(tmp_path / "model.safetensors")
    safe({name: torch.zeros_like(value) for name, value in state.items()}, tmp_path / "model.fp16.safetensors")
    assert torch.equal(ds.load_student(tmp_path).projection.weight, model.feature_projection.projection.weight)


def test_an_index_that_names_a_weight_which_its_file_lacks_is_refused(tmp_path: Path) -> None:
    save_transformers(transformers_model("hubert", **SMALL), tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "model-1.safetensors")
    content = {"weight_map": {"absent.weight": "model-1.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(content))
    with pytest.raises(ds.UserError, match=r"weight_map: absent.weight: is not in model-1.safetensors"):
        ds.load_student(tmp_path)


def test_weights_of_another_library_are_named(tmp_path: Path) -> None:
    save_transformers(transformers_model("hubert", **SMALL), tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "tf_model.h5")
    with pytest.raises(ds.UserError, match=r"has no model.safetensors.*; tf_model.h5 is not read"):
        ds.load_student(tmp_path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_whispers_sinusoids_in_half_precision_are_accepted(dtype: torch.dtype, tmp_path: Path) -> None:
    model = whisper().to(dtype).float()
    with torch.no_grad():  # `perturbed` does not touch them
        assert float(model.model.encoder.embed_positions.weight.abs().max()) <= 1
    model.save_pretrained(tmp_path)
    assert ds.load_student(tmp_path).config.positions == "sinusoidal"


@pytest.mark.parametrize("read", [ds.load_student, open_teacher])
@pytest.mark.parametrize("name", ["WhisperForConditionalGeneration", "WhisperModel", "WhisperForAudioClassification"])
def test_whispers_trained_positions_are_refused(name: str, read: Any, tmp_path: Path) -> None:
    model = whisper(name)
    encoder = model.encoder if name == "WhisperForAudioClassification" else model.get_encoder()
    with torch.no_grad():
        encoder.embed_positions.weight[7, 3] += 0.01
    model.save_pretrained(tmp_path)
    with pytest.raises(ds.UserError, match=r"embed_positions.weight: trained positions, up to 0.01 from the sinusoids"):
        read(tmp_path)


@pytest.mark.parametrize(("key", "value"), [("sampling_rate", 8000), ("hop_length", 320), ("feature_size", 128)])
def test_whisper_with_another_log_mel_is_refused(key: str, value: int, tmp_path: Path) -> None:
    whisper().save_pretrained(tmp_path)
    transformers.WhisperFeatureExtractor().save_pretrained(tmp_path)
    file = tmp_path / "preprocessor_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), key: value}))
    with pytest.raises(ds.UserError, match=rf"preprocessor_config.json: {key}: "):
        ds.load_student(tmp_path)


def test_whispers_waveforms_are_normalised_where_its_preprocessor_does(tmp_path: Path) -> None:
    model = whisper()
    model.save_pretrained(tmp_path)
    extractor = transformers.WhisperFeatureExtractor(do_normalize=True)
    extractor.save_pretrained(tmp_path)
    wave = 0.3 * torch.nn.functional.pad(tone(30.0), (0, 480_000 - len(tone(30.0)))) + 0.1
    features = extractor(wave.numpy(), sampling_rate=16_000, return_tensors="pt", do_normalize=True)
    with torch.no_grad():
        expected = model.get_encoder()(features.input_features).last_hidden_state
        found = ds.load_student(tmp_path)(wave[None]).last_hidden_state
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The snapshot of ``someone/hubert`` in a local cache of the hub, empty."""
    repository = tmp_path / "models--someone--hubert"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0123abcd")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return repository / "snapshots" / "0123abcd"


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "model.fp16.safetensors"])
def test_load_student_takes_a_name_on_the_hub(name: str, hub_cache: Path) -> None:
    save_transformers(transformers_model("hubert", **SMALL), hub_cache)
    expected = ds.load_student(hub_cache)(WAVE).last_hidden_state
    if name != "model.safetensors":
        state = safetensors.torch.load_file(hub_cache / "model.safetensors")
        (hub_cache / "model.safetensors").unlink()
        (pickled if name.endswith("bin") else safe)(state, hub_cache / name)
    for student in (ds.load_student("someone/hubert"), open_teacher("someone/hubert").student):
        assert torch.equal(student(WAVE).last_hidden_state, expected)
        assert student.revision == "0123abcd"
    assert open_teacher("someone/hubert").revision == "0123abcd"
    assert teacher_upstream("someone/hubert").revision == student_upstream("someone/hubert").revision == "0123abcd"


def test_load_student_takes_a_student_of_ours_on_the_hub(hub_cache: Path, small_cnn: ds.StudentConfig) -> None:
    student = ds.build_student(small_cnn).eval()
    ds.save_student(student, hub_cache)
    assert torch.equal(ds.load_student("someone/hubert")(WAVE).predictions, student(WAVE).predictions)


def test_a_name_that_is_neither_here_nor_on_the_hub_is_refused(hub_cache: Path) -> None:
    with pytest.raises(ds.UserError, match=r"someone/else: no such file or folder, and not found on the hub"):
        ds.load_student("someone/else")


def test_a_wrong_path_is_not_looked_up_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("exp").mkdir()
    assert not any(map(may_be_on_hub, ["exp/studnet", "./a/b", "/a/b", "a", "a/b/c", "../a"]))
    assert may_be_on_hub("facebook/hubert-base-ls960")


def test_the_revision_of_a_hub_model_is_that_of_its_snapshot() -> None:
    assert hub_revision("/cache/models--a--b/snapshots/0123abcd") == "0123abcd"
    assert hub_revision("exp/student") is None
