"""Suites of named runs: planned, run once, resumed, reported with the published figures."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from conftest import tone
from helpers.trees import SMALL_JOINT, TASKS, speech_commands, voxceleb

from distilled_student.benchmark import trials
from distilled_student.benchmark.commands import Bench
from distilled_student.benchmark.execute import _check_settings, execute
from distilled_student.benchmark.report import write_report
from distilled_student.benchmark.run_suite import open_bench, run_suite
from distilled_student.benchmark.suite import Run, plan, read_suite
from distilled_student.cli import main
from distilled_student.common.errors import UserError
from distilled_student.common.interruption import Interrupted
from distilled_student.common.settings import typed
from distilled_student.distillation.config import DistillConfig
from distilled_student.multitask import metrics as M
from distilled_student.multitask.expert import DownstreamExpert

STUDENT = {
    "conv_dim": [8] * 7,
    "hidden_size": 16,
    "heads": 2,
    "feed_forward": 32,
    "position_kernel": 8,
    "position_groups": 2,
    "prediction_size": 8,
}
DISTIL = [f"student={STUDENT}", "steps=2", "data.batch_seconds=16", "data.workers=0", "precision=fp32"]
JOINT = [*SMALL_JOINT, f"{TASKS}.sv.batch_size=4", f"{TASKS}.sv.crop_seconds=0.4"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small versions of the three corpora in the layout of ``prepare``, and tiny teachers with twelve layers."""
    import soundfile

    root = tmp_path_factory.mktemp("data")
    speech_commands(root / "speech_commands")
    voxceleb(root / "voxceleb1", seconds=2.1)  # SUPERB leaves out utterances shorter than two seconds
    for i, part in enumerate(("train-clean-100", "train-clean-360", "train-other-500")):
        folder = root / "LibriSpeech" / part / "1" / "2"
        folder.mkdir(parents=True)
        for j in range(2):
            soundfile.write(folder / f"1-2-000{j}.flac", tone(1.5, seed=10 * i + j).numpy(), 16_000)
    torch.manual_seed(0)
    config = transformers.HubertConfig(
        hidden_size=16,
        num_hidden_layers=12,
        num_attention_heads=2,
        intermediate_size=32,
        conv_dim=[8] * 7,
        num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=2,
    )
    for name in ("hubert-base-ls960", "wav2vec2-base"):
        transformers.HubertModel(config).save_pretrained(root / "teachers" / name)
        transformers.Wav2Vec2FeatureExtractor(do_normalize=False).save_pretrained(root / "teachers" / name)
    return root


def paper(data: Path, output: Path, *joint: str, steps: int = 2) -> Bench:
    return open_bench("paper", data, output, steps=steps, device="cpu", distil=DISTIL, joint=[*JOINT, *joint])


def rows(output: Path) -> dict[str, dict[str, Any]]:
    content = json.loads((output / "results.json").read_text())
    return {f"{row['model']}/{row['setting']}": row for row in content["rows"]}


