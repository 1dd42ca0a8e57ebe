"""Suites with a reference: ablations of the recipe of tiny, and what distillation and joint training bring."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import SMALL
from helpers.trees import SMALL_JOINT, TASKS, speech_commands, voxceleb, write_tone

import distilled_student as ds
from distilled_student.benchmark.commands import Bench
from distilled_student.benchmark.estimate import Estimator
from distilled_student.benchmark.report import print_table, write_report
from distilled_student.benchmark.rows import add_differences
from distilled_student.benchmark.run_suite import open_bench, run_suite
from distilled_student.benchmark.suite import plan, read_suite
from distilled_student.common.errors import UserError
from distilled_student.common.shipped_configs import shipped_configs
from distilled_student.multitask.settings import check_early

JOINT = [
    *SMALL_JOINT,
    "config.runner.bf16=false",
    f"{TASKS}.sv.batch_size=6",
    f"{TASKS}.sv.crop_seconds=0.3",
    f"{TASKS}.sv.longest_crop_seconds=0.4",
    f"{TASKS}.sv.embedding_size=8",
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small corpora in the folders of ``edge``'s configs, and a small teacher."""
    root = tmp_path_factory.mktemp("data")
    speech_commands(root / "speech_commands")
    voxceleb(root / "voxceleb1")
    for speaker in range(3):
        for i in range(3):
            write_tone(root / "librispeech_speakers" / f"s{speaker}" / f"{i}.wav", 300 + 50 * speaker, seed=i)
    write_tone(root / "noise_and_speech" / "tone.wav", 200)
    torch.manual_seed(0)
    config = ds.StudentConfig(**{**SMALL, "conv_dim": [8] * 7})
    ds.save_student(ds.build_student(config), root / "teachers/small")
    return root


def bench(suite: str, data: Path, output: Path) -> Bench:
    student = {key: SMALL[key] for key in SMALL if key not in ("targets", "target_size")}
    student |= {"conv_dim": [8] * 7, "layers": 3 if suite == "ablations" else 1}  # four features, as the config says
    distil = [f"teacher={data / 'teachers/small'}", "targets=[1, 2]", f"student={json.dumps(student)}"]
    distil += ["data.workers=0", "precision=fp32", "align=number"]
    return open_bench(suite, data, output, steps=2, device="cpu", distil=distil, joint=JOINT)


