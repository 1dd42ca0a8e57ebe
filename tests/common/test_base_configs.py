"""A config that names its base: merged key by key, and every mistake is one line."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from distilled_student.cli import main
from distilled_student.common.base_configs import read_config_file
from distilled_student.common.errors import UserError
from distilled_student.common.settings import find_config, read_yaml, typed
from distilled_student.common.shipped_configs import shipped_configs
from distilled_student.distillation.config import read_config
from distilled_student.host.yaml_sections import check_sections
from distilled_student.multitask.settings import ExpertSettings
from distilled_student.multitask.tasks import task_module

ABLATIONS = [path for name, path in shipped_configs().items() if name.startswith("ablations/")]


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_groups_are_merged_and_values_and_lists_are_replaced(tmp_path: Path) -> None:
    write(tmp_path / "a.yaml", "runner: {lr: 1, steps: 2}\nkeep: [1, 2]\ngroup: {inner: {x: 1, y: 2}}\n")
    write(tmp_path / "sub/b.yaml", "base: ../a.yaml\nrunner: {steps: 3}\nkeep: [4]\n")
    file = write(
        tmp_path / "sub/c.yaml", "base: b.yaml\ngroup: {inner: {y: null, z: {w: 5}}}\nrunner: {lr: {deep: 1}}\n"
    )
    assert read_config_file(file, "multitask") == {
        "runner": {"lr": {"deep": 1}, "steps": 3},
        "keep": [4],
        "group": {"inner": {"x": 1, "y": None, "z": {"w": 5}}},
    }


def test_a_schedule_replaces_that_of_the_base_like_a_list(tmp_path: Path) -> None:
    file = write(tmp_path / "own.yaml", "base: edge\ndownstream_expert: {schedule: {sv: 1}}\n")
    found = read_config_file(file, "multitask")["downstream_expert"]
    assert found["schedule"] == {"sv": 1} and set(found["tasks"]) == {"kws", "sv"}


@pytest.mark.parametrize("name", ["edge", "multitask/edge", "multitask/edge.yaml"])
def test_a_base_is_found_by_the_names_of_a_shipped_config(name: str, tmp_path: Path) -> None:
    file = write(tmp_path / "own.yaml", f"base: {name}\nrunner: {{total_steps: 7}}\n")
    expected = yaml.safe_load(find_config("edge", "multitask").read_text())
    expected["runner"]["total_steps"] = 7
    assert read_config_file(file, "multitask") == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("base: own.yaml", "base: own.yaml: a config cannot be a base of itself: own.yaml -> own.yaml"),
        ("base: other.yaml", "base: own.yaml: a config cannot be a base of itself: own.yaml -> other.yaml -> own.yaml"),
        ("base: multitask/egde", "base: multitask/egde: no such config file; did you mean `edge`?"),
        ("base: missing.yaml", "base: missing.yaml: no such config file"),
        ("base: 3", "base: expected the name of a config or a file, found 3"),
        ("base: [edge]", "base: expected the name of a config or a file, found ['edge']"),
        ("base:", "base: expected the name of a config or a file, found None"),
        ("base: distill/edge", "base: distill/edge: is a config of another kind, for distilled-student distill NAME"),
        ("base: student.yaml", "base: student.yaml: is a config of another kind: it has teacher"),
        ("base: .", "base: .: is a folder"),
        ("base: list.yaml", "list.yaml: expected a mapping of keys to values, found list"),
    ],
)
def test_a_wrong_base_is_one_line_that_names_the_file(content: str, message: str, tmp_path: Path) -> None:
    file = write(tmp_path / "own.yaml", f"{content}\nrunner: {{total_steps: 7}}\n")
    write(tmp_path / "other.yaml", "base: own.yaml\n")
    write(tmp_path / "student.yaml", "teacher: shipped\n")
    write(tmp_path / "list.yaml", "[1, 2]\n")
    with pytest.raises(UserError, match=re.escape(message)) as error:
        read_config_file(file, "multitask")
    assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)


def test_a_file_in_the_working_directory_is_no_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "here/a.yaml", "runner: {}\n")
    file = write(tmp_path / "there/own.yaml", "base: a.yaml\n")
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(UserError, match=r"own\.yaml: base: a\.yaml: no such config file; a file is relative to"):
        read_config_file(file, "multitask")


def test_one_teacher_replaces_the_several_of_a_base_and_several_the_one(tmp_path: Path) -> None:
    file = write(tmp_path / "one.yaml", "base: distill/edge\nteacher: shipped\ntargets: [1, 2]\n")
    one = read_config(read_config_file(file, "distill"), file)
    assert (one.teacher, one.targets, one.teachers, one.steps) == ("shipped", [1, 2], [], 2000)
    file = write(tmp_path / "two.yaml", "base: one.yaml\nteachers: [{teacher: openai/whisper-base, targets: [3]}]\n")
    two = read_config(read_config_file(file, "distill"), file)
    assert (two.teacher, two.targets, len(two.teachers)) == ("openai/whisper-base", [3], 1)


def test_overrides_of_the_command_line_replace_merged_settings(tmp_path: Path) -> None:
    file = write(tmp_path / "own.yaml", "base: distill/edge\nsteps: 7\nlearning_rate: 0.5\n")
    found = read_config(read_config_file(file, "distill"), file, ["steps=9"])
    assert (found.steps, found.learning_rate, found.student) == (9, 0.5, "edge")


def test_the_file_is_shown_as_it_is_and_merged_on_request(capsys: pytest.CaptureFixture) -> None:
    def show(*words: str) -> str:
        with pytest.raises(SystemExit, match="0"):
            main(["configs", "show", *words])
        return capsys.readouterr().out

    shown = show("without-shift")
    assert shown == find_config("without-shift", "multitask").read_text() and "base: multitask/tiny" in shown
    merged, base = (
        yaml.safe_load(show("ablations/without-shift", "--merged")),
        read_yaml(find_config("tiny", "multitask")),
    )
    assert base["downstream_expert"]["tasks"]["kws"].pop("shift_seconds") == 0.1
    assert merged["downstream_expert"]["tasks"]["kws"].pop("shift_seconds") == 0
    assert merged == base


@pytest.mark.parametrize("path", ABLATIONS, ids=lambda path: path.stem)
def test_an_ablation_is_a_comment_its_base_and_one_line_that_differs(path: Path) -> None:
    comment, base, *needed, difference = path.read_text().splitlines()
    assert re.match(r"# .*\. Shows ", comment) and base == "base: multitask/tiny" and ": " in difference
    if needed:  # a setting without which the difference is refused
        assert "update: sum" in difference
        assert [line.split(" #")[0] for line in needed] == ["runner: {gradient_accumulate_steps: 3}"]
    merged, unchanged = read_config_file(path, "multitask"), read_yaml(find_config("tiny", "multitask"))
    assert merged != unchanged and "base" not in merged
    check_sections(str(path), merged, "multitask")
    settings = typed(ExpertSettings, merged["downstream_expert"], path)
    for name, values in settings.tasks.items():
        typed(task_module(name, None, str(path)).Settings, values, f"{path}: {name}")


def test_an_ablation_is_found_by_run_downstream_as_a_config_of_joint_training() -> None:
    assert ABLATIONS
    for path in ABLATIONS:
        assert find_config(f"ablations/{path.stem}", "multitask") == path == find_config(path.stem, "multitask")
    with pytest.raises(UserError, match="did you mean `ablations/without-shift`"):
        find_config("ablations/without-shfit", "multitask")
    with pytest.raises(UserError, match="is a config of another kind"):
        find_config("ablations/without-shift", "distill")
