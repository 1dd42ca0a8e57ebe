"""The results as Markdown, for the terminal, a file of its own, and between two marks in a document."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from distilled_student.common.errors import UserError
from distilled_student.speed.aims import Aim, aims
from distilled_student.speed.compare import COMPARED, SECONDS
from distilled_student.speed.models import BARE, REFERENCE, TORCH

BEGIN, END = "<!-- distilled-student speed -->\n", "<!-- end -->\n"
TASKS = {"kws_accuracy": "KWS %", "sv_eer": "EER %"}
COSTS = {  # key of a row: format, unit
    "parameters": ("{:.2f}", 1e6),
    "macs_per_second": ("{:.0f}", 1e6),
    "memory_bytes": ("{:.0f}", 1e6),
    "file_bytes": ("{:.1f}", 1e6),
}


def markdown(table: Sequence[Sequence[str]]) -> str:
    """A table of its cells; the first line is the heading."""
    lines = ["| " + " | ".join(cells) + " |" for cells in table]
    return "\n".join([lines[0], "|" + "---|" * len(table[0]), *lines[1:]])


def _cost(row: Mapping[str, Any], key: str) -> str:
    form, unit = COSTS[key]
    return "-" if row.get(key) is None else form.format(row[key] / unit)


def _score(of: Mapping[str, Any], key: str) -> str:
    deviation = f" ± {of[f'{key}_deviation']:.1f}" if f"{key}_deviation" in of else ""
    return f"{of[key]:.1f}{deviation}" if key in of else "-"


def _spread(value: Mapping[str, float]) -> str:
    return "{median:.2f} ({low:.2f} to {high:.2f})".format(**value)


def _speed(row: Mapping[str, Any]) -> Mapping[str, float]:
    return row["times"]["1"][f"{COMPARED} s"]["speed"]


def _verdict(aim: Aim) -> str:
    return "met" if aim.met else "**missed**"


def _models(figures: Mapping[str, Any], accuracy: Mapping[str, Mapping[str, Any]], found: Sequence[Aim]) -> str:
    """A line for each form of each model, but for those that `_bare` tells of."""
    timed = [(str(count), f"{seconds} s") for count in figures["threads"] for seconds in SECONDS]
    corpora = [(corpus, key) for corpus in accuracy for key in TASKS]
    headings = [f"RTF {seconds}, {count} thr." for count, seconds in timed]
    headings = ["", "", "M par.", "MMAC/s", *headings, f"times {REFERENCE}", "to reach", "peak MB", "file MB"]
    table = [[*headings, *(f"{TASKS[key]} {corpus}" for corpus, key in corpora)]]
    known = {aim.row: aim for aim in found}
    for row in figures["rows"]:
        if row["form"] in BARE:
            continue
        first = row["form"] == TORCH  # what other forms lose is measured when a model is exported
        aim = known.get((row["model"], row["form"]))
        cells = [row["model"] if first else "", row["form"]]
        cells += [_cost(row, key) if first else "" for key in ("parameters", "macs_per_second")]
        cells += [f"{row['times'][count][seconds]['rtf']:.4f}" for count, seconds in timed]
        cells += [_spread(_speed(row)), "" if aim is None else f"{aim.bound:g}: {_verdict(aim)}"]
        cells += [_cost(row, "memory_bytes"), _cost(row, "file_bytes")]
        cells += [_score(accuracy[corpus].get(row["model"], {}), key) if first else "" for corpus, key in corpora]
        table.append(cells)
    return markdown(table)


def _bare(rows: Sequence[Mapping[str, Any]]) -> str:
    """What a device gains that leaves the prediction layers out."""
    lines = []
    for row in rows:
        if row["form"] in BARE:
            size = f"{_cost(row, 'parameters')} M parameters, " if "parameters" in row else ""
            file = f"{_cost(row, 'file_bytes')} MB"
            lines.append(
                f"* {row['model']}, {row['form']}: {size}{file}, {_speed(row)['median']:.2f} times {REFERENCE}"
            )
    return "\n".join(lines)


def _others(rows: Sequence[Mapping[str, Any]], accuracy: Mapping[str, Mapping[str, Any]]) -> str:
    """The scores of models that are not timed, such as a teacher that stands in for HuBERT."""
    timed = {row["model"] for row in rows}
    lines = []
    for corpus, models in accuracy.items():
        for name in [name for name in models if name not in timed]:
            scores = [f"{TASKS[key]} {_score(models[name], key)}" for key in TASKS]
            lines.append(f"* {name}, {corpus}: {', '.join(scores)}")
    return "\n".join(lines)


def _is_group(value: Any) -> bool:
    return isinstance(value, Mapping) and "median" not in value


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return _spread(value)
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _groups(values: Mapping[str, Any], name: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """The figures at each level, with the names of the groups that they are in."""
    if single := {key: value for key, value in values.items() if not _is_group(value)}:
        yield name, single
    for key, value in values.items():
        if _is_group(value):
            yield from _groups(value, f"{name}, {key}".removeprefix(", "))


def _part(figures: Mapping[str, Any]) -> str:
    """A line of the figures that are in no group, and a table with a line for each group."""
    groups = dict(_groups(figures))
    line = "; ".join(f"{key.replace('_', ' ')} {_text(value)}" for key, value in groups.pop("", {}).items())
    columns = list(dict.fromkeys(key for group in groups.values() for key in group))
    table = [[name, *(_text(group.get(key, "-")) for key in columns)] for name, group in groups.items()]
    heading = ["", *(key.replace("_", " ") for key in columns)]
    return "\n\n".join(filter(None, [line, markdown([heading, *table]) if groups else ""]))


def _other_aims(found: Sequence[Aim]) -> str:
    """Those that are not of a line of the models' table."""
    rows = [
        [aim.what, f"{aim.found:.2f}", f"{'at least' if aim.least else 'at most'} {aim.bound:g}", _verdict(aim)]
        for aim in found
        if aim.row is None
    ]
    return markdown([["", "found", "to reach", ""], *rows]) if rows else ""


def _measured(when: Mapping[str, Any]) -> str:
    """Where and when the figures are from."""
    machine, changes = when["machine"], " and changes" if when["dirty"] else ""
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return f"{when['date'][:10]}, {machine['cpu']}, {machine['cores']} cores; {versions}; {when['revision']}{changes}"


def render(results: Mapping[str, Any]) -> str:
    """All of it, a block for each part."""
    accuracy, found, blocks = results.get("accuracy", {}), aims(results), []
    for name, part in results["parts"].items():
        figures = part["figures"]
        if name == "models":
            rows = figures["rows"]
            blocks += [_models(figures, accuracy, found), _bare(rows), _others(rows, accuracy)]
        else:
            blocks += [f"**{name.capitalize()}**", _part(figures)]
        blocks.append(f"({_measured(part['when'])})")
    return "\n\n".join(filter(None, [*blocks, _other_aims(found)])) + "\n"


def insert(file: Path, text: str) -> None:
    """Put the text between the two marks of a document, in the place of what is there.

    Raises:
        UserError: the document does not have both.
    """
    before, begin, rest = file.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise UserError(f"{file}: has no lines '{BEGIN.strip()}' and '{END.strip()}'")
    file.write_text(before + begin + text + end + after, encoding="utf-8")
