"""Mistakes on a typer command line, reported on one line with the closest known name; typer prints a box."""

from __future__ import annotations

import re
import sys
import traceback
from collections.abc import Sequence
from typing import Any

import typer
from typer.core import TyperGroup

from distilled_student.common.errors import UserError, closest_option, did_you_mean, message_of

# what typer raises for any wrong command line; not all versions of typer export it
UsageError: Any = typer.BadParameter.__base__
FAULT = 70  # exit code: EX_SOFTWARE of sysexits.h
SETTINGS = "overrides"  # the name of the argument of a command that takes settings, key=value


class Commands(TyperGroup):
    """A group of commands that suggests the closest one for an unknown name."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if self.get_command(ctx, args[0]) is None:
            known = [name for name in self.list_commands(ctx) if not self.commands[name].hidden]
            suggestion = did_you_mean(args[0], known) or f"; choose from {', '.join(known)}"
            raise UserError(f"{args[0]}: no such command{suggestion}")
        return super().resolve_command(ctx, args)


def _given(option: str, argv: Sequence[str]) -> str | None:
    """The value of an option on a command line, ``--option=value`` or ``--option value``; None if it has none."""
    for word, following in zip(argv, [*argv[1:], None], strict=True):
        if word == option:
            return following
        if word.startswith(f"{option}="):
            return word.partition("=")[2]
    return None


def _describe_unknown(option: str, context: Any, argv: Sequence[str]) -> str:
    """An unknown option: the closest one, or where the command takes ``key=value``, how a setting is given."""
    params = context.command.get_params(context) if context else []
    found = closest_option(option, [name for param in params for name in param.opts if name.startswith("-")])
    if found:
        return f"{option}: no such option; did you mean `{found}`?"
    if any(param.name == SETTINGS for param in params):
        value = _given(option, argv) or "VALUE"
        return f"{option}: no such option; a setting is given as `{option.lstrip('-').replace('-', '_')}={value}`"
    path = context.command_path if context else "distilled-student"
    return f"{option}: no such option; `{path} --help` lists the options"


def _describe(error: Any, argv: Sequence[str]) -> str:
    """What is wrong with the command line, and the closest option or where to look."""
    if hasattr(error, "possibilities"):
        return _describe_unknown(error.option_name, error.ctx, argv)
    message, param = error.format_message().rstrip("."), getattr(error, "param", None)
    see = f"see `{error.ctx.command_path if error.ctx else 'distilled-student'} --help`"
    if message.startswith("Missing ") and param is not None:
        longest = max(param.opts, key=len)
        return f"{longest if longest.startswith('-') else longest.upper()}: missing; {see}"
    if found := re.match(r"Option '(\S+)' requires an argument", message):
        return f"{found[1]}: a value is missing"
    if found := re.match(r"Got unexpected extra argument\S* \((.*)\)", message):
        return f"{found[1]}: more arguments than the command takes; {see}"
    if (found := re.search(r"valid (integer|int|float|number)", message)) and param is not None:
        kind = "a whole number" if found[1].startswith("int") else "a number"
        option = next((name for name in param.opts if _given(name, argv) is not None), param.opts[0])
        return f"{option} {_given(option, argv) or ''}".rstrip() + f": expected {kind}"
    return f"{message}; {see}"


def _describe_missing(library: str, argv: Sequence[str]) -> str:
    """A library that is not installed, as in an installation of distilled-student-run."""
    remedy = "`pip install .` in a clone installs all libraries, `pip install ./run` only those that devices need"
    return f"{argv[0] if argv else ''}: needs {library}, which is not installed; {remedy}"


def _missing_library(error: Exception) -> str:
    """The library whose absence is the error; empty if it is another error, or one of our own modules."""
    name = (error.name or "").partition(".")[0] if isinstance(error, ModuleNotFoundError) else ""
    return "" if name == "distilled_student" else name


def run_app(app: typer.Typer, argv: Sequence[str], name: str) -> None:
    """Run a command line and exit.

    The exit code is that of the command, 0 for success; 2 for a user's mistake, in one line on stderr; 130 for Ctrl-C;
    70 (``EX_SOFTWARE``) for a fault of the program, with its traceback: 1 is an answer of some commands.
    """
    command = typer.main.get_command(app)
    try:
        code = command.main(args=argv, prog_name=name, standalone_mode=False)
    except (UserError, UsageError, OSError) as error:  # OSError: a full disk, a folder that may not be read
        error = UserError(_describe(error, argv) if isinstance(error, UsageError) else message_of(error))
        print(f"error: {error}", file=sys.stderr)
        code = 2
    except typer.Abort:
        code = 130
    except Exception as error:
        if library := _missing_library(error):
            print(f"error: {_describe_missing(library, argv)}", file=sys.stderr)
            code = 2
        else:
            traceback.print_exc()
            code = FAULT
    sys.exit(code if isinstance(code, int) else 0)
