"""Training and evaluation by the real commands, on tones: the results and the files that they write."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from helpers.trees import tasks

from distilled_student.common.errors import UserError
from distilled_student.common.settings import find_config, read_yaml
from distilled_student.host import launch
from distilled_student.multitask import metrics
from distilled_student.multitask.evaluate import evaluate, find_checkpoint

SPEAKERS = ["id1000", "id1001", "id2000"]  # two of the dev part, one of the test part


def test_training_and_evaluation_write_results_and_scores(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    config = read_yaml(find_config("default", kind="multitask"))
    config["runner"] |= {"total_steps": 4, "log_step": 2, "eval_step": 2, "save_step": 2}
    config["downstream_expert"] |= {"num_workers": 0, "tasks": tasks(tmp_path)}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config))
    exp = tmp_path / "exp"
    train = ["-m", "train", "-u", "fbank", "-d", "multitask", "-c", str(tmp_path / "c.yaml"), "-p", str(exp)]
    assert launch.main([*train, "--device", "cpu"]) == 0
    results = evaluate(exp, device="cpu")
    assert results == json.loads((exp / "results.json").read_text())
    assert results["checkpoint"] == "best-dev.ckpt" and results["upstream"]["name"] == "fbank"
    assert set(results["upstream"]) == {"name", "parameters", "macs_per_second"}
    scores = np.load(exp / "scores-test.npz")
    assert results["sv"]["eer"] == 100 * metrics.eer(scores["sv_scores"], scores["sv_labels"])
    again = evaluate(exp, device="cpu")
    assert (again["kws"], again["sv"]) == (results["kws"], results["sv"])
    assert not list(exp.glob("*.new")) and (exp / "det-test.png").stat().st_size > 1000
    assert results["sv"]["as_norm"]["eer"] == 100 * metrics.eer(scores["sv_as_norm_scores"], scores["sv_labels"])
    for kind in (results["sv"], results["sv"]["as_norm"]):
        assert {"eer_interval", "min_dcf_0.01", "min_dcf_0.05", "act_dcf_0.01", "act_dcf_0.05", "cllr"} <= set(kind)
    assert results["sv"]["cohort"] == 4, "the number of training speakers, from the checkpoint"
    trials = [f"{int(a == b)} {a}/s0/00000.wav {b}/s1/00000.wav" for a in SPEAKERS for b in SPEAKERS]
    lines = [f"{trial} {gender} GB" for trial, gender in zip(trials, itertools.cycle("fm"), strict=False)]
    (tmp_path / "vox/hard.txt").write_text("\n".join(lines))
    before = (exp / "results.json").read_text()
    hard = evaluate(exp, device="cpu", trials="hard.txt")
    assert json.loads((exp / "results-hard.json").read_text()) == hard and (exp / "det-test-hard.png").is_file()
    assert (exp / "results.json").read_text() == before, "another list has its own files"
    assert (hard["sv"]["trials"], hard["sv"]["speakers"]) == (9, 3), "of training and test, as in VoxCeleb1-E"
    assert {value: found["trials"] for value, found in hard["sv"]["groups"]["column 4"].items()} == {"f": 5, "m": 4}
    for kind in (hard["sv"], hard["sv"]["as_norm"]):
        assert kind["groups"]["column 5"]["GB"]["eer"] == kind["eer"]
    with pytest.raises(UserError, match=r"best-dev\.ckpt with -o: downstream_expert\.tasks\.kws: batch_size: expected"):
        evaluate(exp, device="cpu", overrides=["config.downstream_expert.tasks.kws.batch_size=many"])
    shutil.rmtree(next(iter(sorted((tmp_path / "vox/dev/wav").iterdir()))))
    assert launch.main(["-m", "train", "-e", str(exp / "states-4.ckpt"), "--device", "cpu"]) == 2
    assert "vox: 3 training speakers, but the checkpoint has 4" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "vox/dev")
    shutil.rmtree(tmp_path / "sc/train")
    again = evaluate(exp, device="cpu")
    assert (again["kws"], again["sv"]) == (results["kws"], results["sv"]), "a test needs no training folders"
    with pytest.raises(UserError, match=r"train_root: .*: no such folder"):
        evaluate(exp, split="dev", device="cpu")
    state = torch.load(exp / "best-dev.ckpt", weights_only=True)
    del state["Downstream"]
    torch.save(state, exp / "best-dev.ckpt")
    with pytest.raises(UserError, match=r"best-dev\.ckpt: lacks Downstream: nothing to evaluate"):
        evaluate(exp, device="cpu")


def test_without_a_best_checkpoint_the_newest_is_evaluated_with_a_message(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    for step in (900, 1000):
        (tmp_path / f"states-{step}.ckpt").touch()
    assert find_checkpoint(tmp_path).name == "states-1000.ckpt"
    assert "best-dev.ckpt: no such checkpoint; evaluating states-1000.ckpt" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"nope\.ckpt: no such checkpoint"):
        find_checkpoint(tmp_path, "nope.ckpt")
    with pytest.raises(UserError, match="--split train: expected dev or test"):
        evaluate(tmp_path, split="train")
    with pytest.raises(UserError, match=r"gone: no such folder"):
        evaluate(tmp_path / "gone")


def test_a_training_that_is_shorter_than_its_evaluation_interval_and_its_warm_up_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    config = read_yaml(find_config("default", kind="multitask"))
    config["runner"] |= {"total_steps": 2, "log_step": 2, "eval_step": 9, "save_step": 2}
    config["downstream_expert"] |= {"num_workers": 0, "tasks": tasks(tmp_path)}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config))
    train = [
        "-m",
        "train",
        "-u",
        "fbank",
        "-d",
        "multitask",
        "-c",
        str(tmp_path / "c.yaml"),
        "-p",
        str(tmp_path / "exp"),
    ]
    assert launch.main([*train, "--device", "cpu"]) == 0
    printed = capsys.readouterr().err
    assert "c.yaml: scheduler.num_warmup_steps: 14000, but runner.total_steps is 2: the learning rate" in printed
    assert "c.yaml: runner.eval_step: 9, but runner.total_steps is 2: nothing was evaluated, and no best" in printed
    evaluate(tmp_path / "exp", split="dev", device="cpu")
    printed = capsys.readouterr().out
    assert "\ndev: kws: accuracy" in printed and "step 0" not in printed
    # a longer one says neither
    more = "config.runner.total_steps=4,,config.runner.eval_step=4,,config.scheduler.num_warmup_steps=3"
    assert launch.main(["-m", "train", "-e", str(tmp_path / "exp"), "--device", "cpu", "-o", more]) == 0
    printed = capsys.readouterr().err
    assert "num_warmup_steps" not in printed and "eval_step" not in printed
