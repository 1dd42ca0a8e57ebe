"""What a calibration makes of a cosine: ratios, thresholds, and notes on what it has not seen."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from scipy.stats import norm

from distilled_student.onnx import Calibration, Condition

CONTENT = {
    "ratio": {"bias": -7.0, "cosine": 20.0, "log_clips": 0.5, "same_word": -1.0, "cosine*log_seconds": 2.0},
    "thresholds": {
        "0.05": {"bias": 0.3, "log_seconds": -0.05},
        "0.01": {"bias": 0.4, "log_seconds": -0.05},
        "0.001": {"bias": 0.6, "log_enrolled_seconds": 0.01, "log_clips*log_seconds": 0.02},
    },
    "seen": {"clips": [1, 5], "enrolled_seconds": [1.0, 40.0], "seconds": [1.0, 10.0]},
}
CALIBRATION = Calibration.from_json(json.dumps(CONTENT))


def test_a_ratio_is_the_sum_of_weights_times_the_products_of_their_variables() -> None:
    for same_word, word in ((True, 1.0), (False, 0.0), (None, 0.5)):
        expected = -7.0 + 20.0 * 0.4 + 0.5 * np.log(3) - word + 2.0 * 0.4 * np.log(2.5)
        assert CALIBRATION.ratio(0.4, Condition(3, 9.0, 2.5, same_word)) == pytest.approx(expected)


def test_a_threshold_is_the_fitted_one_and_between_two_it_follows_a_normal_distribution() -> None:
    condition = Condition(3, 9.0, 2.5)
    fitted = {
        0.05: 0.3 - 0.05 * np.log(2.5),
        0.01: 0.4 - 0.05 * np.log(2.5),
        0.001: 0.6 + 0.01 * np.log(9) + 0.02 * np.log(3) * np.log(2.5),
    }
    for share, expected in fitted.items():
        assert CALIBRATION.threshold(share, condition) == pytest.approx(expected)
    for share, (low, high) in {0.02: (0.01, 0.05), 0.005: (0.001, 0.01)}.items():
        expected = np.interp(norm.ppf(share), norm.ppf([low, high]), [fitted[low], fitted[high]])
        assert CALIBRATION.threshold(share, condition) == pytest.approx(expected)


@pytest.mark.parametrize("share", [0.0005, 0.06, 0.0, 3.0, math.nan])
def test_a_share_outside_of_the_fitted_ones_is_an_error(share: float) -> None:
    with pytest.raises(
        ValueError, match=r"false_accepts: .*: this model has thresholds for shares from 0\.001 to 0\.05 only"
    ):
        CALIBRATION.threshold(share, Condition(1, 2.0, 2.0))


def test_what_was_not_seen_is_said_and_has_the_values_of_the_nearest_condition_that_was() -> None:
    assert CALIBRATION.unseen(Condition(5, 40.0, 1.0)) == []
    far, nearest = Condition(8, 60.0, 0.5), Condition(5, 40.0, 1.0)
    clips, enrolled, seconds = CALIBRATION.unseen(far)
    assert clips == (
        "the number of enrolled clips is 8: the calibration was fitted with 1 to 5, and the values for 5 are used"
    )
    assert "length of the enrolled clips together is 60.00 s: " in enrolled and "for 40.00 s are used" in enrolled
    assert "length of the utterance is 0.50 s: the calibration was fitted with 1.00 s to 10.00 s" in seconds
    assert CALIBRATION.ratio(0.4, far) == CALIBRATION.ratio(0.4, nearest)
    assert CALIBRATION.threshold(0.001, far) == CALIBRATION.threshold(0.001, nearest)


def test_a_length_that_is_not_known_is_said() -> None:
    unknown = Condition(2, math.nan, 2.0)
    (note,) = CALIBRATION.unseen(unknown)
    assert "length of the enrolled clips together is not known" in note
    assert CALIBRATION.ratio(0.4, unknown) == CALIBRATION.ratio(0.4, Condition(2, 1.0, 2.0))


def test_the_typicality_of_an_embedding_is_its_cosine_with_the_mean_voice() -> None:
    content = json.loads(json.dumps(CONTENT))
    content["mean_voice"], content["seen"]["typicality"] = [0.6, 0.8, 0.0], [-0.5, 0.9]
    content["ratio"] |= {"typicality": -3.0, "cosine*enrolled_typicality": 2.0}
    content["thresholds"]["0.01"]["typicality"] = 0.25
    calibration = Calibration.from_json(json.dumps(content))
    assert json.loads(calibration.to_json()) == content
    tested, enrolled = np.array([1.0, 0.0, 0.0], "f4"), np.array([0.0, 0.6, 0.8], "f4")
    condition = calibration.condition(tested, enrolled, 3, 9.0, 2.5)
    assert condition == pytest.approx(Condition(3, 9.0, 2.5, None, 0.6, 0.48))
    plain = Condition(3, 9.0, 2.5)
    difference = calibration.ratio(0.4, condition) - CALIBRATION.ratio(0.4, plain)
    assert difference == pytest.approx(-3.0 * 0.6 + 2.0 * 0.4 * 0.48)
    assert calibration.threshold(0.01, condition) == pytest.approx(CALIBRATION.threshold(0.01, plain) + 0.25 * 0.6)
    (note,) = calibration.unseen(calibration.condition(np.array([0.6, 0.8, 0.0]), enrolled, 3, 9.0, 2.5))
    assert note.startswith("the cosine of the utterance and the mean voice is 1.00: ") and "for 0.90 are used" in note
    assert CALIBRATION.condition(tested, enrolled, 3, 9.0, 2.5) == plain, "of an older file"


def test_a_calibration_is_written_and_read_without_a_change() -> None:
    assert Calibration.from_json(CALIBRATION.to_json()) == CALIBRATION
    assert json.loads(CALIBRATION.to_json()) == CONTENT


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"ratio": {"pitch": 1.0}}, "unknown term pitch"),
        ({"ratio": {"cosine": "high"}}, "could not convert"),
        ({"ratio": {"cosine": math.nan}}, "cosine is nan"),
        ({"ratio": 3.0}, "damaged"),
        ({"thresholds": {"1.5": {}}}, "1.5 is not a share between 0 and 1"),
        ({"seen": {"seconds": [2.0, 1.0]}}, "seen: seconds from 2 to 1"),
        ({"seen": {"minutes": [1.0, 2.0]}}, "seen: minutes"),
        ({"mean_voice": [3.0, 4.0]}, "mean_voice: is not of length 1"),
    ],
)
def test_a_damaged_calibration_is_an_error_of_one_line(change: dict[str, object], reason: str) -> None:
    with pytest.raises(ValueError, match=rf"speaker_calibration: damaged, or of a later version .*{reason}|{reason}"):
        Calibration.from_json(json.dumps(CONTENT | change))
    with pytest.raises(ValueError, match="has no 'seen'"):
        Calibration.from_json(json.dumps({"ratio": {}, "thresholds": {}}))


def test_older_metadata_are_a_line_through_the_cosine() -> None:
    old = Calibration.from_metadata({"sv_slope": "20.0", "sv_offset": "-9.0"})
    assert old.ratio(0.7, Condition(1, 1.0, 1.0)) == 20.0 * 0.7 - 9.0
    assert old.shares == () and old.unseen(Condition(99, math.nan, 99.0)) == []
    with pytest.raises(ValueError, match=r"false_accepts: 0\.01: this model has thresholds for no share"):
        old.threshold(0.01, Condition(1, 1.0, 1.0))
    assert Calibration.from_metadata({}) is None
    assert Calibration.from_metadata({"speaker_calibration": json.dumps(CONTENT)}) == CALIBRATION
