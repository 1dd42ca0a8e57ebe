"""The commands that use a model: spot keywords, compare speakers, enrol people and recognise them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from distilled_student.common.errors import UserError
from distilled_student.common.typer_errors import Commands
from distilled_student.device.odds import as_odds, with_needed

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from distilled_student.device.profiles import Profiles
    from distilled_student.onnx import Model

# numpy, onnxruntime and soundfile are imported by the commands: --help and mistakes do without them

PANEL = "Use a model"
YES, NO, SOME = 0, 1, 3  # exit codes; 2 is a user's mistake or a file that cannot be read

Files = Annotated[list[Path], typer.Argument(help="Audio files of any format, rate and channels.")]
ModelOption = Annotated[
    str, typer.Option("--model", help="edge, tiny, an .onnx file, a packed folder, or the folder of a joint run.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
ProfilesOption = Annotated[
    Path | None,
    typer.Option(
        "--profiles",
        help="Folder of people and words; default: $DISTILLED_STUDENT_PROFILES, or one in the user's data folder.",
    ),
]
FalseAccepts = Annotated[
    str, typer.Option("--false-accepts", help="Share of other people's recordings that are accepted: 1% or 0.01.")
]


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    for function in (spot, embed, similarity, enrol, verify, identify):
        app.command(rich_help_panel=PANEL)(function)
    app.command("enroll", hidden=True)(enrol)
    app.add_typer(speakers, name="speakers", rich_help_panel=PANEL)


def parse_share(text: str) -> float:
    """``1%`` or ``0.01`` -> 0.01. Raises UserError."""
    try:
        share = float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        raise UserError(f"--false-accepts {text}: expected a share, such as 1% or 0.01") from None
    if not 0 < share < 1:
        raise UserError(f"--false-accepts {text}: must be between 0 and 1; one per cent is 1% or 0.01")
    return share


def spot(
    files: Files, model: ModelOption = "edge", profiles: ProfilesOption = None, as_json: JsonOption = False
) -> None:
    """Say which keyword or word of your own each recording has. Exit code 0: each has one; 1: one of them has none."""
    from distilled_student.device.model_files import one_line_errors, open_model
    from distilled_student.device.own_words import OwnWords
    from distilled_student.device.recordings import read_recording

    opened, found = open_model(model), []
    own_words, _ = OwnWords(profiles, opened, model).templates()
    for file in files:
        samples = read_recording(file)
        with one_line_errors():
            spotted = opened.spot(samples, own_words)
        found.append(spotted.label)
        text = f"{file}: {spotted.label or 'no keyword'}  {spotted.score:.2f}"
        print_result({"file": str(file), "label": spotted.label, "score": spotted.score}, text, as_json)
    raise typer.Exit(NO if None in found else YES)


def embed(
    files: Files,
    model: ModelOption = "edge",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File to write: .npy with an array (files, embedding).")
    ] = None,
    as_json: JsonOption = True,
) -> None:
    """Print the speaker embedding of each recording, one JSON a line, or write them to a .npy file."""
    from distilled_student.common.early_checks import check_output_file

    if output is not None and output.suffix != ".npy":
        raise UserError(f"--output {output}: expected a name that ends with .npy")
    check_output_file("--output", output)
    opened = _open(model)
    vectors = [_embed(opened, file) for file in files]
    if output is not None:
        import numpy as np

        np.save(output, np.stack(vectors))
        return
    for file, vector in zip(files, vectors, strict=True):
        rounded = [round(value, 7) for value in vector.tolist()]
        print_result({"file": str(file), "embedding": rounded}, "", as_json=True)


def similarity(
    a: Annotated[Path, typer.Argument(help="Audio file.")],
    b: Annotated[Path, typer.Argument(help="Audio file to compare it with.")],
    model: ModelOption = "edge",
    as_json: JsonOption = False,
) -> None:
    """Compare the speakers of two recordings: the cosine of their embeddings, and what it means."""
    from distilled_student.device.model_files import one_line_errors
    from distilled_student.device.recordings import read_recording

    opened, samples = _open(model), [read_recording(file) for file in (a, b)]
    with one_line_errors():
        if opened.calibration is None:
            cosine, ratio = opened.similarity(*samples), None
        else:
            found = opened.verify(samples[1], opened.enrol(samples[0]))
            cosine, ratio = found.cosine, found.ratio
    words = "" if ratio is None else f"; {as_odds(ratio)}"
    print_result({"cosine": cosine, "ratio": ratio}, f"cosine {cosine:.3f}{words}", as_json)


def enrol(
    name: Annotated[str, typer.Argument(help="Name of the person.")],
    files: Annotated[list[Path], typer.Argument(help="Recordings of this person alone: three or more are best.")],
    model: ModelOption = "edge",
    profiles: ProfilesOption = None,
    replace: Annotated[bool, typer.Option("--replace", help="Forget the clips that were enrolled before.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Enrol clips with problems too.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Enrol a person. Exit code 0: with all clips; 3: some were refused; 1: all were."""
    from distilled_student.device.enrolment import enrol as run
    from distilled_student.device.named_files import checked_name

    checked_name(name)
    opened, people = _open_with_people(model, profiles)
    done = run(opened, people, name, files, force, replace)
    clips = [
        {"file": clip.file, "enrolled": is_enrolled, "problems": clip.problems, "cosine": clip.cosine}
        | clip.sound._asdict()
        for is_enrolled, group in ((True, done.enrolled), (False, done.refused))
        for clip in group
    ]
    for clip in clips:
        state = "enrolled" if clip["enrolled"] else "refused"
        if not as_json:
            print(f"{clip['file']}: {state}" + "".join(f"; {problem}" for problem in clip["problems"]))
    count, seconds = (done.profile.count, done.profile.seconds) if done.profile else (0, 0.0)
    in_all = f"{counted(count, 'clip')}, {seconds:.1f} s in all"
    text = f"{done.name}: {in_all if count else 'no clip was enrolled'}"
    if done.refused:
        text += "; record the refused clips again, or add --force"
    content = {"name": done.name, "clips": clips, "count": count, "seconds": seconds, "notes": list(done.notes)}
    print_result(content, text, as_json, done.notes)
    raise typer.Exit(YES if not done.refused else SOME if done.enrolled else NO)


