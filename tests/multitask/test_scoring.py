from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from distilled_student.multitask import metrics as M
from distilled_student.multitask import scoring


def made_trials(count: int = 4000, speakers: int = 12) -> tuple[np.ndarray, ...]:
    """Scores around 0.2 and 0.5, labels, and the speakers of both sides; targets of speaker 0 score low."""
    rng = np.random.default_rng(0)
    left, right = rng.integers(speakers, size=count), rng.integers(speakers, size=count)
    right = np.where(rng.random(count) < 0.5, left, right)
    labels = (left == right).astype(int)
    return 0.2 + 0.3 * labels + 0.15 * rng.standard_normal(count) - 0.2 * labels * (left == 0), labels, left, right


def test_as_norm_equals_a_loop_over_the_trials() -> None:
    torch.manual_seed(0)
    x, cohort = torch.randn(20, 6), torch.randn(15, 6)
    rng = np.random.default_rng(0)
    left, right = rng.integers(20, size=50), rng.integers(20, size=50)
    scores = scoring.cosine_scores(x, left, right)
    want = []
    for score, i, j in zip(scores, left, right, strict=True):
        sides = []
        for k in (i, j):
            impostors = sorted((torch.cosine_similarity(x[k], c, dim=0).item() for c in cohort), reverse=True)[:5]
            sides.append((score - np.mean(impostors)) / np.std(impostors, ddof=1))
        want.append(sum(sides) / 2)
    np.testing.assert_allclose(scoring.as_norm(scores, x, left, right, cohort, top=5), want, atol=1e-5)
    every = scoring.as_norm(scores, x, left, right, cohort, top=15)
    np.testing.assert_array_equal(scoring.as_norm(scores, x, left, right, cohort, top=1000), every)
    with pytest.raises(ValueError, match="cohort of at least 2"):
        scoring.as_norm(scores, x, left, right, cohort[:1])


def test_calibration_equals_scikit_learns_balanced_logistic_regression() -> None:
    scores, labels, *_ = made_trials()
    slope, offset = scoring.fit_calibration(scores, labels)
    s = (scores - scores.mean()) / scores.std(ddof=1)
    # its penalty is 1/2 and its loss a sum whose weights add up to the number of trials
    model = LogisticRegression(class_weight="balanced", C=1e3, tol=1e-10, max_iter=1000).fit(s[:, None], labels)
    np.testing.assert_allclose(slope * scores + offset, model.decision_function(s[:, None]), atol=1e-3)


@pytest.mark.parametrize("apart", [2.0, 4.0, 5.2])
def test_calibration_finds_the_likelihood_ratio_of_gaussian_scores(apart: float) -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(2, size=40_000)
    scores = 0.1 * (rng.normal(size=len(labels)) + apart * labels)
    slope, offset = scoring.fit_calibration(scores, labels)
    # equal variances: log N(s; mean 1) - log N(s; mean 0) is a line
    assert slope == pytest.approx(apart / 0.1, rel=0.07)
    assert -offset / slope == pytest.approx(apart * 0.1 / 2, rel=0.02)
    fresh = rng.integers(2, size=40_000)
    ratios = slope * 0.1 * (rng.normal(size=len(fresh)) + apart * fresh) + offset
    assert M.act_dcf(ratios, fresh, 0.01) - M.min_dcf(ratios, fresh, 0.01) < 0.03


def test_calibrated_scores_cost_about_their_minimum_at_any_scale() -> None:
    scores, labels, *_ = made_trials()
    for scale, shift in ((1.0, 0.0), (7.0, -3.0)):
        slope, offset = scoring.fit_calibration(scale * scores + shift, labels)
        ratios = slope * (scale * scores + shift) + offset
        assert 0 <= M.act_dcf(ratios, labels, 0.05) - M.min_dcf(ratios, labels, 0.05) < 0.05
        assert 0 < scoring.cllr(ratios, labels) < scoring.cllr(ratios + 2, labels)
    slope, offset = scoring.fit_calibration([0.1, 0.2, 0.8, 0.9], [0, 0, 1, 1])
    assert math.isfinite(slope) and math.isfinite(offset), "separated trials have a finite calibration too"


