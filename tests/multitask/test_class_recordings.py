"""The classes of a checkpoint keep their recordings: folders and orders that exchange classes are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from helpers.trees import tasks, write_tone

from distilled_student.common.errors import UserError
from distilled_student.multitask.expert import DownstreamExpert
from distilled_student.multitask.tasks import sv


def expert(values: dict[str, Any], folder: Path, mode: str = "train") -> DownstreamExpert:
    runner = {"gradient_accumulate_steps": 1}
    return DownstreamExpert(6, 160, {"tasks": values}, str(folder), config="my.yaml", seed=1, runner=runner, mode=mode)


@pytest.fixture
def values(tmp_path: Path) -> dict[str, Any]:
    """``tasks`` with two extra roots, in each of which is a speaker ``p1``; all recordings differ."""
    values = tasks(tmp_path)
    for root in ("e", "f"):
        for name in ("p1", "p2"):
            write_tone(tmp_path / root / name / "1.wav", 200, 0.5)
    for seed, path in enumerate(sorted(tmp_path.rglob("*.wav"))):
        write_tone(path, 100 + 3 * seed, 0.5, seed)
    values["sv"]["extra_roots"] = [str(tmp_path / "e"), str(tmp_path / "f")]
    return values


def exchange(one: Path, two: Path) -> None:
    one.rename(one.with_name("between"))
    two.rename(one)
    one.with_name("between").rename(two)


def test_extra_roots_in_another_order_are_refused(
    values: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    e = expert(values, tmp_path)
    assert "sv.extra_roots: 2 names of speakers are in several folders, such as 'p1': each is a class" in caplog.text
    state, names = e.state_dict(), e.tasks["sv"].class_names
    other = {**values, "sv": {**values["sv"], "extra_roots": values["sv"]["extra_roots"][::-1]}}
    swapped = expert(other, tmp_path)
    assert swapped.tasks["sv"].class_names == names, "their names are the same"
    message = (
        r"my\.yaml: .*sv\.root: class 4, 'p1 in extra_roots\[0\]', has the recordings that class 6, "
        r"'p1 in extra_roots\[1\]', was trained on: give back the folders, and their order, of its training \(root, ex"
    )
    with pytest.raises(UserError, match=message):
        swapped.load_state_dict(state)


@pytest.mark.parametrize("task", ["kws", "sv"])
def test_exchanged_folders_are_refused(values: dict[str, Any], tmp_path: Path, task: str) -> None:
    e = expert(values, tmp_path)
    state = e.state_dict()
    if task == "kws":
        exchange(tmp_path / "sc/train/yes", tmp_path / "sc/train/no")
    else:
        one, two = list(e.tasks["sv"].index.training)[:2]
        exchange(tmp_path / "vox/dev/wav" / one, tmp_path / "vox/dev/wav" / two)
    with pytest.raises(UserError, match=rf"tasks\.{task}\.\w+: class \d, .* has the recordings that class \d, "):
        expert(values, tmp_path).load_state_dict(state)


def test_new_recordings_are_named_and_the_same_in_another_place_are_not(
    values: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    e = expert(values, tmp_path)
    state, speaker = e.state_dict(), next(iter(e.tasks["sv"].index.training))
    (tmp_path / "vox").rename(tmp_path / "moved")
    moved = {**values, "sv": {**values["sv"], "root": str(tmp_path / "moved")}}
    expert(moved, tmp_path).load_state_dict(state)
    assert "other recordings" not in caplog.text
    write_tone(tmp_path / "moved/dev/wav" / speaker / "s0/new.wav", 900, 0.5)
    again = expert(moved, tmp_path)
    again.load_state_dict(state)
    assert f"tasks.sv: 1 classes have other recordings than in the training so far, such as {speaker}" in caplog.text
    assert again.tasks["sv"].recordings[0] != e.tasks["sv"].recordings[0], "the next checkpoint has the new ones"
    evaluated = expert(moved, tmp_path, "evaluate")
    evaluated.load_state_dict(state)
    assert evaluated.tasks["sv"].recordings == e.tasks["sv"].recordings


def test_held_out_utterances_that_may_have_been_trained_on_are_named(
    values: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = {key: value for key, value in values["sv"].items() if key not in ("dev_speakers", "extra_roots")}
    settings |= {"dev_utterances": 10}

    def task() -> sv.Task:
        return sv.Task(sv.Settings(**settings), 4, 0, "F")

    trained, evaluated = task(), task()
    trained.prepare_training()
    evaluated.recordings = trained.recordings
    _ = evaluated.evaluation_data("dev"), trained.evaluation_data("dev")
    assert not caplog.text
    (tmp_path / "vox/dev/wav").rename(tmp_path / "vox/wav")  # another path below root is another hash
    moved = task()
    moved.recordings = trained.recordings
    held_out = {path.name for path in moved.evaluation_data("dev").paths}
    assert held_out and "F.dev_utterances: the speakers have other recordings than in training" in caplog.text
