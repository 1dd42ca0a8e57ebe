"""What a checkpoint keeps: settings that choose held-out utterances or shape the inputs, and a frozen upstream."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from helpers.trees import tasks

import distilled_student as ds
from distilled_student.common.errors import UserError
from distilled_student.host import launch
from distilled_student.multitask.evaluate import evaluate

RUNNER = {"total_steps": 2, "gradient_clipping": 1, "gradient_accumulate_steps": 1, "log_step": 1, "eval_step": 2}
RUNNER |= {"save_step": 2, "max_keep": 1, "eval_dataloaders": ["dev"]}
EXPERT = "config.downstream_expert"


def run(folder: Path, values: dict[str, Any], name: str = "exp") -> Path:
    config = {"runner": RUNNER, "optimizer": {"name": "TorchOptim", "torch_optim_name": "SGD", "lr": 1.0e-3}}
    (folder / "c.yaml").write_text(yaml.safe_dump({**config, "downstream_expert": {"tasks": values}}))
    assert launch.main([*start(folder), "-p", str(folder / name)]) == 0
    return folder / name


def start(folder: Path) -> list[str]:
    return ["-m", "train", "-u", "fbank", "-d", "multitask", "-c", str(folder / "c.yaml"), "--device", "cpu"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with corpora, ``c.yaml`` and a finished run ``exp``."""
    folder = tmp_path_factory.mktemp("run")
    run(folder, tasks(folder))
    return folder


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("tasks.kws.validation_percentage=60", "60.0, but 30.0 in the checkpoint: utterances that were trained on"),
        ("tasks.kws.testing_percentage=60", "60.0, but 10.0 in the checkpoint: utterances that were trained on"),
        ("tasks.kws.speaker_pattern='_nohash_(.)'", "_nohash_(.), but None in the checkpoint: utterances that were"),
        ("tasks.sv.dev_speakers=3", "3, but 2 in the checkpoint: utterances that were trained on would be tested"),
        ("tasks.sv.dev_utterances=4", "4, but 0 in the checkpoint: utterances that were trained on would be tested"),
        ("tasks.kws.fill=false", "False, but True in the checkpoint: its head was trained on other inputs"),
        ("tasks.kws.crop_seconds=0.5", "0.5, but 1.0 in the checkpoint: its head was trained on other inputs"),
        ("tasks.sv.fill=false", "False, but True in the checkpoint: its head was trained on other inputs"),
        ("tasks.kws.layer=0", "0, but None in the checkpoint: its head was trained on other inputs"),
        ("gain_db=20", "20.0, but 0.0 in the checkpoint: use the value of its training"),
    ],
)
def test_a_setting_that_the_checkpoint_keeps_cannot_be_replaced_by_an_evaluation(
    trained: Path, setting: str, message: str
) -> None:
    key = setting.partition("=")[0]
    with pytest.raises(UserError) as error:
        evaluate(trained / "exp", "dev", device="cpu", overrides=[f"{EXPERT}.{setting}"])
    assert f"ckpt with -o: downstream_expert.{key}: {message}" in str(error.value)


def test_a_resumed_run_keeps_its_development_utterances(trained: Path, capsys: pytest.CaptureFixture) -> None:
    resumed = ["-m", "train", "-e", str(trained / "exp"), "--device", "cpu", "-o"]
    for setting in ("kws.validation_percentage=10", "sv.dev_utterances=4", "kws.crop_seconds=0.8"):
        assert launch.main([*resumed, f"config.runner.total_steps=3,,{EXPERT}.tasks.{setting}"]) == 2
        assert f"tasks.{setting.partition('=')[0]}: " in capsys.readouterr().err
    evaluated = [*start(trained)[2:], "-m", "evaluate", "-i", str(trained / "exp/states-2.ckpt"), "-t", "dev"]
    evaluated += ["-p", str(trained / "new"), "-o", f"{EXPERT}.tasks.kws.validation_percentage=10"]
    assert launch.main(evaluated) == 2
    assert "kws.validation_percentage: 10, but 30.0 in the checkpoint" in capsys.readouterr().err.replace(
        "10.0,", "10,"
    )


