"""Writes the report of a suite (results.json, report.md, plots), and prints its table on the terminal."""

from __future__ import annotations

import datetime
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from distilled_student.benchmark.execute import Outcome
from distilled_student.benchmark.published import read_baselines
from distilled_student.benchmark.rows import METRICS
from distilled_student.benchmark.suite import Suite
from distilled_student.benchmark.trials import title_of
from distilled_student.common.files import write_json
from distilled_student.common.plots import plot_confusion, plot_costs, plot_det
from distilled_student.common.tables import markdown_table
from distilled_student.common.untrusted import escape_markdown, markdown_link
from distilled_student.multitask import metrics as M

Row = Mapping[str, Any]
TASKS = {  # key of a row: heading, short heading, format
    "kws_accuracy": ("KWS accuracy %", "KWS %", "{:.2f}"),
    "sv_eer": ("SV EER %", "EER %", "{:.2f}"),
}
HEADINGS = TASKS | {"owner_eer": ("owner and word EER %", "owner %", "{:.2f}")}
FURTHER = {  # key of a row: heading, short heading for terminals of 80 characters, format, unit
    "min_dcf": ("minDCF (p 0.05)", "minDCF", "{:.3f}", 1),
    "parameters": ("parameters M", "M par", "{:.2f}", 1e6),
    "macs_per_second": ("M MAC per s", "MMAC/s", "{:.0f}", 1e6),
    "rtf": ("real-time factor", "RTF", "{:.4f}", 1),
    "train_seconds": ("training s", "train", "{:.0f}", 1),
}


LOADED_MARK = " (loaded)"
LOADED = "rtf_with_other_load"  # key of a row: whether other processes needed the cores while it was measured


def _heading(key: str) -> tuple[str, str, str]:
    """Heading, short heading and format of a task's figure. Without published figures the key is the heading."""
    return HEADINGS.get(key, (key.replace("_", " "), key.replace("_", " "), "{:.2f}"))


def _columns(rows: Sequence[Row]) -> list[str]:
    """Keys of the figures that any row has: first the tasks with published figures, then other tasks."""
    others = dict.fromkeys(key for row in rows for key in row.get("intervals", ()) if key not in METRICS)
    return [key for key in METRICS if any(_has_figure(row, key) for row in rows)] + list(others)


def _number(row: Row, key: str) -> str:
    """A task's figure: mean, standard deviation over seeds, interval."""
    if key not in row:
        return "not run" if row["errors"] else "-"
    text = _heading(key)[2].format(row[key])
    if f"{key}_deviation" in row:
        text += f" ± {row[f'{key}_deviation']:.2f}"
    interval = row["intervals"].get(key)
    return text if interval is None else f"{text} [{interval[0]:.2f}, {interval[1]:.2f}]"


def _published(row: Row, key: str, sources: list[str]) -> str:
    """The published figure with the numbers of its sources; new sources are added to the list."""
    published = row["published"] or {}
    if published.get(key) is None:
        return "-"
    for source in published["sources"]:
        if source not in sources:
            sources.append(source)
    numbers = "".join(f"[{sources.index(source) + 1}]" for source in published["sources"])
    return f"{_heading(key)[2].format(published[key])} {numbers}"


def _difference(row: Row, key: str, reference: str | None) -> str:
    """The difference of a task's figure from that of the reference: mean, standard deviation over seeds."""
    if f"{row['model']}/{row['setting']}" == reference:
        return "reference"
    differences = row.get("differences", {})
    if key not in differences:
        return "-"
    deviation = differences.get(f"{key}_deviation")
    return f"{differences[key]:+.2f}" + ("" if deviation is None else f" ± {deviation:.2f}")


def _further(row: Row, key: str) -> str:
    if key not in row:
        return "-"
    _, _, form, unit = FURTHER[key]
    return form.format(row[key] / unit) + (LOADED_MARK if key == "rtf" and row.get(LOADED) else "")


def _named(name: str, rows: Sequence[Row]) -> str:
    """The name of a line, which says so if one of its rows is a trial and no result."""
    return f"{name} (trial)" if any(row.get("trial") for row in rows) else name


def _has_figure(row: Row, key: str) -> bool:
    """Whether there is a figure for a task, measured or published."""
    return key in row or (row["published"] or {}).get(key) is not None


