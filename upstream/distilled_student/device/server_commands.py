"""The commands that serve a model to other programs."""

from __future__ import annotations

from typing import Annotated

import typer

from distilled_student.common.early_checks import check_probability
from distilled_student.common.errors import UserError
from distilled_student.device.commands import PANEL, FalseAccepts, ModelOption, ProfilesOption, parse_share


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command(rich_help_panel=PANEL)(wyoming)


def wyoming(
    uri: Annotated[str, typer.Option(help="Address to listen on; 127.0.0.1: this machine alone.")] = (
        "tcp://127.0.0.1:10400"
    ),
    model: ModelOption = "edge",
    profiles: ProfilesOption = None,
    false_accepts: FalseAccepts = "1%",
    threshold: Annotated[
        float | None, typer.Option(help="Smallest probability of a keyword; default: that of the model.")
    ] = None,
) -> None:
    """Serve wake words over the Wyoming protocol, for Home Assistant: each detection says who spoke."""
    check_probability("--threshold", threshold)
    try:
        from distilled_student.device import wyoming_server, wyoming_service
    except ModuleNotFoundError as error:
        if error.name != "wyoming":
            raise
        remedy = "`pip install './run[wyoming]'` in a clone installs it, or '.[wyoming]' with everything else"
        raise UserError(f"wyoming: is not installed; {remedy}") from None
    from dataclasses import replace

    from distilled_student.device.model_files import one_line_errors, open_model

    share = parse_share(false_accepts)
    wyoming_server.parse_uri(uri)
    with one_line_errors():
        service = wyoming_service.WakeService(open_model(model), model, profiles, share)
        if threshold is not None:
            service.settings = replace(service.settings, threshold=threshold)
    wyoming_server.run(service, uri)
