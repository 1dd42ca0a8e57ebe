"""Exit codes of a command line: a fault of the program is not taken for an answer."""

from __future__ import annotations

import pytest
import typer

from distilled_student.common.errors import UserError
from distilled_student.common.typer_errors import run_app


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (ValueError("unexpected"), 70, "Traceback"),
        (ModuleNotFoundError("no module", name="distilled_student.gone"), 70, "Traceback"),
        (ModuleNotFoundError("no module", name="torch"), 2, "error: run: needs torch, which is not installed"),
        (UserError("a.wav: no such file"), 2, "error: a.wav: no such file"),
        (OSError(28, "No space left"), 2, "error: [Errno 28] No space left"),
        (typer.Exit(1), 1, ""),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_an_unexpected_error_exits_with_70_and_its_traceback_and_not_with_1(
    error: BaseException, code: int, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    app = typer.Typer()

    @app.callback()
    def main() -> None:
        """A program."""

    @app.command()
    def run() -> None:
        raise error

    with pytest.raises(SystemExit) as end:
        run_app(app, ["run"], "program")
    assert end.value.code == code
    err = capsys.readouterr().err.strip()
    assert err.startswith(text) if text else not err.startswith(("error", "Traceback"))
