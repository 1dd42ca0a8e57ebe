"""EER, detection costs, DET curve and Cllr against scikit-learn, scipy and plain loops."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.interpolate import interp1d
from scipy.optimize import brentq
from sklearn.metrics import confusion_matrix, det_curve, roc_curve

from distilled_student.multitask import metrics as M
from distilled_student.multitask.scoring import cllr, fit_calibration

# few distinct values, because equal scores are the difficult case
trials = st.lists(st.tuples(st.integers(-4, 4), st.booleans()), min_size=2, max_size=40).filter(
    lambda pairs: len({label for _, label in pairs}) == 2
)


def split(pairs: list[tuple[int, bool]]) -> tuple[np.ndarray, np.ndarray]:
    scores, labels = zip(*pairs, strict=True)
    return np.array(scores) / 4, np.array(labels, dtype=int)


@settings(deadline=None)
@given(trials)
def test_eer_equals_the_crossing_of_scikit_learns_curve_by_root_finding(pairs: list) -> None:
    scores, labels = split(pairs)
    fpr, tpr, _ = roc_curve(labels, scores, drop_intermediate=False)
    last = np.append(np.diff(fpr) > 0, True)  # a vertical step has two values, but the root finder needs a function
    difference = interp1d(np.arange(len(fpr)), 1 - tpr - fpr)
    at = brentq(difference, 0, len(fpr) - 1)
    assert len(last) and M.eer(scores, labels) == pytest.approx(interp1d(np.arange(len(fpr)), fpr)(at), abs=1e-9)


@settings(deadline=None)
@given(trials, st.sampled_from([0.01, 0.05, 0.5]))
def test_min_dcf_equals_trying_every_threshold(pairs: list, p: float) -> None:
    scores, labels = split(pairs)
    costs = []
    for threshold in [*np.unique(scores), np.inf]:
        accepted = scores >= threshold
        miss, alarm = (~accepted)[labels == 1].mean(), accepted[labels == 0].mean()
        costs.append(p * miss + (1 - p) * alarm)
    assert M.min_dcf(scores, labels, p) == pytest.approx(min(costs) / min(p, 1 - p))


@settings(deadline=None)
@given(trials)
def test_the_det_curve_equals_scikit_learns_roc_curve(pairs: list) -> None:
    scores, labels = split(pairs)
    fpr, tpr, thresholds = roc_curve(labels, scores, drop_intermediate=False)
    alarm, miss, at = M.det_curve(scores, labels)
    np.testing.assert_allclose(alarm, fpr)
    np.testing.assert_allclose(miss, 1 - tpr, atol=1e-12)
    np.testing.assert_allclose(at[1:], thresholds[1:])


# any scores: the largest, the smallest, both zeros, and a few that occur often
any_score = st.one_of(
    st.floats(-1e300, 1e300), st.sampled_from([0.0, -0.0, 5e-324, -5e-324, 1e300, -1e300, 1.0, math.nextafter(1.0, 2)])
)
any_trials = st.lists(st.tuples(any_score, st.booleans()), min_size=2, max_size=30).filter(
    lambda pairs: len({label for _, label in pairs}) == 2
)


def operating_points(pairs: list) -> list[tuple[float, float]]:
    """False alarm and miss rates at every threshold, counted trial by trial."""
    targets, others = ([score for score, label in pairs if label == kind] for kind in (True, False))
    points = []
    for threshold in [math.inf, *sorted({score for score, _ in pairs}, reverse=True)]:
        alarms, misses = sum(s >= threshold for s in others), sum(s < threshold for s in targets)
        points.append((alarms / len(others), misses / len(targets)))
    return points


@settings(deadline=None)
@given(any_trials)
def test_eer_equals_the_crossing_found_by_trying_every_threshold(pairs: list) -> None:
    points = operating_points(pairs)
    crossings = []
    for (alarm, miss), (more, less) in itertools.pairwise(points):
        if miss - alarm > 0 >= less - more:
            share = (miss - alarm) / ((miss - alarm) - (less - more))
            crossings.append(alarm + share * (more - alarm))
    scores, labels = zip(*pairs, strict=True)
    assert [M.eer(scores, labels)] == pytest.approx(crossings, abs=1e-12)


@settings(deadline=None)
@given(any_trials, st.floats(0.001, 0.999), st.floats(0.1, 10), st.floats(0.1, 10))
def test_min_dcf_equals_scikit_learns_curve_and_every_threshold(
    pairs: list, p: float, c_miss: float, c_fa: float
) -> None:
    scores, labels = map(np.array, zip(*pairs, strict=True))
    found = M.min_dcf(scores, labels, p, c_miss, c_fa)
    worse = min(c_miss * p, c_fa * (1 - p))
    costs = [(c_miss * p * miss + c_fa * (1 - p) * alarm) / worse for alarm, miss in operating_points(pairs)]
    assert found == pytest.approx(min(costs)) and 0 <= found <= 1
    alarm, miss, _ = det_curve(labels, scores)
    theirs = (c_miss * p * miss + c_fa * (1 - p) * alarm) / worse
    assert found == pytest.approx(min(1.0, theirs.min())), "its curve lacks the points that accept all or nothing"


@settings(deadline=None)
@given(any_trials, st.floats(0.001, 0.999))
def test_act_dcf_and_cllr_equal_plain_loops_and_act_dcf_is_at_least_min_dcf(pairs: list, p: float) -> None:
    ratios, labels = zip(*pairs, strict=True)
    targets, others = ([r for r, label in pairs if label == kind] for kind in (True, False))
    threshold = math.log((1 - p) / p)
    cost = p * sum(r < threshold for r in targets) / len(targets)
    cost += (1 - p) * sum(r >= threshold for r in others) / len(others)
    assert M.act_dcf(ratios, labels, p) == pytest.approx(cost / min(p, 1 - p))
    assert M.act_dcf(ratios, labels, p) >= M.min_dcf(ratios, labels, p) - 1e-12

    def bits(ratio: float) -> float:  # log2(1 + exp(ratio)) without overflow
        return (max(ratio, 0.0) + math.log1p(math.exp(-abs(ratio)))) / math.log(2)

    mean = sum(bits(-r) for r in targets) / len(targets) + sum(bits(r) for r in others) / len(others)
    assert cllr(ratios, labels) == pytest.approx(mean / 2)


@settings(deadline=None)
@given(trials)
def test_errors_depend_on_the_order_of_scores_only_and_both_kinds_of_trials_count_alike(pairs: list) -> None:
    scores, labels = split(pairs)
    for changed in (np.exp(scores), 1e6 * scores - 3, scores**3):
        assert M.eer(changed, labels) == M.eer(scores, labels)
        assert M.min_dcf(changed, labels, 0.05) == M.min_dcf(scores, labels, 0.05)
    assert M.eer(-scores, 1 - labels) == pytest.approx(M.eer(scores, labels))
    assert M.min_dcf(-scores, 1 - labels, 0.3) == pytest.approx(M.min_dcf(scores, labels, 0.7))


@settings(deadline=None, max_examples=50)
@given(trials)
def test_calibration_is_finite_and_costs_no_more_than_a_ratio_of_one(pairs: list) -> None:
    scores, labels = split(pairs)
    slope, offset = fit_calibration(scores, labels)
    assert math.isfinite(slope) and math.isfinite(offset)
    assert cllr(slope * scores + offset, labels) <= 1 + 1e-6


def test_eer_is_0_for_separated_trials_and_a_half_for_equal_scores() -> None:
    assert M.eer([2, 3, 0, 1], [1, 1, 0, 0]) == 0
    assert M.eer([0, 1, 2, 3], [1, 1, 0, 0]) == 1
    assert M.eer([1, 1, 1, 1], [1, 0, 1, 0]) == 0.5


def test_eer_of_a_million_trials() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(2, size=1_000_000)
    assert M.eer(rng.standard_normal(1_000_000) + 2 * labels, labels) == pytest.approx(0.1587, abs=0.002)


@pytest.mark.parametrize("scores, labels", [([1, 2], [1, 1]), ([1, np.nan], [0, 1]), ([1, 2, 3], [0, 1])])
def test_scores_without_an_eer_are_refused(scores: list, labels: list) -> None:
    with pytest.raises(ValueError):
        M.eer(scores, labels)


def test_confusion_rows_are_true_classes_and_columns_are_predictions() -> None:
    labels, predicted = [0, 0, 1, 2], [0, 1, 1, 0]
    matrix = M.confusion_matrix(labels, predicted, 4)
    np.testing.assert_array_equal(matrix, confusion_matrix(labels, predicted, labels=range(4)))
    assert M.accuracy(matrix) == 0.5
    assert M.per_class_accuracy(matrix) == [0.5, 1.0, 0.0, None]
