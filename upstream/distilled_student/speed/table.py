"""Renders the results as Markdown: for the terminal, for table.md, and between two marks of a document."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from distilled_student.common.errors import UserError
from distilled_student.common.tables import markdown_table
from distilled_student.speed.accuracy import LEAST_KWS_ACCURACY, MOST_SV_EER, TASKS, is_usable
from distilled_student.speed.compare import COMPARED, SECONDS
from distilled_student.speed.models import BARE, REFERENCE, TORCH
from distilled_student.speed.targets import Target, targets

BEGIN, END = "<!-- distilled-student speed -->\n", "<!-- end -->\n"
COSTS = {  # key of a row: format, unit
    "parameters": ("{:.2f}", 1e6),
    "macs_per_second": ("{:.0f}", 1e6),
    "memory_bytes": ("{:.0f}", 1e6),
    "file_bytes": ("{:.1f}", 1e6),
}
Accuracy = Mapping[str, Mapping[str, Any]]  # scores by corpus and model


def _cost(row: Mapping[str, Any], key: str) -> str:
    form, unit = COSTS[key]
    return "-" if row.get(key) is None else form.format(row[key] / unit)


def _score(scores: Mapping[str, Any], key: str) -> str:
    if key not in scores or not is_usable(scores):
        return "-"
    deviation = f" ± {scores[f'{key}_deviation']:.1f}" if f"{key}_deviation" in scores else ""
    return f"{scores[key]:.1f}{deviation}"


def _spread(value: Mapping[str, float]) -> str:
    return "{median:.2f} ({low:.2f} to {high:.2f})".format(**value)


def _speed(row: Mapping[str, Any]) -> Mapping[str, float]:
    return row["times"]["1"][f"{COMPARED} s"]["speed"]


def _verdict(target: Target) -> str:
    return {True: "reached", False: "**not reached**", None: "not comparable"}[target.reached]


def _models(figures: Mapping[str, Any], accuracy: Accuracy, found: Sequence[Target]) -> str:
    """A line for each form of each model; `_without_predictions` shows the other forms."""
    timed = [(str(count), f"{seconds} s") for count in figures["threads"] for seconds in SECONDS]
    shown = [corpus for corpus, models in accuracy.items() if any(map(is_usable, models.values()))]
    columns = [(corpus, key) for corpus in shown for key in TASKS]
    headings = [f"RTF {seconds}, {count} thr." for count, seconds in timed]
    headings = ["", "", "M par.", "MMAC/s", *headings, f"times {REFERENCE}", "target", "peak MB", "file MB"]
    table = [[*headings, *(f"{TASKS[key]} {corpus}" for corpus, key in columns)]]
    by_row = {target.row: target for target in found}
    for row in figures["rows"]:
        if row["form"] in BARE:
            continue
        first = row["form"] == TORCH  # an export measures what the other forms lose
        target = by_row.get((row["model"], row["form"]))
        cells = [row["model"] if first else "", row["form"]]
        cells += [_cost(row, key) if first else "" for key in ("parameters", "macs_per_second")]
        cells += [f"{row['times'][count][seconds]['rtf']:.4f}" for count, seconds in timed]
        cells += [_spread(_speed(row)), "" if target is None else f"{target.bound:g}: {_verdict(target)}"]
        cells += [_cost(row, "memory_bytes"), _cost(row, "file_bytes")]
        cells += [_score(accuracy[corpus].get(row["model"], {}), key) if first else "" for corpus, key in columns]
        table.append(cells)
    return markdown_table(table)


def _without_predictions(rows: Sequence[Mapping[str, Any]]) -> str:
    """What a device gains by leaving out the prediction layers."""
    lines = []
    for row in rows:
        if row["form"] in BARE:
            size = f"{_cost(row, 'parameters')} M parameters, " if "parameters" in row else ""
            file = f"{_cost(row, 'file_bytes')} MB"
            lines.append(
                f"* {row['model']}, {row['form']}: {size}{file}, {_speed(row)['median']:.2f} times {REFERENCE}"
            )
    return "\n".join(lines)


def _untimed_models(rows: Sequence[Mapping[str, Any]], accuracy: Accuracy) -> str:
    """The scores of models that are not timed, such as a small teacher used instead of HuBERT."""
    timed = {row["model"] for row in rows}
    lines = []
    for corpus, models in accuracy.items():
        for name in [name for name, scores in models.items() if name not in timed and is_usable(scores)]:
            scores = [f"{TASKS[key]} {_score(models[name], key)}" for key in TASKS]
            lines.append(f"* {name}, {corpus}: {', '.join(scores)}")
    return "\n".join(lines)


def _unusable_models(accuracy: Accuracy) -> str:
    """The models whose scores are left out, and why."""
    names = {
        corpus: [name for name, scores in models.items() if scores and not is_usable(scores)]
        for corpus, models in accuracy.items()
    }
    listed = "; ".join(f"{corpus}: {', '.join(models)}" for corpus, models in names.items() if models)
    if not listed:
        return ""
    rule = f"Keyword accuracy is below {LEAST_KWS_ACCURACY:g} %, or EER is above {MOST_SV_EER:g} %"
    return f"No accuracy is shown of models that were not trained long enough to be used ({listed}). {rule}."


def _is_group(value: Any) -> bool:
    return isinstance(value, Mapping) and "median" not in value


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return _spread(value)
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _groups(values: Mapping[str, Any], name: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """The figures at each nesting level, with the names of the groups around them."""
    if single := {key: value for key, value in values.items() if not _is_group(value)}:
        yield name, single
    for key, value in values.items():
        if _is_group(value):
            yield from _groups(value, f"{name}, {key}".removeprefix(", "))


def _part(figures: Mapping[str, Any]) -> str:
    """A line with the figures that are in no group, and a table with a line for each group."""
    groups = dict(_groups(figures))
    line = "; ".join(f"{key.replace('_', ' ')} {_text(value)}" for key, value in groups.pop("", {}).items())
    columns = list(dict.fromkeys(key for group in groups.values() for key in group))
    table = [[name, *(_text(group.get(key, "-")) for key in columns)] for name, group in groups.items()]
    heading = ["", *(key.replace("_", " ") for key in columns)]
    return "\n\n".join(filter(None, [line, markdown_table([heading, *table]) if groups else ""]))


def _distillation(figures: Mapping[str, Any]) -> str:
    """Each side with its precision; each of ours with the row of s3prl's recipe that it is compared with."""
    compared = {"ours": ("ratio", figures["s3prl"])}
    if "ratio_fp32" in figures:
        compared["ours_fp32"] = ("ratio_fp32", figures.get("s3prl_fp32", figures["s3prl"]))
    sides = {}
    for side in ("s3prl", "s3prl_fp32", "ours_fp32", "ours"):
        if side in figures:
            columns = {key: figures[side][key] for key in ("precision", "teacher_precision") if key in figures[side]}
            sides[side] = columns | figures[side]
            if side in compared:
                key, reference = compared[side]
                sides[side]["times_as_fast_as"] = f"{_spread(figures[key])}, s3prl in {reference['precision']}"
    single = {key: value for key, value in figures.items() if not isinstance(value, Mapping)}
    return _part({**single, **{side.replace("_", ", "): columns for side, columns in sides.items()}})


