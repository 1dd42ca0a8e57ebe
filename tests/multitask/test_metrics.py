from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.interpolate import interp1d
from scipy.optimize import brentq
from sklearn.metrics import confusion_matrix, roc_curve

from distilled_student.multitask import metrics as M

# few distinct values: ties are the hard part
trials = st.lists(st.tuples(st.integers(-4, 4), st.booleans()), min_size=2, max_size=40).filter(
    lambda pairs: len({label for _, label in pairs}) == 2
)


def split(pairs: list[tuple[int, bool]]) -> tuple[np.ndarray, np.ndarray]:
    scores, labels = zip(*pairs, strict=True)
    return np.array(scores) / 4, np.array(labels, dtype=int)


@settings(deadline=None)
@given(trials)
def test_eer_equals_scikit_learns_curve_crossed_by_root_finding(pairs: list) -> None:
    scores, labels = split(pairs)
    fpr, tpr, _ = roc_curve(labels, scores, drop_intermediate=False)
    last = np.append(np.diff(fpr) > 0, True)  # a vertical step has two values; the root finder needs a function
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
def test_the_curve_is_scikit_learns(pairs: list) -> None:
    scores, labels = split(pairs)
    fpr, tpr, thresholds = roc_curve(labels, scores, drop_intermediate=False)
    alarm, miss, at = M.det_curve(scores, labels)
    np.testing.assert_allclose(alarm, fpr)
    np.testing.assert_allclose(miss, 1 - tpr, atol=1e-12)
    np.testing.assert_allclose(at[1:], thresholds[1:])


def test_separated_trials_have_no_error_and_equal_scores_half() -> None:
    assert M.eer([2, 3, 0, 1], [1, 1, 0, 0]) == 0
    assert M.eer([0, 1, 2, 3], [1, 1, 0, 0]) == 1
    assert M.eer([1, 1, 1, 1], [1, 0, 1, 0]) == 0.5


def test_a_million_trials_need_no_matrix() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(2, size=1_000_000)
    assert M.eer(rng.standard_normal(1_000_000) + 2 * labels, labels) == pytest.approx(0.1587, abs=0.002)


@pytest.mark.parametrize("scores, labels", [([1, 2], [1, 1]), ([1, np.nan], [0, 1]), ([1, 2, 3], [0, 1])])
def test_unusable_scores_are_refused(scores: list, labels: list) -> None:
    with pytest.raises(ValueError):
        M.eer(scores, labels)


def test_confusion_counts_true_rows_and_predicted_columns() -> None:
    labels, predicted = [0, 0, 1, 2], [0, 1, 1, 0]
    matrix = M.confusion_matrix(labels, predicted, 4)
    np.testing.assert_array_equal(matrix, confusion_matrix(labels, predicted, labels=range(4)))
    assert M.accuracy(matrix) == 0.5
    assert M.per_class_accuracy(matrix) == [0.5, 1.0, 0.0, None]
