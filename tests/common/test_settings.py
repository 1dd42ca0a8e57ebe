"""Typed configuration: shipped names, and errors that name file and key in one line."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from distilled_student.common.base_configs import read_config_file
from distilled_student.common.errors import UserError
from distilled_student.common.expected_values import expected_value
from distilled_student.common.settings import find_config, read_yaml, typed
from distilled_student.common.shipped_configs import shipped_configs
from distilled_student.distillation.config import DistillConfig, read_config
from distilled_student.multitask.settings import ExpertSettings
from distilled_student.student.config import named_size


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


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("tasks", "{kws: 1", "tasks: expected a group of keys, found '{kws: 1': the closing } is missing"),
        (
            "schedule.kws:1",
            None,
            "schedule.kws:1: expected a whole number, found null: put a space after the colon: kws: 1",
        ),
        ("schedule.kws", None, "schedule.kws: expected a whole number, found null"),
    ],
)
def test_a_mistake_in_a_list_or_a_group_of_the_command_line_is_named(key: str, value: object, message: str) -> None:
    assert expected_value(ExpertSettings, key, value) == message


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
        ({"rate": "fast"}, [], "x.yaml: rate: expected a number, found 'fast'"),
        ({"names": "a"}, [], "x.yaml: names: expected a list of texts, found 'a': write [a]"),
        ({"names": {"a": 1}}, [], "x.yaml: names: expected a list of texts, found {'a': 1}"),
        ({"names": None}, [], "x.yaml: names: expected a list of texts, found null"),
        ({"inner": {"size": [3]}}, [], "x.yaml: inner.size: expected a whole number, found [3]"),
        ({"inner": {"size": "big"}}, [], "x.yaml: inner.size: expected a whole number, found 'big'"),
        ({}, ["names=a"], "x.yaml: names: expected a list of texts, found 'a': write [a]"),
        ({}, ["inner={size: big}"], "x.yaml: inner.size: expected a whole number, found 'big'"),
        ({}, ["inner={sise: 2}"], "x.yaml: inner.sise: no such key"),
        ({}, ["rate.x=2"], "x.yaml: rate: is a value, not a group of keys"),
        ({}, ["inner=3"], "x.yaml: inner: expected a group of keys, found 3"),
        ({}, ["rate={a: 1}"], "x.yaml: rate: expected a number, found {'a': 1}"),
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


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a:\n\tb: 1", "line 2, column 1: a tab in the indentation"),
        ("a: 1\n\tb: 2", "a tab in the indentation"),
        ("a: b: c", "line 1, column 5: a colon where no key can be"),
        ("a: [1, 2\nb: 3", "is a comma missing, or the bracket at the end?"),
        ("a: @b", "line 1, column 4: a value cannot start with '@': put it in quotes"),
        ("a: 'b", "a quotation mark is missing"),
        ("a: 1\nb", "expected a colon after the key"),
        ("a: *b", "line 1, column 4: no value above is marked with &b"),
        ("a: !b c", "line 1, column 4: the tag !b is not supported: remove it"),
        ("a: \x00", "a character that YAML does not allow"),
    ],
)
def test_an_error_in_a_yaml_file_is_in_plain_english_with_its_line(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(content)
    with pytest.raises(UserError) as error:
        read_yaml(path)
    assert message in str(error.value) and str(error.value).startswith(f"{path}: cannot be read as YAML: ")


def test_a_file_that_is_not_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_bytes(b"a: \xff\xfe")
    with pytest.raises(UserError, match=r"bad\.yaml: cannot be read as YAML: is not text in UTF-8"):
        read_yaml(tmp_path / "bad.yaml")


@pytest.mark.parametrize(("kind", "name"), [(full.rpartition("/")[0], full) for full in shipped_configs()])
def test_a_config_is_found_by_each_name_that_the_list_prints(kind: str, name: str) -> None:
    for word in (name, f"{name}.yaml", name.rpartition("/")[2]):
        assert find_config(word, kind) == shipped_configs()[name]


def test_a_size_is_found_by_the_name_that_the_list_prints() -> None:
    assert named_size("student/tiny") == named_size("tiny")


def test_a_missing_config_names_the_shipped_ones() -> None:
    with pytest.raises(UserError, match="demo"):
        find_config("nonesuch", "distill")


def test_every_shipped_distillation_config_is_valid() -> None:
    folder = find_config("demo", "distill").parent
    for path in folder.glob("*.yaml"):
        assert typed(DistillConfig, read_config_file(path, "distill"), path).teacher


def test_a_config_of_joint_training_is_not_taken_for_one_of_distillation() -> None:
    path = find_config("demo", "multitask")
    with pytest.raises(
        UserError, match=r"demo\.yaml: is a config of joint training: use run_downstream\.py -m train -c"
    ):
        read_config(read_yaml(path), path)


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        (
            "data.batch_seconds=5",
            r"data\.batch_seconds: needs .*, found 0\.1, 15 and 5: a batch holds the longest piece",
        ),
        ("data.max_seconds=0.05", r"data\.max_seconds: needs .*, found 0\.1, 0\.05 and 20"),
    ],
)
def test_the_length_of_a_batch_that_is_too_small_is_named(pair: str, message: str) -> None:
    path = find_config("demo", "distill")
    with pytest.raises(UserError, match=rf"demo\.yaml: {message}"):
        read_config(read_yaml(path), path, [pair])
