"""The commands `words`, `words add` and `words forget`: words of one's own, without training."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from distilled_student.common.typer_errors import Commands
from distilled_student.device.commands import (
    NO,
    SOME,
    YES,
    JsonOption,
    ModelOption,
    OnlyModel,
    ProfilesOption,
    check_not_file,
    counted,
    of_model,
    print_forgotten,
    print_result,
)

words = typer.Typer(
    cls=Commands, invoke_without_command=True, help="Add words of your own from recordings, list or forget them."
)


@words.callback()
def list_words(
    context: typer.Context,
    model: OnlyModel = None,
    profiles: ProfilesOption = None,
    as_json: JsonOption = False,
) -> None:
    """Add words of your own from recordings, list or forget them."""
    context.obj = profiles
    if context.invoked_subcommand is None:
        _print_words(profiles, model, as_json)


@words.command("list", hidden=True)
def list_words_too(
    context: typer.Context,
    model: OnlyModel = None,
    profiles: ProfilesOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the words, as `words` alone does."""
    _print_words(profiles or context.obj, model, as_json)


def _print_words(profiles: Path | None, model: str | None, as_json: bool) -> None:
    from distilled_student.device.own_words import OwnWords

    own = OwnWords(profiles)
    found = of_model(own.all(), model)
    for word in found:
        content = {"name": word.name, "count": word.count, "model": word.model}
        print_result(content, f"{word.name}: {counted(word.count, 'recording')}, model {word.model}", as_json)
    if not as_json and not found:
        place = f"no words{f' of {model}' if model else ''} in {own.folder}"
        print(f"{place}; `distilled-student words add NAME FILES...` adds one")


@words.command()
def add(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="The word.")],
    files: Annotated[list[Path], typer.Argument(help="Three to five recordings of the word alone, or more.")],
    model: ModelOption = "edge",
    profiles: ProfilesOption = None,
    replace: Annotated[bool, typer.Option("--replace", help="Forget the recordings that were added before.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Add recordings with problems too.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Add a word, or recordings to a word. Exit code 0: all recordings; 3: some were refused; 1: all were."""
    from distilled_student.device.model_files import open_model
    from distilled_student.device.own_words import OwnWords, add_word

    check_not_file(name)
    done = add_word(OwnWords(profiles or context.obj, open_model(model), model), name, files, force, replace)
    recordings = [
        {"file": recording.file, "added": recording in done.added, "problems": recording.problems}
        for recording in [*done.added, *done.refused]
    ]
    if not as_json:
        for found in recordings:
            print(f"{found['file']}: {'; '.join(['added' if found['added'] else 'refused', *found['problems']])}")
    count = done.word.count if done.word else 0
    of_word = counted(count, "recording")
    if not done.added:
        of_word = f"not added; {of_word} from before" if count else "not added"
    text = f"{name}: {of_word}"
    if done.refused:
        text += "; record the refused ones again, or add --force"
    content = {"name": name, "recordings": recordings, "count": count, "notes": list(done.notes)}
    print_result(content, text, as_json, done.notes)
    raise typer.Exit(YES if not done.refused else SOME if done.added else NO)


@words.command()
def forget(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="The word.")],
    profiles: ProfilesOption = None,
    as_json: JsonOption = False,
) -> None:
    """Delete a word."""
    from distilled_student.device.own_words import OwnWords

    OwnWords(profiles or context.obj).forget(name)
    print_forgotten(name, as_json)
