"""Checkpoints with a network that no student has, or damaged ones: refused in one line that names file and problem."""

from __future__ import annotations

import argparse
import json
import os
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from helpers.references import FORMS, SMALL, save_distiller, save_fairseq, save_transformers, transformers_model

import distilled_student as ds
from distilled_student.checkpoints.foreign_config import parse_conv_layers
from distilled_student.common.files import read_torch
from distilled_student.teachers.open import open_teacher

GROUP_POST = FORMS["group-post"]


def edit(file: Path, **values: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


@pytest.fixture
def hubert(tmp_path: Path) -> Path:
    return save_transformers(transformers_model("hubert", **SMALL), tmp_path / "hubert")


def assert_refused(path: Path, message: str) -> None:
    with pytest.raises(ds.UserError, match=message) as error:
        ds.load_student(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model_type": "wavlm"}, "model_type: 'wavlm' is not one of distilled_student, hubert, wav2vec2, whisper"),
        ({"hidden_act": "relu"}, "hidden_act: 'relu' is not supported by a student, which has gelu"),
        ({"layer_norm_eps": 1e-6}, "layer_norm_eps"),
        ({"conv_pos_batch_norm": True}, "conv_pos_batch_norm"),
        ({"num_attention_heads": 5}, "heads"),
        ({"hidden_size": "many"}, "hidden_size: expected int, found 'many'"),
        (
            {"intermediate_size": 40},
            r"transformers' hubert\): does not fit .* wrong shape: layers.0.linear1.weight",
        ),
        ({"num_hidden_layers": 4}, r"missing: layers.3.self_attn.in_proj_weight(, layers.3.[\w.]+){11}$"),
        ({"num_hidden_layers": 2}, r"unexpected: layers.2.[\w.]+(, layers.2.[\w.]+){11}$"),
    ],
)
def test_a_transformers_folder_that_does_not_fit_is_refused_and_the_keys_are_named(
    values: dict[str, Any], message: str, hubert: Path
) -> None:
    edit(hubert / "config.json", **values)
    assert_refused(hubert, message)


def test_an_unknown_weight_is_refused_and_named(hubert: Path) -> None:
    file = hubert / "model.safetensors"
    state = safetensors.torch.load_file(file)
    safetensors.torch.save_file({**state, "encoder.layers.0.adapter_layer.norm.weight": torch.zeros(3)}, file)
    assert_refused(hubert, "unexpected: encoder.layers.0.adapter_layer.norm.weight$")


def test_a_missing_projection_of_attention_is_refused_and_the_weights_are_named(hubert: Path) -> None:
    file = hubert / "model.safetensors"
    state = safetensors.torch.load_file(file)
    del state["encoder.layers.1.attention.k_proj.weight"]
    safetensors.torch.save_file(state, file)
    assert_refused(hubert, r"missing: layers.1.self_attn.in_proj_weight.*unexpected: .*layers.1.self_attn.q.weight")


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("q_proj.bias", None),
        ("v_proj.bias", None),
        ("q_proj.weight", (40, 48)),
        ("k_proj.weight", ()),
        ("k_proj.bias", (1,)),
    ],
)
def test_attention_with_missing_or_misshapen_weights_is_refused(
    name: str, shape: tuple[int, ...] | None, hubert: Path
) -> None:
    file = hubert / "model.safetensors"
    state = safetensors.torch.load_file(file)
    changed = {f"encoder.layers.1.attention.{name}": torch.zeros(shape)} if shape is not None else {}
    state.pop(f"encoder.layers.1.attention.{name}")
    safetensors.torch.save_file({**state, **changed}, file)
    assert_refused(hubert, r"missing: layers.1.self_attn.in_proj_weight, .*unexpected: .*layers.1.self_attn.")


@pytest.mark.parametrize("registered", [True, False])
def test_reading_a_checkpoint_does_not_change_the_classes_that_torch_may_load(registered: bool, tmp_path: Path) -> None:
    file = save_distiller(tmp_path / "d.ckpt", SMALL, GROUP_POST)
    before, wanted = torch.serialization.get_safe_globals(), [argparse.Namespace] if registered else []
    torch.serialization.clear_safe_globals()
    torch.serialization.add_safe_globals(wanted)
    try:
        ds.load_student(file)
        assert torch.serialization.get_safe_globals() == wanted
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)


def test_prediction_layers_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    file = save_distiller(tmp_path / "d.ckpt", SMALL, GROUP_POST)
    loaded = read_torch(file)
    loaded["Distiller"]["output_layer.2.bias"] = loaded["Distiller"]["output_layer.2.bias"][..., :1, :]
    torch.save(loaded, file)
    assert_refused(file, r"missing: predictions.outputs.0.weight.*unexpected: output_layer.2.weight")


@pytest.mark.parametrize("value", [None, 7])
def test_a_setting_of_the_wrong_type_is_named(value: object, hubert: Path) -> None:
    edit(hubert / "config.json", conv_dim=value)
    assert_refused(hubert, f"conv_dim: expected a list, found {value}")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_folder_without_one_of_its_files_is_refused(name: str, hubert: Path) -> None:
    (hubert / name).unlink()
    assert_refused(hubert, name)


