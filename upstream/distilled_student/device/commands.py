"""The commands that use a model: spot keywords, compare speakers, enrol people and recognise them."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from distilled_student.common.errors import UserError
from distilled_student.common.operating_points import SHARES
from distilled_student.common.typer_errors import Commands
from distilled_student.device.odds import as_odds, with_needed

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from distilled_student.device.own_words import OwnWord
    from distilled_student.device.profiles import Profile, Profiles
    from distilled_student.onnx import Enrolment, Model
    from distilled_student.onnx.model_file import ModelFile

# numpy, onnxruntime and soundfile are imported by the commands: --help and mistakes do without them

PANEL = "Use a model"
YES, NO, MISTAKE, SOME = 0, 1, 2, 3  # exit codes; MISTAKE: of the user, or a file that cannot be read
LONG_SECONDS = 3.0  # from here on a recording is no single word
Item = TypeVar("Item")
Record = TypeVar("Record", "Profile", "OwnWord")

Files = Annotated[list[Path], typer.Argument(help="Audio files of any format, rate and channels.")]
ModelOption = Annotated[
    str, typer.Option("--model", help="edge, tiny, an .onnx file, a packed folder, or the folder of a joint run.")
]
OnlyModel = Annotated[str | None, typer.Option("--model", help="List only those of this model.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
ProfilesOption = Annotated[
    Path | None,
    typer.Option(
        "--profiles",
        help="Folder of people and words; default: $DISTILLED_STUDENT_PROFILES, or one in the user's data folder.",
    ),
]
FalseAccepts = Annotated[
    str, typer.Option("--false-accepts", help="Share of other people's recordings that are accepted, 0.1% to 5%.")
]


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    for function in (spot, embed, similarity, enrol, verify, identify):
        app.command(rich_help_panel=PANEL)(function)
    app.command("enroll", hidden=True)(enrol)
    app.add_typer(speakers, name="speakers", rich_help_panel=PANEL)


def parse_share(text: str, option: str = "--false-accepts") -> float:
    """``1%`` or ``0.01`` -> 0.01. Raises UserError that names the option, for a share outside of `SHARES` too."""
    low, high = min(SHARES), max(SHARES)
    try:
        number = float(text.removesuffix("%"))
    except ValueError:
        number = math.nan
    share = number / 100 if text.endswith("%") else number
    if not low <= share <= high:
        hint = f"; did you mean {text}%?" if share == number and low <= number / 100 <= high else ""
        raise UserError(f"{option} {text}: {_range_of_shares(low, high)}{hint}")
    return share


def _range_of_shares(low: float, high: float) -> str:
    return f"must be from {100 * low:g}% to {100 * high:g}% ({low:g} to {high:g})"


def check_share(model: ModelFile, share: float) -> None:
    """Raise UserError for a share of false accepts that the model's calibration has no threshold for."""
    if model.calibration is None:
        raise UserError(f"{model.file}: has no calibration of speaker verification; `embed` works without one")
    check_fitted(model, share)


def check_fitted(model: ModelFile, share: float, option: str = "--false-accepts") -> None:
    """As `check_share`, but a model without a calibration, or with one of version 0.1.0, takes any share."""
    shares = () if model.calibration is None else model.calibration.shares
    if shares and not shares[0] <= share <= shares[-1]:  # a model with little data has fewer of them
        raise UserError(f"{option} {share:g}: {_range_of_shares(shares[0], shares[-1])}")


def check_not_file(name: str) -> None:
    """Raise UserError if the first of the files was given instead of a name."""
    if os.path.isfile(name):
        raise UserError(f"NAME: missing: {name} is a file")


def run_each(items: Iterable[Item], run: Callable[[Item], bool]) -> int:
    """Run a command on each item; the exit code. Errors are printed, each once, and the other items follow.

    Args:
        run: Prints its result, and returns whether the answer is yes.

    Returns:
        `MISTAKE` if there was an error; else `YES` if all answers are yes, or `NO`.
    """
    answers, errors = [], dict[str, None]()
    for item in items:
        try:
            answers.append(run(item))
        except UserError as error:
            if str(error) not in errors:
                print(f"error: {error}", file=sys.stderr)
            errors[str(error)] = None
    return MISTAKE if errors else YES if all(answers) else NO