def test_the_device_of_a_suite_is_that_of_its_distillations_too(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    devices = []

    def distill(config: DistillConfig, where: Path) -> None:
        monkeypatch.setattr(AcceleratorState, "_shared_state", {})
        monkeypatch.setattr(PartialState, "_shared_state", {})
        devices.append(Accelerator().device.type)
        raise UserError("enough")

    monkeypatch.setattr(PartialState, "default_device", torch.device("mps"))  # a machine with a GPU
    monkeypatch.setattr("distilled_student.distillation.train.distill", distill)
    bench = paper(data, tmp_path)
    for device in ("cpu", None):
        run_suite(dataclasses.replace(bench, device=device), plan(bench.suite, 1, ["distilled-hubert/joint"]))
    assert devices == ["cpu", "mps"]


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Output folder of some runs of the paper's suite; one cell has two seeds."""
    output = tmp_path_factory.mktemp("finished")
    bench = paper(data, output)
    more = ["distilled-hubert/kws", "distilled-hubert/sv", "wav2vec2/joint-frozen"]
    run_suite(bench, plan(bench.suite, 2, ["distilled-hubert/joint"]) + plan(bench.suite, 1, more))
    return output


def test_a_row_has_our_figure_with_seeds_and_the_published_one_with_its_source(finished: Path) -> None:
    row = rows(finished)["distilled-hubert/joint"]
    assert [seed["seed"] for seed in row["seeds"]] == [0, 1]
    assert row["kws_accuracy"] == pytest.approx(np.mean([seed["kws_accuracy"] for seed in row["seeds"]]))
    assert row["intervals"]["kws_accuracy"] is None, "two test speakers have none"
    assert row["published"]["kws_accuracy"] == 97.90
    report = (finished / "report.md").read_text()
    start = "| distilled-hubert (trial) |"
    line = next(line for line in report.splitlines() if line.startswith(start) and "97.90" in line)
    assert f"{row['kws_accuracy']:.2f} ±" in line
    assert "4.27 [1]" in line
    assert "[1] <https://arxiv.org/abs/2210.16611v2>" in report
    for image in re.findall(r"\((\S+\.png)\)", report):
        assert (finished / image).stat().st_size > 0
    assert {"cost.png", "cost-2.png", "det.png", "confusion.png"} <= set(re.findall(r"\((\S+\.png)\)", report))


def test_a_report_of_trials_says_so_in_title_and_tables_and_why(finished: Path) -> None:
    report = (finished / "report.md").read_text()
    assert report.startswith("# The paper's tables (trial, no results)\n")
    headings = [line for line in report.splitlines() if line.startswith("## ")]
    tables = [heading for heading in headings if heading not in ("## Trials", "## Not run")]
    assert tables and all(heading.endswith(" (trial, no results)") for heading in tables)
    reasons = next(line for line in report.splitlines() if line.startswith("* distilled-hubert/joint: 2 of "))
    for reason in (
        "2 of 200,000 distillation steps",
        "LibriSpeech/train-clean-100: 2 of 28,539 files",
        "speech_commands/train: 42 of 64,721 files",
        "voxceleb1/test/wav: 8 of 4,874 files",
        "8 of 3,081 test utterances of keywords",
        "6 of 37,611 trials of speakers",
    ):
        assert reason in reasons
    assert json.loads((finished / "results.json").read_text())["title"].endswith("(trial, no results)")


def test_a_real_time_factor_with_other_load_is_marked(finished: Path) -> None:
    row = {**rows(finished)["distilled-hubert/joint"], "rtf": 0.5, "rtf_with_other_load": True}
    write_report(finished / "loaded", read_suite("paper"), [row])
    assert "| 0.5000 (loaded) |" in (finished / "loaded/report.md").read_text()
    timing = json.loads(next(finished.rglob("timing.json")).read_text())
    assert set(timing) == {"rtf", "other_load", "with_other_load"}


def test_a_single_task_is_trained_and_reported_alone(finished: Path) -> None:
    found = rows(finished)
    assert "sv_eer" not in found["distilled-hubert/kws"] and "kws_accuracy" not in found["distilled-hubert/sv"]
    assert found["distilled-hubert/sv"]["published"]["sv_eer"] == 4.26


def test_frozen_runs_do_not_change_the_upstream(finished: Path) -> None:
    folder = finished / "runs" / "wav2vec2" / "joint-frozen" / "seed-0" / "experiment"
    assert "Upstream" not in torch.load(folder / "states-2.ckpt", weights_only=True)


def test_a_finished_run_is_not_run_again(finished: Path, data: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*.ckpt")}
    results = rows(finished)
    bench = paper(data, finished)
    again = [execute(bench, run) for run in plan(bench.suite, 2, ["distilled-hubert/joint"])]
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*.ckpt")} == before
    accuracies = [seed["kws_accuracy"] for seed in results["distilled-hubert/joint"]["seeds"]]
    assert [outcome.results["kws"]["accuracy"] for outcome in again] == accuracies


def test_results_of_other_settings_are_refused(finished: Path, data: Path) -> None:
    bench = paper(data, finished, steps=3)
    outcome = execute(bench, plan(bench.suite, 1, ["wav2vec2/joint-frozen"])[0])
    assert outcome.results is None
    assert "runner.total_steps was 2, is 3" in outcome.error and "choose another --output" in outcome.error


def test_results_of_an_earlier_version_without_a_setting_that_is_off_are_kept(finished: Path, data: Path) -> None:
    bench = paper(data, finished)
    run = plan(bench.suite, 1, ["wav2vec2/joint-frozen"])[0]
    file = run.folder(bench.output) / "run.json"
    text = file.read_text()
    for key, error in (("gain_db", None), ("update", "downstream_expert.update was None, is alternate")):
        record = json.loads(text)
        del record["settings"]["downstream_expert"][key]
        file.write_text(json.dumps(record))
        found = execute(bench, run).error
        file.write_text(text)
        assert found is None if error is None else error in found


@pytest.mark.parametrize(
    ("before", "now", "change"),
    [
        ({}, {"standardize": False, "fill": True, "augment": {"noise": 0.0}}, None),
        ({"augment": {"noise": 0.0}}, {}, None),
        ({}, {"fill": False}, "kws.fill was True, is False"),
        ({"fill": False}, {}, "kws.fill was False, is True"),
        ({}, {"unknown_percentage": None}, "kws.unknown_percentage was 10.0, is None"),
        ({}, {"layer": 0}, "kws.layer was None, is 0"),
        ({"silence_percentage": 0}, {"silence_percentage": None}, "kws.silence_percentage was 0, is None"),
    ],
)
def test_a_setting_of_a_task_that_is_not_named_has_its_default(
    before: dict[str, Any], now: dict[str, Any], change: str | None, tmp_path: Path
) -> None:
    (tmp_path / "results.json").write_text("{}")

    def settings(of_task: dict[str, Any]) -> dict[str, Any]:
        return {"downstream_expert": {"tasks": {"kws": {"head": "linear", **of_task}}}}

    (tmp_path / "run.json").write_text(json.dumps({"settings": settings(before)}))
    with contextlib.nullcontext() if change is None else pytest.raises(UserError, match=change):
        _check_settings(tmp_path, lambda run: settings(now), Run("", "", 0))


def test_results_of_another_student_are_refused(finished: Path, data: Path) -> None:
    bench = paper(data, finished)
    other_rate = dataclasses.replace(bench, distil=[*DISTIL, "learning_rate=0.5"])
    other_teacher = dataclasses.replace(bench, distil=[*DISTIL, f"teacher={data / 'teachers' / 'wav2vec2-base'}"])
    run = plan(bench.suite, 1, ["distilled-hubert/kws"])[0]
    assert execute(bench, run).error is None
    assert "student.learning_rate was 0.0002, is 0.5" in execute(other_rate, run).error
    assert "student.teacher was hubert-base-ls960, is wav2vec2-base" in execute(other_teacher, run).error


def test_all_teachers_of_a_distillation_are_passed_on(data: Path, tmp_path: Path) -> None:
    bench = paper(data, tmp_path)
    run = plan(bench.suite, 1, ["distilled-hubert/kws"])[0]
    teachers = [
        {"teacher": "facebook/hubert-base-ls960", "targets": [4, 8], "weight": 1.0},
        {"teacher": "resemblyzer", "targets": "utterance", "weight": 0.5},
    ]
    settings = {"teachers": teachers, "output": "out", "data": {"paths": ["data/LibriSpeech"]}}
    file = tmp_path / "several.yaml"
    file.write_text(json.dumps(settings))
    bench.suite.models[run.model].distill = str(file)
    bench = dataclasses.replace(bench, distil=[])
    teachers[0]["teacher"] = str(data / "teachers" / "hubert-base-ls960")  # the folder of the hub's name
    _, _, *pairs = bench.distil_command(run)
    assert f"teachers={json.dumps(teachers)}" in pairs and not any(pair.startswith("teacher=") for pair in pairs)
    assert [vars(teacher) for teacher in typed(DistillConfig, settings, file, pairs).teachers] == teachers
    assert bench.student_settings(run)["teachers"][0]["teacher"] == "hubert-base-ls960"


def test_the_record_of_a_run_without_checkpoints_is_ignored(data: Path, tmp_path: Path) -> None:
    bench = paper(data, tmp_path)
    run = plan(bench.suite, 1, ["wav2vec2/kws"])[0]
    record = run.folder(tmp_path) / "run.json"
    record.parent.mkdir(parents=True)
    record.write_text('{"settings": {"upstream": "fbank"}, "seconds": 5.0}')
    assert execute(bench, run).error is None


def test_a_damaged_record_is_named(finished: Path, data: Path, tmp_path: Path) -> None:
    shutil.copytree(finished / "runs" / "wav2vec2", tmp_path / "runs" / "wav2vec2")
    bench = paper(data, tmp_path)
    run = plan(bench.suite, 1, ["wav2vec2/joint-frozen"])[0]
    (run.folder(tmp_path) / "run.json").write_text("{")
    assert f"{run.folder(tmp_path) / 'run.json'}: is not JSON" in execute(bench, run).error


def test_a_report_includes_runs_of_earlier_calls(finished: Path, data: Path) -> None:
    bench = paper(data, finished)
    found = run_suite(bench, plan(bench.suite, 1, ["wav2vec2/joint-frozen"]))
    assert [f"{row['model']}/{row['setting']}" for row in found] == [
        "wav2vec2/joint-frozen",
        "distilled-hubert/kws",
        "distilled-hubert/sv",
        "distilled-hubert/joint",
    ]
    assert len(found[3]["seeds"]) == 2


def test_data_and_output_may_move_between_training_and_evaluation(finished: Path, data: Path, tmp_path: Path) -> None:
    for name, folder in {"data #2": data, "finished": finished}.items():
        shutil.copytree(folder, tmp_path / name)
    (tmp_path / "finished").rename(tmp_path / "out: put")
    bench = paper(tmp_path / "data #2", tmp_path / "out: put")
    run = plan(bench.suite, 1, ["distilled-hubert/joint"])[0]
    before = execute(bench, run).results
    (run.folder(bench.output) / "results.json").unlink()
    moved = [(data / "voxceleb1", data / "away"), (finished / "distill", finished / "away")]
    for here, there in moved:
        here.rename(there)
    try:
        after = execute(bench, run)
    finally:
        for here, there in moved:
            there.rename(here)
    assert after.error is None
    assert (after.results["kws"], after.results["sv"]) == (before["kws"], before["sv"])


def test_a_moved_run_resumes_in_its_new_folder(data: Path, tmp_path: Path) -> None:
    pairs = ["config.runner.save_step=2", "config.runner.eval_step=2", "config.runner.max_keep=2"]
    bench = paper(data, tmp_path / "old", *pairs, steps=4)
    run = plan(bench.suite, 1, ["wav2vec2/kws"])[0]
    assert execute(bench, run).error is None
    folder = run.folder(bench.output)
    for name in ("results.json", "scores-test.npz", "experiment/results.json", "experiment/states-4.ckpt"):
        (folder / name).unlink()
    assert (folder / "experiment" / "states-2.ckpt").is_file()
    (tmp_path / "old").rename(tmp_path / "new")
    moved = paper(data, tmp_path / "new", *pairs, steps=4)
    assert execute(moved, run).error is None
    assert (run.folder(moved.output) / "experiment" / "states-4.ckpt").is_file()
    assert not [path for path in (tmp_path / "old").rglob("*") if path.is_file()]  # s3prl makes the empty folder again


def test_a_damaged_run_does_not_stop_the_others(finished: Path, data: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "out")
    bench = paper(data, tmp_path / "out")
    cells = ("wav2vec2/joint-frozen", "distilled-hubert/kws", "distilled-hubert/sv")
    frozen, kws, sv = (plan(bench.suite, 1, [cell])[0] for cell in cells)
    (frozen.folder(bench.output) / "scores-test.npz").write_bytes(b"PK torn")
    (kws.folder(bench.output) / "results.json").write_text("{}")
    kws.folder(bench.output).with_name("seed-0.bak").mkdir()
    found = {f"{row['model']}/{row['setting']}": row for row in run_suite(bench, [sv])}
    assert set(found) == {"distilled-hubert/sv", "distilled-hubert/joint"}
    assert "scores-test.npz: is damaged" in execute(bench, frozen).error
    assert "results.json: lacks train_seconds, upstream" in execute(bench, kws).error


def test_an_interrupted_run_resumes(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = paper(data, tmp_path, "config.runner.save_step=2", "config.runner.log_step=1", steps=4)
    run = plan(bench.suite, 1, ["wav2vec2/joint"])[0]
    logged: list[int] = []
    original = DownstreamExpert.log_records

    def interrupting(
        self: DownstreamExpert, split: str, records: Any, logger: Any, global_step: int, **more: Any
    ) -> Any:
        if split == "train":
            logged.append(global_step)
            if global_step == 3:
                signal.raise_signal(signal.SIGINT)
        return original(self, split, records, logger, global_step, **more)

    monkeypatch.setattr(DownstreamExpert, "log_records", interrupting)
    with pytest.raises(Interrupted):
        run_suite(bench, [run])
    seconds = json.loads((run.folder(tmp_path) / "run.json").read_text())["seconds"]
    assert run_suite(bench, [run])[0]["train_seconds"] > seconds > 0
    assert logged == [1, 2, 3, 4]  # the interruption saved a checkpoint


def test_missing_data_is_reported_for_each_row(data: Path, tmp_path: Path) -> None:
    some = tmp_path / "some"
    (some / "voxceleb1").mkdir(parents=True)  # as after an unsuccessful prepare
    for name in ("speech_commands", "teachers"):
        (some / name).symlink_to(data / name)
    bench = paper(some, tmp_path / "out")
    run_suite(bench, plan(bench.suite, 1, ["wav2vec2/kws", "wav2vec2/sv", "distilled-hubert/kws"]))
    found = rows(tmp_path / "out")
    assert "kws_accuracy" in found["wav2vec2/kws"]
    assert found["wav2vec2/sv"]["errors"]["0"] == (
        f"data missing: voxceleb1 in {some}; distilled-student prepare voxceleb1 {some}"
    )
    assert "prepare librispeech" in found["distilled-hubert/kws"]["errors"]["0"]
    report = (tmp_path / "out" / "report.md").read_text()
    assert "| wav2vec2 (trial) |" in report and "not run | 3.35 [1]" in report


def test_a_run_that_fails_does_not_stop_the_others(data: Path, tmp_path: Path) -> None:
    some = tmp_path / "some"
    (some / "teachers").mkdir(parents=True)
    for name in ("speech_commands", "voxceleb1", "teachers/wav2vec2-base"):
        (some / name).symlink_to(data / name)
    bench = paper(some, tmp_path / "out")
    run_suite(bench, plan(bench.suite, 1, ["hubert/kws", "wav2vec2/kws"]))
    found = rows(tmp_path / "out")
    assert "facebook/hubert-base-ls960" in found["hubert/kws"]["errors"]["0"]
    assert "kws_accuracy" in found["wav2vec2/kws"]


def test_superb_runs_s3prls_own_experts(data: Path, tmp_path: Path) -> None:
    bench = open_bench("superb", data, tmp_path, steps=2, device="cpu", distil=DISTIL)
    quick = [f"downstream_expert.datarc.{pair}" for pair in ("num_workers=0", "train_batch_size=2", "batch_size=4")]
    for name, keys in {"ks": ("num_workers", ".batch"), "asv": ("num_workers", "train_batch")}.items():
        bench.suite.settings[name].override += [pair for pair in quick if any(key in pair for key in keys)]
    run_suite(bench, plan(bench.suite, 1, ["fbank/ks", "distilled-hubert/ks", "distilled-hubert/asv"]))
    found = rows(tmp_path)
    assert {key for key, row in found.items() if row["errors"]} == set(), found
    assert found["fbank/ks"]["published"]["kws_accuracy"] == 8.63
    folder = plan(bench.suite, 1, ["distilled-hubert/asv"])[0].folder(tmp_path)
    with np.load(folder / "scores-test.npz") as scores:
        eer = 100 * M.eer(scores["sv_scores"], scores["sv_labels"])
    assert found["distilled-hubert/asv"]["sv_eer"] == pytest.approx(eer)
    away = tmp_path / "away"
    shutil.copytree(data, away)
    for name in ("results.json", "scores-test.npz"):
        (folder / name).unlink()
    moved = dataclasses.replace(bench, data=away)
    again = execute(moved, plan(bench.suite, 1, ["distilled-hubert/asv"])[0])
    assert again.results["sv"]["eer"] == pytest.approx(eer), again.error
    report = (tmp_path / "report.md").read_text()
    assert "best of the saved checkpoints on the test trials" in " ".join(report.split())
    assert "| WavLM Base+ [" in report  # a published upstream that is not run


def test_a_dry_run_names_every_run_and_its_cost_and_writes_nothing(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        main(["benchmark", "paper", "--data", str(data), "--dry-run"])
    assert not end.value.code
    printed = capsys.readouterr().out
    for run in plan(read_suite("paper"), 1):
        assert run.name in printed
    assert "distill hubert-base" in printed
    assert "run_downstream.py" not in printed and "distilled-student distill" not in printed
    line = " ".join(printed.split())
    # the tiny corpora of this test are no results, so no run has its data
    assert re.search(r"Left: [\d,.]+ hours, 0 of them with the available data. Estimated, not measured", line)
    assert "small data: voxceleb1/dev/wav: 24 of 148,642 files in" in line and "to do" not in line
    measured = r"at ([\d.e-]+) TFLOP/s, measured(?: with other load)? with matrix products on cpu: trainings are slower"
    peak = float(re.search(measured, line)[1])
    assert 0.001 < peak < 100
    assert not list(tmp_path.iterdir())
    complete = {"train-clean-100": 28_539, "train-clean-360": 104_014, "train-other-500": 148_688, "train": 64_727}
    monkeypatch.setattr(trials, "_count", lambda folder: complete.get(folder.name, 148_642))
    with pytest.raises(SystemExit):
        main(["benchmark", "paper", "--data", str(data), "--dry-run", "--tflops", "0.1", "--verbose"])
    printed = capsys.readouterr().out
    line = " ".join(printed.split())
    assert printed.count("\nrun_downstream.py -a -m train ") == len(plan(read_suite("paper"), 3))
    assert printed.count("\ndistilled-student distill ") == 2
    assert re.search(r"Left: ([\d,.]+) hours, \1 of them with the available data", line) and "small data" not in line
    assert "at 0.1 TFLOP/s (float32" in line
