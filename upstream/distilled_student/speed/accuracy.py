"""Accuracies from a benchmark's results, and which models were trained long enough to show them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from distilled_student.common.errors import UserError
from distilled_student.common.files import read_json

TASKS = {"kws_accuracy": "KWS %", "sv_eer": "EER %"}
# A model outside these bounds cannot be used: its accuracy shows a training that was too short, not its size.
LEAST_KWS_ACCURACY, MOST_SV_EER = 90.0, 10.0  # in %


def is_usable(scores: Mapping[str, float]) -> bool:
    """Whether a model was trained long enough to be used; False for a model without scores."""
    if not any(key in scores for key in TASKS):
        return False
    return scores.get("kws_accuracy", 100.0) >= LEAST_KWS_ACCURACY and scores.get("sv_eer", 0.0) <= MOST_SV_EER


def read_accuracy(pairs: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Scores by corpus and model, from ``CORPUS=FILE``; FILE is a results.json of `distilled-student benchmark`.

    Raises:
        UserError: a pair has another form, or its file is not such a results.json.
    """
    found: dict[str, dict[str, Any]] = {}
    for pair in pairs:
        corpus, equals, file = pair.partition("=")
        if not equals:
            raise UserError(f"--accuracy {pair}: expected CORPUS=FILE")
        rows = read_json(Path(file)).get("rows")
        if not isinstance(rows, list):
            raise UserError(f"{file}: is not the results.json of a benchmark (no rows)")
        for row in rows:
            keys = [key for task in TASKS for key in (task, f"{task}_deviation") if key in row]
            found.setdefault(corpus, {}).setdefault(row["model"], {}).update({key: row[key] for key in keys})
    return found