def spot(
    files: Files, model: ModelOption = "edge", profiles: ProfilesOption = None, as_json: JsonOption = False
) -> None:
    """Say which keyword or word of your own each recording has. Exit code 0: each has one; 1: one of them has none."""
    from distilled_student.device.model_files import one_line_errors, open_model
    from distilled_student.device.own_words import OwnWords
    from distilled_student.device.recordings import read_recording

    opened = open_model(model)
    own_words, notes = OwnWords(profiles, opened, model).templates()
    print_notes(notes)

    def spot_one(file: Path) -> bool:
        samples = read_recording(file)
        with one_line_errors():
            label, score = opened.spot(samples, own_words)
        text = f"{file}: no keyword" if label is None else f"{file}: {label}  {score:.2f}"
        seconds = len(samples) / opened.rate
        hint = f"{file}: {seconds:.1f} s: `spot` takes a recording for one word; `listen` finds keywords in longer ones"
        notes = [hint] if label is None and seconds > LONG_SECONDS else []
        print_result({"file": str(file), "label": label, "score": score}, text, as_json, notes)
        return label is not None

    raise typer.Exit(run_each(files, spot_one))


def embed(
    files: Files,
    model: ModelOption = "edge",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File to write: .npy with an array (files, embedding).")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="With --output: print JSON.")] = False,
) -> None:
    """Print the speaker embedding of each recording, one JSON a line, or write them to a .npy file."""
    from distilled_student.common.early_checks import check_output_file

    if output is not None and output.suffix != ".npy":
        raise UserError(f"--output {output}: expected a name that ends with .npy")
    check_output_file("--output", output)
    opened = _open(model)
    vectors = []

    def embed_one(file: Path) -> bool:
        vectors.append(vector := _embed(opened, file))
        if output is None:
            rounded = [round(value, 7) for value in vector.tolist()]
            print_result({"file": str(file), "embedding": rounded}, "", as_json=True)
        return True

    code = run_each(files, embed_one)
    if output is not None:
        import numpy as np

        if code == MISTAKE:
            raise UserError(f"--output {output}: not written: it would have {len(vectors)} of {len(files)} embeddings")
        np.save(output, np.stack(vectors))
        content = {"file": str(output), "embeddings": len(vectors)}
        print_result(content, f"{output}: {counted(len(vectors), 'embedding')}", as_json)
    raise typer.Exit(code)


def similarity(
    a: Annotated[Path, typer.Argument(help="Audio file.")],
    b: Annotated[Path, typer.Argument(help="Audio file to compare it with.")],
    model: ModelOption = "edge",
    as_json: JsonOption = False,
) -> None:
    """Compare the speakers of two recordings: the cosine of their embeddings, and what it means."""
    from distilled_student.device.model_files import one_line_errors
    from distilled_student.device.recordings import read_recording

    opened = _open(model)
    (first, fault_a), (second, fault_b) = (_as_utterance(opened, read_recording(file)) for file in (a, b))
    with one_line_errors():
        if opened.calibration is None:
            cosine, ratio = opened.similarity(first, second), None
        else:
            found = opened.verify(second, opened.enrol([first]))
            cosine, ratio = found.cosine, found.ratio
    words = "" if ratio is None else f"; {as_odds(ratio)}"
    notes = [f"{file}: {fault}" for file, fault in ((a, fault_a), (b, fault_b)) if fault is not None]
    content = {"cosine": cosine, "ratio": ratio, "notes": notes}
    print_result(content, f"cosine {cosine:.3f}{words}", as_json, notes)


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
    check_not_file(name)
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
    if not done.enrolled:
        in_all = f"no clip was enrolled; {in_all} from before" if count else "no clip was enrolled"
    text = f"{done.name}: {in_all}"
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
    """Say whether a recording is of an enrolled person. Exit code 0: yes; 1: no, or it has no speech."""
    from distilled_student.device.model_files import one_line_errors
    from distilled_student.device.recordings import read_joined

    share = parse_share(false_accepts)
    check_not_file(name)
    opened, people = _open_with_people(model, profiles)
    check_share(opened, share)
    enrolment, samples = people.read(name), read_joined(files)
    utterance, fault = _as_utterance(opened, samples)
    with one_line_errors():
        done = opened.verify(utterance, enrolment, share)
    accepted = bool(done.accepted) and fault is None
    odds = with_needed(done.ratio, done.needed_ratio)
    text = f"{'yes' if accepted else 'no'}: {name}, " + (fault or f"cosine {done.cosine:.3f}; {odds}")
    content = {"name": name, "accepted": accepted, "ratio": done.ratio, "needed_ratio": done.needed_ratio}
    content |= {"cosine": done.cosine, "notes": [*done.notes, *([fault] if fault else [])]}
    print_result(content, text, as_json, done.notes)
    raise typer.Exit(YES if accepted else NO)