def by_name(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    assert all(not row["errors"] for row in rows), rows
    return {f"{row['model']}/{row['setting']}": row for row in rows}


def test_an_ablation_is_reported_with_its_difference_from_the_recipe_over_the_same_seeds(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    suite = bench("ablations", data, tmp_path)
    rows = by_name(run_suite(suite, plan(suite.suite, 2, ["tiny/joint", "tiny/words-only"])))
    recipe, words = rows["tiny/joint"], rows["tiny/words-only"]
    pairs = zip(words["seeds"], recipe["seeds"], strict=True)
    expected = [of_words["kws_accuracy"] - of_recipe["kws_accuracy"] for of_words, of_recipe in pairs]
    mean, deviation = np.mean(expected), np.std(expected, ddof=1)
    assert words["differences"] == pytest.approx({"kws_accuracy": mean, "kws_accuracy_deviation": deviation})
    assert "differences" not in recipe
    results = [json.loads(file.read_text()) for file in tmp_path.glob("runs/*/*/seed-*/results.json")]
    assert {result["split"] for result in results} == {"dev"}  # these figures choose settings
    report = (tmp_path / "report.md").read_text()
    assert "bootstrap interval of the mean, over development speakers" in report
    assert "| KWS accuracy % | difference | SV EER % | difference |" in report
    line = next(line for line in report.splitlines() if line.startswith("| tiny, words only"))
    assert f"| {mean:+.2f} ± {deviation:.2f} | - | - |" in line
    assert "Difference: from tiny/joint with the same seed" in report and "| reference |" in report
    assert "words only" in capsys.readouterr().out


def test_the_suite_of_edge_has_a_row_for_each_question_of_the_paper(data: Path, tmp_path: Path) -> None:
    suite = bench("edge", data, tmp_path)
    rows = by_name(run_suite(suite, plan(suite.suite, 1)))
    assert list(rows) == [
        "distilled/joint",
        "distilled/joint-frozen",
        "distilled/kws",
        "distilled/sv",
        "initialised, not distilled/joint",
        "initialised, not distilled/joint-frozen",
        "from scratch/joint",
    ]
    lines = [line.split(" | ")[0].strip("| ") for line in (tmp_path / "report.md").read_text().splitlines()]
    for name in ("distilled, frozen", "distilled, one task alone", "initialised, not distilled", "from scratch"):
        assert any(line.startswith(name) for line in lines)
    provenance = [json.loads(file.read_text()) for file in tmp_path.glob("distill/*/provenance.json")]
    assert sorted(content["settings"]["steps"] for content in provenance) == [0, 2]
    # the student that is not distilled has the teacher's weights
    teacher = ds.load_student(data / "teachers/small").state_dict()
    student = ds.load_student(tmp_path / "distill/edge-initialized").state_dict()
    random = ds.load_student(tmp_path / "distill/edge-untrained").state_dict()
    names = [name for name in student if name.startswith("layers.0.") and student[name].dim() == 2]
    assert names
    for name in names:
        saved = teacher[name].half().float()  # the weights of a distillation with distill/edge are saved in float16
        assert torch.equal(student[name], saved) and not torch.equal(random[name], saved)


def test_every_row_of_the_suite_of_edge_has_the_same_number_of_updates() -> None:
    suite = read_suite("edge")
    for setting in suite.settings.values():
        assert [pair for pair in setting.override if "total_steps" in pair] == ["runner.total_steps=600"]
    assert not any("steps" in pair for model in suite.models.values() for pair in model.override)


def test_every_ablation_is_a_row_of_the_suite_and_has_a_label_of_its_own() -> None:
    suite = read_suite("ablations")
    configs = {setting.config for setting in suite.settings.values()}
    assert configs == {"tiny", *(name for name in shipped_configs() if name.startswith("ablations/"))}
    labels = [setting.label for setting in suite.settings.values()]
    assert len(set(labels)) == len(labels)
    assert suite.tables["Both tasks"] == list(suite.settings)
    assert all(setting.trainable for setting in suite.settings.values())


def test_every_ablation_passes_the_checks_of_its_settings_as_the_suite_changes_it(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (teacher := tmp_path / "exp/whisper-words").mkdir(parents=True)
    (teacher / "best-dev.ckpt").touch()
    suite = open_bench("ablations", data, tmp_path, joint=SMALL_JOINT)
    for run in plan(suite.suite, 1, extra=True):
        setting = suite.suite.settings[run.setting]
        selected = suite.suite.models[run.model].select or setting.select
        check_early(suite.configuration(run), selected, "train", run.name, setting.trainable)


@pytest.mark.parametrize("name", ["summed-losses", "pcgrad"])
def test_an_ablation_that_sums_losses_is_trained_and_charged_for_as_many_batches_as_the_recipe(
    name: str, data: Path, tmp_path: Path
) -> None:
    suite = open_bench("ablations", data, tmp_path)
    recipe, summed = (plan(suite.suite, 1, [f"tiny/{setting}"])[0] for setting in ("joint", name))
    runner = suite.configuration(summed)["runner"]
    assert runner["total_steps"] * runner["gradient_accumulate_steps"] == pytest.approx(400, abs=2)
    estimator = Estimator(suite)
    expected = estimator.training(recipe)
    found = estimator.training(summed)
    assert found.steps == 134
    more = 3 * 134 / 400  # two batches more
    assert found.audio_hours == pytest.approx(more * expected.audio_hours, rel=0.005)
    assert found.operations == pytest.approx(more * expected.operations, rel=0.005)


def test_a_difference_is_of_the_seeds_that_both_rows_have() -> None:
    recipe = {"model": "m", "setting": "a", "seeds": [{"seed": 0, "x": 1.0}, {"seed": 1, "x": 5.0}]}
    other = {"model": "m", "setting": "b", "seeds": [{"seed": 1, "x": 2.0}, {"seed": 2, "x": 9.0}]}
    unfinished = {"model": "m", "setting": "c", "errors": {"0": "not run yet"}}
    rows = [recipe | {"intervals": {"x": None}}, other | {"intervals": {"x": None}}, unfinished]
    add_differences(rows, "m/a")
    assert [row.get("differences") for row in rows] == [None, {"x": -3.0}, None]
    rows = [other | {"intervals": {"x": None}}]
    add_differences(rows, "m/a")  # the reference is not run yet
    assert "differences" not in rows[0]


def test_a_report_without_runs_of_the_reference_has_no_differences(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = {"name": "tiny, without shift", "model": "tiny", "setting": "without-shift", "errors": {}, "published": None}
    row |= {"kws_accuracy": 90.0, "intervals": {"kws_accuracy": None}, "seeds": [{"seed": 0, "kws_accuracy": 90.0}]}
    write_report(tmp_path, read_suite("ablations"), [row])
    assert "| tiny, without shift | 90.00 | - |" in (tmp_path / "report.md").read_text()
    print_table(read_suite("ablations"), [row], "title")
    assert "90.00" in capsys.readouterr().out


def test_a_reference_that_is_no_run_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "own.yaml"
    file.write_text("base: ablations\nreference: tiny/joined\n")
    with pytest.raises(UserError, match=r"own\.yaml: reference: no such run MODEL/SETTING: tiny/joined"):
        read_suite(file)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("base: ablations\nsplit: train", "split: 'train' is not test or dev"),
        ("base: paper\nsplit: dev", "split: dev cannot be used with results"),
        (
            "base: superb\nresults: null\nsplit: dev",
            "split: dev needs multitask in all settings, and ks has speech_comm",
        ),
    ],
)
def test_a_split_that_the_runs_do_not_have_is_refused(change: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "own.yaml"
    file.write_text(f"{change}\n")
    with pytest.raises(UserError, match=re.escape(message)):
        read_suite(file)