def test_cllr_and_act_dcf_equal_plain_loops() -> None:
    ratios, labels = [3.0, 0.5, -1.0, -2.5, 0.2], [1, 1, 0, 0, 0]
    targets = [math.log2(1 + math.exp(-r)) for r, y in zip(ratios, labels, strict=True) if y]
    others = [math.log2(1 + math.exp(r)) for r, y in zip(ratios, labels, strict=True) if not y]
    assert scoring.cllr(ratios, labels) == pytest.approx((sum(targets) / 2 + sum(others) / 3) / 2)
    # at p = 0.3 the threshold is log(0.7 / 0.3) = 0.847: one of two targets is missed, no other trial is accepted
    assert M.act_dcf(ratios, labels, 0.3) == pytest.approx(0.3 * 0.5 / 0.3)
    assert scoring.cllr([0.0, 0.0], [1, 0]) == 1


def test_a_weight_of_n_equals_n_copies_of_a_trial() -> None:
    scores, labels, *_ = made_trials(200)
    times = np.random.default_rng(1).integers(0, 4, size=200)
    repeated = M.eer(np.repeat(scores, times), np.repeat(labels, times))
    assert M.eer(scores, labels, times) == pytest.approx(repeated)


def test_the_interval_contains_the_eer_and_is_wider_than_a_bootstrap_over_trials() -> None:
    scores, labels, left, right = made_trials()
    low, high = M.eer_interval(scores, labels, left, right)
    assert low < M.eer(scores, labels) < high
    # a bootstrap over trials treats each trial as a speaker of its own and misses that speaker 0 differs
    rng = np.random.default_rng(0)
    over_trials = [M.eer(scores, labels, rng.multinomial(4000, np.full(4000, 1 / 4000))) for _ in range(100)]
    assert high - low > 1.5 * (np.quantile(over_trials, 0.975) - np.quantile(over_trials, 0.025))
    assert M.eer_interval(scores, labels, left, right) == (low, high)
    assert M.eer_interval([1.0, 0.0, 0.0], [1, 0, 0], np.array([0, 0, 1]), np.array([0, 1, 2])) is not None
    assert M.eer_interval([1.0, 0.0], [1, 0], np.array([0, 0]), np.array([0, 1])) is None, "of two speakers"


LARGE = """
import resource
import numpy as np, torch
from distilled_student.multitask import metrics, scoring

def peak():  # MiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

torch.manual_seed(0)
rng, utterances, trials = np.random.default_rng(0), 10_000, 580_000
speakers = np.arange(utterances) % 1_251
x = torch.randn(1_251, 256)[speakers] + 2 * torch.randn(utterances, 256)
left, right = rng.integers(utterances, size=(2, trials))
right = np.where(rng.random(trials) < 0.5, (left + 1_251 * (1 + left % 3)) % 10_000, right)
labels = (speakers[left] == speakers[right]).astype(int)
scoring.as_norm(np.zeros(1), x, left[:1], right[:1], torch.randn(1_211, 256))  # memory that the libraries allocate once
before = peak()
scores = scoring.cosine_scores(x, left, right)
normed = scoring.as_norm(scores, x, left, right, torch.randn(1_211, 256), top=300)
interval = metrics.eer_interval(scores, labels, speakers[left], speakers[right], resamples=5)
print(peak() - before, metrics.eer(scores, labels), metrics.eer(normed, labels), *interval)
"""


def test_the_number_of_trials_of_voxceleb1_e_is_scored_in_bounded_memory() -> None:
    done = subprocess.run([sys.executable, "-c", LARGE], capture_output=True, text=True, check=True)
    mebibytes, cosine, normed, low, high = map(float, done.stdout.split())
    # an embedding for each side of each trial would be 2.2 GiB, a vector of scores is 4.4 MiB
    assert mebibytes < 200
    assert 0.01 < low < cosine < high < 0.2 and normed == pytest.approx(cosine, abs=0.02)
