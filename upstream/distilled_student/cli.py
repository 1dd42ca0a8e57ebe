"""Distil small speech models and evaluate, export and benchmark them. Joint training: `run_downstream.py`."""

from __future__ import annotations

import logging
import shlex
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

from distilled_student import __version__
from distilled_student.common.early_checks import (
    JOINT,
    check_between,
    check_choice,
    check_device,
    check_file,
    check_folder,
    check_model,
    check_new_folder,
    check_no_data,
    check_output_file,
    check_output_folder,
    check_packed_output,
    check_positive,
    check_probability,
    check_rate,
    check_run,
    checkpoint_name,
    has_weights,
    is_installed,
)
from distilled_student.common.errors import UserError
from distilled_student.common.interruption import resumed_by
from distilled_student.common.known_warnings import suppress_known_warnings
from distilled_student.common.shipped_models import model_path
from distilled_student.common.typer_errors import Commands, run_app
from distilled_student.corpora.speaker_names import check_speaker_pattern
from distilled_student.device.commands import PANEL
from distilled_student.device.commands import register as register_device_commands
from distilled_student.device.household_commands import register as register_household_commands
from distilled_student.device.server_commands import register as register_server_commands
from distilled_student.device.stream_commands import keywords_of_file
from distilled_student.device.stream_commands import register as register_stream_commands
from distilled_student.device.word_commands import words
from distilled_student.web.commands import register as register_web

# Importing torch, s3prl and lhotse takes seconds. A command therefore checks what it can first and imports them last.

TRAIN: dict[str, Any] = {"rich_help_panel": "Train, measure and export"}  # after the commands that use a model
KEYWORD_LINE = "{:7.2f} s  {}  {:.2f}"
MIN_WINDOW, MAX_WINDOW = 0.02, 240  # seconds of a stream's window: a frame; a keyword takes one, a sentence some
MAX_PROGRAM = 3600  # seconds that a .pte file can reserve memory for
BEST = "best-dev.ckpt"  # the default checkpoint of a joint training run

options: dict[str, Any] = {"cls": Commands, "invoke_without_command": True, "add_completion": False}
app = typer.Typer(**options, pretty_exceptions_enable=False, help=__doc__)
register_device_commands(app)
register_household_commands(app)
register_stream_commands(app)
app.add_typer(words, name="words", rich_help_panel=PANEL)
register_server_commands(app)
register_web(app)
configs = typer.Typer(**options, help="List, show or copy the YAML configs that ship with the package.")
app.add_typer(configs, name="configs", **TRAIN)


def _help_if_no_command(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(2)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"distilled-student {__version__}")
        raise typer.Exit


