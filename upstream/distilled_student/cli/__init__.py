"""Distil small speech models and evaluate, export and benchmark them. Joint training: `run_downstream.py`."""

from __future__ import annotations

import logging
import shlex
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Annotated

import typer

from distilled_student import __version__
from distilled_student.cli import measuring, models, training
from distilled_student.cli.configs import configs, help_if_no_command
from distilled_student.common.interruption import resumed_by
from distilled_student.common.known_warnings import suppress_known_warnings
from distilled_student.common.typer_errors import Commands, run_app
from distilled_student.device.commands import PANEL
from distilled_student.device.commands import register as register_device_commands
from distilled_student.device.household_commands import register as register_household_commands
from distilled_student.device.server_commands import register as register_server_commands
from distilled_student.device.stream_commands import register as register_stream_commands
from distilled_student.device.word_commands import words
from distilled_student.web.commands import register as register_web

# Importing torch, s3prl and lhotse takes seconds. A command therefore checks what it can first and imports them last.

TRAIN = "Train, measure and export"  # heading in the help, after the commands that use a model

app = typer.Typer(
    cls=Commands, invoke_without_command=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__
)
register_device_commands(app)
register_household_commands(app)
register_stream_commands(app)
app.add_typer(words, name="words", rich_help_panel=PANEL)
register_server_commands(app)
register_web(app)
app.add_typer(configs, name="configs", rich_help_panel=TRAIN)
for module in (training, models, measuring):
    module.register(app, TRAIN)


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
    help_if_no_command(context)


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
