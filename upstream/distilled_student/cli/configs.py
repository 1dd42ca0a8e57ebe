"""The commands ``configs``: the YAML files that ship with the package."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from distilled_student.common.typer_errors import Commands

CONFIG_HELP = "Name of a config, such as hubert-base or multitask/default."

configs = typer.Typer(
    cls=Commands,
    invoke_without_command=True,
    add_completion=False,
    help="List, show or copy the YAML configs that ship with the package.",
)


def help_if_no_command(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(2)


@configs.callback()
def _configs_options(context: typer.Context) -> None:
    help_if_no_command(context)


@configs.command("list")
def list_configs() -> None:
    """List all configs by kind, each with the first sentence of its comment."""
    from distilled_student.common import shipped_configs

    print(shipped_configs.list_configs())


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