@app.callback()
def _main_options(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    _help_if_no_command(context)


@configs.callback()
def _configs_options(context: typer.Context) -> None:
    _help_if_no_command(context)


@configs.command("list")
def list_configs() -> None:
    """List all configs by kind, each with the first sentence of its comment."""
    from distilled_student.common import shipped_configs

    print(shipped_configs.list_configs())


CONFIG_HELP = "Name of a config, such as hubert-base or multitask/default."


@configs.command("show")
def show_config(
    name: Annotated[str, typer.Argument(help=CONFIG_HELP)],
    merged: Annotated[
        bool, typer.Option("--merged", help="Print all settings, with those of the config's base.")
    ] = False,
) -> None:
    """Print a config."""
    from distilled_student.common import shipped_configs

    if merged:
        from distilled_student.common.base_configs import merged_text

        print(merged_text(shipped_configs.full_name_of(name)), end="")
        return
    print(shipped_configs.find_shipped(name).read_text(encoding="utf-8"), end="")


@configs.command("copy")
def copy_config(
    name: Annotated[str, typer.Argument(help=CONFIG_HELP)],
    file: Annotated[Path, typer.Argument(help="File to write; it must not exist yet.")],
) -> None:
    """Copy a config to a file of your own."""
    from distilled_student.common import shipped_configs

    shipped_configs.copy_config(name, file)
    print(f"{file}: a copy of {shipped_configs.full_name_of(name)}")


@app.command(**TRAIN)
def distill(
    config: Annotated[str, typer.Argument(help="A YAML file, or the name of a shipped config: `configs list`.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings that replace those of the file.")
    ] = None,
) -> None:
    """Distil a student from a teacher; the same command resumes an interrupted run."""
    from distilled_student.common.base_configs import read_config_file
    from distilled_student.common.settings import find_config
    from distilled_student.distillation.config import read_config
    from distilled_student.distillation.early_checks import check_settings

    path = find_config(config, "distill")
    settings = read_config(read_config_file(path, "distill"), path, overrides or [])
    check_settings(settings, path)
    from distilled_student.distillation.train import distill as run

    run(settings, path)


def check_trials(split: str, trials: str | None, trials_root: str | None, speaker_pattern: str | None) -> None:
    """Raise UserError for options of `evaluate` about a list of trials that do not fit each other."""
    if trials is None:
        for option, value in (("--trials-root", trials_root), ("--speaker-pattern", speaker_pattern)):
            if value is not None:
                raise UserError(f"{option} {value}: needs --trials, the list that it is about")
        return
    if split != "test":
        raise UserError(f"--trials {trials}: a list of test trials cannot be used with --split {split}")
    if Path(trials).is_absolute():
        check_file("--trials", Path(trials))
    elif trials_root is not None and not Path(trials).is_file():  # without this option: in the task's folder
        check_file("--trials", Path(trials_root, trials))
    try:
        check_speaker_pattern(speaker_pattern)
    except ValueError as error:
        raise UserError(f"--speaker-pattern: {str(error).removeprefix('speaker_pattern: ')}") from None


@app.command(**TRAIN)
def evaluate(
    expdir: Annotated[Path, typer.Argument(help="Folder of a joint training run.")],
    split: Annotated[str, typer.Option(help="Data to evaluate on: dev or test.")] = "test",
    checkpoint: Annotated[str, typer.Option(help="Checkpoint in the folder: its name or its path.")] = BEST,
    device: Annotated[str | None, typer.Option(help="Device, such as cpu or cuda; default: the best one here.")] = None,
    trials: Annotated[str | None, typer.Option(help="Another list of test trials, such as VoxCeleb1-H.")] = None,
    trials_root: Annotated[
        str | None, typer.Option(help="Folder of this list's files; default: tasks.sv.root of the run.")
    ] = None,
    speaker_pattern: Annotated[
        str | None,
        typer.Option(
            help="Regular expression that finds the speaker in the paths of this list, such as '([^/]+)/[^/]+$'."
        ),
    ] = None,
) -> None:
    """Evaluate a joint training run on its tasks and write results.json (with --trials: results-LIST.json) there."""
    check_choice("--split", split, ("dev", "test"))
    check_device("--device", device)
    checkpoint = checkpoint_name(expdir, checkpoint)
    check_run(expdir, checkpoint, BEST)
    check_folder("--trials-root", None if trials_root is None else Path(trials_root))
    check_trials(split, trials, trials_root, speaker_pattern)
    from distilled_student.multitask.evaluate import evaluate as run

    run(
        expdir,
        split=split,
        checkpoint=checkpoint,
        device=device,
        trials=trials,
        trials_root=trials_root,
        speaker_pattern=speaker_pattern,
    )


def check_window(window: float | None) -> None:
    """Raise UserError for a length that no window of a stream has; None is an option that was not given."""
    check_between("--window", window, MIN_WINDOW, MAX_WINDOW, "seconds")


def check_loss(max_loss: float) -> None:
    """Raise UserError for a number of percentage points that cannot be lost."""
    check_between("--max-loss", max_loss, 0, 100, "percentage points")


def check_alarms(alarms: Path | None, rate: float) -> None:
    """Raise UserError for options of the threshold of a stream that cannot be used."""
    check_rate("--rate", rate)
    if alarms is not None:
        from distilled_student.device.alarms import audio_of

        audio_of(alarms, "--alarms")


def set_stream_threshold(file: Path, alarms: Path | None, rate: float) -> None:
    """Put the threshold for ``rate`` false alarms per hour of ``alarms`` into a stream's file; None: it stays."""
    if alarms is not None:
        from distilled_student.device.alarms import choose_threshold

        print(choose_threshold(file, alarms, rate))


Alarms = Annotated[
    Path | None,
    typer.Option(help="File or folder of running speech without keywords: it gives the threshold of the stream."),
]
Rate = Annotated[float, typer.Option(help="With --alarms: false alarms per hour that the threshold allows.")]


@app.command(**TRAIN)
def export(
    source: Annotated[Path, typer.Argument(help="edge, tiny, the folder of a joint training run, or a student.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write: .onnx, or .pte for ExecuTorch.")],
    int8: Annotated[bool, typer.Option("--int8", help="Quantise weights and matrix products to int8 (.onnx).")] = False,
    max_loss: Annotated[
        float, typer.Option(help="Largest loss by int8, in percentage points of accuracy and EER.")
    ] = 0.3,
    streaming: Annotated[
        bool, typer.Option("--streaming", help="Export one step of a stream: chunk and state in and out (.onnx).")
    ] = False,
    window: Annotated[
        float | None, typer.Option(help="Seconds of audio that a score of a stream covers; default: 1.")
    ] = None,
    max_seconds: Annotated[
        float | None, typer.Option(help="Longest utterance that a .pte file accepts, in seconds; default: 10.")
    ] = None,
    checkpoint: Annotated[str, typer.Option(help="Checkpoint in the folder of the run: its name or its path.")] = BEST,
    alarms: Alarms = None,
    rate: Rate = 0.5,
) -> None:
    """Export a model to one file: waveforms in; hidden states, keyword scores and speaker embedding out."""
    is_program = output.suffix == ".pte"
    if not is_program and output.suffix != ".onnx":
        raise UserError(f"--output {output}: expected a name that ends with .onnx or .pte")
    if is_program and (int8 or streaming):
        raise UserError("--int8, --streaming: need a name that ends with .onnx")
    if alarms is not None and not streaming:
        raise UserError(f"--alarms {alarms}: needs --streaming: it chooses the threshold of a stream")
    check_loss(max_loss)
    check_window(window)
    check_between("--max-seconds", max_seconds, 1, MAX_PROGRAM, "seconds")
    if window is not None and not streaming:
        raise UserError(f"--window {window:g}: needs --streaming: it is that of a stream")
    if max_seconds is not None and not is_program:
        raise UserError(f"--max-seconds {max_seconds:g}: needs a name that ends with .pte")
    checkpoint = checkpoint_name(source, checkpoint)
    is_copy = int8 and (model_path(source) / JOINT).is_file()
    if not is_copy:
        check_model(source, checkpoint, BEST)
    check_output_file("--output", output)
    check_alarms(alarms, rate)
    if is_copy:
        if window is not None:
            raise UserError(f"--window {window:g}: the window is part of the stream in {source}: leave it out")
        from distilled_student.export.copy_packed import copy_packed

        copy_packed(model_path(source), output, streaming)
        return set_stream_threshold(output, alarms, rate)
    from distilled_student.multitask.device_model import open_joint

    model = open_joint(source, checkpoint)
    if is_program:
        from distilled_student.export.executorch import MAX_SECONDS, export_executorch

        export_executorch(model, output, MAX_SECONDS if max_seconds is None else max_seconds, checkpoint)
    elif streaming:
        from distilled_student.export.stream import export_stream
        from distilled_student.streaming import WINDOW_SECONDS

        export_stream(model, output, WINDOW_SECONDS if window is None else window, checkpoint, int8, max_loss)
        set_stream_threshold(output, alarms, rate)
    else:
        from distilled_student.export.utterance import export_onnx

        export_onnx(model, output, int8, max_loss, checkpoint)


@app.command(**TRAIN)
def average(
    runs: Annotated[list[Path], typer.Argument(help="Folders of joint training runs of one model, two or more.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the run with the mean weights.")],
    checkpoint: Annotated[str, typer.Option(help="Checkpoint file in the folder of each run.")] = BEST,
) -> None:
    """Write a run whose weights are the mean of those of several runs that were fine-tuned from the same weights."""
    for run in runs:
        check_run(run, checkpoint, BEST)
    check_no_data("--output", output, [("RUNS", str(run)) for run in runs])
    check_new_folder("--output", output)
    from distilled_student.multitask.mean_of_runs import average_runs

    average_runs(runs, output, checkpoint)
    print(f"{output / checkpoint}: the mean of {len(runs)} runs; next: distilled-student evaluate {output}")


@app.command(**TRAIN)
def pack(
    run: Annotated[Path, typer.Argument(help="Folder of a joint training run that was evaluated.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the packed model.")],
    window: Annotated[float, typer.Option(help="Seconds of audio that a score of a stream covers.")] = 1.0,
    max_loss: Annotated[
        float, typer.Option(help="Largest loss by int8, in percentage points of accuracy and EER.")
    ] = 0.3,
    calibrate: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FOLDER",
            help="Folder with a folder of recordings for each person, or with WORD/SPEAKER_nohash_*.wav: decisions "
            "about speakers are calibrated on these people instead of the run's development speakers. Give it once for "
            "each kind of speech, such as commands and sentences; each weighs the same.",
        ),
    ] = None,
    checkpoint: Annotated[str, typer.Option(help="Checkpoint file in the folder of the run.")] = BEST,
    alarms: Alarms = None,
    rate: Rate = 0.5,
) -> None:
    """Pack a joint run to use or share it: weights, thresholds, int8 graphs for utterances and streams, model card."""
    check_loss(max_loss)
    check_window(window)
    check_run(run, checkpoint, BEST)
    folders = calibrate or []
    for folder in folders:
        check_folder("--calibrate", folder)
    check_no_data("--output", output, [("RUN", str(run)), *(("--calibrate", str(folder)) for folder in folders)])
    check_packed_output("--output", output)
    check_alarms(alarms, rate)
    from distilled_student.export.pack import pack as write
    from distilled_student.onnx import STREAM

    write(run, output, checkpoint, window, max_loss, folders)
    set_stream_threshold(output / STREAM, alarms, rate)