def _table(suite: Suite, settings: Sequence[str], rows: Sequence[Row], sources: list[str]) -> str:
    """A Markdown table with a line for each model (and label): for each task our figure and the published one."""
    lines: dict[str, list[Row]] = {}
    for row in rows:
        if row["setting"] in settings:
            lines.setdefault(row["name"], []).append(row)
    columns = _columns([row for line in lines.values() for row in line])
    if not columns:
        return ""
    has_published = suite.results is not None
    headings = [""]
    for key in columns:
        headings += [_heading(key)[0], *(["difference"] if suite.reference else [])]
        headings += ["published"] if has_published else []
    headings += ["published parameters M"] if has_published else []
    table = [[*headings, *(heading for heading, *_ in FURTHER.values())]]
    for name, line in lines.items():
        cells = [escape_markdown(_named(name, line))]
        for key in columns:
            row = next((row for row in line if _has_figure(row, key)), line[0])  # the setting that trains this task
            cells += [_number(row, key), *([_difference(row, key, suite.reference)] if suite.reference else [])]
            cells += [_published(row, key, sources)] if has_published else []
        seconds = sum(row.get("train_seconds", 0.0) for row in line)
        further = {key: value for row in line for key, value in row.items() if key in (*FURTHER, LOADED)}
        further |= {"train_seconds": seconds} if seconds else {}
        size = [f"{row['published']['parameters']:g}" for row in line if row["published"]][:1] or ["-"]
        table.append([*cells, *(size if has_published else []), *(_further(further, key) for key in FURTHER)])
    return markdown_table(table)


def _baselines(suite: Suite, sources: list[str]) -> str:
    """SUPERB's published figures of the upstreams that the suite does not run."""
    if suite.results != "superb":
        return ""
    ours = {model.published for model in suite.models.values()}
    table = [["published, not run here", "KS accuracy %", "ASV EER %", "parameters M"]]
    for row in read_baselines():
        if row.upstream not in ours:
            cited = {"published": {"kws_accuracy": row.ks, "sources": [s.url for s in row.sources.values()]}}
            name = _published(cited, "kws_accuracy", sources).partition(" ")[2]
            figures = [f"{row.ks:.2f}", f"{row.asv:.2f}", f"{row.parameters:.2f}"]
            table.append([f"{escape_markdown(row.upstream)} {name}", *figures])
    return markdown_table(table)


def _errors(rows: Sequence[Row]) -> str:
    """A line for each cell and each reason that stopped it, with the seeds."""
    lines = []
    for row in rows:
        seeds: dict[str, list[str]] = {}
        for seed, reason in row["errors"].items():
            seeds.setdefault(reason, []).append(seed)
        cell = f"{row['model']}/{row['setting']}"
        for reason, stopped in seeds.items():
            lines.append(f"* {escape_markdown(cell)}, seed {', '.join(stopped)}: {escape_markdown(reason)}")
    return "\n".join(["## Not run", "", *lines]) if lines else ""


def _trials(rows: Sequence[Row]) -> str:
    """A line for each cell that is a trial, with what it has less than its protocol."""
    lines = []
    for row in rows:
        if row.get("trial"):
            cell = escape_markdown(f"{row['model']}/{row['setting']}")
            lines.append(f"* {cell}: {escape_markdown('; '.join(row['trial']))}")
    what = "These runs tried the suite out. Their figures say nothing about the models, and cannot be compared."
    return "\n".join(["## Trials", "", what, "", *lines]) if lines else ""


def _loads(rows: Sequence[Row]) -> str:
    if not any(row.get(LOADED) for row in rows):
        return ""
    return "(loaded): other processes needed the cores while the real-time factor was measured: it is too high."


def _about_differences(suite: Suite) -> str:
    if suite.reference is None:
        return ""
    compared = f"from {escape_markdown(suite.reference)} with the same seed, mean over seeds"
    return f"Difference: {compared}. A better model has a higher accuracy and a lower EER."


def date_and_machine(rows: Sequence[Row]) -> str:
    """Today's date and this machine, for the head of a report; names the GPU if the rows were run on one."""
    cuda = torch.cuda.is_available() and any(str(row.get("device")).startswith("cuda") for row in rows)
    device = torch.cuda.get_device_name() if cuda else f"{os.cpu_count()} cores"
    return f"{datetime.date.today()}, {platform.machine()}, {device}"