@pytest.mark.parametrize(("content", "message"), [([], "is not a mapping"), ({"step": 3}, "step: is not a tensor")])
def test_a_pickled_folder_without_weights_is_refused(content: object, message: str, hubert: Path) -> None:
    (hubert / "model.safetensors").unlink()
    torch.save(content, hubert / "pytorch_model.bin")
    assert_refused(hubert, f"pytorch_model.bin: {message}")


@pytest.mark.parametrize("shards", [None, [], {"norm.weight": 3}, {"norm.weight": "absent.safetensors"}])
def test_an_index_without_its_files_is_refused(shards: object, hubert: Path) -> None:
    (hubert / "model.safetensors").unlink()
    (hubert / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    assert_refused(hubert, r"weight_map: missing|absent.safetensors: cannot be read as safetensors")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task_emb_type": "self-hidden"}, r"\(s3prl's DistilHuBERT\): Config.distiller: task_emb_type: 'self-hidden'"),
        ({"attention_type": "sparse"}, "attention_type"),
        ({"extractor_mode": "other"}, "extractor_mode"),
        ({"extractor_conv_feature_layers": "__import__('os').getcwd()"}, "conv_feature_layers: .* is not of the form"),
        ({"encoder_layers": 4}, r"does not fit its configuration: missing: layers.3"),
        ({"pred_layer_id": [4, 8]}, r"unexpected: predictions.outputs.2.weight.*wrong shape: predictions.hidden"),
    ],
)
def test_a_distilhubert_with_unsupported_settings_is_refused_and_the_key_is_named(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    assert_refused(save_distiller(tmp_path / "d.ckpt", SMALL, GROUP_POST, **changes), message)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pos_conv_depth": 5}, r"converted by s3prl\): model_cfg: pos_conv_depth: '5' is not supported by a student"),
        ({"layer_type": "conformer"}, "layer_type"),
        ({"conv_bias": True}, "missing: frontend.layers.0.conv.bias"),
    ],
)
def test_a_converted_checkpoint_with_unsupported_settings_is_refused_and_the_key_is_named(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    assert_refused(save_fairseq(tmp_path / "w.pt", "wav2vec2", SMALL, GROUP_POST, **changes), message)


class Harmful:
    """An object that creates a folder when its pickle is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_a_checkpoint_with_other_pickled_objects_is_refused_and_runs_no_code(tmp_path: Path) -> None:
    torch.save({"Config": Harmful(tmp_path / "ran"), "Distiller": {}}, tmp_path / "d.ckpt")
    assert_refused(tmp_path / "d.ckpt", "holds the pickled object posix.mkdir, which could run code: refused")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"weight": torch.zeros(1)}, "is neither s3prl's DistilHuBERT .* found weight$"),
        (
            {"model": {}, "args": argparse.Namespace()},
            r"convert it first with s3prl's upstream/hubert or wav2vec2/convert",
        ),
        ([1, 2], "found list$"),
        ({"Config": 3, "Distiller": {}}, "Config: is not a mapping"),
        ({"Config": {}, "Distiller": {}}, "Config.distiller: is not a mapping"),
        ({"Config": {"distiller": {}}, "Distiller": {"a": 1}}, "Distiller: a: is not a tensor"),
    ],
)
def test_a_torch_file_without_a_student_is_refused_and_its_content_is_named(
    content: object, message: str, tmp_path: Path
) -> None:
    torch.save(content, tmp_path / "file.pt")
    assert_refused(tmp_path / "file.pt", message)


def test_a_checkpoint_written_by_fairseq_is_refused_and_the_message_says_how_to_convert_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("fairseq", "fairseq.data", "fairseq.data.dictionary"):  # fairseq need not be installed
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    dictionary = type("Dictionary", (), {"__module__": "fairseq.data.dictionary"})
    sys.modules["fairseq.data.dictionary"].Dictionary = dictionary
    torch.save({"model": {}, "task_state": {"dictionaries": [dictionary()]}}, tmp_path / "hubert.pt")
    assert_refused(tmp_path / "hubert.pt", "fairseq.data.dictionary.Dictionary, .* convert it first")


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04torn"])
def test_a_file_not_written_by_torch_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "file.pt").write_bytes(content)
    assert_refused(tmp_path / "file.pt", "torch file")


def test_the_error_for_a_teacher_says_why_it_cannot_be_loaded(tmp_path: Path) -> None:
    (tmp_path / "file.pt").write_bytes(b"text")
    with pytest.raises(
        ds.UserError, match=r"teacher .*file.pt: cannot be loaded \(.*file.pt: cannot be read as a torch file"
    ):
        open_teacher(tmp_path / "file.pt")


@pytest.mark.parametrize(
    "text",
    [
        "[(512,10,5)] + [(512,3,2)] * 4 + [(512,2,2)] * 2",
        " [(512, 10, 5), (512,3,2)] + [(512,3,2)]*3+[(512,2,2),(512,2,2)]",
    ],
)
def test_fairseqs_description_of_a_front_end_is_parsed(text: str) -> None:
    assert parse_conv_layers(text) == [(512, 10, 5), *[(512, 3, 2)] * 4, *[(512, 2, 2)] * 2]


@pytest.mark.parametrize("text", ["", "[]", "[(512,10)]", "[(512,10,5)] * 2 * 3", "[(512,10,5)] + exit()", None])
def test_any_other_expression_for_a_front_end_is_refused(text: str | None) -> None:
    with pytest.raises(ValueError, match="conv_feature_layers"):
        parse_conv_layers(text)
