"""Typed configuration: shipped names, and errors that name file and key in one line."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from distilled_student.common.errors import UserError
from distilled_student.common.settings import find_config, read_yaml, typed
from distilled_student.distillation.config import DistillConfig


@dataclass
class Inner:
    size: int = 1

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError("inner.size: needs at least 1")


@dataclass
class Outer:
    rate: float = 0.1
    names: list[str] = field(default_factory=list)
    inner: Inner = field(default_factory=Inner)


def test_values_and_overrides_fill_the_schema() -> None:
    found = typed(Outer, {"inner": {"size": 3}}, "x.yaml", ["rate=1e-3", "names=[a, b]", "inner.size=4"])
    assert found == Outer(1e-3, ["a", "b"], Inner(4))


@pytest.mark.parametrize(
    ("values", "overrides", "message"),
    [
        ({"speed": 1}, [], "speed: no such key"),
        ({"name": 1}, [], "name: no such key; did you mean `names`?"),
        ({"sise": 1}, [], "sise: no such key; did you mean `inner.size`?"),
        ({1: 1}, [], "1: no such key"),
        ({"inner": {"sise": 1}}, [], "inner.sise: no such key; did you mean `inner.size`?"),
        ({"rate": "fast"}, [], "rate"),
        ({"inner": {"size": 0}}, [], "inner.size: needs at least 1"),
        ({"inner": 5}, [], "inner"),
        ({}, ["inner.sise=2"], "inner.sise: no such key; did you mean `inner.size`?"),
        ({}, ["nmes[0]=a"], "nmes: no such key; did you mean `names`?"),
        ({}, ["rate"], "key=value"),
        ({}, ["rate=[1"], "rate"),
    ],
)
def test_a_wrong_value_names_file_and_key(values: dict[str, Any], overrides: list[str], message: str) -> None:
    with pytest.raises(UserError) as error:
        typed(Outer, values, "x.yaml", overrides)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", ["[1, 2]", "a: [", "", "\x00"])
def test_a_file_without_a_mapping_is_named(content: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(content)
    with pytest.raises(UserError, match=r"bad\.yaml"):
        read_yaml(path)


def test_a_missing_config_names_the_shipped_ones() -> None:
    with pytest.raises(UserError, match="demo"):
        find_config("nonesuch", "distill")


def test_every_shipped_distillation_config_is_valid() -> None:
    folder = find_config("demo", "distill").parent
    for path in folder.glob("*.yaml"):
        assert typed(DistillConfig, read_yaml(path), path).teacher