@app.command(**TRAIN)
def demo(
    output: Annotated[Path, typer.Option(help="Folder for runs, results and report.")] = Path("exp/demo"),
    seeds: Annotated[int, typer.Option(help="Number of seeds; everything is repeated with each.")] = 1,
) -> None:
    """Run the whole pipeline offline in some minutes: distil, train jointly, evaluate, compare."""
    check_positive("--seeds", seeds)
    check_output_folder("--output", output)
    from distilled_student.demo.run_demo import run_demo

    run_demo(output, seeds)


@app.command(**TRAIN)
def prepare(
    corpus: Annotated[str, typer.Argument(help="Corpus: librispeech, speech_commands or voxceleb1.")],
    root: Annotated[Path, typer.Argument(help="Folder of all corpora; the shipped configs expect `data`.")],
    parts: Annotated[
        list[str] | None, typer.Option(help="Only this part, such as train-clean-100; can be repeated.")
    ] = None,
    mirror: Annotated[str | None, typer.Option(help="URL of a mirror of the published files.")] = None,
    source: Annotated[Path | None, typer.Option(help="Folder with VoxCeleb1's archives or its unpacked files.")] = None,
) -> None:
    """Download a corpus (if its licence allows), unpack it and check its counts; the same command resumes."""
    from distilled_student.prepare.catalog import CORPORA

    check_choice("", corpus, CORPORA)
    check_folder("--source", source)
    check_output_folder("", root)
    from distilled_student.prepare.prepare_corpus import prepare as run

    run(CORPORA[corpus], root, parts or (), mirror, source)


