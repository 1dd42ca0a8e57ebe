"""The commands on streams: report keywords and who said them, measure false alarms per hour."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from distilled_student.common.early_checks import (
    check_between,
    check_file,
    check_folder,
    check_output_folder,
    check_positive,
    check_probability,
    check_rate,
)
from distilled_student.common.errors import UserError
from distilled_student.device.commands import (
    NO,
    PANEL,
    FalseAccepts,
    JsonOption,
    ModelOption,
    ProfilesOption,
    check_share,
    parse_share,
    print_notes,
)

if TYPE_CHECKING:
    from distilled_student.onnx import Enrolment, Hit, Stream

# numpy, onnxruntime and soundfile are imported by the commands: --help and mistakes do without them

LONGEST_SECONDS = 3600  # of the smoothing and of the hold-off, as in `onnx.detector`
GATE_LEVELS = (-120, 0)  # dB: digital silence counts as -120, a full scale of 1 as 0
MAX_LEVEL = 100  # dB; 16-bit samples have 96 dB from the softest to the loudest
SMOOTHING_HELP = "Seconds over which scores are averaged; default: the model's."
HOLD_OFF_HELP = "Seconds after a keyword in which no other is reported; default: the model's."
GATE_HELP = "Energy gate: the smallest level of the last second, in dB relative to full scale; default: the model's."

Owner = Annotated[str | None, typer.Option(help="Only keywords of this person, see `distilled-student enrol`.")]
Smoothing = Annotated[float | None, typer.Option(help=SMOOTHING_HELP)]
HoldOff = Annotated[float | None, typer.Option(help=HOLD_OFF_HELP)]
Gate = Annotated[float | None, typer.Option(help=GATE_HELP)]


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    for function in (listen, alarms):
        app.command(rich_help_panel=PANEL)(function)


def _check_detector(
    threshold: float | None = None,
    smoothing: float | None = None,
    hold_off: float | None = None,
    gate: float | None = None,
    word_threshold: float | None = None,
) -> None:
    """Raise UserError for settings of a detector that no stream can have."""
    check_probability("--threshold", threshold)
    check_between("--word-threshold", word_threshold, 0, 1, "(a score)")
    check_between("--smoothing", smoothing, 0, LONGEST_SECONDS, "seconds")
    check_between("--hold-off", hold_off, 0, LONGEST_SECONDS, "seconds")
    check_between("--gate", gate, *GATE_LEVELS, "dB")


def _open_stream(
    model: str,
    threshold: float | None,
    smoothing: float | None,
    hold_off: float | None,
    gate: float | None,
    word_threshold: float | None = None,
) -> Stream:
    """A stream whose detector has these settings instead of the file's; None: the file's."""
    from distilled_student.device.model_files import one_line_errors, open_stream
    from distilled_student.onnx import Detector

    stream = open_stream(model)
    given = {"threshold": threshold, "smoothing": smoothing, "hold_off": hold_off, "level": gate}
    given["word_threshold"] = word_threshold
    with one_line_errors():
        settings = replace(
            stream.detector.settings, **{key: value for key, value in given.items() if value is not None}
        )
    stream.detector = Detector(stream.detector.labels, settings, stream.detector.hop)
    return stream


def keywords_of_file(model: Path, recording: Path, chunk_ms: int, threshold: float | None) -> Iterator[Hit]:
    """The keywords that the exported stream ``model`` finds in a recording, read in chunks of some milliseconds.

    Raises:
        UserError: the file is no stream with keywords, or the recording cannot be read.
    """
    import numpy as np

    from distilled_student.device.model_files import one_line_errors
    from distilled_student.device.recordings import recording_blocks

    stream = _open_stream(str(model), threshold, None, None, None)
    size = max(1, stream.model.rate * chunk_ms // 1000)
    with one_line_errors():
        for block in recording_blocks(recording):
            for start in range(0, len(block), size):
                yield from stream.listen(block[start : start + size])
        yield from stream.listen(np.zeros(0, np.float32), is_last=True)


def _enrolled(stream: Stream, profiles: Path | None, model: str, owner: str | None) -> dict[str, Enrolment]:
    """The owner, or without one all people who are enrolled with the model; empty if there is nobody."""
    from distilled_student.device.household import apply_household
    from distilled_student.device.profiles import Profiles

    people = Profiles(profiles, stream.model, model)
    apply_household(stream.model, people.folder)
    if owner is not None:
        return {owner: people.read(owner)}
    if not people.names():
        return {}
    try:
        enrolled, others = people.read_all()
    except UserError as error:  # all with another model: keywords are reported without a speaker
        typer.echo(f"note: {error}", err=True)
        return {}
    if others:
        typer.echo(f"note: not compared, enrolled with another model: {', '.join(others)}", err=True)
    return enrolled


def _watch_words(stream: Stream, profiles: Path | None, model: str) -> list[str]:
    """Let the stream report words of one's own that were added with this model, and return them."""
    from distilled_student.device.model_files import one_line_errors
    from distilled_student.device.own_words import OwnWords

    words, notes = OwnWords(profiles, stream.model, model).templates()
    with one_line_errors():
        stream.watch(words)
    print_notes(notes)
    return list(words)


