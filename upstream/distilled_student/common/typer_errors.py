"""Mistakes on a typer command line, reported on one line with the closest known name; typer prints a box."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import typer
from typer.core import TyperGroup

from distilled_student.common.errors import UserError, did_you_mean, message_of

# what typer raises for any wrong command line; not all versions of typer export it
UsageError: Any = typer.BadParameter.__base__


class Commands(TyperGroup):
    """A group of commands that suggests the closest one for an unknown name."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if self.get_command(ctx, args[0]) is None:
            known = self.list_commands(ctx)
            suggestion = did_you_mean(args[0], known) or f"; choose from {', '.join(known)}"
            raise UserError(f"{args[0]}: no such command{suggestion}")
        return super().resolve_command(ctx, args)


def _describe(error: Any) -> str:
    """What is wrong with the command line, and the closest option or where to look."""
    context = error.ctx
    path = context.command_path if context else "distilled-student"
    if hasattr(error, "possibilities"):  # an unknown option
        known = [name for option in context.command.get_params(context) for name in option.opts] if context else []
        suggestion = did_you_mean(error.option_name, known) or f"; `{path} --help` lists the options"
        return f"{error.option_name}: no such option{suggestion}"
    return f"{error.format_message().rstrip('.')}; see `{path} --help`"


def run_app(app: typer.Typer, argv: Sequence[str] | None, name: str) -> None:
    """Run a command line and exit: 0 for success, 2 with one line on stderr for a user's mistake, 130 for Ctrl-C."""
    command = typer.main.get_command(app)
    try:
        code = command.main(args=argv, prog_name=name, standalone_mode=False)
    except (UserError, UsageError, OSError) as error:  # OSError: a full disk, a folder that may not be read
        error = UserError(_describe(error) if isinstance(error, UsageError) else message_of(error))
        print(f"error: {error}", file=sys.stderr)
        code = 2
    except typer.Abort:
        code = 130
    sys.exit(code if isinstance(code, int) else 0)