def draw(folder: Path, suite: Suite, rows: Sequence[Row], outcomes: Sequence[Outcome]) -> list[str]:
    """Draw the plots that the results allow. Returns the images' names, without suffix."""
    folder.mkdir(parents=True, exist_ok=True)
    names = []
    for number, (title, settings) in enumerate(suite.tables.items(), start=1):
        in_table = [row for row in rows if row["setting"] in settings]
        if any("seeds" in row for row in in_table):
            names.append("cost" if number == 1 else f"cost-{number}")
            plot_costs(folder / f"{names[-1]}.png", in_table, title_of(title, in_table))
    lowest_seeds: dict[str, Outcome] = {}  # by cell
    for outcome in outcomes:
        if outcome.scores is not None:
            lowest_seeds.setdefault(outcome.run.name, outcome)
    scored = {name: outcome.scores for name, outcome in lowest_seeds.items() if "sv_scores" in outcome.scores}
    if scored:
        names.append("det")
        curves = {name: M.det_curve(scores["sv_scores"], scores["sv_labels"])[:2] for name, scores in scored.items()}
        plot_det(folder / "det.png", curves)
    confusions = [
        (name, o.results["kws"]) for name, o in lowest_seeds.items() if "confusion" in o.results.get("kws", {})
    ]
    if confusions:
        names.append("confusion")
        plot_confusion(folder / "confusion.png", *confusions[0])
    return names


def write_report(folder: Path, suite: Suite, rows: Sequence[Row], images: Sequence[str] = ()) -> None:
    """Write ``results.json`` and ``report.md`` with the rows so far and the ``images`` of `draw` into the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    sources: list[str] = []
    parts = [
        f"# {escape_markdown(title_of(suite.title, rows))}",
        escape_markdown(suite.protocol),
        date_and_machine(rows),
    ]
    for title, settings in suite.tables.items():
        if table := _table(suite, settings, rows, sources):
            in_table = [row for row in rows if row["setting"] in settings]
            parts += [f"## {escape_markdown(title_of(title, in_table))}", table]
    kind = "test" if suite.split == "test" else "development"
    intervals = f"In brackets: 95 % bootstrap interval of the mean, over {kind} speakers"
    parts += [f"{intervals}; ±: standard deviation over seeds.", _about_differences(suite), _loads(rows)]
    parts += [_trials(rows), _baselines(suite, sources), _errors(rows)]
    parts += [f"![{name}]({name}.png)" for name in images]
    parts += ["\n".join(f"[{i + 1}] {markdown_link(source)}  " for i, source in enumerate(sources))]
    (folder / "report.md").write_text("\n\n".join(filter(None, parts)) + "\n", encoding="utf-8")
    content = {
        "title": title_of(suite.title, rows),
        "protocol": suite.protocol.strip(),
        "machine": date_and_machine(rows),
        "rows": list(rows),
    }
    write_json(folder / "results.json", content)


def print_table(suite: Suite, rows: Sequence[Row], title: str) -> None:
    """Print the rows on the terminal, with the short headings."""
    table = Table(
        title=escape(title),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    table.add_column("", no_wrap=True)
    columns = list(dict.fromkeys([*TASKS, *_columns(rows)]))
    shown = () if suite.reference else FURTHER  # the differences need their columns
    for key in columns:
        for heading in (_heading(key)[1], *(["difference"] if suite.reference else [])):
            table.add_column(heading, justify="right")
    for key in shown:
        table.add_column(FURTHER[key][1], justify="right")
    all_trials = all(row.get("trial") for row in rows if "seeds" in row)
    several = len(suite.settings) > 1 and suite.results is not None
    for row in rows:
        name = f"{row['model']}/{row['setting']}" if several else row["name"]
        figures = []
        for key in columns:
            figures.append(_number(row, key).partition(" [")[0])
            figures += [_difference(row, key, suite.reference)] if suite.reference else []
        name = name if all_trials else _named(name, [row])  # else the title says it
        further = [_further(row, key).replace(LOADED_MARK, "*") for key in shown]
        table.add_row(escape(name), *figures, *further)
    Console().print(table)
    if "rtf" in shown and any(row.get(LOADED) for row in rows):
        Console().print("* measured while other processes needed the cores: too high")
