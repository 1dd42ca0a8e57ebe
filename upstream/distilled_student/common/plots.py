"""Plots in image files: confusion matrix, DET curves, results of both tasks against the cost of a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure  # not pyplot, which needs a display and keeps figures open
from matplotlib.lines import Line2D

AXES = {"parameters": "parameters (M)", "macs_per_second": "M MAC per second of audio", "rtf": "real-time factor"}
MILLIONS = ("parameters", "macs_per_second")


def _escape_math(text: str) -> str:
    """Text in which matplotlib finds no formula."""
    return text.replace("$", r"\$")


def plot_confusion(path: Path, name: str, kws: Mapping[str, Any]) -> None:
    """Confusion matrix of a keyword spotting result (``confusion``, ``labels``, ``accuracy`` in percent)."""
    counts, labels = np.array(kws["confusion"]), [_escape_math(label) for label in kws["labels"]]
    figure = Figure(figsize=(6, 5.5), layout="constrained")
    axes = figure.subplots()
    axes.imshow(counts / np.maximum(counts.sum(1, keepdims=True), 1), cmap="Blues", vmin=0, vmax=1)
    for (i, j), count in np.ndenumerate(counts):
        if count:
            axes.text(j, i, str(count), ha="center", va="center", fontsize=7)
    axes.set_xticks(range(len(labels)), labels, rotation=60)
    axes.set_yticks(range(len(labels)), labels)
    axes.set(xlabel="recognised", ylabel="spoken", title=f"Keywords, {_escape_math(name)}: {kws['accuracy']:.1f} %")
    figure.savefig(path, dpi=120)


def plot_det(path: Path, curves: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> None:
    """DET curves of named ``(false acceptance, false rejection)`` rates in [0, 1], on normal deviate axes in percent.

    Martin et al., "The DET curve in assessment of detection task performance", Eurospeech 1997.
    """
    from scipy.stats import norm

    figure = Figure(figsize=(5.5, 5), layout="constrained")
    axes = figure.subplots()
    for name, rates in curves.items():
        false_accept, false_reject = (np.clip(rate, 1e-4, 1 - 1e-4) for rate in rates)
        axes.plot(norm.ppf(false_accept), norm.ppf(false_reject), label=_escape_math(name))
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
