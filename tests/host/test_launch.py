"""The launcher: s3prl's command line on today's libraries, in any working folder, with one-line errors."""

from __future__ import annotations

import builtins
import pickle
import shutil
import socket
import urllib.error
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from helpers.forks import Forks
from torchaudio.functional import resample

import distilled_student as ds
from distilled_student.common.early_checks import checkpoints
from distilled_student.common.errors import UserError
from distilled_student.common.settings import find_config
from distilled_student.host import launch
from distilled_student.host.overrides import override
from distilled_student.host.plugin import register
from distilled_student.patches import torchaudio_names

SHORT = "config.runner.total_steps=3,,config.runner.save_step=2,,config.runner.eval_step=100"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished training of three steps."""
    folder = tmp_path_factory.mktemp("trained")
    assert launch.main(["-m", "train", "-u", "fbank", "-d", "example", "-p", str(folder), "-o", SHORT]) == 0
    return folder


@pytest.fixture
def few_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two examples in the data set of s3prl's example downstream."""
    register()
    monkeypatch.setattr("s3prl.downstream.example.dataset.EXAMPLE_DATASET_SIZE", 2)


def test_training_saves_a_checkpoint_at_the_last_step(trained: Path) -> None:
    assert [path.name for path in trained.glob("*.ckpt")] == ["states-3.ckpt"]  # max_keep is 1, save_step is 2
    state = torch.load(trained / "states-3.ckpt", weights_only=True)
    assert state["Step"] == 3 and Path(state["Args"].config).is_absolute()


