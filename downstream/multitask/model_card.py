"""The model card (README.md) of a joint training run: data, classes, results with intervals, cost, licence."""

from __future__ import annotations

import json
import logging
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

from distilled_student.common.arithmetic import ceil_div
from distilled_student.common.errors import UserError
from distilled_student.common.files import read_json, write_files
from distilled_student.common.model_cards import corpus_names, licence_of
from distilled_student.common.provenance import FILE
from distilled_student.common.shipped_configs import shipped_configs
from distilled_student.common.shipped_models import DEFAULT, MODELS, model_path
from distilled_student.common.tables import markdown_table
from distilled_student.common.untrusted import escape_markdown
from distilled_student.multitask.group_figures import FEWEST, GROUPS, counts_text, figure_text
from distilled_student.multitask.metrics import with_interval
from distilled_student.multitask.owner_evaluation import OWNER
from distilled_student.multitask.owner_trials import ENROLLED, FALSE_ACCEPTS
from distilled_student.multitask.tasks.base import BaseTask
from distilled_student.multitask.training_log import LOG

log = logging.getLogger(__name__)
ABSOLUTE_PATH = re.compile(r"""(?:^|(?<=[\[,'" ]))/[^,'"\]]*""")  # as a value or in a list
TITLE = "# Joint training run"
ABOUT_OWNER = (
    "Owner: whether a clip is of the speaker of the enrolled clips; with word: whether it also holds the expected "
    "keyword. Misses: at this percentage of false accepts."
)
LIMITS = (
    "The figures hold for speakers and recordings like those of the {data} data. Not measured: other languages, "
    "accents and microphones, distant speech, and false alarms in hours of running speech. Nothing detects a recording "
    "of the owner or an imitated voice: do not protect anything of value with it."
)

NO_GROUPS = "The data do not say groups of speakers, such as sex, age and accent: there are no figures by group."
ABOUT_GROUPS = (
    "Groups of speakers: accuracy over their clips, EER over the trials with one of them enrolled; intervals: "
    f"bootstrap over speakers. Fewer than {FEWEST} speakers are too few for a figure."
)


def write_card(
    folder: Path,
    tasks: Mapping[str, BaseTask],
    results: Mapping[str, Any],
    arguments: Mapping[str, Any],
    step: int | None,
) -> None:
    """Write ``README.md`` into the run's folder, unless that holds a file of this name that is no card of ours.

    The training data come from the run's ``provenance.json``.

    Args:
        results: Of the evaluation, as in ``results.json``.
        arguments: The arguments of its training (``-u``, ``-k``, ``-o``, ...).
        step: The number of updates of the checkpoint.
    """
    file = folder / "README.md"
    if file.is_file() and not file.read_text(encoding="utf-8", errors="replace").startswith(TITLE):
        log.warning("%s: is not a card of this package: it is kept, and no card is written", file)
        return
    rows = [["", ""], ["upstream", _upstream(arguments)]]
    rows += [["checkpoint", f"{results['checkpoint']}{'' if step is None else f', step {step:,}'}"]]
    trained = _training_data(folder)
    for name, task in tasks.items():
        rows += [[f"{name}: {what}", text] for what, text in _task_rows(name, task, results, trained)]
    rows += _owner_rows(results)
    upstream, heads = results["upstream"], sum(results["head_parameters"].values())
    rows += [["parameters", f"{upstream['parameters'] / 1e6:.2f} M in the upstream, {heads / 1e6:.3f} M in the heads"]]
    rows += [["multiply-accumulates", f"{upstream['macs_per_second'] / 1e6:.0f} M per second of audio, without heads"]]
    rows += [["licence", f"{_licence(arguments)}; the licences of the training data apply too"]]
    data = {"dev": "development"}.get(results["split"], results["split"])
    note = f"Intervals: 95 %, bootstrap over {data} speakers. Accuracies and EER in percent."
    if results["split"] == "dev":
        note += " The figures are optimistic: the development data have chosen the checkpoint."
    if OWNER in results:
        note += f" {ABOUT_OWNER}"
    has_groups = any(GROUPS in results[name] for name in tasks)
    if has_groups:
        note += f" {ABOUT_GROUPS}"
    parts = [TITLE, _table(rows), note]
    for name, task in tasks.items():
        parts += _classes(name, results[name])
        parts += _groups(name, task.headline, results[name])
    limits = LIMITS.format(data=data) + ("" if has_groups else f" {NO_GROUPS}")
    parts += [*_other_lists(folder), *_curves(folder), "## Limits", limits, "## Made by", f"    {_command(arguments)}"]
    write_files(folder, {file.name: ("\n\n".join(parts) + "\n").encode()})


