"""``distilled-student speed``: measures the chosen parts, keeps the figures of the others, writes the tables."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console

from distilled_student.common.errors import UserError
from distilled_student.common.files import read_json, write_json
from distilled_student.common.other_load import TOLERANCE, other_load
from distilled_student.common.progress import Progress
from distilled_student.speed.accuracy import read_accuracy
from distilled_student.speed.compare import compare_models
from distilled_student.speed.history import append, ratios, read_history, stamp
from distilled_student.speed.models import MODELS
from distilled_student.speed.profile import write_profile
from distilled_student.speed.table import insert, render
from distilled_student.speed.targets import targets

log = logging.getLogger(__name__)
console = Console()


def _models(output: Path, rounds: int, names: Sequence[str] = MODELS) -> dict[str, Any]:
    """The models; writes a profile of each that does not reach its target."""
    output.mkdir(parents=True, exist_ok=True)
    for old in output.glob("profile-*.txt"):
        old.unlink()
    with TemporaryDirectory(dir=output) as folder:  # not in /tmp, which may be memory
        figures, measured = compare_models(Path(folder), rounds, names)
        found = targets({"parts": {"models": {"figures": figures}}})
        missed = [target.row for target in found if not target.reached]
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
    from distilled_student.speed.startup import compare_startup

    return compare_startup(rounds=max(1, rounds // 2))


def _streaming(output: Path, rounds: int) -> dict[str, Any]:
    from distilled_student.speed.streaming import compare_streaming

    return compare_streaming(seconds=rounds)


def _shipped(output: Path, rounds: int) -> dict[str, Any]:
    from distilled_student.speed.shipped import compare_shipped

    return compare_shipped(rounds=20 * rounds)


Part = Callable[[Path, int], dict[str, Any]]  # arguments: folder for results, number of rounds
PARTS: dict[str, Part] = {
    "models": _models,
    "distillation": _distillation,
    "joint": _joint,
    "startup": _startup,
    "streaming": _streaming,
    "shipped": _shipped,
}


def write_tables(file: Path, accuracy: Sequence[str] = (), into: Sequence[Path] = ()) -> None:
    """Print the tables of a results.json; write them to table.md in its folder, and into documents.

    Args:
        file: The results.json.
        accuracy: Further columns, which the file keeps; see `read_accuracy`.
        into: Documents with the two marks of `insert`.

    Raises:
        UserError: a file that cannot be used.
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


def measure_parts(
    output: Path, only: Sequence[str] = (), rounds: int = 7, accuracy: Sequence[str] = (), history: Path | None = None
) -> None:
    """Measure parts; write ``results.json`` and ``table.md`` into the output folder.

    Args:
        only: Names of parts; empty: all. The results keep the figures of the other parts, each with its date.
        rounds: How often each of the compared functions is timed; some parts use a multiple or a fraction.
        accuracy: See `read_accuracy`.
        history: A file to add a line to. What became slower is printed.

    Raises:
        UserError: no such part, or a file that cannot be used.
    """
    for name in only:
        if name not in PARTS:
            raise UserError(f"--only {name}: no such part: choose from {', '.join(PARTS)}")
    read_accuracy(accuracy)  # a wrong file is reported now, not after the measurement
    if history is not None:
        read_history(history)
    file = output / "results.json"
    results: dict[str, Any] = read_json(file) if file.exists() else {"parts": {}}
    when, figures = stamp(), {}
    names = list(only or PARTS)
    with Progress(len(names), "speed") as progress:
        for name in names:
            log.info("measuring %s", name)
            load = other_load()
            figures[name] = PARTS[name](output, rounds)
            results["parts"][name] = {"when": when, "figures": figures[name]}
            if load is not None and load > TOLERANCE:
                log.warning(
                    "%s was measured while other processes used %.1f cores: measure again without them", name, load
                )
                results["parts"][name]["other_load"] = round(load, 1)
            write_json(file, results)
            progress.update()
    write_tables(file, accuracy)
    for line in [] if history is None else append(history, {**when, "ratios": ratios(figures)}):
        console.print(f"slower: {line}", markup=False, soft_wrap=True)