@app.command(**TRAIN)
def benchmark(
    suite: Annotated[
        str, typer.Argument(help="paper, superb, edge, ablations, sizes, sizes-real, demo, or a YAML file.")
    ],
    data: Annotated[
        Path | None, typer.Option(help="Folder of corpora that `prepare` fills; demo and sizes ship their own.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Folder for runs and report; default: exp/benchmark/SUITE.")
    ] = None,
    students: Annotated[Path | None, typer.Option(help="Folder of distilled students that suites share.")] = None,
    seeds: Annotated[int | None, typer.Option(help="Number of seeds of every run; default: the suite's.")] = None,
    only: Annotated[
        list[str] | None, typer.Option(help="Only runs MODEL/SETTING that match, such as 'hubert/*'; can be repeated.")
    ] = None,
    extra: Annotated[bool, typer.Option("--all", help="Include the runs beyond the published tables.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print the runs and their estimated cost.")] = False,
    steps: Annotated[int | None, typer.Option(help="Stop every training after this many steps, as a trial.")] = None,
    device: Annotated[str | None, typer.Option(help="Device, such as cpu or cuda; default: the best one here.")] = None,
    tflops: Annotated[
        float | None,
        typer.Option(help="With --dry-run: TFLOP/s (float32) of another device; default: measured on this one."),
    ] = None,
    verbose: Annotated[bool, typer.Option("--verbose", help="With --dry-run: print the commands of all runs.")] = False,
) -> None:
    """Run a benchmark suite, resume what was interrupted, and report the results next to the published ones."""
    from distilled_student.benchmark.suite import plan, read_suite
    from distilled_student.common.settings import find_config
    from distilled_student.common.shipped_configs import shipped_configs

    check_positive("--seeds", seeds)
    check_positive("--steps", steps)
    check_rate("--tflops", tflops)
    check_device("--device", device)
    plan(read_suite(suite), 1, only or (), extra)  # raises for a name that is in no run
    shipped = shipped_configs()
    has_own_data = find_config(suite, "benchmark") in (shipped["benchmark/demo"], shipped["benchmark/sizes"])
    if data is None and not has_own_data:
        raise UserError("--data: no folder given; `distilled-student prepare` fills one")
    home, name = Path("exp/benchmark"), Path(suite).stem
    if not dry_run:
        check_folder("--data", data)
        check_output_folder("--output", output or home)
        check_output_folder("--students", students)
        named = [] if data is None else [("--data", str(data))]
        for option, folder in (("--output", output), ("--students", students)):
            check_no_data(option, folder, named if folder is not None else [])
    from distilled_student.benchmark.run_suite import benchmark as run
    from distilled_student.benchmark.run_suite import open_bench

    more: dict[str, list[str]] = {}
    if has_own_data:
        from distilled_student.corpora import embedded
        from distilled_student.demo.run_demo import precision

        data, more = data or embedded.cached(), precision()
    if output is None and steps is None and name != "demo":
        students = students or home / "distill"
    # a trial (--steps) has a folder of its own: its runs must not be taken for complete ones
    output = output or home / (name if steps is None else f"{name}-{steps}-steps")
    bench = open_bench(suite, data, output, students, steps, device, **more)
    run(bench, seeds, only or (), extra, tflops if dry_run else None, dry=dry_run, verbose=verbose)