def test_a_training_with_other_settings_may_hold_out_others_and_says_so(
    trained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    initial = [*start(trained), "-i", str(trained / "exp/states-2.ckpt"), "-p", str(tmp_path / "new"), "-o"]
    settings = "kws.validation_percentage=40", "kws.crop_seconds=0.8"
    assert launch.main([*initial, ",,".join(f"{EXPERT}.tasks.{setting}" for setting in settings)]) == 0
    assert "40.0, but 30.0 in the checkpoint: development data may have utterances that its weights" in caplog.text
    assert "crop_seconds" not in caplog.text


def test_test_trials_can_be_replaced_but_not_where_development_speakers_depend_on_them(trained: Path) -> None:
    lines = ["1 id2000/s0/00000.wav id2000/s1/00000.wav", "0 id1000/s0/00000.wav id2000/s1/00000.wav"]
    (trained / "vox/other.txt").write_text("\n".join(lines))
    other = f"{EXPERT}.tasks.sv.trials=other.txt"
    assert evaluate(trained / "exp", device="cpu", overrides=[other])["sv"]["trials"] == 2
    for replaced in (other, f"{EXPERT}.tasks.sv.speaker_pattern='^([^/]+)/'"):
        with pytest.raises(UserError, match=r"sv\.(trials|speaker_pattern): is not that of the training, .* test tri"):
            evaluate(trained / "exp", "dev", device="cpu", overrides=[replaced])
    moved = f"{EXPERT}.tasks.sv.trials={trained / 'vox/veri_test.txt'}"
    assert evaluate(trained / "exp", "dev", device="cpu", overrides=[moved])["sv"]["trials"] == 20


@pytest.mark.parametrize(
    ("option", "name", "value"),
    [("-l", "upstream_layer_selection", 0), ("--upstream_feature_normalize", "upstream_feature_normalize", True)],
)
def test_a_head_is_not_evaluated_on_other_features_of_the_same_size(
    trained: Path, option: str, name: str, value: Any
) -> None:
    with pytest.raises(UserError, match=rf"args\.{name} \({option}\): is {value}, but (None|False) in .*ckpt, which"):
        evaluate(trained / "exp", device="cpu", overrides=[f"args.{name}={value}"])


def save_student(folder: Path, seed: int) -> None:
    small = {"hidden_size": 16, "layers": 1, "heads": 2, "feed_forward": 32, "position_kernel": 8, "position_groups": 2}
    torch.manual_seed(seed)
    ds.save_student(ds.build_student(ds.StudentConfig(conv_dim=[8] * 7, **small)), folder)


def on_student(folder: Path, *more: str) -> list[str]:
    start = ["-m", "train", "-u", "distilled_student", "-k", str(folder / "student"), "-s", "last_hidden_state"]
    return [*start, "-d", "multitask", "-c", str(folder / "c.yaml"), "--device", "cpu", *more]


def test_another_student_in_the_folder_of_a_frozen_upstream_is_refused(
    trained: Path, capsys: pytest.CaptureFixture
) -> None:
    save_student(trained / "student", seed=0)
    assert launch.main(on_student(trained, "-p", str(trained / "frozen"))) == 0
    before = evaluate(trained / "frozen", device="cpu")
    (trained / "student").rename(trained / "old")
    save_student(trained / "student", seed=1)
    message = (
        r"-k .*student: the weights of the upstream are not those of the training of .*ckpt, whose hash is in prov"
    )
    with pytest.raises(UserError, match=message):
        evaluate(trained / "frozen", device="cpu")
    resumed = ["-m", "train", "-e", str(trained / "frozen"), "--device", "cpu", "-o", "config.runner.total_steps=3"]
    assert launch.main(resumed) == 2 and "are not those of the training" in capsys.readouterr().err
    moved = [f"args.upstream_ckpt={trained / 'old'}"]
    assert evaluate(trained / "frozen", device="cpu", overrides=moved) == before


def test_a_frozen_upstream_from_initial_weights_is_saved_with_the_heads(trained: Path) -> None:
    save_student(trained / "student", seed=0)
    assert launch.main(on_student(trained, "-f", "-p", str(trained / "joint"))) == 0
    state = torch.load(trained / "joint/states-2.ckpt", weights_only=True)
    torch.save({name: state[name] for name in ("Upstream", "Downstream")}, trained / "weights.ckpt")
    initial = ["-i", str(trained / "weights.ckpt"), "-p", str(trained / "heads")]
    assert launch.main(on_student(trained, *initial)) == 0
    wanted = state["Upstream"]
    model = launch.open_runner(trained / "heads/best-dev.ckpt", "cpu").upstream.model
    assert wanted and all(torch.equal(value, model.state_dict()[name]) for name, value in wanted.items())
    start = ds.load_student(trained / "student").state_dict()
    assert any(not torch.equal(value, wanted[f"student.{name}"]) for name, value in start.items())
