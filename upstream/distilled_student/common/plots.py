"""Plots in image files: confusion matrix, DET curves, results of both tasks against the cost of a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure  # not pyplot, which needs a display and keeps figures open
from matplotlib.lines import Line2D

from distilled_student.common.error_rates import equal_error_rate

AXES = {"parameters": "parameters (M)", "macs_per_second": "M MAC per second of audio", "rtf": "real-time factor"}
# percentages with a tick on the axes of a DET plot
DET_TICKS = (0.01, 0.1, 0.5, 1, 2, 5, 10, 20, 40, 60, 80, 90, 95, 98, 99, 99.5, 99.9, 99.99)
MILLIONS = ("parameters", "macs_per_second")


def _escape_math(text: str) -> str:
    """Text in which matplotlib finds no formula."""
    return text.replace("$", r"\$")


def plot_confusion(path: Path, name: str, kws: Mapping[str, Any]) -> None:
    """Confusion matrix of a keyword spotting result (``confusion``, ``labels``, ``accuracy`` in percent)."""
    counts, labels = np.array(kws["confusion"]), [_escape_math(label) for label in kws["labels"]]
    size = max(6.0, 0.42 * len(labels))  # inches: a cell holds a count of four digits
    figure = Figure(figsize=(size, 0.92 * size), layout="constrained")
    axes = figure.subplots()
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (i, j), count in np.ndenumerate(counts):
        if count:
            colour = _text_colour(image.to_rgba(shares[i, j]))
            axes.text(j, i, str(count), ha="center", va="center", fontsize=7, color=colour)
    axes.set_xticks(range(len(labels)), labels, rotation=60)
    axes.set_yticks(range(len(labels)), labels)
    axes.set(xlabel="recognised", ylabel="spoken", title=f"Keywords, {_escape_math(name)}: {kws['accuracy']:.1f} %")
    figure.savefig(path, dpi=120)


def _text_colour(background: tuple[float, float, float, float]) -> str:
    """Black or white, whichever has more contrast with a background (WCAG 2.2, relative luminance)."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in background[:3]]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "black" if (luminance + 0.05) ** 2 > 1.05 * 0.05 else "white"


def plot_det(
    path: Path, curves: Mapping[str, tuple[np.ndarray, np.ndarray]], title: str = "Speaker verification"
) -> None:
    """DET curves of named ``(false acceptance, false rejection)`` rates in [0, 1], on normal deviate axes in percent.

    Each curve's equal error rate is marked, and named in the legend. The axes hold the whole curves; rates of 0 and 1,
    which these axes do not have, are drawn half an error away from them.

    Martin et al., "The DET curve in assessment of detection task performance", Eurospeech 1997.
    """
    from scipy.stats import norm

    figure = Figure(figsize=(5.5, 5), layout="constrained")
    axes = figure.subplots()
    lowest = min(_smallest_step(rate) for rates in curves.values() for rate in rates) / 2
    for name, rates in curves.items():
        (line,) = axes.plot(*(norm.ppf(np.clip(rate, lowest, 1 - lowest)) for rate in rates))
        equal = equal_error_rate(*rates)
        line.set_label(f"{_escape_math(name)}: EER {100 * equal:.2f} %")
        at = norm.ppf(np.clip(equal, lowest, 1 - lowest))
        axes.plot([at], [at], marker="o", color=line.get_color())
    limits = norm.ppf([lowest, 1 - lowest]) * 1.05
    ticks = np.array([tick for tick in DET_TICKS if limits[0] < norm.ppf(tick / 100) < limits[1]])
    axes.set_xticks(norm.ppf(ticks / 100), [f"{tick:g}" for tick in ticks], fontsize=7, rotation=60)
    axes.set_yticks(norm.ppf(ticks / 100), [f"{tick:g}" for tick in ticks], fontsize=7)
    axes.plot(limits, limits, color="grey", linewidth=0.5)
    axes.set(xlim=limits, ylim=limits, xlabel="false acceptance %", ylabel="false rejection %", title=title)
    axes.legend(title="o: equal error rate (EER)", fontsize=8, title_fontsize=8)
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


def _smallest_step(rates: np.ndarray) -> float:
    """The smallest positive rate, at most 10 % and at least 0.01 %."""
    positive = np.asarray(rates)[np.asarray(rates) > 0]
    return float(np.clip(positive.min(initial=0.1), 1e-4, 0.1))


def plot_costs(path: Path, rows: Sequence[Mapping[str, Any]], title: str) -> None:
    """Both tasks (rows) against parameters, multiply-accumulates and real-time factor (columns).

    ``rows`` are those of a report's ``results.json``; each name has a colour. Full dots are measured, with their 95 %
    interval. Hollow dots are published; of these models only the number of parameters is known.
    """
    figure = Figure(figsize=(12, 7), layout="constrained")
    panels = figure.subplots(2, len(AXES))
    colours = {name: f"C{i}" for i, name in enumerate(dict.fromkeys(row["name"] for row in rows))}
    for line, (key, heading) in enumerate({"kws_accuracy": "KWS accuracy %", "sv_eer": "SV EER %"}.items()):
        for axes, (cost, label) in zip(panels[line], AXES.items(), strict=True):
            for row in rows:
                known = row["published"] or {}
                if cost == "parameters" and known.get(key) is not None:
                    axes.scatter(known["parameters"], known[key], facecolors="none", edgecolors=colours[row["name"]])
                if key in row and cost in row:
                    scale = 1e-6 if cost in MILLIONS else 1.0
                    interval = row["intervals"].get(key) or [row[key], row[key]]
                    error = [[max(0.0, row[key] - interval[0])], [max(0.0, interval[1] - row[key])]]
                    axes.errorbar(row[cost] * scale, row[key], error, fmt="o", capsize=3, color=colours[row["name"]])
            axes.set(xlabel=label, ylabel=heading)
            axes.locator_params(axis="x", nbins=4)
            axes.grid(alpha=0.3)
    handles = [
        Line2D([], [], marker="o", linestyle="", color=colour, label=_escape_math(name))
        for name, colour in colours.items()
    ]
    if any(row["published"] for row in rows):
        hollow = {"color": "grey", "markerfacecolor": "none"}
        handles.append(Line2D([], [], marker="o", linestyle="", label="published", **hollow))
    figure.legend(handles=handles, loc="outside lower center", ncols=4)
    figure.suptitle(f"{_escape_math(title)}: results against the cost of the model")
    figure.savefig(path, dpi=120)
