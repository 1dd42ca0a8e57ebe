"""Configurations of students: the named sizes, and values that are refused."""

from __future__ import annotations

import dataclasses

import pytest

import distilled_student as ds


def test_named_sizes_have_as_few_parameters_as_documented() -> None:
    millions = {name: sum(p.numel() for p in ds.build_student(name).parameters()) / 1e6 for name in ds.size_names()}
    assert millions.keys() == {"paper", "slim", "edge", "tiny"}
    assert round(millions["paper"]) == 27
    assert millions["slim"] < millions["paper"]
    assert millions["edge"] <= 6
    assert millions["tiny"] <= 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frontend": "cnn", "conv_norm": "group"}, "causal: requires frontend logmel"),
        ({"positions": "sinusoidal"}, "causal: requires positions"),
        ({"conv_kernel": [3, 1]}, "causal: requires every conv_kernel"),
        ({"encoder_stride": 0}, "encoder_stride"),
        ({"attention_context": 0}, "attention_context"),
    ],
)
def test_a_setting_that_causal_does_not_allow_is_refused_by_name(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(ds.named_size("tiny"), **changes)


def test_an_unknown_size_is_refused_and_the_known_sizes_are_listed() -> None:
    with pytest.raises(ValueError, match="paper"):
        ds.build_student("huge")
