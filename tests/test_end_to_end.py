"""The commands one after the other, on seconds of the embedded corpus."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import distilled_student as ds
from distilled_student.cli import main
from distilled_student.demo.run_demo import run_demo
from distilled_student.host import launch
from distilled_student.multitask import speaker_calibration

DISTIL = [
    "steps=3",
    "log_every=1",
    "data.batch_seconds=4",
    "data.max_seconds=4",
    "student.conv_dim=[32,32]",
    "student.hidden_size=32",
    "student.heads=2",
    "student.feed_forward=64",
    "student.prediction_size=8",
]
JOINT = [
    "config.runner.total_steps=4",
    "config.runner.log_step=2",
    "config.runner.eval_step=4",
    "config.runner.save_step=2",
    "config.downstream_expert.tasks.kws.batch_size=4",
    "config.downstream_expert.tasks.sv.batch_size=4",
    "config.downstream_expert.tasks.sv.dev_speakers=2",
    "config.downstream_expert.tasks.sv.dev_trials=20",
    "config.downstream_expert.tasks.sv.crop_seconds=0.5",
]
ROW = {"name", "kws_accuracy", "sv_eer", "min_dcf", "parameters", "macs_per_second", "rtf", "train_seconds"}


@pytest.fixture(autouse=True)
def little_speech_for_calibrations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speaker_calibration, "PIECES", {1.0: 5, 3.0: 1})


def _exit_code(function: object, *argv: object) -> int:
    try:
        return int(function(list(map(str, argv))) or 0)
    except SystemExit as error:
        return int(error.code or 0)


@pytest.fixture(scope="module")
def student(small_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student that the distill command has made from the shipped teacher."""
    output = tmp_path_factory.mktemp("student") / "with a space"
    paths = f"data.paths=['{small_corpus / 'speech_commands' / 'train'}']"
    assert _exit_code(main, "distill", "demo", f"output={output}", paths, *DISTIL) == 0
    return output


def _joint(small_corpus: Path, *extra: str) -> list[str]:
    tasks = "config.downstream_expert.tasks"
    pairs = [
        f"{tasks}.kws.train_root={small_corpus / 'speech_commands' / 'train'}",
        f"{tasks}.kws.test_root={small_corpus / 'speech_commands' / 'test'}",
        f"{tasks}.sv.root={small_corpus / 'voxceleb1'}",
    ]
    return ["-c", "demo", "-o", ",,".join([*pairs, *JOINT, *extra])]


def test_distil_train_evaluate_and_resume(
    student: Path, small_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    train = ["-m", "train", "-u", "distilled_student", "-k", student, "-d", "multitask", "-p", "exp", "-f"]
    assert _exit_code(launch.main, *train, *_joint(small_corpus)) == 0
    assert (tmp_path / "exp" / "states-4.ckpt").is_file()
    assert _exit_code(main, "evaluate", "exp") == 0
    results = json.loads((tmp_path / "exp" / "results.json").read_text())
    assert 0 <= results["kws"]["accuracy"] <= 100
    assert 0 <= results["sv"]["eer"] <= 100
    assert results["upstream"]["macs_per_second"] > 0
    assert _exit_code(main, "evaluate", "exp") == 0
    again = json.loads((tmp_path / "exp" / "results.json").read_text())
    assert (again["kws"], again["sv"]) == (results["kws"], results["sv"])

    more = ["-m", "train", "-e", "exp", "-o", "config.runner.total_steps=6"]
    assert _exit_code(launch.main, *more) == 0
    state = torch.load(tmp_path / "exp" / "states-6.ckpt", weights_only=True)
    assert state["Step"] == 6


def test_without_f_the_upstream_is_not_trained(student: Path, small_corpus: Path, tmp_path: Path) -> None:
    train = ["-m", "train", "-u", "distilled_student", "-k", student, "-d", "multitask", "-p", tmp_path / "exp"]
    assert _exit_code(launch.main, *train, *_joint(small_corpus)) == 0
    state = torch.load(tmp_path / "exp" / "states-4.ckpt", weights_only=True)
    assert "Upstream" not in state
    assert {"Featurizer", "Downstream"} <= state.keys()


@pytest.mark.parametrize("selection", ["predictions", "last_hidden_state", "concatenated"])
def test_s_selects_the_features(selection: str, student: Path, small_corpus: Path, tmp_path: Path) -> None:
    train = [
        "-m",
        "train",
        "-u",
        "distilled_student",
        "-k",
        student,
        "-d",
        "multitask",
        "-p",
        tmp_path,
        "-s",
        selection,
    ]
    assert _exit_code(launch.main, *train, *_joint(small_corpus, "config.runner.total_steps=2")) == 0
    config = ds.load_student(student).config
    widths = {"predictions": 512, "concatenated": config.hidden_size * (config.layers + 1)}
    state = torch.load(tmp_path / "states-2.ckpt", weights_only=True)["Downstream"]
    pooled = 2 * widths.get(selection, config.hidden_size)  # attentive_std: a mean and a deviation of each feature
    assert state["tasks.kws.head.linear.weight"].shape[1] == pooled


def test_without_k_the_shipped_student_is_used(small_corpus: Path, tmp_path: Path) -> None:
    train = ["-m", "train", "-u", "distilled_student", "-d", "multitask", "-p", tmp_path]
    assert _exit_code(launch.main, *train, *_joint(small_corpus, "config.runner.total_steps=2")) == 0


def test_the_demo_writes_rows_report_and_plots(small_corpus: Path, tmp_path: Path) -> None:
    run_demo(tmp_path, seeds=1, distil=DISTIL, joint=JOINT, corpus=small_corpus)
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert [row["name"] for row in rows] == ["student", "student, frozen", "student, from scratch", "teacher"]
    for row in rows:
        assert row.keys() >= ROW
        assert 0 <= row["kws_accuracy"] <= 100
        assert row["train_seconds"] > 0
    assert rows[3]["macs_per_second"] > rows[0]["macs_per_second"]
    for name in ("report.md", "confusion.png", "det.png", "cost.png"):
        assert (tmp_path / name).stat().st_size > 0


def test_shipped_folders_are_not_too_large() -> None:
    assets = Path(ds.__file__).parent / "assets"
    for name, megabytes in {"teacher": 16, "models/edge": 17, "models/tiny": 5}.items():
        size = sum(p.stat().st_size for p in (assets / name).iterdir())
        assert size <= megabytes * 1e6
        assert "Whisper" in (assets / name / "README.md").read_text()
    assert sum(file.stat().st_size for file in assets.rglob("*") if file.is_file()) <= 45e6