def identify(
    files: Files,
    model: ModelOption = "edge",
    profiles: ProfilesOption = None,
    false_accepts: FalseAccepts = "1%",
    joined: Annotated[bool, typer.Option("--joined", help="The files are of one person: join them.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Say which enrolled person each recording is of. Exit code 0: each is of one; 1: one is not, or has no speech."""
    from distilled_student.device.model_files import one_line_errors
    from distilled_student.device.recordings import read_joined

    share = parse_share(false_accepts)
    opened, people = _open_with_people(model, profiles)
    check_share(opened, share)
    enrolments, others = people.read_all()
    left_out = (f"not compared, enrolled with another model: {', '.join(others)}",) if others else ()
    printed = set[str]()

    def identify_group(group: Sequence[Path]) -> bool:
        utterance, fault = _as_utterance(opened, read_joined(group))
        with one_line_errors():
            done = opened.identify(utterance, enrolments, share)
        name, notes = done.name if fault is None else None, (*left_out, *done.notes)
        who = name or f"nobody; the nearest is {done.nearest}"
        odds = with_needed(done.ratio, done.needed_ratio)
        named, of_whom = ", ".join(map(str, group)), f"{who}, cosine {done.cosine:.3f}; {odds}"
        text = f"{named}: {of_whom}" if fault is None else f"{named}: nobody, {fault}"
        content = {"files": list(map(str, group)), "name": name, "ratio": done.ratio, "cosine": done.cosine}
        content |= {"needed_ratio": done.needed_ratio, "nearest": done.nearest}
        content |= {"notes": [*notes, *([fault] if fault else [])]}
        print_result(content, text, as_json, [note for note in notes if note not in printed])
        printed.update(notes)
        return name is not None

    raise typer.Exit(run_each([files] if joined else [[file] for file in files], identify_group))


speakers = typer.Typer(cls=Commands, invoke_without_command=True, help="List the enrolled people, or forget one.")


@speakers.callback()
def list_speakers(
    context: typer.Context,
    model: OnlyModel = None,
    profiles: ProfilesOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the enrolled people, or forget one."""
    context.obj = profiles
    if context.invoked_subcommand is None:
        _print_speakers(profiles, model, as_json)


@speakers.command("list", hidden=True)
def list_speakers_too(
    context: typer.Context,
    model: OnlyModel = None,
    profiles: ProfilesOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the enrolled people, as `speakers` alone does."""
    _print_speakers(profiles or context.obj, model, as_json)


def of_model(records: Iterable[Record], name: str | None) -> list[Record]:
    """The people or words of one model; None: all."""
    fingerprint = None if name is None else _open(name).fingerprint
    return [record for record in records if fingerprint in (None, record.fingerprint)]


def _print_speakers(profiles: Path | None, model: str | None, as_json: bool) -> None:
    from distilled_student.device.profiles import Profiles

    people = Profiles(profiles)
    found = of_model(people.all(), model)
    for person in found:
        content = {"name": person.name, "count": person.count, "seconds": person.seconds, "model": person.model}
        clips = counted(person.count, "clip")
        print_result(content, f"{person.name}: {clips}, {person.seconds:.1f} s, model {person.model}", as_json)
    if not as_json and not found:
        print(f"nobody is enrolled{f' with {model}' if model else ''} in {people.folder}")


@speakers.command("forget")
def forget_speaker(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="Name of an enrolled person.")],
    profiles: ProfilesOption = None,
    as_json: JsonOption = False,
) -> None:
    """Delete the profile of a person."""
    from distilled_student.device.profiles import Profiles

    Profiles(profiles or context.obj).forget(name)
    print_forgotten(name, as_json)


def _open(name: str) -> Model:
    from distilled_student.device.model_files import open_model

    return open_model(name)


def _open_with_people(name: str, folder: Path | None) -> tuple[Model, Profiles]:
    """The enrolled people, and the model, which decides by the household's calibration if there is one."""
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


def _as_utterance(model: Model, samples: NDArray[np.float32]) -> tuple[Enrolment, str | None]:
    """One utterance ``(samples,)`` for the methods of `Model`, and why it cannot be compared, see `not_comparable`.

    It is embedded here: an array with as many samples as an embedding has numbers would count as an embedding.
    """
    from distilled_student.device.clip_checks import measure_sound, not_comparable
    from distilled_student.device.model_files import one_line_errors
    from distilled_student.onnx import Enrolment

    fault = not_comparable(measure_sound(samples))
    with one_line_errors():
        return Enrolment(model.embed(samples), 1, len(samples) / model.rate), fault


def counted(count: int, noun: str) -> str:
    """``1 clip``, ``2 clips``."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def print_result(content: Mapping[str, Any], text: str, as_json: bool, notes: Sequence[str] = ()) -> None:
    """Print one result: a line of JSON, which has the notes too, or text, with the notes on standard error."""
    if as_json:
        print(json.dumps(content, ensure_ascii=False))
        return
    print(text)
    print_notes(notes)


def print_forgotten(name: str, as_json: bool) -> None:
    """Print that a person or a word was deleted."""
    print_result({"name": name, "forgotten": True}, f"{name}: forgotten", as_json)


def print_notes(notes: Iterable[str]) -> None:
    """Print notes on standard error."""
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
