"""The results as Markdown, for the terminal, a file of its own, and between two marks in a document."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from distilled_student.errors import UserError
from distilled_student.speed.aims import Aim, aims
from distilled_student.speed.models import COMPARED, REFERENCE, SECONDS, TORCH

BEGIN, END = "<!-- distilled-student speed -->", "<!-- end -->"
TASKS = {"kws_accuracy": ("KWS %", "{:.1f}"), "sv_eer": ("EER %", "{:.1f}")}
COSTS = {  # key of a row: heading, format, unit
    "parameters": ("M par.", "{:.2f}", 1e6),
    "macs_per_second": ("MMAC/s", "{:.0f}", 1e6),
    "memory_bytes": ("peak MB", "{:.0f}", 1e6),
    "file_bytes": ("file MB", "{:.1f}", 1e6),
}


def markdown(table: Sequence[Sequence[str]]) -> str:
    """A table of its cells; the first line is the heading."""
    lines = ["| " + " | ".join(cells) + " |" for cells in table]
    return "\n".join([lines[0], "|" + "---|" * len(table[0]), *lines[1:]])


def _cost(row: Mapping[str, Any], key: str) -> str:
    _, form, unit = COSTS[key]
    return "-" if row.get(key) is None else form.format(row[key] / unit)


def _accuracy(of: Mapping[str, Any], key: str) -> str:
    if key not in of:
        return "-"
    deviation = f" ± {of[f'{key}_deviation']:.1f}" if f"{key}_deviation" in of else ""
    return TASKS[key][1].format(of[key]) + deviation


def _speed(row: Mapping[str, Any], known: Mapping[tuple[str, str] | None, Aim]) -> list[str]:
    """Multiple of the reference with its quartiles, and what it was to reach."""
    speed, aim = row["times"]["1"][f"{COMPARED} s"]["speed"], known.get((row["model"], row["form"]))
    cells = [f"{speed['median']:.2f} ({speed['low']:.2f} to {speed['high']:.2f})"]
    return [*cells, "" if aim is None else f"{aim.bound:g}: {'met' if aim.met else '**missed**'}"]


def _models(figures: Mapping[str, Any], accuracy: Mapping[str, Mapping[str, Any]], found: Sequence[Aim]) -> str:
    counts = [str(count) for count in figures["threads"]]
    timed = [(count, f"{seconds} s") for count in counts for seconds in SECONDS]
    corpora = [(corpus, key) for corpus in accuracy for key in TASKS]
    headings = [f"RTF {seconds}, {count} thr." for count, seconds in timed]
    headings = ["model", "as", "M par.", "MMAC/s", *headings, f"times {REFERENCE}", "to reach", "peak MB", "file MB"]
    table = [[*headings, *(f"{TASKS[key][0]} {corpus}" for corpus, key in corpora)]]
    known = {aim.row: aim for aim in found}
    for row in figures["rows"]:
        size = [_cost(row, key) if key in row else "" for key in ("parameters", "macs_per_second")]
        times = [f"{row['times'][count][seconds]['rtf']:.4f}" for count, seconds in timed]
        cells = [row["model"], row["form"], *size, *times, *_speed(row, known)]
        cells += [_cost(row, "memory_bytes"), _cost(row, "file_bytes")]
        first = row["form"] == TORCH  # what the other forms lose is a matter of the export, which bounds it
        scores = [_accuracy(accuracy[corpus].get(row["model"], {}), key) if first else "" for corpus, key in corpora]
        table.append([*cells, *scores])
    return markdown(table)


def _others(accuracy: Mapping[str, Mapping[str, Any]], figures: Mapping[str, Any]) -> str:
    """The accuracies of models that are not timed, such as the teacher that stands in for HuBERT."""
    timed = {row["model"] for row in figures.get("rows", [])}
    lines = []
    for corpus, models in accuracy.items():
        for name, of in models.items():
            if name not in timed:
                scores = [f"{TASKS[key][0]} {_accuracy(of, key)}" for key in TASKS]
                lines.append(f"* {name}, {corpus}: {', '.join(scores)}")
    return "\n".join(lines)


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[list[str]]:
    lines = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            lines += _flat(value, f"{prefix}{key}, ")
        else:
            text = f"{value:.4g}" if isinstance(value, float) else str(value)
            lines.append([f"{prefix}{key}".replace("_", " "), text])
    return lines


def _aims(found: Sequence[Aim]) -> str:
    rows = [
        [aim.what, f"{aim.found:.2f}", f"{'≥' if aim.least else '≤'} {aim.bound:g}", "met" if aim.met else "**missed**"]
        for aim in found
    ]
    return markdown([["", "found", "to reach", ""], *rows])


def _head(part: Mapping[str, Any]) -> str:
    machine, revision = part["machine"], f"{part['revision']}{' and changes' if part['dirty'] else ''}"
    versions = ", ".join(f"{name} {machine[name]}" for name in ("torch", "onnxruntime", "transformers", "s3prl"))
    return f"{part['date'][:10]}, {machine['cpu']}, {machine['cores']} cores, {versions}; revision {revision}."


def render(results: Mapping[str, Any]) -> str:
    """All of it, a section for each part."""
    parts, accuracy, found = results["parts"], results.get("accuracy", {}), aims(results)
    blocks = []
    for name, part in parts.items():
        figures = {key: value for key, value in part.items() if key not in ("date", "revision", "dirty", "machine")}
        if name == "models":
            blocks += [_head(part), _models(figures, accuracy, found), _others(accuracy, figures)]
        else:
            blocks += [f"{name.capitalize()}: {_head(part)}", markdown([["", ""], *_flat(figures)])]
    blocks += [_aims(found)] if found else []
    return "\n\n".join(filter(None, blocks)) + "\n"


def insert(file: Path, text: str) -> None:
    """Put the text between the two marks of a document, in the place of what is there.

    Raises:
        UserError: the document does not have both.
    """
    before = file.read_text(encoding="utf-8")
    replace: Callable[[re.Match[str]], str] = lambda _: f"{BEGIN}\n{text}{END}"  # noqa: E731
    after, count = re.subn(f"{re.escape(BEGIN)}.*?{re.escape(END)}", replace, before, flags=re.DOTALL)
    if count != 1:
        raise UserError(f"{file}: needs '{BEGIN}' and '{END}' once, found {count}")
    file.write_text(after, encoding="utf-8")