def verify(
    name: Annotated[str, typer.Argument(help="Name of an enrolled person.")],
    files: Annotated[list[Path], typer.Argument(help="Recordings of one person; several are joined.")],
    model: ModelOption = "edge",
    profiles: ProfilesOption = None,
    false_accepts: FalseAccepts = "1%",
    as_json: JsonOption = False,
) -> None:
    """Say whether a recording is of an enrolled person. Exit code 0: yes; 1: no."""
    from distilled_student.device.model_files import one_line_errors
    from distilled_student.device.recordings import read_joined

    share = parse_share(false_accepts)
    opened, people = _open_with_people(model, profiles)
    enrolment, samples = people.read(name), read_joined(files)
    with one_line_errors():
        done = opened.verify(samples, enrolment, share)
    odds = with_needed(done.ratio, done.needed_ratio)
    text = f"{'yes' if done.accepted else 'no'}: {name}, cosine {done.cosine:.3f}; {odds}"
    content = {"name": name, "accepted": bool(done.accepted), "ratio": done.ratio, "needed_ratio": done.needed_ratio}
    content |= {"cosine": done.cosine}
    print_result(content | {"notes": list(done.notes)}, text, as_json, done.notes)
    raise typer.Exit(YES if done.accepted else NO)


def identify(
    files: Files,
    model: ModelOption = "edge",
    profiles: ProfilesOption = None,
    false_accepts: FalseAccepts = "1%",
    joined: Annotated[bool, typer.Option("--joined", help="The files are of one person: join them.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Say which enrolled person each recording is of. Exit code 0: each is of one; 1: one of them is of nobody."""
    from distilled_student.device.model_files import one_line_errors
    from distilled_student.device.recordings import read_joined

    share = parse_share(false_accepts)
    opened, people = _open_with_people(model, profiles)
    enrolments, others = people.read_all()
    left_out = (f"not compared, enrolled with another model: {', '.join(others)}",) if others else ()
    found, printed = [], set()
    for group in [files] if joined else [[file] for file in files]:
        samples = read_joined(group)
        with one_line_errors():
            done = opened.identify(samples, enrolments, share)
        found.append(done.name)
        named = ", ".join(map(str, group))
        odds = with_needed(done.ratio, done.needed_ratio)
        text = f"{named}: {done.name or 'nobody'}, cosine {done.cosine:.3f}; {odds}"
        content = {"files": list(map(str, group)), "name": done.name, "ratio": done.ratio, "cosine": done.cosine}
        content |= {"needed_ratio": done.needed_ratio}
        notes = (*left_out, *done.notes)
        print_result(content | {"notes": list(notes)}, text, as_json, [note for note in notes if note not in printed])
        printed.update(notes)
    raise typer.Exit(NO if None in found else YES)


speakers = typer.Typer(cls=Commands, invoke_without_command=True, help="List the enrolled people, or forget one.")


@speakers.callback()
def list_speakers(
    context: typer.Context,
    model: Annotated[str | None, typer.Option("--model", help="Only those enrolled with this model.")] = None,
    profiles: ProfilesOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the enrolled people, or forget one."""
    from distilled_student.device.profiles import Profiles

    context.obj = profiles
    if context.invoked_subcommand is not None:
        return
    people = Profiles(profiles)
    fingerprint = None if model is None else _open(model).fingerprint
    found = [person for person in people.all() if fingerprint in (None, person.fingerprint)]
    for person in found:
        content = {"name": person.name, "count": person.count, "seconds": person.seconds, "model": person.model}
        clips = counted(person.count, "clip")
        print_result(content, f"{person.name}: {clips}, {person.seconds:.1f} s, model {person.model}", as_json)
    if not as_json and not found:
        print(f"nobody is enrolled in {people.folder}")


@speakers.command("forget")
def forget_speaker(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="Name of an enrolled person.")],
    profiles: ProfilesOption = None,
) -> None:
    """Delete the profile of a person."""
    from distilled_student.device.profiles import Profiles

    Profiles(profiles or context.obj).forget(name)
    print(f"{name}: forgotten")


def _open(name: str) -> Model:
    from distilled_student.device.model_files import open_model

    return open_model(name)


def _open_with_people(name: str, folder: Path | None) -> tuple[Model, Profiles]:
    """The model, with the household's calibration if there is one, and the enrolled people."""
    from distilled_student.device.household import apply_household
    from distilled_student.device.profiles import Profiles

    model = _open(name)
    people = Profiles(folder, model, name)
    apply_household(model, people.folder)
    return model, people


def _embed(model: Model, file: Path) -> NDArray[np.float32]:
    from distilled_student.device.model_files import one_line_errors
    from distilled_student.device.recordings import read_recording

    samples = read_recording(file)
    with one_line_errors():
        return model.embed(samples)


def counted(count: int, noun: str) -> str:
    """``1 clip``, ``2 clips``."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def print_result(content: Mapping[str, Any], text: str, as_json: bool, notes: Sequence[str] = ()) -> None:
    """Print one result: a line of JSON, which has the notes too, or text, with the notes on standard error."""
    import sys

    if as_json:
        print(json.dumps(content, ensure_ascii=False))
        return
    print(text)
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