@pytest.mark.parametrize("flag", ["-e", "-a"])
def test_training_resumes_in_another_working_folder(
    trained: Path, flag: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    start = torch.load(trained / "states-3.ckpt", weights_only=True)
    start["Args"].expdir = str(tmp_path / "copy")
    (tmp_path / "copy").mkdir()
    torch.save(start, tmp_path / "copy" / "states-3.ckpt")
    options = {"-e": ["-e", "copy"], "-a": ["-a", "-u", "fbank", "-d", "example", "-p", "copy"]}[flag]
    assert launch.main(["-m", "train", *options, "-o", SHORT.replace("total_steps=3", "total_steps=5")]) == 0
    state = torch.load(tmp_path / "copy" / "states-5.ckpt", weights_only=True)
    assert all(entry["step"] == 5 for entry in state["Optimizer"]["state"].values())


def test_a_checkpoint_is_evaluated_in_another_working_folder(
    trained: Path, few_examples: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert launch.main(["-m", "evaluate", "-e", str(trained / "states-3.ckpt")]) == 0
    runner = launch.open_runner(trained / "states-3.ckpt", "cpu", ["config.runner.log_step=7"])
    saved = torch.load(trained / "states-3.ckpt", weights_only=True)["Downstream"]
    assert torch.equal(runner.downstream.model.connector.weight, saved["connector.weight"])
    assert runner.config["runner"]["log_step"] == 7


def test_two_processes_without_a_gpu_train_and_resume(tmp_path: Path) -> None:
    program = """
import distilled_student
distilled_student.register()
from s3prl.downstream.example import dataset
from distilled_student.host.launch import main
dataset.EXAMPLE_DATASET_SIZE = 8
"""
    register()  # allows torch.load to read the argparse.Namespace of a checkpoint
    options = ["-a", "-m", "train", "-u", "fbank", "-d", "example", "-p", "exp", "--device", "cpu", "-o"]
    with Forks(program) as forks:
        for steps in (2, 3):
            settings = SHORT.replace("total_steps=3", f"total_steps={steps}")
            with socket.create_server(("127.0.0.1", 0)) as free:
                torchrun = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}
            files, processes = {"out": tmp_path / "log", "err": tmp_path / "log"}, []
            for rank in ("0", "1"):
                torchrun |= {"RANK": rank, "LOCAL_RANK": rank}
                processes.append(forks.start(*options, settings, folder=tmp_path, **files, **torchrun))
            assert [forks.wait(process) for process in processes] == [0, 0], (tmp_path / "log").read_text()
    state = torch.load(tmp_path / "exp" / "states-3.ckpt", weights_only=True)
    assert (state["Step"], state["WorldSize"], state["Args"].local_rank) == (3, 2, 0)


def test_builtins_are_not_replaced(trained: Path) -> None:
    assert type(builtins.isinstance) is type(len)


START = ["-m", "train", "-u", "fbank", "-d", "example", "-p", "new"]
JOINT = ["-m", "train", "-u", "fbank", "-d", "multitask", "-p", "new"]
WARM = "config.scheduler.name=linear_schedule_with_warmup"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["-m", "train", "-u", "fbnk", "-d", "example", "-p", "new"],
            "-u fbnk: no such upstream; did you mean `fbank`?",
        ),
        (["-m", "train", "-u", "fbank", "-d", "nope", "-p", "new"], "-d nope: no such downstream"),
        (["-m", "train", "-u", "hubert_local", "-d", "example", "-p", "new"], "needs -k"),
        (["-m", "train", "-u", "hubert_local", "-k", "no.pt", "-d", "example", "-p", "new"], "-k no.pt"),
        (["-m", "train", "-u", "fbank", "-d", "example"], "-p: no experiment folder"),
        (
            ["-m", "train", "-u", "fbank", "-d", "mos_prediction", "-p", "new"],
            "ships no YAML file for it: give one with -c FILE",
        ),
        ([*START, "-c", "no.yaml"], "no.yaml: no such config"),
        ([*START, "--device", "cuda:99"], "--device cuda:99"),
        ([*START, "--device", "toaster"], "--device toaster"),
        ([*START, "-o", "config.runner.log_step"], "-o config.runner.log_step: expected"),
        ([*START, "-o", "config.runner.log_step=often"], "runner.log_step: expected a number"),
        ([*START, "-o", "config.runner.log_step.x=1"], "log_step is a value"),
        ([*START, "-o", "config.optimizer.lr=fast"], "example.yaml with -o: optimizer.lr: expected a number"),
        ([*START, "-o", "config.optimizer.lr=-1"], "optimizer.lr: expected a number of at least 0"),
        ([*START, "-o", "config.optimizer.lr=nan"], "optimizer.lr: expected a number of at least 0"),
        ([*START, "-o", "config.optimizer.weight_decay=inf"], "optimizer.weight_decay: expected a finite number"),
        ([*START, "-o", "config.optimizer.torch_optim_name=Adan"], "torch_optim_name: torch.optim has no Adan; did"),
        ([*START, "-o", "config.optimizer.torch_optim_name=LBFGS"], "optimizer: LBFGS.step() missing"),
        ([*START, "-o", "config.optimizer.wait_decay=0"], "optimizer.wait_decay: "),
        ([*START, "-o", "config.optimizer.betas=often"], "optimizer.betas: "),
        (
            [*START, "-o", "config.optimizer={'name': 'Adam', 'weight_decay': 0.1}"],
            "optimizer.weight_decay: no such key",
        ),
        (
            [*START, "-o", f"{WARM},,config.scheduler.num_warmup_steps=few"],
            "scheduler.num_warmup_steps: expected a number",
        ),
        ([*START, "-o", f"{WARM},,config.scheduler.warmup=3"], "unexpected keyword argument 'warmup'"),
        ([*START, "-o", WARM], "scheduler: get_linear_schedule_with_warmup() missing"),
        ([*START, "-o", "config.runner.total_steps=1e400"], "total_steps: expected a whole number, found inf"),
        ([*START, "-o", "config.runner.max_keep=1.5"], "runner.max_keep: expected a whole number, found 1.5"),
        ([*START, "-o", "config.runner.eval_dataloaders=dev"], "eval_dataloaders: expected a list of splits"),
        ([*START, "-o", "config.runner.eval_dataloaders=null"], "eval_dataloaders: expected a list of splits"),
        ([*START, "-o", "config.runner.evaluate_ratio=half"], "runner.evaluate_ratio: expected a number"),
        ([*START, "-o", "config.runner.upstream_lr=-1"], "runner.upstream_lr: expected a number of at least 0"),
        ([*START, "-o", "config.runner.average=1"], "runner.average: expected a number between 0 and 1, found 1"),
        ([*START, "-o", "config.runner.bf16=maybe"], "runner.bf16: expected true or false"),
        ([*START, "-o", "config.runner.log_steps=2"], "runner.log_steps: no such key; did you mean `log_step`?"),
        ([*START, "-o", "args.seed=abc"], "-o args.seed=abc: expected a whole number"),
        ([*START, "-o", "args.seed=-1"], "--seed -1: expected"),
        ([*START, "-o", "args.device=foo"], "-o args.device=foo: unknown"),
        ([*START, "-o", "args.device=cuda:99"], "-o args.device=cuda:99: this machine has no such GPU"),
        ([*START, "-o", "args.sed=1"], "-o args.sed=1: no such argument; did you mean `seed`?"),
        ([*START, "-o", "args.upstream_trainable=yes"], "args.upstream_trainable=yes: expected true or false"),
        ([*JOINT, "-o", "config.runner.eval_dataloaders=['dev', 'train']"], "eval_dataloaders: 'train' is not dev or"),
        (
            [*JOINT, "-o", "config.sheduler={}"],
            "default.yaml with -o: sheduler: no such section; did you mean `scheduler`?",
        ),
        ([*JOINT, "-o", "config.downstream_expert.tasks.asr={}"], "tasks.asr: no task of this name"),
        ([*JOINT, "-o", "config.downstream_expert.layers=2"], "layers: 2 needs -s concatenated or all, not -s"),
        ([*JOINT, "-o", "config.downstream_expert.tasks.sv.crop_seconds=nan"], "crop_seconds: needs a finite number"),
        (
            [*START, "-o", "config.downstream_expert.modelrc.select=exit()"],
            "modelrc.select: expected a name, found",
        ),
        ([*START, "-o", "config.downstream_expert={'datarc': {}}"], "downstream_expert: key 'modelrc': missing"),
        ([*START, "-o", "config.runner.eval_dataloaders=['exit()']"], "eval_dataloaders: 'exit()' is not a name"),
        (["-m", "evaluate", *START[2:], "-t", "exit()"], "-t exit(): expected the name of a split"),
        ([*START, "-s", "hiden_states"], "-s hiden_states: -u fbank has only"),
        ([*START, "-i", "weights.ckpt"], "weights.ckpt: holds neither Upstream nor Downstream"),
        (["-m", "evaluate", *JOINT[2:]], "-m evaluate: needs a trained checkpoint"),
        (["-m", "evaluate", *JOINT[2:], "-t", "test", "-i", "weights.ckpt"], "weights.ckpt: holds neither"),
        (["-m", "evaluate", *JOINT[2:], "-t", "train", "-i", "weights.ckpt"], "-t train: expected dev or test"),
        (
            ["-m", "train", "-u", "fbank", "-d", "multitsk", "-p", "new"],
            "no such downstream; did you mean `multitask`?",
        ),
        (["-m", "trian", *START[2:]], "-m trian: expected train or evaluate or inference; did you mean `train`?"),
        ([*START, "--sede", "3"], "--sede: no such option; did you mean `--seed`?"),
        ([*START, "-o", "confg.runner.log_step=2"], "separated by ,, (two commas); did you mean `config`?"),
        ([*START, "-o", "config.runner.log_step=2,args.seed=3"], "one comma between two settings: expected args.NAME"),
        (
            ["-m", "train", "-u", "distilled_student", "-k", "gone", "-d", "example", "-p", "new"],
            "-k gone: no such folder",
        ),
        (["-m", "inference", *START[2:], "-t", "gone.wav"], "-t gone.wav: no such audio file"),
        ([*START[:-1], "/proc/x"], "-p /proc/x: cannot be written"),
        (["-m", "evaluate", "-e", "headless.ckpt"], "headless.ckpt: lacks Downstream: nothing to evaluate"),
        (
            ["-m", "evaluate", "-e", "kinds.ckpt"],
            "kinds.ckpt: not a checkpoint of run_downstream.py: Args has the wrong type",
        ),
        (
            ["-m", "evaluate", "-e", "names.ckpt"],
            "names.ckpt: not a checkpoint of run_downstream.py: Args lacks upstream",
        ),
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
def test_a_users_error_is_reported_in_one_line_and_writes_nothing(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("not a checkpoint")
    torch.save({"weights": torch.zeros(1)}, "weights.ckpt")
    torch.save({"Args": Namespace(), "Config": pickle.Unpickler}, "code.ckpt")
    known = Namespace(upstream="fbank", downstream="example", expdir="new")
    torch.save({"Args": known, "Config": {"runner": {}}}, "headless.ckpt")
    torch.save({"Args": {}, "Config": {"runner": {}}}, "kinds.ckpt")
    torch.save({"Args": Namespace(), "Config": {"runner": {}}}, "names.ckpt")
    assert launch.main(arguments) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and message in lines[0]
    assert not (tmp_path / "new").exists() and not Path("/proc/x").exists()


def test_numbers_that_yaml_reads_as_strings_are_used_as_numbers(tmp_path: Path) -> None:
    text = Path(find_config("example")).read_text().replace("1.0e-3", "1e-3").replace("steps: 20", "steps: 2e0")
    (tmp_path / "c.yaml").write_text(text)
    assert launch.main([*START[:-1], str(tmp_path / "exp"), "-c", str(tmp_path / "c.yaml")]) == 0
    state = torch.load(tmp_path / "exp" / "states-2.ckpt", weights_only=True)
    assert state["Optimizer"]["param_groups"][0]["lr"] == 1e-3 and state["Config"]["runner"]["total_steps"] == 2


def test_bf16_applies_to_training_and_evaluation_stays_in_float32(
    few_examples: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from s3prl.downstream.example.expert import DownstreamExpert

    class Upstream(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = torch.nn.Linear(1, 4)

        def get_downsample_rates(self, key: str) -> int:
            return 160

        def forward(self, wavs: list) -> dict:
            padded = torch.nn.utils.rnn.pad_sequence(wavs, batch_first=True)[:, ::160, None]
            return {"hidden_states": [self.linear(padded)]}

    recorded: dict[str, dict[bool, list]] = {}  # bf16 -> whether training -> (dtype, loss) of each batch
    forward = DownstreamExpert.forward

    def recording_forward(
        self: torch.nn.Module, split: str, features: list, *others: object, **kwargs: object
    ) -> object:
        batches = recorded.setdefault(bf16, {}).setdefault(split == "train", [])
        loss = forward(self, split, [f.float() for f in features], *others, **kwargs)
        batches.append((features[0].dtype, loss.item() if loss is not None else None))
        return loss

    monkeypatch.setattr(DownstreamExpert, "forward", recording_forward)
    monkeypatch.setattr("s3prl.hub.plain", lambda **_: Upstream(), raising=False)
    monkeypatch.setattr("s3prl.hub.options", lambda: ["plain"])
    start = ["-m", "train", "-u", "plain", "-d", "example", "-p"]
    for bf16 in ("false", "true"):
        torch.manual_seed(0)
        options = f"config.runner.total_steps=2,,config.runner.eval_step=1,,config.runner.bf16={bf16}"
        assert launch.main([*start, str(tmp_path / bf16), "--device", "cpu", "-o", options]) == 0
    assert {dtype for dtype, _ in recorded["true"][True]} == {torch.bfloat16}
    assert {dtype for dtype, _ in recorded["true"][False]} == {torch.float32}
    assert recorded["true"][True][0][1] != recorded["false"][True][0][1]


def test_the_upstream_has_a_learning_rate_of_its_own(
    few_examples: None, small_logmel: ds.StudentConfig, tmp_path: Path
) -> None:
    ds.save_student(ds.build_student(small_logmel), tmp_path / "student")
    before = ds.load_student(tmp_path / "student").state_dict()
    start = ["-m", "train", "-u", "distilled_student", "-k", str(tmp_path / "student"), "-d", "example", "-f", "-p"]
    for rate, is_frozen in (("0", True), ("1e-2", False)):
        options = f"config.runner.total_steps=2,,config.runner.upstream_lr={rate}"
        assert launch.main([*start, str(tmp_path / rate), "--device", "cpu", "-o", options]) == 0
        state = torch.load(tmp_path / rate / "states-2.ckpt", weights_only=True)
        assert [group["lr"] for group in state["Optimizer"]["param_groups"]] == [1e-3, float(rate)]
        after = {name.removeprefix("student."): value for name, value in state["Upstream"].items()}
        changed = [name for name in before if name.startswith("layers.") and not torch.equal(after[name], before[name])]
        assert bool(changed) is not is_frozen


def test_the_error_about_an_upstream_that_cannot_be_downloaded_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    register()

    def unreachable(**_: object) -> None:
        raise urllib.error.URLError("https://somewhere/hubert_base.pt: no route")

    monkeypatch.setattr("s3prl.hub.hubert_base", unreachable)
    monkeypatch.chdir(tmp_path)
    assert launch.main(["-m", "train", "-u", "hubert_base", "-d", "example", "-p", "new", "--device", "cpu"]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: -u hubert_base: cannot be downloaded here") and "://" not in line
    assert "-u hubert_local -k FILE, or -u teacher -k FOLDER" in line and not (tmp_path / "new").exists()


def test_a_checkpoint_with_another_name_is_neither_resumed_nor_deleted(trained: Path, tmp_path: Path) -> None:
    for name in ("states-3.ckpt", "states-foo.ckpt"):
        shutil.copy(trained / "states-3.ckpt", tmp_path / name)
    assert [path.name for path in checkpoints(tmp_path)] == ["states-3.ckpt"]
    options = ["-o", SHORT.replace("total_steps=3", "total_steps=4") + f",,args.expdir={tmp_path}"]
    assert launch.main(["-m", "train", "-e", str(tmp_path), *options]) == 0
    assert sorted(path.name for path in tmp_path.glob("*.ckpt")) == ["states-4.ckpt", "states-foo.ckpt"]


@pytest.mark.parametrize("has_checkpoint", [False, True])
def test_a_failed_run_deletes_its_new_folder_unless_it_has_saved_a_checkpoint(
    has_checkpoint: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register()

    def train(self: object) -> None:
        for name in ["log.jsonl", "events.out.tfevents.1", *["best-dev.ckpt"] * has_checkpoint]:
            (Path(self.args.expdir) / name).touch()
        raise UserError("a.wav: not readable")

    monkeypatch.setattr("distilled_student.host.runner.Runner.train", train)
    assert launch.main([*START[:-1], str(tmp_path / "a" / "new")]) == 2
    assert (tmp_path / "a" / "new").exists() == has_checkpoint


def test_overrides_are_read_as_literals_and_never_run_as_code(tmp_path: Path) -> None:
    args, config = Namespace(seed=0), {"runner": {}}
    override("config.x=null,,config.y=true,,config.z=False,,config.w=None", args, given := {})
    assert given == {"x": None, "y": True, "z": False, "w": None}
    text = f"args.seed=7,,config.runner.a.b=1e-3,,config.runner.c=['x', None],,config.d=open('{tmp_path}/x'\\, 'w')"
    override(text, args, config)
    assert args.seed == 7 and config["runner"] == {"a": {"b": 1e-3}, "c": ["x", None]}
    assert isinstance(config["d"], str) and not (tmp_path / "x").exists()


def test_sox_effects_match_their_definition(tmp_path: Path) -> None:
    wave = np.random.default_rng(0).uniform(-0.5, 0.5, (8000, 2)).astype("float32")
    soundfile.write(tmp_path / "a.wav", wave, 8000, subtype="FLOAT")
    chain = [["channels", "1"], ["rate", "16000"], ["gain", "-3.0"]]
    out, rate = torchaudio_names.apply_effects_file(tmp_path / "a.wav", chain)
    expected = resample(torch.from_numpy(wave.mean(axis=1)), 8000, 16000) * 10 ** (-3 / 20)
    assert rate == 16000 and torch.allclose(out[0], expected, atol=1e-6)
    out, _ = torchaudio_names.apply_effects_tensor(torch.from_numpy(wave.T), 8000, [["norm", "-6"]])
    assert out.abs().max().item() == pytest.approx(10 ** (-6 / 20), rel=1e-5)
    with pytest.raises(UserError, match="sox effect 'reverse'"):
        torchaudio_names.apply_effects_tensor(out, 8000, [["reverse"]])
