"""Reports a measurement of false alarms: a table for the terminal, JSON, and a plot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from distilled_student.common.files import write_json
from distilled_student.device.alarms import RATES, Alarms, Curve, Point, needed_hours

JSON, PLOT = "alarms.json", "alarms.png"


def table(found: Alarms, threshold: float | None, word_threshold: float) -> str:
    """Lines with the thresholds for each of `RATES`, and with the present ones, of keywords and of own words."""
    lines = [f"{found.hours:.2f} h of audio, {found.speed:.0f} times real time on one core"]
    short = [rate for rate in RATES if found.hours < needed_hours(rate)]
    lines += _curve_lines(found.of_keywords, threshold, "keyword", short)
    if found.of_words is not None:
        lines += ["words of your own:", *_curve_lines(found.of_words, word_threshold, "word", short)]
    if short:
        wanted = ", ".join(f"{rate:g} per hour {needed_hours(rate):.0f} h" for rate in short)
        lines.append(f"not shown: too little audio; without an alarm that takes, for {wanted}")
    return "\n".join(lines)


def _curve_lines(curve: Curve, threshold: float | None, what: str, short: Sequence[float]) -> list[str]:
    lines = [f"{curve.keywords} {what}s mixed into the audio at each level"] if curve.keywords else []
    rows = [(f"at most {rate:g}" + " (not shown)" * (rate in short), curve.at(rate)) for rate in RATES]
    if threshold is not None:
        rows.append(("now", min(curve.points, key=lambda point: abs(point.threshold - threshold))))
    levels = list(curve.points[0].misses)
    heading = ["alarms per hour", "threshold", "alarms", "per hour (95 %)", *(f"misses at {x} dB" for x in levels)]
    cells = [heading, *([title, *_cells(point, levels)] for title, point in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(heading))]
    lines += ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
    if curve.labels:
        reached = "threshold 1" if (rate := curve.rate_of_labels) is None else f"at most {rate:g}"
        counts = ", ".join(f"{label} {count}" for label, count in curve.labels.items())
        lines.append(f"alarms by {what} ({reached}): {counts}")
    return lines


def _cells(point: Point | None, levels: list[str]) -> list[str]:
    if point is None:
        return ["not reached", "", "", *("" for _ in levels)]
    low, high = point.interval
    rate = f"{point.per_hour:.2f} [{low:.2f}, {high:.2f}]"
    return [f"{point.threshold:.6g}", f"{point.alarms}", rate, *(f"{100 * point.misses[x]:.1f} %" for x in levels)]


def write_report(folder: Path, found: Alarms, about: Mapping[str, Any]) -> None:
    """Write `JSON` and `PLOT` into a folder, which is made. ``about``: what was measured, for the JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / JSON, {**about, **found.to_json()})
    plot(folder / PLOT, found, str(about.get("model", "")))


def plot(file: Path, found: Alarms, name: str) -> None:
    """Misses against alarms per hour, a curve for each level; without keywords, alarms against the threshold."""
    from matplotlib.figure import Figure  # late: it takes half a second; not pyplot, which needs a display

    figure = Figure(figsize=(6, 4.5), layout="constrained")
    axes = figure.subplots()
    rates = [point.per_hour for point in found.of_keywords.points]
    low, high = zip(*(point.interval for point in found.of_keywords.points), strict=True)
    smallest = 1 / found.hours  # one alarm: the axis is linear below it, so that it has a 0
    levels = list(found.of_keywords.points[0].misses)
    for level in levels:
        misses = [100 * point.misses[level] for point in found.of_keywords.points]
        (line,) = axes.plot(rates, misses, label=f"{level} dB")
        axes.fill_betweenx(misses, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
    if levels:
        axes.set(xlabel="alarms per hour (band: 95 %)", ylabel="misses %", ylim=(0, None))
        axes.set_xscale("symlog", linthresh=smallest)
        axes.set_xlim(left=0)
        axes.legend(title="level of the keywords", fontsize=8)
    else:
        thresholds = [point.threshold for point in found.of_keywords.points]
        axes.plot(thresholds, rates)
        axes.fill_between(thresholds, low, high, alpha=0.15, linewidth=0)
        axes.set(xlabel="threshold", ylabel="alarms per hour (band: 95 %)")
        axes.set_yscale("symlog", linthresh=smallest)
        axes.set_ylim(bottom=0)
    axes.set_title(f"{name}: {found.hours:.2f} h of audio".replace("$", r"\$"))
    axes.grid(alpha=0.3)
    figure.savefig(file, dpi=120)
