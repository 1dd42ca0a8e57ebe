"""The command `calibrate`: decisions about speakers that fit the people, the microphone and the room of a household."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from distilled_student.common.errors import UserError
from distilled_student.device.commands import (
    NO,
    PANEL,
    YES,
    JsonOption,
    ModelOption,
    ProfilesOption,
    print_result,
)

if TYPE_CHECKING:
    from distilled_student.device.household import Report


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command(rich_help_panel=PANEL)(calibrate)


def calibrate(
    folder: Annotated[Path | None, typer.Argument(help="Folder with a folder of recordings for each person.")] = None,
    model: ModelOption = "edge",
    profiles: ProfilesOption = None,
    forget: Annotated[bool, typer.Option("--forget", help="Delete the calibration of this model.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Fit the decisions about speakers to a household. Exit code 0: done; 1: done, but two voices overlap."""
    from distilled_student.common.early_checks import check_folder
    from distilled_student.device import household
    from distilled_student.device.model_files import open_model
    from distilled_student.device.named_files import profiles_folder

    kept = profiles_folder(profiles)
    if forget:
        if folder is not None:
            raise UserError(f"{folder}: cannot be used with --forget, which only deletes: leave out one of the two")
        file = household.household_file(kept, open_model(model).fingerprint)
        is_there = file.is_file()
        file.unlink(missing_ok=True)
        text = f"the calibration {file} is forgotten" if is_there else f"there is no calibration in {kept}"
        print_result({"model": model, "forgotten": is_there, "file": str(file)}, f"{model}: {text}", as_json)
        return
    if folder is None:
        raise UserError("FOLDER: missing; give a folder with a folder of recordings for each person")
    check_folder("", folder)
    report = household.calibrate(open_model(model), folder, model)
    file = household.save_household(kept, report.household) if report.is_usable else None
    _print_report(report, file, as_json)
    raise typer.Exit(NO if report.overlaps else YES)


def _print_report(report: Report, file: Path | None, as_json: bool) -> None:
    found = report.household
    content: dict[str, Any] = {
        "offset": found.offset,
        "people": found.people,
        "clips": found.clips,
        "expected": [
            {"false_accepts": at.false_accepts, "misses": at.misses._asdict(), "accepted": at.accepted._asdict()}
            for at in report.expected
        ],
        "overlaps": [overlap._asdict() for overlap in report.overlaps],
        "left_out": [{"file": clip.file, "problems": clip.problems} for clip in report.left_out],
        "file": None if file is None else str(file),
        "notes": list(report.notes),
    }
    where = "nothing is stored" if file is None else f"kept in {file}"
    moved = f"thresholds of the cosine moved by {found.offset:+.4f}" if found.offset else "thresholds not moved"
    lines = [f"{found.people} people, {found.clips} clips: {moved}, {where}"]
    lines += [f"left out: {clip.file}: {'; '.join(clip.problems)}" for clip in report.left_out]
    lines += [
        f"at {at.false_accepts:.1%} false accepts: misses {at.misses}; accepted of the other people {at.accepted}"
        for at in report.expected
    ]
    lines += [
        f"warning: of {clips} clips of {speaker}, {accepted} are accepted as {enrolled}, {alike} are as much like"
        f" {enrolled} as {enrolled}'s own clips: their voices overlap, or they are one person"
        for enrolled, speaker, alike, accepted, clips in report.overlaps
    ]
    print_result(content, "\n".join(lines), as_json, report.notes)