def alarms(
    model: Annotated[str, typer.Argument(help="The model, as --model of the other commands.")],
    audio: Annotated[Path, typer.Option(help="File or folder with hours of audio in which no keyword is said.")],
    keywords: Annotated[
        Path | None,
        typer.Option(help="Folder KEYWORD/CLIP: keywords and own words to mix into the audio, for the misses."),
    ] = None,
    levels: Annotated[
        str, typer.Option(help="Levels of the keywords in dB relative to the audio, separated by commas.")
    ] = "30,20,10",
    clips: Annotated[int, typer.Option(help="Largest number of clips of each keyword, at each level.")] = 20,
    owner: Owner = None,
    false_accepts: FalseAccepts = "1%",
    profiles: ProfilesOption = None,
    smoothing: Smoothing = None,
    hold_off: HoldOff = None,
    gate: Gate = None,
    rate: Annotated[float, typer.Option(help="Alarms per hour that --write chooses the threshold for.")] = 0.5,
    write: Annotated[bool, typer.Option("--write", help="Put the chosen threshold into the model's stream.")] = False,
    output: Annotated[Path, typer.Option(help="Folder for alarms.json and alarms.png.")] = Path("exp/alarms"),
    as_json: JsonOption = False,
) -> None:
    """Measure false alarms per hour of audio, and misses of keywords and of your own words that are mixed into it."""
    chosen_levels, share = _numbers("--levels", levels), parse_share(false_accepts)
    check_positive("--clips", clips)
    check_folder("--keywords", keywords)
    check_output_folder("--output", output)
    if write and owner is not None and keywords is None:
        raise UserError(
            f"--write --owner {owner}: needs --keywords with clips of {owner}: alarms alone ask for no misses"
        )
    check_rate("--rate", rate)
    _check_detector(smoothing=smoothing, hold_off=hold_off, gate=gate)
    from distilled_student.device.alarm_report import table, write_report
    from distilled_student.device.alarms import audio_of, check_writable, measure, write_threshold
    from distilled_student.device.keyword_mix import keyword_clips
    from distilled_student.device.model_files import one_line_errors

    files, seconds = audio_of(audio)
    try:
        stream = _open_stream(model, None, smoothing, hold_off, gate)
    except UserError as error:  # here the model is an argument
        raise UserError(str(error).removeprefix("--model ")) from None
    if write:
        check_writable(stream)
    own_words = _watch_words(stream, profiles, model)
    labels = [*stream.model.labels, *own_words]
    chosen = [] if keywords is None else keyword_clips(keywords, labels, clips)
    spoken = {clip.label for clip in chosen}
    missing = [label for label in labels if not label.startswith("_") and label not in spoken]
    if chosen and missing:
        typer.echo(f"note: {keywords} has no clips of {', '.join(missing)}; misses are of the others", err=True)
    person = None
    if owner is not None:
        check_share(stream.model, share)
        person = _enrolled(stream, profiles, model, owner)[owner]
    with one_line_errors():
        found = measure(stream, files, chosen, chosen_levels, person, share, seconds=seconds)
    settings = json.loads(stream.detector.settings.to_json())
    about = {"model": model, "audio": str(audio), "keywords_from": None if keywords is None else str(keywords)}
    about |= {"owner": owner, "detector": settings}
    write_report(output, found, about)
    if as_json:
        typer.echo(json.dumps({**about, **found.to_json()}))
    else:
        typer.echo(table(found, stream.detector.settings.threshold, stream.detector.settings.word_threshold))
    if write:
        point, of_words = found.of_keywords.at(rate), found.of_words
        word_point = None if of_words is None else of_words.at(rate)
        if point is None or (of_words is not None and word_point is None):
            raise UserError(f"--rate {rate:g}: no threshold has so few alarms; the file is not changed")
        now = stream.detector.settings.threshold
        if not found.allows(point.threshold, rate, now):
            reason = f"{found.hours:.2f} h of audio are too little for a lower threshold than {now:.6g}"
            raise UserError(
                f"--write: {reason}: at {rate:g} alarms per hour it takes {1 / rate:g} h; nothing is changed"
            )
        write_threshold(stream, point.threshold, word_point and word_point.threshold)
        of_own = "" if word_point is None else f", of words of your own {word_point.threshold:.6g}"
        typer.echo(f"{stream.model.file}: threshold {point.threshold:.6g}{of_own}", err=as_json)


