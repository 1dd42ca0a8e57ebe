"""The command line: distil, evaluate, demo. Joint training is s3prl's own command, ``run_downstream.py``."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Annotated

import typer

from distilled_student.errors import UserError

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)


@app.command()
def distill(
    config: Annotated[str, typer.Argument(help="A YAML file, or the name of a shipped config (configs/distill).")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...")] = None,
) -> None:
    """Distil a student from a teacher. The same command resumes an interrupted run."""
    from distilled_student.settings import find_config, read_yaml, typed

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
) -> None:
    """Evaluate a joint training run on both tasks and write results.json into its folder."""
    from distilled_student.multitask.evaluate import evaluate as run

    run(expdir, split=split, checkpoint=checkpoint, device=device)


@app.command()
def demo(
    output: Annotated[Path, typer.Option(help="Folder for runs, results and report.")] = Path("exp/demo"),
    seeds: Annotated[int, typer.Option(help="Repeat everything with this many seeds.")] = 1,
) -> None:
    """The whole way in some minutes, offline: distil, fine-tune jointly, evaluate, compare."""
    from distilled_student.demo.run import run_demo

    run_demo(output, seeds)


def main(argv: list[str] | None = None) -> None:
    """Console script ``distilled-student``; a `UserError` is one line on stderr and exit code 2."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    try:
        app(args=argv, prog_name="distilled-student")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
