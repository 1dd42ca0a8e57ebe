"""With the same weights, a student's results equal those of the reference implementations."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tone
from helpers.references import (
    BASE,
    FORMS,
    KERNELS,
    SIZES,
    SMALL,
    STRIDES,
    save_distiller,
    save_fairseq,
    save_transformers,
    torchaudio_model,
    transformers_model,
)
from torch import Tensor, nn

import distilled_student as ds
from distilled_student.checkpoints.weight_names import student_weights

# Every form at the small size. At the width of HuBERT base each test has one of the two forms of published models.
CASES = [("small", form) for form in FORMS]
BATCHES = [torch.stack([tone(1.0, seed=seed) for seed in seeds]) for seeds in ([0], [1, 2, 3])]


def assert_equal(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> None:
    assert [x.shape for x in ours] == [x.shape for x in theirs]
    assert max(float((x - y).abs().max()) for x, y in zip(ours, theirs, strict=True)) <= 1e-5


def assert_equals_transformers(student: ds.Student, model: nn.Module) -> None:
    for waveforms in BATCHES:
        with torch.inference_mode():
            found, expected = student(waveforms), model(waveforms, output_hidden_states=True)
        # in pre-norm models of transformers 5, only last_hidden_state is taken after the final norm
        assert_equal(found.hidden_states, [*expected.hidden_states[:-1], expected.last_hidden_state])
        assert_equal([found.last_hidden_state], [expected.last_hidden_state])


@pytest.mark.parametrize(
    ("family", "size", "form"),
    [
        *[(family, *case) for family in ("hubert", "wav2vec2") for case in CASES],
        ("hubert", "base", "layer-pre"),
        ("wav2vec2", "base", "group-post"),
    ],
)
def test_a_student_equals_transformers(family: str, size: str, form: str, tmp_path: Path) -> None:
    model = transformers_model(family, **SIZES[size], **FORMS[form])
    assert_equals_transformers(ds.load_student(save_transformers(model, tmp_path)), model)


def test_a_student_equals_hubert_base_with_twelve_layers(tmp_path: Path) -> None:
    model = transformers_model("hubert")
    student = ds.load_student(save_transformers(model, tmp_path))
    assert (student.config.layers, student.config.hidden_size) == (12, 768)
    assert_equals_transformers(student, model)


def _config(size: dict[str, Any], form: dict[str, Any]) -> ds.StudentConfig:
    return ds.StudentConfig(
        conv_dim=size["conv_dim"],
        conv_kernel=KERNELS,
        conv_stride=STRIDES,
        conv_bias=form["conv_bias"],
        conv_norm=form["feat_extract_norm"],
        hidden_size=size["hidden_size"],
        layers=size["num_hidden_layers"],
        heads=size["num_attention_heads"],
        feed_forward=size["intermediate_size"],
        norm_first=form["do_stable_layer_norm"],
        position_kernel=size["num_conv_pos_embeddings"],
        position_groups=size["num_conv_pos_embedding_groups"],
        targets=[],
    )


@pytest.mark.parametrize(("size", "form"), [*CASES, ("base", "layer-pre")])
def test_a_student_equals_torchaudio(size: str, form: str) -> None:
    model = torchaudio_model(SIZES[size], FORMS[form])
    student = ds.build_student(_config(SIZES[size], FORMS[form])).eval()
    student.load_state_dict(student_weights(model.state_dict()))
    for waveforms in BATCHES:
        with torch.inference_mode():
            found = student(waveforms)
            layers, last = model.extract_features(waveforms)[0], model(waveforms)[0]
        # extract_features gives neither the input of the first layer nor the output of the final norm
        assert_equal(found.hidden_states[1:], [*layers[:-1], last])


@pytest.mark.parametrize(("size", "form"), [*CASES, ("base", "group-post")])
def test_a_student_equals_s3prls_distilhubert_with_its_predictions(size: str, form: str, tmp_path: Path) -> None:
    file = save_distiller(tmp_path / "distilled.ckpt", SIZES[size], FORMS[form])
    from s3prl import hub

    student, expert = ds.load_student(file), hub.distiller_local(ckpt=str(file)).eval()
    assert student.config.targets == [4, 8, 12]
    depth = student.config.layers
    for waveforms in BATCHES:
        with torch.inference_mode():
            found, expected = student(waveforms), list(expert(list(waveforms))["hidden_states"])
            # s3prl's first hidden state is taken before the positions, ours (as HuBERT's in s3prl) after them
            projected = student.projection(student.frontend(waveforms, torch.tensor([16_000] * len(waveforms)))[0])
            if student.config.norm_first:  # s3prl's last one is taken before the final norm, ours after it
                expected[depth] = expert.model.model.encoder.layer_norm(expected[depth])
        assert_equal([projected, *found.hidden_states[1:]], expected[: depth + 1])
        assert_equal(found.predictions.unbind(1), expected[depth + 1 :])


def test_a_single_prediction_layer_of_distilhubert_is_read(tmp_path: Path) -> None:
    file = save_distiller(tmp_path / "distilled.ckpt", SMALL, FORMS["group-post"], targets=(9,))
    from s3prl import hub

    with torch.inference_mode():
        expected = hub.distiller_local(ckpt=str(file)).eval()(list(BATCHES[1]))["hidden_states"]
        found = ds.load_student(file)(BATCHES[1])
    assert_equal([found.predictions[:, 0]], [expected[-1]])


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("form", ["group-post", "layer-pre"])
@pytest.mark.parametrize("family", ["hubert", "wav2vec2"])
def test_a_student_equals_s3prls_upstream_on_a_converted_checkpoint(
    family: str, form: str, normalize: bool, tmp_path: Path
) -> None:
    file = save_fairseq(tmp_path / "converted.pt", family, SMALL, FORMS[form], normalize)
    assert_equals_s3prl(family, file)


def test_a_student_equals_s3prls_hubert_at_the_width_of_base(tmp_path: Path) -> None:
    assert_equals_s3prl("hubert", save_fairseq(tmp_path / "converted.pt", "hubert", BASE, FORMS["group-post"]))


def assert_equals_s3prl(family: str, file: Path) -> None:
    from s3prl import hub

    student, upstream = ds.load_student(file), getattr(hub, f"{family}_local")(ckpt=str(file)).eval()
    for waveforms in BATCHES:
        with torch.inference_mode():
            assert_equal(student(waveforms).hidden_states, upstream(list(waveforms))["hidden_states"])