def _numbers(option: str, text: str) -> list[float]:
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"{option} {text}: expected numbers separated by commas, such as 30,20,10") from None
    if not all(abs(number) <= MAX_LEVEL for number in numbers):
        raise UserError(f"{option} {text}: expected numbers from -{MAX_LEVEL} to {MAX_LEVEL} dB, such as 30,20,10")
    return numbers


def listen(
    recording: Annotated[Path | None, typer.Argument(help="Audio file; without one, the microphone.")] = None,
    model: ModelOption = "edge",
    owner: Owner = None,
    false_accepts: FalseAccepts = "1%",
    profiles: ProfilesOption = None,
    threshold: Annotated[
        float | None, typer.Option(help="Smallest probability of a keyword; default: the model's.")
    ] = None,
    word_threshold: Annotated[
        float | None, typer.Option(help="Smallest score of a word of your own; default: the model's, 0.5.")
    ] = None,
    smoothing: Smoothing = None,
    hold_off: HoldOff = None,
    gate: Gate = None,
    device: Annotated[str | None, typer.Option(help="Microphone: its number or a part of its name.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Report keywords, your own words and who said them, from a microphone or a file. Exit code 1: a file with none."""
    from distilled_student.device.listening import hits, microphone_blocks, notes, on_one_line
    from distilled_student.device.model_files import one_line_errors
    from distilled_student.device.recordings import recording_blocks

    check_file("", recording)
    share = parse_share(false_accepts)
    _check_detector(threshold, smoothing, hold_off, gate, word_threshold)
    stream = _open_stream(model, threshold, smoothing, hold_off, gate, word_threshold)
    people = _enrolled(stream, profiles, model, owner) if stream.model.calibration is not None or owner else {}
    if people:
        check_share(stream.model, share)
        print_notes(notes(stream, people, share))
    _watch_words(stream, profiles, model)
    blocks = microphone_blocks(device) if recording is None else recording_blocks(recording)
    count = 0
    with one_line_errors():
        for hit in hits(stream, blocks, people, owner, share):
            count += 1
            typer.echo(json.dumps(hit._asdict()) if as_json else on_one_line(hit, bool(people)))
    if not count:
        typer.echo(f"{recording or 'microphone'}: no keyword", err=True)
        raise typer.Exit(NO)