def _table(rows: Sequence[Sequence[str]]) -> str:
    return markdown_table([[escape_markdown(cell) for cell in row] for row in rows])


def _owner_rows(results: Mapping[str, Any]) -> Iterable[list[str]]:
    """A row for each number of enrolled clips: EER of the owner, EER and misses of the owner-and-word trials."""
    for count in ENROLLED:
        if found := (results.get(OWNER) or {}).get(f"enrolled_{count}"):
            both = found["owner_and_word"]
            parts = [f"owner EER {with_interval(found, 'eer')}", f"with word {with_interval(both, 'eer')}"]
            parts += [f"misses at {p} % {with_interval(both, f'miss_at_{p}', 1)}" for p in FALSE_ACCEPTS]
            yield [f"owner, {count} enrolled: {results['split']}", ", ".join(parts)]


def _classes(name: str, results: Mapping[str, Any]) -> list[str]:
    """The accuracy of each class, if the task has classes."""
    if "per_class" not in results or "confusion" not in results:
        return []
    counts = [sum(row) for row in results["confusion"]]
    rows = [[f"{name}: class", "accuracy", "utterances"]]
    for (label, share), count in zip(results["per_class"].items(), counts, strict=True):
        rows.append([label, "" if share is None else f"{share:.1f}", str(count)])
    return [_table(rows)]


def _groups(name: str, metric: str, results: Mapping[str, Any]) -> list[str]:
    """The figure of each group of speakers, if the data say groups."""
    rows = [
        [f"{column}: {group}", figure_text(found, metric), counts_text(found)]
        for column, of_column in results.get(GROUPS, {}).items()
        for group, found in of_column.items()
    ]
    return [_table([[f"{name}: group of speakers", metric, "number"], *rows])] if rows else []


def _other_lists(folder: Path) -> list[str]:
    """The results of other trial lists that `evaluate --trials` has written into the run's folder."""
    rows = [["other trial lists", "EER", "speakers", "trials"]]
    for file in sorted(folder.glob("results-*.json")):
        results = read_json(file)
        if results.get("split") == "test" and "eer" in (found := results.get("sv") or {}):
            name = file.stem.removeprefix("results-")
            rows.append([name, f"{found['eer']:.2f}", str(found.get("speakers", "")), str(found.get("trials", ""))])
    return [_table(rows)] if len(rows) > 1 else []


def _curves(folder: Path) -> list[str]:
    """Losses and accuracies on about eight batches of the training, and each score on development data."""
    file = folder / LOG
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    entries = [json.loads(line) for line in lines]
    train = [entry for entry in entries if entry.get("split") == "train"]
    names = sorted({name for entry in train for name in entry if "/" in name})
    rows = [["step of training", *names]]
    stride = max(1, ceil_div(len(train), 8))
    for entry in train[::-stride][::-1]:  # the last one is among them
        rows.append([str(entry["step"]), *(f"{entry[name]:.2f}" if name in entry else "" for name in names)])
    scores = [[str(e["step"]), f"{e['score']:.2f}"] for e in entries if e.get("split") == "dev" and "score" in e]
    tables = [rows, [["step", "score on development data"], *scores]]
    return [_table(table) for table in tables if len(table) > 1]


