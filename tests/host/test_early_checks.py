"""Simple mistakes are reported before torch or s3prl is imported; the command-line options are those of s3prl."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers.forks import Forks
from helpers.trees import tasks

from distilled_student import register
from distilled_student.common.errors import UserError
from distilled_student.common.settings import find_config, read_yaml, typed
from distilled_student.host.command_line import make_parser
from distilled_student.host.early_checks import check_layers
from distilled_student.host.launch import main
from distilled_student.host.overrides import override, parse_overrides
from distilled_student.host.s3prl_names import downstream_names, upstream_names
from distilled_student.multitask.tasks.kws_settings import Settings

JOINT = ["-m", "train", "-u", "fbank", "-d", "multitask", "-p", "new"]
LARGE_LIBRARIES = ("torch", "s3prl", "transformers", "torchaudio", "lhotse", "onnxruntime")


PROGRAM = f"""
import sys
from distilled_student.host import launch
def main(arguments):
    code = launch.main(arguments)
    print(*(set({LARGE_LIBRARIES}) & set(sys.modules)))
    return code
"""


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    with Forks(PROGRAM) as forks:
        yield forks


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-m", "trian"], "-m trian"),
        (JOINT[2:], "-m: missing: give train, evaluate or inference"),
        (["-m"], "-m: a value is missing"),
        ([*JOINT, "--seed"], "--seed: a value is missing"),
        ([*JOINT, "--seed", "one"], "--seed one: expected a whole number"),
        ([*JOINT, "--steps=5"], "--steps=5: no such option; settings of the YAML file: -o config.KEY=VALUE"),
        ([*JOINT, "--upstream_m", "x"], "--upstream_m: can be --upstream_model_config or --upstream_model_name"),
        ([*JOINT, "-o", "config.optimizer.lr=fast"], "optimizer.lr: expected a number of at least 0, found 'fast'"),
        ([*JOINT, "-o", "config.optimizer.name=Adan"], "optimizer.name: s3prl has no optimizer 'Adan'; did you mean"),
        ([*JOINT, "-o", "config.optimizer.torch_optim_name=Adan"], "torch_optim_name: torch.optim has no Adan; did"),
        ([*JOINT, "-o", "config.scheduler.name=linear"], "scheduler.name: s3prl has no scheduler 'linear'"),
        ([*JOINT, "-c", "multitask/nope"], "multitask/nope: no such config file"),
        ([*JOINT, "-c", "multitask/default"], "tasks.kws.train_root: data/speech_commands/train: no such folder"),
        ([*JOINT, "-c", "distill/demo"], "distill/demo: is a config of another kind, for distilled-student distill"),
        ([*JOINT, "--sed", "1", "--loud"], "--sed: no such option; did you mean `--seed`?"),
        (["-m", "train", "-u", "fbnk", "-d", "multitask", "-p", "new"], "-u fbnk: no such upstream"),
        (["-m", "train", "-u", "fbank", "-d", "multitsk", "-p", "new"], "-d multitsk: no such downstream"),
        (["-m", "train", "-u", "teacher", "-d", "speech_commands", "-p", "new"], "data/speech_commands/train: no such"),
        ([*JOINT, "--device", "gpu"], "--device gpu: unknown"),
        ([*JOINT, "-c", "nope"], "nope: no such config file"),
        ([*JOINT, "-d", "example", "-o", "config.runner.layer_decay=0.8"], "runner.layer_decay: needs -f"),
        ([*JOINT, "-o", "config.runner.fp16=True,,config.runner.bf16=True"], "runner.bf16: cannot be used with fp16"),
        ([*JOINT, "-o", "config.runner.log_steps=1"], "runner.log_steps: no such key"),
        ([*JOINT, "-o", "config.runner.log_step=1,args.seed=2"], "one comma"),
        ([*JOINT, "-o", "config.runnr={}"], "runnr: no such section; did you mean `runner`?"),
        ([*JOINT, "-o", "config.downstream_expert.tasks.kw={}"], "tasks.kw: no task of this name; did you mean `kws`?"),
        ([*JOINT, "-o", "config.downstream_expert.tasks.sv.rot=1"], "tasks.sv: rot: no such key; did you mean `root`?"),
        (
            [*JOINT, "-o", "config.downstream_expert.shedule={}"],
            "downstream_expert: shedule: no such key; did you mean `schedule`?",
        ),
        (JOINT, "downstream_expert.tasks.kws.train_root: data/speech_commands/train: no such folder"),
        (["-m", "evaluate", "-e", "."], "-e .: no states-*.ckpt in this folder"),
        ([*JOINT, "-i", "gone.ckpt"], "-i gone.ckpt: no such checkpoint"),
        (
            ["-m", "train", "-u", "teacher", "-s", "hidden_state", "-d", "example", "-p", "new"],
            "-s hidden_state: -u teacher has only hidden_states, last_hidden_state, concatenated;"
            " did you mean `hidden_states`?",
        ),
        (["-m", "evaluate", "-e", "gone"], "-e gone: no such checkpoint or folder"),
        (["-m", "evaluate", "-e", "x" * 300], "File name too long"),
        (["-m", "train", "-u", "fbank", "-d", "example", "-p", "x" * 300], "File name too long"),
        ([*JOINT, "-o", "args.upstream=fbnk"], "-u fbnk: no such upstream"),
        (["-m", "train", "-u", "distilled_student", "-k", ".", "-d", "example", "-p", "new"], "-k .: is not a student"),
        (["-m", "train", "-u", "teacher", "-k", ".", "-d", "example", "-p", "new"], "-k: .: is not a model"),
        (["-m", "train", "-u", "teacher", "-k", "hubert_bse", "-d", "example", "-p", "new"], "`hubert_base`?"),
        (
            [*JOINT, "-o", "args.upstream=teacher,,args.upstream_feature_selection=predictions"],
            "-s predictions: -u tea",
        ),
        (["-m", "train", "-u", "fbank", "-d", "multitask"], "-p: no experiment folder"),
    ],
)
def test_a_simple_mistake_is_reported_in_one_line_before_a_large_library_is_imported(
    arguments: list[str], message: str, forks: Forks, tmp_path: Path
) -> None:
    (folder := tmp_path / "work").mkdir()
    out, err = tmp_path / "out", tmp_path / "err"
    assert forks.wait(forks.start(*arguments, folder=folder, out=out, err=err)) == 2
    line = err.read_text()
    assert out.read_text().strip() == ""
    assert len(line.splitlines()) == 1 and line.startswith("error: ") and message in line
    assert list(folder.iterdir()) == []


def test_the_command_line_options_are_those_of_s3prl(monkeypatch: pytest.MonkeyPatch) -> None:
    register()
    from s3prl import run_downstream

    parsers = []

    class RecordingParser(argparse.ArgumentParser):
        def parse_args(self) -> argparse.Namespace:
            parsers.append(self)
            return argparse.Namespace(expdir="x", auto_resume=False, past_exp=None, config="/dev/null", override=None)

    monkeypatch.setattr(run_downstream, "argparse", SimpleNamespace(ArgumentParser=RecordingParser))
    monkeypatch.setattr(run_downstream.os, "makedirs", lambda *_, **__: None)
    with pytest.raises(AttributeError):  # s3prl continues with arguments that this Namespace lacks
        run_downstream.get_downstream_args()

    def options_of(parser: argparse.ArgumentParser) -> set[tuple]:
        return {
            (a.dest, tuple(a.option_strings), a.type, tuple(a.choices or ()), a.nargs, a.required, type(a).__name__)
            + ((a.default,) if a.dest != "device" else ())  # our default is the best device of the machine
            for a in parser._actions
            if a.dest != "version"  # our addition
        }

    assert options_of(make_parser()) == options_of(parsers[0])


def test_names_read_from_source_files_include_the_upstreams_and_downstreams_of_s3prl() -> None:
    register()
    from s3prl import hub

    assert {name for name in hub.options() if name[0].islower()} <= set(upstream_names())
    assert {"multitask", "speech_commands", "sv_voxceleb1", "example"} <= set(downstream_names())


def test_a_quoted_value_may_hold_a_comma_and_an_equals_sign() -> None:
    assert parse_overrides("config.a.b='x, config.c=1'") == [(["config", "a", "b"], "x, config.c=1")]


def test_help_lists_upstreams_and_downstreams() -> None:
    text = make_parser().format_help()
    assert "distilled_student" in text and "hubert_base" in text and "speech_commands" in text and "multitask" in text


def test_a_downstream_in_a_folder_that_a_program_adds_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    register()
    import s3prl.downstream

    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/expert.py").write_text("")
    monkeypatch.setattr(s3prl.downstream, "__path__", [*s3prl.downstream.__path__, str(tmp_path)])
    assert {"mine", "speech_commands"} <= set(downstream_names())


def test_the_runner_can_be_the_first_import() -> None:
    subprocess.run([sys.executable, "-c", "import distilled_student.host.runner_parts"], check=True)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("[yes,no]", ["yes", "no"]),  # words, not true and false
        ("[on, off, true, null]", ["on", "off", True, None]),
        ("['yes', no]", ["yes", "no"]),
        ("[a b, c]", ["a b", "c"]),
        ("[0.9, 1.1]", [0.9, 1.1]),
        ("[[1, a], {b: 2}]", [[1, "a"], {"b": 2}]),
        ("{kws: 1, sv: 2}", {"kws": 1, "sv": 2}),
        ("{'kws': 1}", {"kws": 1}),
        ("[]", []),
        ("{}", {}),
        ("yes", "yes"),
        ("[^/]+/([^/]+)", "[^/]+/([^/]+)"),  # regular expressions stay text
        ("[^/]+/([^/]+)[_-]", "[^/]+/([^/]+)[_-]"),
        ("[a", "[a"),
        ("null", None),
        ("1e-3", 1e-3),
        ("!!python/object:os.system [a]", "!!python/object:os.system [a]"),
        ("[!!python/object/apply:os.getcwd []]", "[!!python/object/apply:os.getcwd []]"),  # nothing is run
    ],
)
def test_a_list_or_a_group_on_the_command_line_is_written_as_in_yaml_or_python(text: str, value: object) -> None:
    ((_, found),) = parse_overrides(f"config.downstream_expert.tasks.kws.keywords={text}")
    assert found == value and type(found) is type(value)


def test_a_list_of_words_on_the_command_line_becomes_the_keywords() -> None:
    config: dict[str, dict] = {}
    override("config.kws.keywords=[yes,no],,config.schedule={kws: 1}", argparse.Namespace(), config)
    assert typed(Settings, config["kws"], "FILE").keywords == ["yes", "no"]
    assert config["schedule"] == {"kws": 1}


@pytest.mark.parametrize(
    ("folder", "key"),
    [
        ("sc/train", "downstream_expert.tasks.kws.train_root"),
        ("vox", "downstream_expert.tasks.sv.root"),
        ("link", "downstream_expert.tasks.sv.root"),
        ("more", "downstream_expert.tasks.sv.extra_roots"),
    ],
)
def test_the_experiment_folder_must_not_be_a_folder_of_the_data(
    folder: str, key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = tasks(tmp_path)
    settings["sv"]["extra_roots"] = ["more"]
    Path("more/speaker").mkdir(parents=True)
    Path("link").symlink_to("vox")
    config = read_yaml(find_config("demo", "multitask"))
    config["downstream_expert"] |= {"tasks": settings, "schedule": {}, "layers": 1}
    Path("mine.yaml").write_text(json.dumps(config))
    before = sorted(tmp_path.rglob("*"))
    arguments = ["-m", "train", "-u", "fbank", "-d", "multitask", "-c", "mine.yaml", "-p", folder]
    assert main(arguments) == 2
    message = f"error: -p {tmp_path / folder}: is the folder of {key} too: choose another folder"
    assert capfd.readouterr().err.strip() == message
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("arguments", "layers", "found"),
    [
        (["-u", "distilled_student"], 5, 2),  # the student that ships has one layer
        (["-u", "distilled_student"], 4, 2),  # its 1,024 features could be divided into four
        (["-u", "distilled_student", "-k", "student"], 2, 3),
        (["-u", "teacher"], 2, 3),
        (["-u", "teacher", "-k", "student"], 7, 3),
    ],
)
def test_a_wrong_number_of_layers_is_named_with_the_right_one(
    arguments: list[str], layers: int, found: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("student").mkdir()
    Path("student/config.json").write_text('{"model_type": "distilled_student", "layers": 2}')
    args = make_parser().parse_args(["-m", "train", *arguments, "-c", "FILE"])
    check_layers(args, found)
    check_layers(args, 1)
    with pytest.raises(UserError) as error:
        check_layers(args, layers)
    what = f"-u {args.upstream} has {found} hidden states, those of the front end and of {found - 1} layers"
    remedy = f"set {found}, or 1 if all tasks use all of them"
    assert str(error.value) == f"FILE: downstream_expert.layers: {layers}, but {what}: {remedy}"
