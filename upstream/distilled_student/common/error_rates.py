"""The equal error rate of a detection error trade-off, for metrics and plots."""

from __future__ import annotations

import numpy as np


def equal_error_rate(false_acceptance: np.ndarray, false_rejection: np.ndarray) -> float:
    """Where two curves of rates cross, which are linear between thresholds; ``(thresholds,)`` each.

    The first rises from 0 to 1, the second falls from 1 to 0.
    """
    difference = np.asarray(false_rejection) - np.asarray(false_acceptance)
    i = int(np.argmax(difference <= 0))
    step = difference[i - 1] - difference[i]
    fraction = difference[i - 1] / step
    return float(false_acceptance[i - 1] + fraction * (false_acceptance[i] - false_acceptance[i - 1]))
