"""The commands that prepare data, train and evaluate."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from distilled_student.common.early_checks import (
    BEST,
    check_choice,
    check_device,
    check_file,
    check_folder,
    check_new_folder,
    check_no_data,
    check_output_folder,
    check_run,
    checkpoint_name,
)
from distilled_student.common.errors import UserError
from distilled_student.corpora.speaker_names import check_speaker_pattern


def register(app: typer.Typer, panel: str) -> None:
    """Add the commands to the command line; ``panel`` is their heading in its help."""
    for command in (prepare, distill, evaluate, average):
        app.command(rich_help_panel=panel)(command)
    # s3prl reads its own options, --help too
    any_options = {"allow_extra_args": True, "ignore_unknown_options": True}
    app.command("s3prl-main", context_settings=any_options, add_help_option=False, rich_help_panel=panel)(s3prl_main)


def distill(
    config: Annotated[str, typer.Argument(help="A YAML file, or the name of a shipped config: `configs list`.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings that replace those of the file.")
    ] = None,
) -> None:
    """Distil a student from a teacher; the same command resumes an interrupted run."""
    from distilled_student.common.base_configs import read_config_file
    from distilled_student.common.settings import find_config
    from distilled_student.distillation.config import read_config
    from distilled_student.distillation.early_checks import check_settings

    path = find_config(config, "distill")
    settings = read_config(read_config_file(path, "distill"), path, overrides or [])
    check_settings(settings, path)
    from distilled_student.distillation.train import distill as run

    run(settings, path)


def check_trials(split: str, trials: str | None, trials_root: str | None, speaker_pattern: str | None) -> None:
    """Raise UserError for options of `evaluate` about a list of trials that do not fit each other."""
    if trials is None:
        for option, value in (("--trials-root", trials_root), ("--speaker-pattern", speaker_pattern)):
            if value is not None:
                raise UserError(f"{option} {value}: needs --trials, the list that it is about")
        return
    if split != "test":
        raise UserError(f"--trials {trials}: a list of test trials cannot be used with --split {split}")
    if Path(trials).is_absolute():
        check_file("--trials", Path(trials))
    elif trials_root is not None and not Path(trials).is_file():  # without this option: in the task's folder
        check_file("--trials", Path(trials_root, trials))
    try:
        check_speaker_pattern(speaker_pattern)
    except ValueError as error:
        raise UserError(f"--speaker-pattern: {str(error).removeprefix('speaker_pattern: ')}") from None


def evaluate(
    expdir: Annotated[Path, typer.Argument(help="Folder of a joint training run.")],
    split: Annotated[str, typer.Option(help="Data to evaluate on: dev or test.")] = "test",
    checkpoint: Annotated[str, typer.Option(help="Checkpoint in the folder: its name or its path.")] = BEST,
    device: Annotated[str | None, typer.Option(help="Device, such as cpu or cuda; default: the best one here.")] = None,
    trials: Annotated[str | None, typer.Option(help="Another list of test trials, such as VoxCeleb1-H.")] = None,
    trials_root: Annotated[
        str | None, typer.Option(help="Folder of this list's files; default: tasks.sv.root of the run.")
    ] = None,
    speaker_pattern: Annotated[
        str | None,
        typer.Option(
            help="Regular expression that finds the speaker in the paths of this list, such as '([^/]+)/[^/]+$'."
        ),
    ] = None,
) -> None:
    """Evaluate a joint training run on its tasks and write results.json (with --trials: results-LIST.json) there."""
    check_choice("--split", split, ("dev", "test"))
    check_device("--device", device)
    checkpoint = checkpoint_name(expdir, checkpoint)
    check_run(expdir, checkpoint)
    check_folder("--trials-root", None if trials_root is None else Path(trials_root))
    check_trials(split, trials, trials_root, speaker_pattern)
    from distilled_student.multitask.evaluate import evaluate as run

    run(
        expdir,
        split=split,
        checkpoint=checkpoint,
        device=device,
        trials=trials,
        trials_root=trials_root,
        speaker_pattern=speaker_pattern,
    )


def average(
    runs: Annotated[list[Path], typer.Argument(help="Folders of joint training runs of one model, two or more.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the run with the mean weights.")],
    checkpoint: Annotated[str, typer.Option(help="Checkpoint file in the folder of each run.")] = BEST,
) -> None:
    """Write a run whose weights are the mean of those of several runs that were fine-tuned from the same weights."""
    for run in runs:
        check_run(run, checkpoint)
    check_no_data("--output", output, [("RUNS", str(run)) for run in runs])
    check_new_folder("--output", output)
    from distilled_student.multitask.mean_of_runs import average_runs

    average_runs(runs, output, checkpoint)
    print(f"{output / checkpoint}: the mean of {len(runs)} runs; next: distilled-student evaluate {output}")


def prepare(
    corpus: Annotated[str, typer.Argument(help="Corpus: librispeech, speech_commands or voxceleb1.")],
    root: Annotated[Path, typer.Argument(help="Folder of all corpora; the shipped configs expect `data`.")],
    parts: Annotated[
        list[str] | None, typer.Option(help="Only this part, such as train-clean-100; can be repeated.")
    ] = None,
    mirror: Annotated[str | None, typer.Option(help="URL of a mirror of the published files.")] = None,
    source: Annotated[Path | None, typer.Option(help="Folder with VoxCeleb1's archives or its unpacked files.")] = None,
) -> None:
    """Download a corpus (if its licence allows), unpack it and check its counts; the same command resumes."""
    from distilled_student.prepare.catalog import CORPORA

    check_choice("", corpus, CORPORA)
    check_folder("--source", source)
    check_output_folder("", root)
    from distilled_student.prepare.prepare_corpus import prepare as run

    run(CORPORA[corpus], root, parts or (), mirror, source)


def s3prl_main(context: typer.Context) -> None:
    """Run s3prl's `s3prl-main RECIPE --KEY.KEY VALUE ...` (SuperbKS, SuperbASV) with the upstreams of this package."""
    from distilled_student.host.superb.recipe_names import check_recipe

    if context.args and context.args[0] not in ("-h", "--help"):
        check_recipe(context.args[0])
    from distilled_student.host.superb.recipes import run

    run(context.args)
