"""The launcher: s3prl's command line on today's libraries, from any folder, and its error lines."""

from __future__ import annotations

import builtins
import pickle
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from torchaudio.functional import resample

from distilled_student import host, hostaudio
from distilled_student.errors import UserError

SHORT = "config.runner.total_steps=3,,config.runner.save_step=2,,config.runner.eval_step=100"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    assert host.main(["-m", "train", "-u", "fbank", "-d", "example", "-p", str(folder), "-o", SHORT]) == 0
    return folder


@pytest.fixture
def few_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    host.prepare()
    monkeypatch.setattr("s3prl.downstream.example.dataset.EXAMPLE_DATASET_SIZE", 2)


def test_training_leaves_a_checkpoint_of_the_last_step(trained: Path) -> None:
    assert [path.name for path in trained.glob("*.ckpt")] == ["states-3.ckpt"]  # max_keep is 1; save_step is 2
    state = torch.load(trained / "states-3.ckpt", weights_only=True)
    assert state["Step"] == 3 and Path(state["Args"].config).is_absolute()


@pytest.mark.parametrize("flag", ["-e", "-a"])
def test_training_goes_on_from_another_folder(
    trained: Path, flag: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    start = torch.load(trained / "states-3.ckpt", weights_only=True)
    start["Args"].expdir = str(tmp_path / "copy")
    (tmp_path / "copy").mkdir()
    torch.save(start, tmp_path / "copy" / "states-3.ckpt")
    how = {"-e": ["-e", "copy"], "-a": ["-a", "-u", "fbank", "-d", "example", "-p", "copy"]}[flag]
    assert host.main(["-m", "train", *how, "-o", SHORT.replace("total_steps=3", "total_steps=5")]) == 0
    state = torch.load(tmp_path / "copy" / "states-5.ckpt", weights_only=True)
    assert all(entry["step"] == 5 for entry in state["Optimizer"]["state"].values())


def test_a_checkpoint_evaluates_from_another_folder(
    trained: Path, few_examples: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert host.main(["-m", "evaluate", "-e", str(trained / "states-3.ckpt")]) == 0
    runner = host.open_runner(trained / "states-3.ckpt", "cpu", ["config.runner.log_step=7"])
    saved = torch.load(trained / "states-3.ckpt", weights_only=True)["Downstream"]
    assert torch.equal(runner.downstream.model.connector.weight, saved["connector.weight"])
    assert runner.config["runner"]["log_step"] == 7


def test_two_processes_without_a_gpu_train_and_go_on(tmp_path: Path) -> None:
    program = "import sys; from distilled_student.host import main; sys.exit(main())"
    (tmp_path / "run.py").write_text(program)
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "run.py"]
    options = ["-a", "-m", "train", "-u", "fbank", "-d", "example", "-p", "exp", "--device", "cpu", "-o"]
    for steps in (2, 3):
        settings = SHORT.replace("total_steps=3", f"total_steps={steps}")
        done = subprocess.run([*start, *options, settings], cwd=tmp_path, capture_output=True, text=True, timeout=180)
        assert done.returncode == 0, done.stderr
    state = torch.load(tmp_path / "exp" / "states-3.ckpt", weights_only=True)
    assert (state["Step"], state["WorldSize"], state["Args"].local_rank) == (3, 2, 0)


def test_builtins_are_left_alone(trained: Path) -> None:
    assert type(builtins.isinstance) is type(len)


START = ["-m", "train", "-u", "fbank", "-d", "example", "-p", "new"]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["-m", "train", "-u", "fbnk", "-d", "example", "-p", "new"], "-u fbnk: no such upstream (fbank"),
        (["-m", "train", "-u", "fbank", "-d", "nope", "-p", "new"], "-d nope: no such downstream"),
        (["-m", "train", "-u", "hubert_local", "-d", "example", "-p", "new"], "needs -k"),
        (["-m", "train", "-u", "hubert_local", "-k", "no.pt", "-d", "example", "-p", "new"], "-k no.pt"),
        (["-m", "train", "-u", "fbank", "-d", "example"], "-p: no experiment folder"),
        (["-m", "train", "-u", "fbank", "-d", "emotion", "-p", "new"], "one with -c"),
        ([*START, "-c", "no.yaml"], "no.yaml: no such config"),
        ([*START, "--device", "cuda:99"], "--device cuda:99"),
        ([*START, "--device", "toaster"], "--device toaster"),
        ([*START, "-o", "config.runner.log_step"], "-o config.runner.log_step: expected"),
        ([*START, "-o", "config.runner.log_step=often"], "runner.log_step: expected a number"),
        ([*START, "-o", "config.runner.log_step.x=1"], "log_step is a value"),
        ([*START, "-o", "args.mode=__class__"], "args.mode"),
        ([*START, "-o", "config.optimizer.name=Nope"], "optimizer.name"),
        ([*START, "--push_to_hf_hub", "yes"], "huggingface_hub before 1.0"),
        ([*START[:-1], "file/new"], "file is not a writable folder"),
        (["-m", "evaluate", "-e", "empty"], "empty: no states-*.ckpt"),
        (["-m", "evaluate", "-e", "none.ckpt"], "none.ckpt: no such checkpoint"),
        (["-m", "evaluate", "-e", "file"], "file: not a checkpoint"),
        (["-m", "evaluate", "-e", "weights.ckpt"], "weights.ckpt: not a checkpoint of run_downstream.py: lacks Args"),
        (["-m", "evaluate", "-e", "code.ckpt"], "code.ckpt: refused"),
    ],
)
def test_a_users_error_is_one_line_and_writes_nothing(
    arguments: list[str], named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("not a checkpoint")
    torch.save({"weights": torch.zeros(1)}, "weights.ckpt")
    torch.save({"Args": Namespace(), "Config": pickle.Unpickler}, "code.ckpt")
    assert host.main(arguments) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and named in lines[0]
    assert not (tmp_path / "new").exists()


def test_overrides_are_literals_never_code(tmp_path: Path) -> None:
    args, config = Namespace(seed=0), {"runner": {}}
    text = f"args.seed=7,,config.runner.a.b=1e-3,,config.runner.c=['x', None],,config.d=open('{tmp_path}/x'\\, 'w')"
    host.override(text, args, config)
    assert args.seed == 7 and config["runner"] == {"a": {"b": 1e-3}, "c": ["x", None]}
    assert isinstance(config["d"], str) and not (tmp_path / "x").exists()


def test_sox_effects_match_their_definition(tmp_path: Path) -> None:
    wave = np.random.default_rng(0).uniform(-0.5, 0.5, (8000, 2)).astype("float32")
    soundfile.write(tmp_path / "a.wav", wave, 8000, subtype="FLOAT")
    chain = [["channels", "1"], ["rate", "16000"], ["gain", "-3.0"]]
    out, rate = hostaudio.apply_effects_file(tmp_path / "a.wav", chain)
    expected = resample(torch.from_numpy(wave.mean(axis=1)), 8000, 16000) * 10 ** (-3 / 20)
    assert rate == 16000 and torch.allclose(out[0], expected, atol=1e-6)
    out, _ = hostaudio.apply_effects_tensor(torch.from_numpy(wave.T), 8000, [["norm", "-6"]])
    assert out.abs().max().item() == pytest.approx(10 ** (-6 / 20), rel=1e-5)
    with pytest.raises(UserError, match="sox effect 'reverse'"):
        hostaudio.apply_effects_tensor(out, 8000, [["reverse"]])
