"""Results of several joint runs as one report: JSON, Markdown, plots, a table on the terminal."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

COLUMNS = {  # key of a row: heading, format, heading where a line has 80 characters
    "kws_accuracy": ("KWS accuracy %", "{:.1f}", "KWS %"),
    "sv_eer": ("SV EER %", "{:.1f}", "EER %"),
    "min_dcf": ("minDCF (p 0.05)", "{:.3f}", "minDCF"),
    "parameters": ("parameters M", "{:.2f}", "M par"),
    "macs_per_second": ("M MAC per s", "{:.0f}", "MMAC/s"),
    "rtf": ("real-time factor", "{:.4f}", "RTF"),
    "train_seconds": ("training s", "{:.0f}", "train"),
}
MILLIONS = ("parameters", "macs_per_second")


def row(name: str, results: Mapping[str, Any], train_seconds: float) -> dict[str, Any]:
    """One row of the report from the ``results.json`` of a joint run."""
    return {
        "name": name,
        "kws_accuracy": results["kws"]["accuracy"],
        "sv_eer": results["sv"]["eer"],
        "min_dcf": results["sv"]["min_dcf_0.05"],
        "parameters": results["upstream"]["parameters"] + sum(results["head_parameters"].values()),
        "macs_per_second": results["upstream"]["macs_per_second"],
        "rtf": results["upstream"]["rtf"],
        "train_seconds": train_seconds,
    }


def mean_rows(seeds: Sequence[Sequence[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Rows averaged over seeds; with several, each keeps its single values under ``seeds``."""
    merged = []
    for rows in zip(*seeds, strict=True):
        mean = {"name": rows[0]["name"], **{key: float(np.mean([r[key] for r in rows])) for key in COLUMNS}}
        mean["parameters"] = rows[0]["parameters"]
        if len(rows) > 1:
            mean["seeds"] = [{key: r[key] for key in COLUMNS} for r in rows]
        merged.append(mean)
    return merged


def cell(row: Mapping[str, Any], key: str) -> str:
    """A value as it is printed; with several seeds, the standard deviation behind it."""
    scale = 1e-6 if key in MILLIONS else 1.0
    text = COLUMNS[key][1].format(row[key] * scale)
    if key in ("kws_accuracy", "sv_eer") and len(row.get("seeds", [])) > 1:
        text += f" ± {np.std([r[key] for r in row['seeds']], ddof=1):.1f}"
    return text


def markdown_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as a Markdown table."""
    headings = " | ".join(heading for heading, _, _ in COLUMNS.values())
    lines = [f"| | {headings} |", "|---" * (len(COLUMNS) + 1) + "|"]
    lines += [f"| {r['name']} | " + " | ".join(cell(r, key) for key in COLUMNS) + " |" for r in rows]
    return "\n".join(lines)


def print_table(rows: Sequence[Mapping[str, Any]], title: str) -> None:
    """The rows on the terminal."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("", no_wrap=True)
    for _, _, short in COLUMNS.values():
        table.add_column(short, justify="right")
    for r in rows:
        table.add_row(r["name"], *(cell(r, key) for key in COLUMNS))
    Console().print(table)


def _plot_confusion(folder: Path, name: str, kws: Mapping[str, Any]) -> None:
    import matplotlib.pyplot as plt

    counts, labels = np.array(kws["confusion"]), kws["labels"]
    figure, axes = plt.subplots(figsize=(6, 5.5), layout="constrained")
    axes.imshow(counts / np.maximum(counts.sum(1, keepdims=True), 1), cmap="Blues", vmin=0, vmax=1)
    for (i, j), count in np.ndenumerate(counts):
        if count:
            axes.text(j, i, str(count), ha="center", va="center", fontsize=7)
    axes.set_xticks(range(len(labels)), labels, rotation=60)
    axes.set_yticks(range(len(labels)), labels)
    axes.set(xlabel="recognised", ylabel="spoken", title=f"Keywords, {name}: {kws['accuracy']:.1f} %")
    figure.savefig(folder / "confusion.png", dpi=120)
    plt.close(figure)


def plot_det(path: Path, trials: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> None:
    """DET curves of named ``(scores, labels)``, as an image in ``path``: errors on normal deviates' axes, in percent.

    Martin et al., "The DET curve in assessment of detection task performance", Eurospeech 1997.
    """
    from matplotlib.figure import Figure  # not pyplot: no display is needed, nothing is left open
    from scipy.stats import norm

    from distilled_student.multitask.metrics import det_curve

    figure = Figure(figsize=(5.5, 5), layout="constrained")
    axes = figure.subplots()
    for name, (scores, labels) in trials.items():
        curve = det_curve(scores, labels)
        false_accept, false_reject = (np.clip(rate, 1e-4, 1 - 1e-4) for rate in curve[:2])
        axes.plot(norm.ppf(false_accept), norm.ppf(false_reject), label=name)
    ticks = np.array([0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6])
    axes.set_xticks(norm.ppf(ticks), [f"{100 * t:g}" for t in ticks])
    axes.set_yticks(norm.ppf(ticks), [f"{100 * t:g}" for t in ticks])
    limits = norm.ppf([0.004, 0.65])
    axes.plot(limits, limits, color="grey", linewidth=0.5)
    axes.set(
        xlim=limits, ylim=limits, xlabel="false acceptance %", ylabel="false rejection %", title="Speaker verification"
    )
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


def _plot_speed(folder: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, 2, figsize=(9, 4), layout="constrained")
    for axes, key in zip(panels, ("kws_accuracy", "sv_eer"), strict=True):
        for r in rows:
            axes.scatter(r["rtf"], r[key], s=30 + r["parameters"] / 5e4)
            axes.annotate(r["name"], (r["rtf"], r[key]), xytext=(6, 6), textcoords="offset points", fontsize=8)
        axes.set(xlabel="real-time factor (seconds per second of audio)", ylabel=COLUMNS[key][0])
        axes.margins(0.25)
        axes.grid(alpha=0.3)
    figure.suptitle("Both tasks against speed; area: parameters")
    figure.savefig(folder / "speed.png", dpi=120)
    plt.close(figure)


def write_report(
    folder: Path, rows: Sequence[Mapping[str, Any]], expdirs: Mapping[str, Path], title: str, notes: str
) -> None:
    """``results.json``, ``report.md`` and three plots in ``folder``.

    Args:
        rows: Of `row` or `mean_rows`; the first one's confusion matrix is shown.
        expdirs: Each row's experiment folder, for its scores.
    """
    import matplotlib

    matplotlib.use("Agg")
    folder.mkdir(parents=True, exist_ok=True)
    first = rows[0]["name"]
    _plot_confusion(folder, first, json.loads((expdirs[first] / "results.json").read_text(encoding="utf-8"))["kws"])
    trials = {}
    for name, expdir in expdirs.items():
        with np.load(expdir / "scores-test.npz") as arrays:
            trials[name] = arrays["sv_scores"], arrays["sv_labels"]
    plot_det(folder / "det.png", trials)
    _plot_speed(folder, rows)
    plots = "\n\n".join(f"![{name}]({name}.png)" for name in ("speed", "det", "confusion"))
    (folder / "report.md").write_text(f"# {title}\n\n{notes}\n\n{markdown_table(rows)}\n\n{plots}\n", encoding="utf-8")
    beside = folder / "results.json.new"
    beside.write_text(json.dumps({"rows": list(rows)}, indent=2) + "\n", encoding="utf-8")
    os.replace(beside, folder / "results.json")
