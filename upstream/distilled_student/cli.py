"""The command line, from data to report. Joint training is s3prl's own command, ``run_downstream.py``."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Annotated

import typer

from distilled_student.common.errors import UserError

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)


@app.command()
def distill(
    config: Annotated[str, typer.Argument(help="A YAML file, or the name of a shipped config (configs/distill).")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...")] = None,
) -> None:
    """Distil a student from a teacher. The same command resumes an interrupted run."""
    from distilled_student.common.settings import find_config, read_yaml, typed

    path = find_config(config, "distill")
    values = read_yaml(path)
    from distilled_student.distillation.config import DistillConfig
    from distilled_student.distillation.train import distill as run

    run(typed(DistillConfig, values, path, overrides or []), path)


@app.command()
def evaluate(
    expdir: Annotated[Path, typer.Argument(help="Folder of a joint training run.")],
    split: Annotated[str, typer.Option(help="dev or test.")] = "test",
    checkpoint: Annotated[str, typer.Option(help="File in the folder.")] = "best-dev.ckpt",
    device: Annotated[str | None, typer.Option(help="cpu, cuda; default: what the machine has.")] = None,
    trials: Annotated[str | None, typer.Option(help="Another list of test trials, such as Vox1-H.")] = None,
) -> None:
    """Evaluate a joint training run on both tasks; results.json (with --trials results-LIST.json) into its folder."""
    from distilled_student.multitask.evaluate import evaluate as run

    run(expdir, split=split, checkpoint=checkpoint, device=device, trials=trials)


@app.command()
def export(
    source: Annotated[Path, typer.Argument(help="Folder of a joint training run, or a student.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="FILE.onnx, or FILE.pte for ExecuTorch.")],
    int8: Annotated[bool, typer.Option("--int8", help="ONNX: weights and products in 8 bits.")] = False,
    max_loss: Annotated[float, typer.Option(help="Points of accuracy and EER that int8 may lose.")] = 0.3,
    streaming: Annotated[bool, typer.Option("--streaming", help="ONNX: chunks and state in and out.")] = False,
    window: Annotated[float, typer.Option(help="Seconds that a stream's scores are of.")] = 1.0,
    max_seconds: Annotated[float, typer.Option(help="Longest utterance that a .pte takes.")] = 10.0,
    checkpoint: Annotated[str, typer.Option(help="File in the folder of the run.")] = "best-dev.ckpt",
) -> None:
    """Write one file for devices: waveforms in; hidden state, keyword scores and speaker embedding out."""
    from distilled_student.multitask.device_model import open_joint

    program = output.suffix == ".pte"
    if int8 + streaming + program > 1:
        raise UserError("--int8, --streaming, .pte: one of them at a time")
    model = open_joint(source, checkpoint)
    if program:
        from distilled_student.export.executorch import export_executorch

        export_executorch(model, output, max_seconds, checkpoint)
    elif streaming:
        from distilled_student.export.stream import export_stream

        export_stream(model, output, window, checkpoint)
    else:
        from distilled_student.export.utterance import export_onnx

        export_onnx(model, output, int8, max_loss, checkpoint)


@app.command()
def demo(
    output: Annotated[Path, typer.Option(help="Folder for runs, results and report.")] = Path("exp/demo"),
    seeds: Annotated[int, typer.Option(help="Repeat everything with this many seeds.")] = 1,
) -> None:
    """The whole way in some minutes, offline: distil, fine-tune jointly, evaluate, compare."""
    from distilled_student.demo.run_demo import run_demo

    run_demo(output, seeds)


@app.command()
def prepare(
    corpus: Annotated[str, typer.Argument(help="librispeech, speech_commands or voxceleb1.")],
    root: Annotated[Path, typer.Argument(help="Folder of all corpora; the shipped configs call it data.")],
    parts: Annotated[list[str] | None, typer.Option(help="One part alone, as train-clean-100; repeatable.")] = None,
    mirror: Annotated[str | None, typer.Option(help="URL under which the published files are.")] = None,
    source: Annotated[Path | None, typer.Option(help="Folder with VoxCeleb1's archives, or unpacked.")] = None,
) -> None:
    """Download a corpus where its licence lets it, arrange it, and check its counts. The same command resumes."""
    from distilled_student.prepare.catalog import CORPORA
    from distilled_student.prepare.prepare_corpus import prepare as run

    if corpus not in CORPORA:
        raise UserError(f"{corpus}: not one of {', '.join(CORPORA)}")
    run(CORPORA[corpus], root, parts or (), mirror, source)


@app.command()
def benchmark(
    suite: Annotated[str, typer.Argument(help="paper, superb, sizes, demo, or a YAML file (configs/benchmark).")],
    data: Annotated[Path | None, typer.Option(help="Folder that `prepare` fills; demo, sizes: their own.")] = None,
    output: Annotated[Path | None, typer.Option(help="Folder for runs and report; exp/benchmark/SUITE.")] = None,
    students: Annotated[Path | None, typer.Option(help="Folder of distilled students, for suites to share.")] = None,
    seeds: Annotated[int | None, typer.Option(help="Seeds 0, 1, ... of every run; default: the suite's.")] = None,
    only: Annotated[list[str] | None, typer.Option(help="Runs MODEL/SETTING that match, such as 'hubert/*'.")] = None,
    extra: Annotated[bool, typer.Option("--all", help="The runs beyond the published tables too.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the runs and an estimate of their cost.")] = False,
    steps: Annotated[int | None, typer.Option(help="Cut every training to so many updates: a trial of it all.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda; default: what the machine has.")] = None,
    tflops: Annotated[float, typer.Option(help="What the estimate takes the device to sustain in float32.")] = 10.0,
) -> None:
    """Run what is missing of a suite, go on with what was interrupted, and report ours beside the published figures."""
    from distilled_student.benchmark.run_suite import benchmark as run
    from distilled_student.benchmark.run_suite import open_bench

    more: dict[str, list[str]] = {}
    if suite in ("demo", "sizes"):
        from distilled_student.demo.run_demo import corpus_folder, precision

        data, more = data or corpus_folder(), precision()
    if data is None:
        raise UserError("--data: no folder; `distilled-student prepare` fills one")
    home, name = Path("exp/benchmark"), Path(suite).stem
    if output is None and steps is None and suite != "demo":
        students = students or home / "distill"
    output = output or home / (name if steps is None else f"{name}-{steps}-steps")  # a trial does not bind the real one
    bench = open_bench(suite, data, output, students, steps, device, **more)
    run(bench, seeds, only or (), extra, tflops if dry_run else None)


@app.command()
def speed(
    output: Annotated[Path, typer.Option(help="Folder for results, table and profiles.")] = Path("exp/speed"),
    only: Annotated[str, typer.Option(help="Of models,distillation,joint,startup,streaming; default: all.")] = "",
    rounds: Annotated[int, typer.Option(help="How often everything takes its turn.")] = 7,
    accuracy: Annotated[list[str] | None, typer.Option(help="CORPUS=results.json of a benchmark; repeatable.")] = None,
    history: Annotated[Path | None, typer.Option(help="File to add a line to; says what became slower.")] = None,
    report: Annotated[Path | None, typer.Option(help="Measure nothing: the tables of this results.json.")] = None,
    into: Annotated[list[Path] | None, typer.Option(help="With --report: documents to put them into.")] = None,
) -> None:
    """Measure how fast the models are, side by side on this machine, beside HuBERT base."""
    from distilled_student.speed.measure_all import measure_parts, write_tables

    if report is not None:
        write_tables(report, accuracy or (), into or ())
    else:
        measure_parts(output, [name for name in only.split(",") if name], rounds, accuracy or (), history)


@app.command()
def stream(
    model: Annotated[Path, typer.Argument(help="Folder of a joint training run whose student is causal.")],
    recording: Annotated[Path, typer.Argument(help="Audio file to listen to, as if it came from a microphone.")],
    chunk_ms: Annotated[int, typer.Option(min=1, help="Audio that comes at once.")] = 100,
    window: Annotated[float, typer.Option(help="Seconds that scores are of.")] = 1.0,
    threshold: Annotated[float, typer.Option(help="Probability from which on a keyword is told.")] = 0.5,
) -> None:
    """Spot keywords in a file chunk by chunk, and print when each is known."""
    import torch

    from distilled_student.common import audio
    from distilled_student.multitask.device_model import open_joint
    from distilled_student.streaming import Stream, listen

    torch.set_num_threads(1)  # a chunk is too small to be shared
    listener = Stream(open_joint(model), window)
    for seconds, label, score in listen(listener, audio.load(recording), chunk_ms, threshold):
        print(f"{seconds:7.2f} s  {label}  {score:.2f}")


# s3prl's own options, --help too, are for s3prl to read
@app.command(
    "s3prl-main", context_settings={"allow_extra_args": True, "ignore_unknown_options": True}, add_help_option=False
)
def s3prl_main(context: typer.Context) -> None:
    """s3prl's own `s3prl-main RECIPE --KEY.KEY VALUE ...` (SuperbKS, SuperbASV), with this package's upstreams."""
    from distilled_student.host.superb.recipes import run

    run(context.args)


def main(argv: list[str] | None = None) -> None:
    """Console script ``distilled-student``; a `UserError` is one line on stderr and exit code 2."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    try:
        app(args=argv, prog_name="distilled-student")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
