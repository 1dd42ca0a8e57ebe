"""What a student takes from its teacher: parts that are the same, not parts whose shapes are the same."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from helpers.references import FORMS, SMALL, perturbed, save_fairseq, save_transformers
from torch import nn

import distilled_student as ds
from distilled_student.distillation.initialize import Initialization, initialize
from distilled_student.teachers.encoders import StudentEncoder
from distilled_student.teachers.open import open_teacher
from distilled_student.teachers.s3prl_encoder import S3prlEncoder

LAYERS = ["layer 1", "layer 2"]
BEFORE = ["front end", "projection norm", "projection", "positions", "first norm"]
DATA2VEC = {"conv_pos_kernel_size": 5, "num_conv_pos_embeddings": 2, "conv_bias": False}


def model_of(family: str, **keys: Any) -> nn.Module:
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**{**SMALL, **keys})
    return perturbed(getattr(transformers, f"{family}Model")(config))


def student(**changes: Any) -> ds.Student:
    torch.manual_seed(1)
    sizes = {"conv_dim": [16] * 7, "hidden_size": 32, "heads": 4, "feed_forward": 48, "position_kernel": 16}
    return ds.build_student(ds.StudentConfig(**{**sizes, "position_groups": 4, "targets": [], **changes}))


def taken(own: ds.Student, model: nn.Module, folder: Path) -> Initialization:
    """Initialise, and check that what was refused keeps its random weights."""
    before = {name: value.clone() for name, value in own.state_dict().items()}
    result = initialize(own, open_teacher(save_transformers(model, folder)))
    assert {n for n, value in own.state_dict().items() if not torch.equal(value, before[n])} <= result.names
    return result


def test_all_of_a_hubert_is_taken(tmp_path: Path) -> None:
    own, model = student(), model_of("Hubert")
    result = taken(own, model, tmp_path)
    assert (list(result.copied), result.refused) == ([*BEFORE, *LAYERS], {})
    theirs = model.encoder.layers[1].feed_forward.output_dense.weight
    assert torch.equal(own.layers[1].linear2.weight, theirs)


def test_layers_with_relative_positions_are_not_taken_and_the_reason_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    own, model = student(), model_of("WavLM")
    with caplog.at_level(logging.INFO):
        result = taken(own, model, tmp_path)
    assert list(result.copied) == BEFORE
    assert result.refused == {
        "layer 1": "attention: teacher gated relative positions, student plain",
        "layer 2": "without layer 1",
    }
    assert torch.equal(own.projection.weight, model.feature_projection.projection.weight)
    line = "not taken: layer 1 (attention: teacher gated relative positions, student plain); layer 2 (without layer 1)"
    assert line in caplog.text


def test_all_but_the_stacked_positions_of_data2vec_is_taken(tmp_path: Path) -> None:
    own, model = student(conv_norm="layer"), model_of("Data2VecAudio", **DATA2VEC)
    result = taken(own, model, tmp_path)
    assert list(result.copied) == ["front end", "projection norm", "projection", "first norm", *LAYERS]
    assert result.refused == {"positions": "kind: teacher 2 stacked convolutions, student one convolution"}
    assert torch.equal(own.frontend.layers[6].conv.weight, model.feature_extractor.conv_layers[6].conv.weight)
    assert torch.equal(own.layers[0].linear1.weight, model.encoder.layers[0].feed_forward.intermediate_dense.weight)


def test_the_student_of_the_preset_has_the_front_end_of_data2vec() -> None:
    from distilled_student.common.settings import find_config, read_yaml

    fields = read_yaml(find_config("data2vec-base", "distill"))["student"]
    size = {"hidden_size": 768, "num_hidden_layers": 2, "num_attention_heads": 12, "intermediate_size": 3072}
    with torch.device("meta"):
        model = transformers.Data2VecAudioModel(transformers.Data2VecAudioConfig(**size))
        own = ds.StudentConfig(**fields)
    assert own.conv_dim == list(model.config.conv_dim) and own.conv_bias == model.config.conv_bias


@pytest.mark.parametrize(
    ("family", "keys", "changes", "part", "reason"),
    [
        ("Hubert", {"hidden_act": "relu"}, {}, "layer 1", "activation: teacher relu, student gelu"),
        ("Hubert", {}, {"heads": 2}, "layer 1", "heads: teacher 4, student 2"),
        ("Hubert", {}, {"norm_first": True}, "layer 1", "norm: teacher post, student pre"),
        ("Hubert", FORMS["layer-pre"], {"conv_norm": "layer"}, "front end", "bias: teacher True, student False"),
        ("Hubert", {}, {"conv_norm": "layer"}, "front end", "norm: teacher group, student layer"),
        ("Hubert", {"conv_stride": [5, 2, 2, 2, 2, 2, 1]}, {}, "front end", "strides: teacher"),
        ("Hubert", {"conv_dim": [16] * 6 + [8]}, {}, "front end", "frontend.layers.6.conv.weight: teacher (8, 16, 2)"),
        ("Hubert", {"conv_pos_batch_norm": True}, {}, "positions", "kind: teacher one convolution with batch norm"),
        ("Hubert", {"num_conv_pos_embeddings": 8}, {}, "positions", "parametrizations.weight.original0: teacher"),
        ("Hubert", {"intermediate_size": 40}, {}, "layer 1", "layers.0.linear1.weight: teacher (40, 32)"),
        ("Wav2Vec2", {"adapter_attn_dim": 4}, {}, "layer 1", "attention: teacher plain, with adapters, student plain"),
        ("Wav2Vec2Conformer", {}, {}, "first norm", "norm: teacher pre, student post"),
        ("Wav2Vec2Conformer", {}, {}, "layer 1", "attention: teacher that of wav2vec2-conformer, student plain"),
        ("SEW", {"conv_kernel": [10, 3, 3, 3, 3, 2, 2], "conv_stride": [5, 2, 2, 2, 2, 2, 2]}, {}, "projection", "no "),
    ],
)
def test_a_part_of_another_kind_is_not_taken(
    family: str, keys: dict[str, Any], changes: dict[str, Any], part: str, reason: str, tmp_path: Path
) -> None:
    result = taken(student(**changes), model_of(family, **keys), tmp_path)
    assert reason in result.refused[part]
    assert part not in result.copied
    if part in ("front end", "projection"):
        assert result.copied == {} and result.refused["layer 1"] == f"without {part}"


@pytest.mark.parametrize("family", ["hubert", "wav2vec2"])
@pytest.mark.parametrize("form", FORMS)
def test_an_s3prl_model_gives_the_same_parts_as_the_same_model_read_as_a_student(
    family: str, form: str, tmp_path: Path
) -> None:
    file = save_fairseq(tmp_path / "converted.pt", family, SMALL, FORMS[form])
    from s3prl import hub

    ours, theirs = open_teacher(file), S3prlEncoder(getattr(hub, f"{family}_local")(ckpt=str(file)))
    changes = {"norm_first": "pre" in form, "conv_norm": form.split("-")[0], "conv_bias": FORMS[form]["conv_bias"]}
    first, second = student(**changes), student(**changes)
    results = initialize(first, ours), initialize(second, theirs)
    assert results[0] == results[1] and list(results[0].copied)[-1] == "layer 2"
    assert all(torch.equal(value, second.state_dict()[name]) for name, value in first.state_dict().items())


def test_layers_with_relative_positions_of_an_s3prl_model_are_not_taken() -> None:
    ds.register()
    from s3prl.upstream.wavlm.WavLM import WavLM, WavLMConfig

    from distilled_student.teachers.parts import parts_of_fairseq

    keys = {"encoder_layers": 1, "encoder_embed_dim": 32, "encoder_ffn_embed_dim": 48, "encoder_attention_heads": 4}
    relative = {"relative_position_embedding": True, "num_buckets": 8, "max_distance": 16, "gru_rel_pos": True}
    config = WavLMConfig({**keys, **relative, "conv_feature_layers": "[(16,10,5)] + [(16,3,2)] * 4"})
    parts = parts_of_fairseq(WavLM(config))
    assert parts["layers"] == {
        "attention": "gated relative positions",
        "heads": 4,
        "activation": "gelu",
        "norm": "post",
    }
    assert parts["front end"]["strides"] == [5, 2, 2, 2, 2]


def test_a_student_with_shared_layers_takes_one_layer(small_cnn: ds.StudentConfig) -> None:
    own = ds.build_student(dataclasses.replace(small_cnn, shared=True))
    result = initialize(own, StudentEncoder(ds.build_student(small_cnn)))
    assert list(result.copied) == [*BEFORE, "layer 1"]


def test_a_causal_student_takes_the_parts_of_a_teacher_that_uses_future_frames(
    small_logmel: ds.StudentConfig,
) -> None:
    config = dataclasses.replace(small_logmel, positions="none")
    teacher, own = ds.build_student(config), ds.build_student(dataclasses.replace(config, causal=True))
    result = initialize(own, StudentEncoder(teacher))
    assert {"front end", "layer 1"} <= set(result.copied) and result.made_causal
    assert "(made causal)" in result.describe()
    wavs, moved = torch.randn(1, 3200) * 0.1, torch.randn(1, 3200) * 0.1
    moved[:, :1600] = wavs[:, :1600]
    hidden = [own.eval()(x).last_hidden_state for x in (wavs, moved)]
    first = 1600 // config.frame_shift
    assert torch.equal(hidden[0][:, :first], hidden[1][:, :first])  # later samples change nothing


def test_a_student_that_uses_future_frames_takes_nothing_of_a_causal_teacher(small_logmel: ds.StudentConfig) -> None:
    config = dataclasses.replace(small_logmel, positions="none")
    teacher = ds.build_student(dataclasses.replace(config, causal=True))
    result = initialize(ds.build_student(config), StudentEncoder(teacher))
    assert result.copied == {} and result.refused["front end"] == "future frames: teacher False, student True"