def _other_targets(found: Sequence[Target]) -> str:
    """The targets that are not in the models' table."""
    rows = [
        [
            target.what,
            "-" if target.found is None else f"{target.found:.2f}",
            f"{'at least' if target.at_least else 'at most'} {target.bound:g}",
            _verdict(target),
        ]
        for target in found
        if target.row is None
    ]
    return "**Targets**\n\n" + markdown_table([["", "found", "target", ""], *rows]) if rows else ""


def _measured(when: Mapping[str, Any]) -> str:
    """Date, machine, versions and revision of the figures."""
    machine, changes = when["machine"], " and changes" if when["dirty"] else ""
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return f"{when['date'][:10]}, {machine['cpu']}, {machine['cores']} cores; {versions}; {when['revision']}{changes}"


def render(results: Mapping[str, Any]) -> str:
    """All results as Markdown, a block for each part."""
    accuracy, found, blocks = results.get("accuracy", {}), targets(results), []
    for name, part in results["parts"].items():
        figures = part["figures"]
        if name == "models":
            rows = figures["rows"]
            blocks += [_models(figures, accuracy, found), _without_predictions(rows)]
            blocks += [_untimed_models(rows, accuracy), _unusable_models(accuracy)]
        else:
            blocks += [f"**{name.capitalize()}**", _distillation(figures) if name == "distillation" else _part(figures)]
        load = f"; measured while other processes used {part['other_load']:g} cores" if part.get("other_load") else ""
        blocks.append(f"({_measured(part['when'])}{load})")
    return "\n\n".join(filter(None, [*blocks, _other_targets(found)])) + "\n"


def insert(file: Path, text: str) -> None:
    """Replace what is between the two marks of a document by the text.

    Raises:
        UserError: the document lacks one of the marks.
    """
    before, begin, rest = file.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise UserError(f"{file}: lacks the lines '{BEGIN.strip()}' and '{END.strip()}': add them where the tables go")
    file.write_text(before + begin + text + end + after, encoding="utf-8")
