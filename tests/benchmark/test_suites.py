"""The shipped suites: a named run for every published cell, settings of ours marked, estimates, intervals."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from distilled_student import UserError
from distilled_student.benchmark.estimate import Estimator
from distilled_student.benchmark.execute import finished
from distilled_student.benchmark.published import read_paper_results
from distilled_student.benchmark.run_suite import open_bench
from distilled_student.benchmark.suite import plan, read_suite
from distilled_student.cli import main
from distilled_student.common.files import write_json
from distilled_student.common.settings import find_config
from distilled_student.multitask import metrics as M


def test_the_estimate_of_a_distillation_is_its_number_of_operations(tmp_path: Path) -> None:
    bench = open_bench("paper", tmp_path, tmp_path)
    estimator, run = Estimator(bench), plan(bench.suite, 1, ["distilled-hubert/joint"])[0]
    estimate = estimator.distillation(run)
    # giga multiply-accumulates per second of audio: teacher 6.93; the paper's student 3.41, prediction layers 0.18
    expected = 2 * 200_000 * 300 * (6.93e9 + 3 * (3.41e9 + 0.18e9)) / 4
    assert estimate.operations == pytest.approx(expected, rel=0.01)
    assert estimate.audio_hours == pytest.approx(200_000 * 300 / 3600)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["papers", "--data", "d"], "benchmark papers: no such suite; did you mean `paper`?"),
        (["paper"], "--data: no folder"),
        (["paper", "--data", "d", "--only", "hubert"], "--only hubert: no such run: there are wav2vec2/kws"),
        (["paper", "--data", "d", "--seeds", "0"], "--seeds 0: must be 1 or more"),
        (["paper", "--data", "d", "--steps", "0"], "--steps 0: must be 1 or more"),
        (["paper", "--data", "d", "--dry-run", "--tflops", "0"], "--tflops 0: must be a positive number"),
    ],
)
def test_unusable_arguments_are_one_line(
    arguments: list[str], named: str, capsys: pytest.CaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        main(["benchmark", *arguments])
    error = capsys.readouterr().err.strip()
    assert end.value.code == 2
    assert named in error and "\n" not in error


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("models:\n  a: 3\nsettings: {}\ntables: {}", "models.a: expected a group of keys"),
        (
            "models:\n  a: {upstream: u, wights: w}\nsettings: {}\ntables: {}",
            "models.a: wights: no such key; did you mean `weights`?",
        ),
        ("models: {}\nsettings: {}\ntables:\n  T: [joint]", "tables.T: no such setting: joint"),
        ("models:\n  a: {upstream: u, weights: w, distill: d}\nsettings: {}\ntables: {}", "give only one of them"),
        (
            "models:\n  a: {upstream: u, settings: [s]}\nsettings: {}\ntables: {}",
            "models.a.settings: no such setting: s",
        ),
    ],
)
def test_an_error_in_a_suites_file_is_named(change: str, named: str, tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(f"title: t\nprotocol: p\n{change}\n")
    with pytest.raises(UserError, match=re.escape(named)) as error:
        read_suite(path)
    assert str(path) in str(error.value)


def test_every_cell_of_the_papers_tables_is_one_named_run() -> None:
    suite = read_suite("paper")
    runs = {run.name: run for run in plan(suite, 1)}
    cells = [(suite.models[run.model].published, suite.settings[run.setting].published) for run in runs.values()]
    assert sorted(cells) == sorted((result.model, result.setting) for result in read_paper_results())
    shown = [setting for settings in suite.tables.values() for setting in settings]
    assert sorted(shown) == sorted(suite.settings)


def test_no_suite_has_both_protocols() -> None:
    assert {setting.downstream for setting in read_suite("paper").settings.values()} == {"multitask"}
    assert all(not setting.trainable for setting in read_suite("superb").settings.values())
    with_joint = [s for s in read_suite("superb").tables.values() if "joint" in s]
    assert with_joint == [["joint"]]


# What the paper states (sections 2 and 3). Every other setting in its configurations must be marked as ours.
STATED = {
    "distill": {"teacher", "targets", "student", "initialize", "output", "paths"},
    "multitask": {
        "gradient_accumulate_steps",  # alternation: one step per batch
        "name",
        "torch_optim_name",
        "lr",
        "update",
        "schedule",
        "train_root",
        "test_root",
        "keywords",
        "validation_percentage",
        "testing_percentage",
        "silence_percentage",
        "unknown_percentage",
        "head",
        "crop_seconds",  # for keywords: the one second of the corpus; for speakers it is marked
        "root",
        "trials",
    },
}


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("distill", "hubert-base"),
        ("distill", "wav2vec2-base"),
        ("distill", "wavlm-base-plus"),
        ("distill", "data2vec-base"),
        ("multitask", "default"),
    ],
)
def test_each_setting_that_the_paper_does_not_state_is_marked_as_ours(kind: str, name: str) -> None:
    for line in find_config(name, kind).read_text().splitlines():
        found = re.match(r"\s*(\w+): *([^#]*)(#.*)?$", line)
        if found and found[2].strip() and "ours" not in (found[3] or ""):
            assert found[1] in STATED[kind], line


def test_the_interval_of_a_mean_agrees_with_its_standard_error() -> None:
    correct = np.random.default_rng(0).random(3081) < 0.97
    low, high = M.share_interval(correct, np.arange(len(correct)))
    error = np.sqrt(correct.mean() * (1 - correct.mean()) / len(correct))
    assert (low, high) == pytest.approx((correct.mean() - 1.96 * error, correct.mean() + 1.96 * error), abs=0.001)


def test_the_interval_of_several_equal_systems_is_that_of_one() -> None:
    rng = np.random.default_rng(1)
    left, right = rng.integers(8, size=(2, 400))
    labels = (left == right).astype(int)
    scores = labels + rng.normal(size=400)
    one = M.eer_interval(scores, labels, left, right, resamples=50)
    assert M.eer_interval(np.stack([scores, scores]), labels, left, right, resamples=50) == pytest.approx(one)
    better = M.eer_interval(np.stack([scores, scores + labels]), labels, left, right, resamples=50)
    assert better[1] < one[1]


def test_the_papers_single_and_joint_rows_have_as_many_steps_and_as_much_warm_up_of_each_task(tmp_path: Path) -> None:
    bench = open_bench("paper", tmp_path, tmp_path)
    steps: dict[str, set[tuple[str, float, float]]] = {"kws": set(), "sv": set()}
    for run in plan(bench.suite, 1, extra=True):
        config = bench.configuration(run)
        schedule = config["downstream_expert"]["schedule"]
        for task in schedule:
            share = schedule[task] / sum(schedule.values())
            total, warm_up = config["runner"]["total_steps"], config["scheduler"]["num_warmup_steps"]
            steps[task].add((config["optimizer"]["torch_optim_name"], share * total, share * warm_up))
    assert steps == {"kws": {("Adam", 100_000, 7_000)}, "sv": {("Adam", 100_000, 7_000)}}


def test_the_command_of_a_distillation_names_all_its_folders_of_data_where_they_are(tmp_path: Path) -> None:
    bench = open_bench("ablations", tmp_path / "corpora", tmp_path)
    run = plan(bench.suite, 1, ["tiny/joint"])[0]
    pairs = dict(pair.split("=", 1) for pair in bench.distil_command(run)[2:])
    assert json.loads(pairs["data.augment.noise_root"]) == str(tmp_path / "corpora/noise_and_speech")
    assert json.loads(pairs["data.paths"])[1] == str(tmp_path / "corpora/voxceleb1/dev")
    held_out = replace(bench, distil=["data.held_out=[data/dev]", "data.augment.rir_root=rooms"])
    pairs = dict(pair.split("=", 1) for pair in held_out.distil_command(run)[2:-2])
    assert json.loads(pairs["data.held_out"]) == ["data/dev"] and json.loads(pairs["data.augment.rir_root"]) == "rooms"


def test_a_finished_distillation_stays_finished_when_its_data_have_moved(tmp_path: Path) -> None:
    before, after = (open_bench("ablations", tmp_path / name, tmp_path) for name in ("here", "there"))
    run = plan(before.suite, 1, ["tiny/joint"])[0]
    assert before.settings(run) == after.settings(run)
    # a record of version 0.1 with the folder of the noise
    record = before.settings(run)
    record["student"] |= {"data.augment.noise_root": str(tmp_path / "here/noise_and_speech"), "data.held_out": []}
    folder = run.folder(tmp_path)
    write_json(folder / "run.json", {"settings": record})
    write_json(folder / "results.json", {})
    assert finished(after, run) is None  # no error because of other settings
    record["student"]["learning_rate"] = 0.5
    write_json(folder / "run.json", {"settings": record})
    with pytest.raises(UserError, match=r"student\.learning_rate was 0\.5"):
        finished(after, run)


def test_folders_that_no_command_prepares_are_described_where_they_are_missing(tmp_path: Path) -> None:
    bench = open_bench("ablations", tmp_path, tmp_path)
    lines = bench.missing(plan(bench.suite, 1, ["tiny/joint"])[0])
    assert len(lines) >= 4
    for folder in ("noise_and_speech", "librispeech_speakers"):
        line = next(line for line in lines if f"missing: {folder} in" in line)
        assert line.endswith(": see docs/own-data.md")
        assert folder in (Path(__file__).parents[2] / "docs/own-data.md").read_text(encoding="utf-8")
    assert all("prepare" in line or "docs/own-data.md" in line for line in lines)
