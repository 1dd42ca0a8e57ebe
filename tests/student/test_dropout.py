"""Each kind of dropout acts where it is configured, in training only, and is read from foreign configurations apart."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from conftest import tone
from helpers.references import FORMS, SMALL, save_distiller, save_fairseq, save_transformers, transformers_model

import distilled_student as ds
from distilled_student.teachers.open import open_teacher

WAVE = tone(0.5)[None]
APART = {"dropout": 0.1, "attention_dropout": 0.2, "activation_dropout": 0.3, "projection_dropout": 0.4}


def rates(config: ds.StudentConfig, training: bool, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[float]]:
    """The probabilities that torch's dropout and attention are called with, in order, where they act."""
    found: dict[str, list[float]] = {"dropout": [], "attention": []}
    dropout, attention = F.dropout, F.scaled_dot_product_attention

    def record(x: Any, p: float = 0.5, training: bool = True, inplace: bool = False) -> Any:
        if training and p:
            found["dropout"].append(p)
        return dropout(x, p, training, inplace)

    def attend(*tensors: Any, dropout_p: float = 0.0, **options: Any) -> Any:
        if dropout_p:
            found["attention"].append(dropout_p)
        return attention(*tensors, dropout_p=dropout_p, **options)

    monkeypatch.setattr(F, "dropout", record)
    monkeypatch.setattr(F, "scaled_dot_product_attention", attend)
    ds.build_student(config).train(training)(WAVE)
    return found


def test_each_dropout_acts_at_its_own_place(small_cnn: ds.StudentConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    config = dataclasses.replace(small_cnn, layers=1, **APART)
    # after the projection, after positions and norm; in the layer: after attention, activation and feed-forward part
    assert rates(config, True, monkeypatch) == {"dropout": [0.4, 0.1, 0.1, 0.3, 0.1], "attention": [0.2]}
    assert rates(config, False, monkeypatch) == {"dropout": [], "attention": []}


def test_without_further_settings_one_dropout_is_that_of_all_layers(
    small_cnn: ds.StudentConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = rates(dataclasses.replace(small_cnn, layers=1, dropout=0.25), True, monkeypatch)
    assert found == {"dropout": [0.25] * 4, "attention": [0.25]}


def test_layerdrop_skips_that_share_of_the_layers_in_training_only(small_cnn: ds.StudentConfig) -> None:
    torch.manual_seed(0)
    config = dataclasses.replace(small_cnn, dropout=0.0, layers=200, layerdrop=0.3, targets=[])
    student = ds.build_student(config)
    states = student.train()(WAVE[:, :1000]).hidden_states
    skipped = sum(torch.equal(one, two) for one, two in itertools.pairwise(states))
    assert 40 <= skipped <= 80  # of 200 with probability 0.3: 60, four standard deviations of 6.5 apart
    states[-1].sum().backward()
    assert all(parameter.grad is not None for parameter in student.layers.parameters())  # several processes need that
    states = student.eval()(WAVE[:, :1000]).hidden_states
    assert not any(torch.equal(one, two) for one, two in itertools.pairwise(states))


def found_in(config: ds.StudentConfig) -> list[float]:
    """hidden, attention, activation, projection dropout and layerdrop."""
    hidden = config.dropout
    apart = (hidden if value is None else value for value in (config.attention_dropout, config.activation_dropout))
    return [hidden, *apart, config.projection_dropout, config.layerdrop]


def test_dropouts_of_transformers_are_read_and_written_apart(tmp_path: Path) -> None:
    keys = {"hidden_dropout": 0.15, "attention_dropout": 0.2, "activation_dropout": 0.25}
    keys |= {"feat_proj_dropout": 0.3, "layerdrop": 0.35}
    student = ds.load_student(save_transformers(transformers_model("hubert", **SMALL, **keys), tmp_path))
    assert found_in(student.config) == [0.15, 0.2, 0.25, 0.3, 0.35]
    ds.save_student(student, tmp_path / "again", format="transformers")
    written = transformers.AutoConfig.from_pretrained(tmp_path / "again")
    assert {key: getattr(written, key) for key in keys} == keys
    assert open_teacher(tmp_path).student.config.layerdrop == 0  # as s3prl's upstreams


def test_dropouts_of_whisper_are_read_apart(tmp_path: Path) -> None:
    sizes = {"d_model": 32, "encoder_layers": 1, "encoder_attention_heads": 4, "encoder_ffn_dim": 48}
    keys = {"dropout": 0.15, "attention_dropout": 0.2, "activation_dropout": 0.25, "encoder_layerdrop": 0.35}
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    WhisperEncoder(transformers.WhisperConfig(**sizes, **keys)).save_pretrained(tmp_path)
    assert found_in(ds.load_student(tmp_path).config) == [0.15, 0.2, 0.25, 0.0, 0.35]


def test_dropouts_of_fairseq_are_read_apart(tmp_path: Path) -> None:
    keys = {"dropout": 0.15, "attention_dropout": 0.2, "activation_dropout": 0.25, "dropout_input": 0.3}
    file = save_fairseq(tmp_path / "a.pt", "hubert", SMALL, FORMS["group-post"], **keys, encoder_layerdrop=0.35)
    assert found_in(ds.load_student(file).config) == [0.15, 0.2, 0.25, 0.3, 0.35]


@pytest.mark.parametrize("keys", [{}, {"dropout": 0.15, "attention_dropout": 0.2, "activation_dropout": 0.25}])
def test_dropouts_of_distilhubert_are_read_apart(keys: dict[str, float], tmp_path: Path) -> None:
    ds.register()
    from s3prl.upstream.distiller.model import DistillerConfig

    theirs = DistillerConfig(keys)
    config = ds.load_student(save_distiller(tmp_path / "d.ckpt", SMALL, FORMS["group-post"], **keys)).config
    expected = [theirs.dropout, theirs.attention_dropout, theirs.activation_dropout, 0.0, theirs.encoder_layerdrop]
    assert found_in(config) == expected


@pytest.mark.parametrize(
    "name", ["dropout", "attention_dropout", "activation_dropout", "projection_dropout", "layerdrop"]
)
@pytest.mark.parametrize("value", [-0.1, 1.0, "much"])
def test_an_impossible_dropout_is_named(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{name}: "):
        ds.StudentConfig(**{name: value})
