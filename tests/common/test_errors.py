"""The suggestion of a close name."""

from __future__ import annotations

import pytest

from distilled_student.common.errors import did_you_mean


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [
        ("log_steps", "; did you mean `log_step`?"),
        ("SPECAUG", "; did you mean `SpecAug`?"),
        ("nothing like it", ""),
        (7, ""),
    ],
)
def test_the_closest_known_name_is_suggested_if_one_is_close(name: object, suggestion: str) -> None:
    assert did_you_mean(name, ["log_step", "SpecAug", "save_step"]) == suggestion