@app.command(**TRAIN)
def speed(
    output: Annotated[Path, typer.Option(help="Folder for results, table and profiles.")] = Path("exp/speed"),
    only: Annotated[str, typer.Option(help="Parts to measure, separated by commas; default: all.")] = "",
    rounds: Annotated[int, typer.Option(help="Number of repetitions of each measurement.")] = 7,
    accuracy: Annotated[
        list[str] | None, typer.Option(help="CORPUS=FILE with the results.json of a benchmark; can be repeated.")
    ] = None,
    history: Annotated[
        Path | None, typer.Option(help="File to append the results to; slower results are reported.")
    ] = None,
    report: Annotated[Path | None, typer.Option(help="Measure nothing; print the tables of this results.json.")] = None,
    into: Annotated[
        list[Path] | None, typer.Option(help="With --report: document to insert the tables into; can be repeated.")
    ] = None,
) -> None:
    """Measure the speed of the models on this machine, next to HuBERT base."""
    from distilled_student.speed.part_names import PART_NAMES

    parts = [name for name in only.split(",") if name]
    for name in parts:
        check_choice("--only", name, PART_NAMES)
    check_positive("--rounds", rounds)
    check_file("--report", report)
    for document in into or ():
        check_file("--into", document)
    for pair in accuracy or ():
        check_file("--accuracy", Path(pair.partition("=")[2]) if "=" in pair else None)
    if report is None:
        check_output_folder("--output", output)
    if history is not None and history.is_dir():
        raise UserError(f"--history {history}: is a folder; give the name of a file")
    from distilled_student.speed.measure_all import measure_parts, write_tables

    if report is not None:
        write_tables(report, accuracy or (), into or ())
    else:
        measure_parts(output, parts, rounds, accuracy or (), history)


