"""``distilled-student speed``: measure the parts asked for, keep what the others have, report."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console

from distilled_student.common.errors import UserError
from distilled_student.common.files import read_json, write_json
from distilled_student.speed.aims import aims
from distilled_student.speed.compare import compare_models
from distilled_student.speed.history import append, ratios, read_history, stamp
from distilled_student.speed.models import MODELS
from distilled_student.speed.profile import write_profile
from distilled_student.speed.table import TASKS, insert, render

log = logging.getLogger(__name__)
console = Console()


def _models(output: Path, rounds: int, names: Sequence[str] = MODELS) -> dict[str, Any]:
    """The models, and where the time of those goes that are slower than was aimed at."""
    output.mkdir(parents=True, exist_ok=True)
    for old in output.glob("profile-*.txt"):
        old.unlink()
    with TemporaryDirectory(dir=output) as folder:  # not in /tmp, which may be memory
        figures, measured = compare_models(Path(folder), rounds, names)
        missed = [aim.row for aim in aims({"parts": {"models": {"figures": figures}}}) if not aim.met]
        for variant in measured:
            if (variant.model, variant.form) in missed:
                write_profile(output / f"profile-{variant.name.replace(', ', '-').replace(' ', '-')}.txt", variant)
    return figures


def _distillation(output: Path, rounds: int) -> dict[str, Any]:
    from distilled_student.speed.distillation import compare_distillation

    return compare_distillation(rounds=max(1, rounds // 3))  # a round is an epoch


def _joint(output: Path, rounds: int) -> dict[str, Any]:
    from distilled_student.speed.joint import compare_joint

    return compare_joint(steps=3 * rounds)


def _startup(output: Path, rounds: int) -> dict[str, Any]:
    from distilled_student.speed.startup import startup

    return startup(rounds=max(1, rounds // 2))


def _streaming(output: Path, rounds: int) -> dict[str, Any]:
    from distilled_student.speed.streaming import compare_streaming

    return compare_streaming(seconds=rounds)


Part = Callable[[Path, int], dict[str, Any]]  # of the folder for results, and how often everything takes its turn
PARTS: dict[str, Part] = {
    "models": _models,
    "distillation": _distillation,
    "joint": _joint,
    "startup": _startup,
    "streaming": _streaming,
}


def read_accuracy(pairs: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Results by corpus and model, from ``CORPUS=FILE``, the results.json of `distilled-student benchmark`.

    Raises:
        UserError: a pair is not one, or its file is not such a report.
    """
    found: dict[str, dict[str, Any]] = {}
    for pair in pairs:
        corpus, equals, file = pair.partition("=")
        if not equals:
            raise UserError(f"--accuracy {pair}: is written CORPUS=FILE")
        rows = read_json(Path(file)).get("rows")
        if not isinstance(rows, list):
            raise UserError(f"{file}: is not the results.json of a benchmark (no rows)")
        for row in rows:
            keys = [key for task in TASKS for key in (task, f"{task}_deviation") if key in row]
            found.setdefault(corpus, {}).setdefault(row["model"], {}).update({key: row[key] for key in keys})
    return found


def report(file: Path, accuracy: Sequence[str] = (), into: Sequence[Path] = ()) -> None:
    """Print the tables of a results.json, write them to table.md beside it, and into documents.

    Args:
        accuracy: Further columns, kept in the file; see `read_accuracy`.
    """
    results = read_json(file)
    if "parts" not in results:
        raise UserError(f"{file}: is not the results.json of distilled-student speed (no parts)")
    results["accuracy"] = {**results.get("accuracy", {}), **read_accuracy(accuracy)}
    text = render(results)
    write_json(file, results)
    file.with_name("table.md").write_text(text, encoding="utf-8")
    for document in into:
        insert(document, text)
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def run(
    output: Path, only: Sequence[str] = (), rounds: int = 7, accuracy: Sequence[str] = (), history: Path | None = None
) -> None:
    """Measure; ``output/results.json`` and ``table.md``; with ``history`` a line there, and what became slower.

    Args:
        only: Parts; empty: all. Those that are not measured again stay in the results, each with its date.

    Raises:
        UserError: no such part, or a file that cannot be used.
    """
    for name in only:
        if name not in PARTS:
            raise UserError(f"--only {name}: no such part; there are {', '.join(PARTS)}")
    read_accuracy(accuracy)  # faults are found now, not in ten minutes
    if history is not None:
        read_history(history)
    file = output / "results.json"
    results: dict[str, Any] = read_json(file) if file.exists() else {"parts": {}}
    when, figures = stamp(), {}
    for name in only or PARTS:
        log.info("measuring %s", name)
        figures[name] = PARTS[name](output, rounds)
        results["parts"][name] = {"when": when, "figures": figures[name]}
        write_json(file, results)
    report(file, accuracy)
    for line in [] if history is None else append(history, {**when, "ratios": ratios(figures)}):
        console.print(f"slower: {line}", markup=False, soft_wrap=True)