def _command(arguments: Mapping[str, Any]) -> str:
    """The command that trained the run, with names of files instead of paths."""
    words = ["run_downstream.py -m train", f"-u {arguments['upstream']}"]
    options = {"-k": "upstream_ckpt", "-s": "upstream_feature_selection", "-l": "upstream_layer_selection"}
    for option, key in options.items():
        if arguments.get(key) is not None:
            words.append(f"{option} {Path(str(arguments[key])).name}")
    words += ["-f"] if arguments.get("upstream_trainable") else []
    words.append(f"-d {arguments['downstream']}")
    if (config := arguments.get("config")) is not None:
        words.append(f"-c {_config_name(Path(str(config)))}")
    words += [f"-p {shlex.quote(Path(str(arguments['expdir'])).name)}", f"--seed {arguments.get('seed', 0)}"]
    override = str(arguments.get("override") or "none")
    pairs = [] if override.lower() == "none" else override.split(",,")
    if pairs := [_without_folders(pair) for pair in pairs if pair.strip().startswith("config.")]:
        words.append(f"-o {shlex.quote(',,'.join(pairs))}")
    return " ".join(words)


def _config_name(file: Path) -> str:
    """What ``-c`` takes: the name of a config that ships, otherwise the name of the file."""
    names = [name for name, shipped in shipped_configs().items() if shipped == file]
    return names[0].removeprefix("multitask/") if names else file.name


def _without_folders(pair: str) -> str:
    """A ``config.KEY=VALUE`` with the names of files and folders instead of their absolute paths."""
    key, _, value = pair.strip().partition("=")
    return f"{key}={ABSOLUTE_PATH.sub(lambda path: PurePath(path[0]).name, value)}"


def _upstream(arguments: Mapping[str, Any]) -> str:
    weights = arguments.get("upstream_ckpt")
    name = f"{arguments['upstream']}, from {Path(str(weights)).name}" if weights else str(arguments["upstream"])
    return f"{name}, {'fine-tuned' if arguments.get('upstream_trainable') else 'frozen'}"


def _licence(arguments: Mapping[str, Any]) -> str:
    weights, upstream = arguments.get("upstream_ckpt"), str(arguments["upstream"])
    if weights is None and upstream == "distilled_student":
        return licence_of(f"{DEFAULT}, which ships with distilled-student", MODELS / DEFAULT)
    name = Path(str(weights)).name if weights else f"-u {upstream}"
    return licence_of(name, model_path(str(weights)) if weights else None)


def _training_data(folder: Path) -> dict[str, Any]:
    """Utterances and seconds of each task's training data; empty without provenance."""
    try:
        trained = read_json(folder / FILE).get("data", {}).get("train", {})
    except UserError:
        return {}
    return trained if isinstance(trained, dict) else {}


def _task_rows(
    name: str,
    task: BaseTask,
    results: Mapping[str, Any],
    trained: Mapping[str, Any],
) -> Iterable[tuple[str, str]]:
    of_task, split = results[name], results["split"]
    folders = corpus_names(task.settings.data_folders())
    data = trained.get(name) or {}
    size = f": {data['utterances']:,} utterances, {data['seconds'] / 3600:.2f} hours" if "seconds" in data else ""
    yield "training data", f"{folders or 'of the task'}{size}"
    if task.settings.class_names() is not None:
        yield "classes", ", ".join(task.settings.class_names())
    elif task.class_names is not None:
        yield "classes", f"{len(task.class_names):,} (training speakers)"
    counts = [f"{of_task[key]:,} {key}" for key in ("utterances", "speakers", "trials") if key in of_task]
    yield f"{split} data", ", ".join(counts) or "of the task"
    if task.headline in of_task:
        missing = "" if of_task.get(f"{task.headline}_interval") else " (no interval)"
        yield f"{split} {task.headline}", with_interval(of_task, task.headline) + missing