def graph_without_torch(model: Path) -> Path | None:
    """The int8 stream of a packed model whose float weights or torch are not installed; None: use PyTorch."""
    from distilled_student.onnx import STREAM

    folder = model_path(model)
    file = folder / STREAM
    can_use_torch = has_weights(folder) and is_installed("torch")
    return file if (folder / JOINT).is_file() and file.is_file() and not can_use_torch else None


@app.command(**TRAIN)
def stream(
    model: Annotated[
        Path,
        typer.Argument(
            help="edge, tiny, a packed folder, the folder of a joint run whose student is causal, or an .onnx file."
        ),
    ],
    recording: Annotated[Path, typer.Argument(help="Audio file, read chunk by chunk like a microphone.")],
    chunk_ms: Annotated[int, typer.Option(help="Length of a chunk in milliseconds.")] = 100,
    window: Annotated[
        float | None, typer.Option(help="Seconds of audio that a score covers; default: 1, or that of the .onnx file.")
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(help="Smallest probability of a keyword; default: that of exported streams, measured now."),
    ] = None,
) -> None:
    """Spot keywords in an audio file chunk by chunk and print each with its time."""
    check_positive("--chunk-ms", chunk_ms)
    check_window(window)
    check_probability("--threshold", threshold)
    is_exported = model.suffix == ".onnx" and not model.is_dir()
    graph = model if is_exported else graph_without_torch(model)
    if graph is not None and window is not None:
        raise UserError(f"--window {window:g}: the window is part of {graph}: leave it out")
    if graph is None:
        check_model(model, BEST, BEST)
    check_file("", recording)
    if graph is not None:
        for hit in keywords_of_file(graph, recording, chunk_ms, threshold):
            print(KEYWORD_LINE.format(hit.seconds, hit.label, hit.score))
        return
    import torch

    from distilled_student.common import audio
    from distilled_student.multitask.device_model import open_joint
    from distilled_student.streaming import WINDOW_SECONDS, Stream, listen

    torch.set_num_threads(1)  # a chunk is too small for several threads
    opened = Stream(open_joint(model), WINDOW_SECONDS if window is None else window)
    for seconds, label, score in listen(opened, audio.load(recording), chunk_ms, threshold):
        print(KEYWORD_LINE.format(seconds, label, score))


# s3prl reads its own options, --help too
@app.command(
    "s3prl-main",
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    add_help_option=False,
    **TRAIN,
)
def s3prl_main(context: typer.Context) -> None:
    """Run s3prl's `s3prl-main RECIPE --KEY.KEY VALUE ...` (SuperbKS, SuperbASV) with the upstreams of this package."""
    from distilled_student.host.superb.recipe_names import check_recipe

    if context.args and context.args[0] not in ("-h", "--help"):
        check_recipe(context.args[0])
    from distilled_student.host.superb.recipes import run

    run(context.args)


def main(argv: Sequence[str] | None = None) -> None:
    """Console script ``distilled-student``. A user's mistake is one line on stderr and exit code 2."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("matplotlib").setLevel(logging.WARNING)  # its first import says that it made a cache of fonts
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a character that the terminal cannot show is printed as an escape
            stream.reconfigure(errors="backslashreplace")
    suppress_known_warnings()
    words = list(sys.argv[1:] if argv is None else argv)
    # a benchmark runs several trainings: an interruption names its command and not that of one of them
    whole = resumed_by(shlex.join(["distilled-student", *words])) if words[:1] == ["benchmark"] else nullcontext()
    with whole:
        run_app(app, words, "distilled-student")
