"""Plots can be read: figures on dark cells, named equal error rates, axes that hold the curves."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from scipy.stats import norm

from distilled_student.common import plots
from distilled_student.multitask import metrics


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are saved."""
    figures: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *_, **__: figures.append(self))
    return figures


def contrast(one: tuple, other: tuple) -> float:
    """The contrast ratio of two colours after WCAG 2.2, from 1 to 21; 4.5 is needed for text."""

    def luminance(colour: tuple) -> float:
        rgb = np.array(colour[:3])
        linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    high, low = sorted([luminance(one), luminance(other)], reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_counts_can_be_read_on_every_cell(drawn: list[Figure]) -> None:
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 9, (30, 30))
    for i in range(30):
        counts[i, i] = rng.integers(0, 400)
    labels = [f"word{i}" for i in range(30)]
    plots.plot_confusion(Path("x.png"), "name", {"confusion": counts.tolist(), "labels": labels, "accuracy": 50.0})
    axes = drawn[0].axes[0]
    cells, blues = counts / counts.sum(1, keepdims=True), matplotlib.colormaps["Blues"]
    for text in axes.texts:
        j, i = map(round, text.get_position())
        assert contrast(to_rgb(text.get_color()), blues(cells[i, j])) >= 4.5
    assert len(axes.texts) == np.count_nonzero(counts)
    inches = min(drawn[0].get_size_inches())
    assert inches * 72 / 30 > 3 * 7 * 0.5, "a cell is wider than a count of three digits"


@pytest.mark.parametrize("distance", [0.0, 2.0, 20.0, -1.0])
@pytest.mark.parametrize("trials", [20, 5000])
def test_det_axes_hold_the_curve_and_its_marked_equal_error_rate(
    distance: float, trials: int, drawn: list[Figure]
) -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat([1, 0], trials)
    scores = rng.standard_normal(2 * trials) + distance * labels
    false_alarm, miss, _ = metrics.det_curve(scores, labels)
    plots.plot_det(Path("x.png"), {"cosine": (false_alarm, miss)})
    axes = drawn[0].axes[0]
    curve, mark = axes.lines[0], axes.lines[1]
    for limits, values in ((axes.get_xlim(), curve.get_xdata()), (axes.get_ylim(), curve.get_ydata())):
        assert limits[0] <= min(values) and max(values) <= limits[1]
    equal = metrics.eer(scores, labels)
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [f"cosine: EER {100 * equal:.2f} %"]
    if equal > 0:
        assert mark.get_xdata()[0] == mark.get_ydata()[0] == pytest.approx(norm.ppf(equal))
    assert axes.get_xlim()[0] <= mark.get_xdata()[0] <= axes.get_xlim()[1]
