"""Settings files of any content, for distillation and joint training: they are typed, or an error names the file."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from fuzz.mutations import MANY, at_most, damaged, ends_well, reset
from hypothesis import given
from hypothesis import strategies as st

from distilled_student import UserError
from distilled_student.common.settings import find_config, parse_yaml, read_yaml, typed
from distilled_student.distillation.config import DistillConfig
from distilled_student.host.plugin import register
from distilled_student.host.trial_step import check_config
from distilled_student.multitask.settings import ExpertSettings
from distilled_student.multitask.tasks import kws, sv

BOUND = 128  # MiB
DISTIL, JOINT = (find_config(*names) for names in (("hubert-base", "distill"), ("default", "multitask")))


def distillation(path: Path) -> DistillConfig:
    return typed(DistillConfig, read_yaml(path), path)


def joint(path: Path) -> None:
    """The checks of `run_downstream.py -c`, then those of the expert."""
    config = read_yaml(path)
    check_config(str(path), config, "multitask")
    settings = typed(ExpertSettings, config["downstream_expert"], f"{path}: downstream_expert")
    for name, task in (("kws", kws), ("sv", sv)):
        values = settings.tasks.get(name) or {}
        if isinstance(values, dict):
            typed(task.Settings, values, f"{path}: downstream_expert.tasks.{name}")


def texts(valid: Path) -> st.SearchStrategy[bytes]:
    values = reset(yaml.safe_load(valid.read_text()))

    def dumped(value: Any) -> bytes:
        return yaml.safe_dump(value, allow_unicode=True).encode("utf-8", "surrogatepass")

    return st.one_of(damaged(valid.read_bytes()), values.map(dumped), values.map(lambda v: json.dumps(v).encode()))


@pytest.mark.parametrize(("valid", "read"), [(DISTIL, distillation), (JOINT, joint)])
def test_no_settings_cause_a_traceback_or_take_more_memory_than_allowed(
    valid: Path, read: Callable[[Path], Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    register()
    path = tmp_path_factory.mktemp("settings") / "settings.yaml"
    path.write_bytes(valid.read_bytes())
    read(path)

    @MANY
    @given(texts(valid))
    def check(content: bytes) -> None:
        path.write_bytes(content)
        ends_well(lambda: read(path), path)

    with at_most(BOUND):
        check()


def alias_bomb(levels: int = 12, width: int = 9) -> str:
    """Lists of aliases of lists of aliases: a few lines that stand for ``width ** levels`` values."""
    lines = [f"a0: &a0 [{', '.join(['x'] * width)}]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * width)}]" for i in range(1, levels)]
    return "\n".join(lines)


HOSTILE = {
    "aliases": (alias_bomb(), "more than 20000 values"),
    "aliases in mappings": (
        "a0: &a0 {x: 1}\n" + "\n".join(f"a{i}: &a{i} {{p: *a{i - 1}, q: *a{i - 1}}}" for i in range(1, 40)),
        "more than 20000 values",
    ),
    "itself": ("a: &a [*a]", "stands for a value that contains it"),
    "itself in a mapping": ("student: &s {targets: *s}", "stands for a value that contains it"),
    "nested lists": ("a: " + "[" * 5_000, "more than|expected"),
    "nested mappings": ("a: " + "{a: " * 5_000, "more than"),
    "nested blocks": ("\n".join(" " * i + "a:" for i in range(400)), "more than"),
    "nested sequences": ("- " * 5_000 + "a", "more than"),
    "long": ("a: " + "x" * 2**18, "more than 131072 characters"),
    "many": ("a: [" + "1, " * 40_000 + "]", "more than 20000 values"),
    "a large number": ("steps: " + "9" * 5_000, "without quotes of more than 2000 characters"),
    "a large hexadecimal number": ("steps: 0x" + "f" * 5_000, "without quotes"),
    "a base 60 number of many digits": ("steps: 1" + ":59" * 2_000, "without quotes"),
    "a wrong date": ("steps: 2001-99-99", "cannot be read as YAML"),
    "an empty number": ("steps: !!int ''", "cannot be read as YAML"),
    "a wrong boolean": ("steps: !!bool maybe", "cannot be read as YAML"),
    "a program": ("steps: !!python/object/apply:os.system ['true']", "line 1, column 8: the tag .* is not supported"),
    "a mapping as a key": ("? {a: 1}\n: 1", "unhashable"),
    "a NUL in a file name": ('output: "a\\0b"', "text with a NUL character"),
    "a NUL character": ("a: \x00", "cannot be read as YAML"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_yaml_that_would_exhaust_time_or_memory_is_refused_quickly(what: str, tmp_path: Path) -> None:
    text, message = HOSTILE[what]
    path = tmp_path / "settings.yaml"
    path.write_text(text)
    start = time.monotonic()
    with at_most(BOUND), pytest.raises(UserError, match=message) as error:
        typed(DistillConfig, read_yaml(path), path)
    assert time.monotonic() - start < 5
    assert str(path) in str(error.value) and str(error.value).isprintable()


def test_anchors_and_merged_mappings_of_normal_size_are_read() -> None:
    assert parse_yaml("a: &a {x: 1}\nb: {<<: *a, y: 2}\nc: [*a, *a]")["b"] == {"x": 1, "y": 2}


@pytest.mark.parametrize("name", ["a b.yaml", "語.yaml", "a\nb.yaml", "\udcff.yaml"])
def test_a_settings_file_of_any_name_is_named_in_one_line(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("steps: [\n  1,\n  }\n")
    message = str(ends_well(lambda: read_yaml(tmp_path / name), tmp_path))
    assert "line 3, column 3" in message and len(message.splitlines()) == 1


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent.yaml"):
        assert isinstance(ends_well(lambda path=path: read_yaml(path), path), UserError)
