"""The command line: its version, the configs that ship, and mistakes, which are one line without importing torch."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from helpers.forks import Forks

import distilled_student as ds
from distilled_student import cli
from distilled_student.benchmark import suite
from distilled_student.benchmark.superb_results import EXPERTS
from distilled_student.common.settings import find_config
from distilled_student.common.shipped_configs import first_sentence, shipped_configs
from distilled_student.host.superb.recipe_names import recipe_names
from distilled_student.speed.measure_all import PARTS
from distilled_student.speed.part_names import PART_NAMES

ROOT = Path(__file__).parents[1]
LARGE = ("torch", "s3prl", "transformers", "lhotse", "onnxruntime")
# runs the main function of a console script; the last line of stdout then lists the large libraries it imported
PROGRAM = f"""
import sys
import distilled_student.{{module}} as script
# what most commands import
import distilled_student.benchmark.suite, distilled_student.distillation.early_checks, distilled_student.onnx
def main(arguments):
    try:
        return script.main(arguments)
    finally:
        print()
        print("imported:", *sorted(set({LARGE}) & set(sys.modules)))
"""
Run = Callable[..., tuple[int, str, str, str]]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """Runs a command in a folder: exit code, stdout, stderr and the large libraries that were imported."""
    with contextlib.ExitStack() as stack:

        @functools.cache
        def forks(module: str) -> Forks:
            return stack.enter_context(Forks(PROGRAM.format(module=module)))

        def run(*arguments: str, folder: Path, module: str = "cli") -> tuple[int, str, str, str]:
            files = [tmp_path_factory.mktemp("run") / name for name in ("out", "err")]
            process = forks(module).start(*arguments, folder=folder, out=files[0], err=files[1])
            code = forks(module).wait(process)
            out, err = (file.read_text() for file in files)
            out, _, imported = out.rpartition("\nimported:")
            return code, out, err, imported.strip()

        yield run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with a folder of data, an empty one, an empty recording, and settings that use them."""
    folder = tmp_path_factory.mktemp("cli")
    for name in ("empty", "data", "run"):
        (folder / name).mkdir()
    (folder / "run" / "states-3.ckpt").touch()
    (folder / "recording.wav").touch()
    (folder / "data" / "speech.wav").touch()
    (folder / "tab.yaml").write_text("data:\n\tpaths: [data]\n")
    settings = {"teacher": "shipped", "output": "out", "data": {"paths": ["data"]}, "targets": [1, 2]}
    (folder / "own.yaml").write_text(yaml.safe_dump(settings))
    return folder


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("distil own.yaml", "distil: no such command; did you mean `distill`?"),
        ("nothing", "nothing: no such command; choose from spot, embed"),
        ("--verson", "--verson: no such option; did you mean `--version`?"),
        ("distill hubert-bass", "hubert-bass: no such config file; did you mean `hubert-base`?"),
        ("distill own.yaml stepps=3", "own.yaml: stepps: no such key; did you mean `steps`?"),
        ("distill own.yaml data.path=[a]", "own.yaml: data.path: no such key; did you mean `data.paths`?"),
        ("distill own.yaml path=[a]", "own.yaml: path: no such key; did you mean `data.paths`?"),
        ("distill own.yaml steps=many", "own.yaml: steps: expected a whole number, found 'many'"),
        ("distill own.yaml learning_rate=fast", "own.yaml: learning_rate: expected a number, found 'fast'"),
        (
            "distill own.yaml data.paths=/nope",
            "own.yaml: data.paths: expected a list of texts, found '/nope': write [/nope]",
        ),
        ("distill own.yaml data.paths=[empty]", "own.yaml: data.paths: empty: no audio files in this folder"),
        ("distill own.yaml data.paths=[own.yaml]", "own.yaml: is neither a folder nor a manifest or shard (.jsonl, "),
        (
            "distill own.yaml teacher=hubert_bas",
            "own.yaml: teacher: hubert_bas: no such file or folder or s3prl upstream, and the hub is switched off"
            " (HF_HUB_OFFLINE); did you mean `hubert_base`?",
        ),
        ("distill own.yaml teacher=some/where", "own.yaml: teacher: some/where: no such file or folder or s3prl "),
        ("distill own.yaml teacher=empty", "own.yaml: teacher: empty: is not a model: the folder has no config.json"),
        ("distill own.yaml teacher=own.yaml", "own.yaml: teacher: own.yaml: is not a model: neither a folder with"),
        ("distill own.yaml targets=[1,20]", "own.yaml: targets: [1, 20]: the teacher has layers 1 to 2"),
        ("distill own.yaml targets=[0]", "own.yaml: student: targets: must be positive: teacher layers are counted"),
        ("distill own.yaml targets=[]", "own.yaml: targets: []: the teacher has layers 1 to 2"),
        ("distill own.yaml output=recording.wav/x", "own.yaml: output: recording.wav/x: cannot be written: "),
        ("distill tab.yaml", "tab.yaml: cannot be read as YAML: line 2, column 1: a tab in the indentation, where"),
        ("distill empty", "empty: is a folder; give a YAML file or the name of a config"),
        ("distill multitask/demo", "multitask/demo: is a config of another kind, for run_downstream.py -d multitask"),
        ("distill distill/demo stepps=3", "demo.yaml: stepps: no such key; did you mean `steps`?"),
        ("distill own.yaml --steps=5", "--steps: no such option; a setting is given as `steps=5`"),
        ("distill own.yaml --save-every 5", "--save-every: no such option; a setting is given as `save_every=5`"),
        (
            "distill own.yaml data.paths=[gone]",
            "own.yaml: data.paths: gone: no such file or folder: give data.paths=[FOLDER]",
        ),
        (
            "distill own.yaml data.paths=[gone] student=tinyy",
            "own.yaml: student: tinyy: is not a student size; the sizes",
        ),
        ("distill own.yaml teacher=./gone", "own.yaml: teacher: ./gone: no such file or folder"),
        (
            "distill own.yaml student=papper",
            "own.yaml: student: papper: is not a student size; the sizes are edge, paper, ",
        ),
        ("distill own.yaml student.layer=2", "own.yaml: student: layer: no such key; did you mean `layers`?"),
        ("distill", "CONFIG: missing; see `distilled-student distill --help`"),
        ("evaluate gone", "gone: no such folder"),
        ("evaluate empty", "empty: has no checkpoint: neither best-dev.ckpt nor states-*.ckpt"),
        ("evaluate run --split tset", "--split tset: not one of dev, test; did you mean `test`?"),
        ("evaluate run --checkpoint states-4.ckpt", "states-4.ckpt: no such checkpoint; did you mean `states-3.ckpt`?"),
        ("evaluate run --splt dev", "--splt: no such option; did you mean `--split`?"),
        ("evaluate run --steps=5", "--steps: no such option; `distilled-student evaluate --help` lists the options"),
        ("evaluate run run", "run: more arguments than the command takes; see `distilled-student evaluate --help`"),
        ("evaluate run --split", "--split: a value is missing"),
        ("evaluate own.yaml", "own.yaml: is a file; give the folder of the run, and the file with --checkpoint"),
        ("evaluate run --trials /gone.txt", "--trials /gone.txt: no such file"),
        ("export gone -o model.onnx", "gone: no such file or folder"),
        (
            "export empty -o model.onnx",
            "empty: has neither a checkpoint of a joint training run (*.ckpt) nor a student",
        ),
        ("export run -o model.onx", "--output model.onx: expected a name that ends with .onnx or .pte"),
        ("export run -o model", "--output model: expected a name that ends with .onnx or .pte"),
        ("export run -o gone/model.onnx", "--output gone/model.onnx: gone: no such folder; make it first"),
        ("export own.yaml -o model.onnx", "own.yaml: is not a student: neither a folder with config.json nor a"),
        ("export run", "--output: missing; see `distilled-student export --help`"),
        ("export run -o model.pte --int8", "--int8, --streaming: need a name that ends with .onnx"),
        ("stream gone recording.wav", "gone: no such file or folder"),
        ("stream run gone.wav", "gone.wav: no such file"),
        ("stream run recording.wav --chunk-ms 0", "--chunk-ms 0: must be 1 or more"),
        ("stream run data", "data: is a folder; give a file"),
        ("stream run recording.wav --chunk-ms ten", "--chunk-ms ten: expected a whole number"),
        ("stream run recording.wav --threshold 2", "--threshold 2: must be from 0 to 1 (a probability)"),
        ("stream run recording.wav --window nan", "--window nan: must be from 0.02 to 240 seconds"),
        ("listen recording.wav --threshold 2", "--threshold 2: must be from 0 to 1 (a probability)"),
        ("listen recording.wav --word-threshold -0.1", "--word-threshold -0.1: must be from 0 to 1 (a score)"),
        ("listen recording.wav --hold-off inf", "--hold-off inf: must be from 0 to 3600 seconds"),
        ("listen recording.wav --gate 20", "--gate 20: must be from -120 to 0 dB"),
        ("wyoming --threshold nan", "--threshold nan: must be from 0 to 1 (a probability)"),
        ("web --port 70000", "--port 70000: must be from 0 to 65535"),
        ("export run -o model.onnx --max-loss -1", "--max-loss -1: must be from 0 to 100 percentage points"),
        ("pack run -o packed --window 0", "--window 0: must be from 0.02 to 240 seconds"),
        ("export run -o model.onnx --window 1e9", "--window 1e+09: must be from 0.02 to 240 seconds"),
        ("export run -o model.onnx --window 2", "--window 2: needs --streaming"),
        (
            "export tiny -o model.onnx --int8 --streaming --window 2",
            "--window 2: the window is part of the stream in tiny",
        ),
        ("export run -o model.onnx --max-seconds 5", "--max-seconds 5: needs a name that ends with .pte"),
        ("export run -o model.pte --max-seconds 0", "--max-seconds 0: must be from 1 to 3600 seconds"),
        ("pack run -o packed --max-loss nan", "--max-loss nan: must be from 0 to 100 percentage points"),
        ("pack run -o packed --rate -1", "--rate -1: must be a positive number"),
        ("stream run recording.wav --window long", "--window long: expected a number"),
        ("prepare librispeech own.yaml", "own.yaml: cannot be written: "),
        ("prepare voxceleb1 data --source own.yaml", "--source own.yaml: is a file; give a folder"),
        ("prepare librispech data", "librispech: not one of librispeech, "),
        ("prepare librispech data", "; did you mean `librispeech`?"),
        ("prepare librispeech data --parts train-clean-10", "--parts train-clean-10: not one of"),
        ("benchmark papper --data data", "benchmark papper: no such suite; did you mean `paper`?"),
        (
            "benchmark foo",
            "benchmark foo: no such suite; the suites are ablations, demo, edge, paper, sizes, sizes-real, superb",
        ),
        ("benchmark paper", "--data: no folder given; `distilled-student prepare` fills one"),
        ("benchmark benchmark/paper", "--data: no folder given; `distilled-student prepare` fills one"),
        ("benchmark paper --data gone", "--data gone: no such folder"),
        ("benchmark paper --data data --output own.yaml", "--output own.yaml: cannot be written: "),
        ("benchmark paper --data data --only hubert/kw", "--only hubert/kw: no such run"),
        ("benchmark paper --data data --seeds 0", "--seeds 0: must be 1 or more"),
        ("benchmark own.yaml --data data", "own.yaml: data: no such key"),
        (
            "speed --only modls",
            "--only modls: not one of models, distillation, joint, startup, streaming, shipped; did you mean",
        ),
        ("speed --report gone.json", "--report gone.json: no such file"),
        ("speed --report own.yaml --into gone.md", "--into gone.md: no such file"),
        ("speed --history data", "--history data: is a folder; give the name of a file"),
        ("speed --output own.yaml", "--output own.yaml: cannot be written: "),
        ("demo --output own.yaml", "--output own.yaml: cannot be written: "),
        ("demo --seeds 0", "--seeds 0: must be 1 or more"),
        ("s3prl-main SuperbK", "SuperbK: no such recipe; did you mean `SuperbKS`?"),
        ("configs shw", "shw: no such command; did you mean `show`?"),
        ("configs show hubert-bass", "hubert-bass: no such config; did you mean `hubert-base`?"),
        ("configs show multitask/defalt", "multitask/defalt: no such config; did you mean `multitask/default`?"),
        (
            "configs show demo",
            "demo: 3 configs have this name; choose distill/demo or multitask/demo or benchmark/demo",
        ),
        ("configs copy hubert-base own.yaml", "own.yaml: exists already"),
        ("configs copy hubert-base gone/own.yaml", "gone/own.yaml: cannot be written"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2_without_a_large_import(
    command: str, message: str, run: Run, folder: Path
) -> None:
    code, out, err, imported = run(*command.split(), folder=folder)
    assert err.startswith("error: ") and message in err and err.count("\n") == 1 and err.endswith("\n")
    assert (code, out, imported) == (2, "", "")
    assert not (folder / "out").exists() and not (folder / "gone").exists()


def test_without_a_command_the_help_lists_all(run: Run, folder: Path) -> None:
    code, out, err, imported = run(folder=folder)
    assert (code, err, imported) == (2, "", "")
    for command in ("distill", "evaluate", "export", "demo", "prepare", "benchmark", "speed", "stream", "configs"):
        assert command in out


@pytest.mark.parametrize("module", ["cli", "host.launch"])
def test_both_scripts_print_the_version_without_a_large_import(module: str, run: Run, folder: Path) -> None:
    code, out, _, imported = run("--version", folder=folder, module=module)
    assert (code, out.strip(), imported) == (0, f"distilled-student {ds.__version__}", "")


def test_setup_py_and_the_package_have_one_version() -> None:
    command = [sys.executable, "setup.py", "--version"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split()[-1] == ds.__version__
    assert f"## {ds.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_every_shipped_config_is_listed_with_its_first_sentence(run: Run, folder: Path) -> None:
    code, out, err, imported = run("configs", "list", folder=folder)
    assert (code, err, imported) == (0, "", "")
    files = {file.relative_to(ROOT / "configs").with_suffix("").as_posix() for file in ROOT.glob("configs/**/*.yaml")}
    assert set(shipped_configs()) == files
    for name, file in shipped_configs().items():
        sentence = first_sentence(file)
        assert sentence and re.search(rf"^  {re.escape(name)} +{re.escape(sentence)}$", out, re.MULTILINE), name


@pytest.mark.parametrize("name", ["hubert-base", "distill/hubert-base", "hubert-base.yaml"])
def test_a_config_is_shown_and_copied_by_its_name(name: str, run: Run, folder: Path, tmp_path: Path) -> None:
    content = find_config("hubert-base", "distill").read_text(encoding="utf-8")
    assert run("configs", "show", name, folder=folder)[:3] == (0, content, "")
    printed = f"{tmp_path / 'mine.yaml'}: a copy of distill/hubert-base\n"
    assert run("configs", "copy", name, str(tmp_path / "mine.yaml"), folder=folder)[:3] == (0, printed, "")
    assert (tmp_path / "mine.yaml").read_text(encoding="utf-8") == content


def test_names_that_are_checked_early_are_those_of_the_modules_that_run() -> None:
    assert tuple(PARTS) == PART_NAMES
    assert ("multitask", *EXPERTS) == suite.DOWNSTREAMS


def test_the_recipes_are_those_of_s3prl() -> None:
    ds.register()
    from s3prl import problem

    assert recipe_names() == problem.__all__


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--trials-root", "."], "--trials-root .: needs --trials"),
        (["--speaker-pattern", "(a)"], "--speaker-pattern (a): needs --trials"),
        (["--trials", "list.txt", "--split", "dev"], "--trials list.txt: a list of test trials cannot be used with"),
        (["--trials", "list.txt", "--trials-root", "."], "--trials list.txt: no such file"),
        (["--trials", "list.txt", "--speaker-pattern", "("], "--speaker-pattern: '(' is not a regular expression"),
    ],
)
def test_options_about_trials_that_do_not_fit_are_reported_before_the_run_is_opened(
    options: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("run").mkdir()
    Path("run/states-3.ckpt").touch()  # no checkpoint: it must not be read
    with pytest.raises(SystemExit) as end:
        cli.main(["evaluate", "run", *options])
    assert end.value.code == 2 and message in capfd.readouterr().err


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_what_the_terminal_cannot_show_is_printed_as_escapes(tmp_path: Path, encoding: str) -> None:
    names = ["Zoë".encode(), "日本".encode(), b"caf\xe9"]  # the last one is not UTF-8
    for name in names:
        (tmp_path / os.fsdecode(name)).write_bytes(b"no audio")
    program = """
import contextlib, sys
from distilled_student.cli import app, main
app.command("say")(lambda: print(*sys.argv[1:], sep="\\n"))
with contextlib.suppress(SystemExit):
    main(["say"])
for name in sys.argv[1:]:
    try:
        main(["spot", name])
    except SystemExit as end:
        print(end.code)
"""
    command, environment = [sys.executable, "-c", program, *names], {**os.environ, "PYTHONIOENCODING": encoding}
    done = subprocess.run(command, capture_output=True, env=environment, cwd=tmp_path)
    shown = [os.fsdecode(name).encode(encoding, "backslashreplace") for name in names]
    assert (done.returncode, done.stdout.splitlines()) == (0, [*shown, b"2", b"2", b"2"])
    lines = done.stderr.splitlines()
    assert len(lines) == 3
    assert all(line.startswith(b"error: " + name) for line, name in zip(lines, shown, strict=True))
