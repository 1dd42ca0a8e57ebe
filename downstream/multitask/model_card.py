"""The model card (README.md) of a joint training run: data, classes, results with intervals, cost, licence."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from distilled_student.checkpoints.folder import shipped_student
from distilled_student.common.errors import UserError
from distilled_student.common.files import read_json, write_files
from distilled_student.common.model_cards import corpus_names, licence_of
from distilled_student.common.provenance import FILE
from distilled_student.common.tables import markdown_table
from distilled_student.common.untrusted import escape_markdown
from distilled_student.multitask.tasks.base import BaseTask

log = logging.getLogger(__name__)
TITLE = "# Joint training run"


def write_card(
    folder: Path,
    tasks: Mapping[str, BaseTask],
    results: Mapping[str, Any],
    arrays: Mapping[str, np.ndarray],
    arguments: Mapping[str, Any],
    step: int | None,
) -> None:
    """Write ``README.md`` into the run's folder, unless that holds a file of this name that is no card of ours.

    The training data come from the run's ``provenance.json``.

    Args:
        results, arrays: Of the evaluation, as in ``results.json`` and ``scores-SPLIT.npz``.
        arguments: The run's arguments (``-u``, ``-k``, ...).
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
        rows += [[f"{name}: {what}", text] for what, text in _task_rows(name, task, results, arrays, trained)]
    upstream, heads = results["upstream"], sum(results["head_parameters"].values())
    rows += [["parameters", f"{upstream['parameters'] / 1e6:.2f} M in the upstream, {heads / 1e6:.3f} M in the heads"]]
    rows += [["multiply-accumulates", f"{upstream['macs_per_second'] / 1e6:.0f} M per second of audio, without heads"]]
    rows += [["licence", f"{_licence(arguments)}; the licences of the training data apply too"]]
    table = markdown_table([[escape_markdown(cell) for cell in row] for row in rows])
    note = "Intervals: 95 %, bootstrap over test utterances (keywords) or test speakers. Accuracies and EER in percent."
    write_files(folder, {file.name: f"{TITLE}\n\n{table}\n\n{note}\n".encode()})


def _upstream(arguments: Mapping[str, Any]) -> str:
    weights = arguments.get("upstream_ckpt")
    name = f"{arguments['upstream']}, from {Path(str(weights)).name}" if weights else str(arguments["upstream"])
    return f"{name}, {'fine-tuned' if arguments.get('upstream_trainable') else 'frozen'}"


def _licence(arguments: Mapping[str, Any]) -> str:
    weights, upstream = arguments.get("upstream_ckpt"), str(arguments["upstream"])
    if weights is None and upstream == "distilled_student":
        return licence_of("the student that ships with distilled-student", shipped_student())
    name = Path(str(weights)).name if weights else f"-u {upstream}"
    return licence_of(name, Path(str(weights)) if weights else None)


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
    arrays: Mapping[str, np.ndarray],
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
        own = {key.removeprefix(f"{name}_"): array for key, array in arrays.items() if key.startswith(f"{name}_")}
        interval = of_task.get(f"{task.headline}_interval") or task.interval([own])
        text = f"{of_task[task.headline]:.2f}"
        text += " (no interval)" if interval is None else f" [{interval[0]:.2f}, {interval[1]:.2f}]"
        yield f"{split} {task.headline}", text
