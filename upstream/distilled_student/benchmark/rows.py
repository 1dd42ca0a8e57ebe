"""Outcomes to the report's rows: mean of the seeds, bootstrap interval, and the published number beside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from distilled_student.benchmark.execute import Outcome
from distilled_student.benchmark.published import read_baselines, read_paper_results
from distilled_student.benchmark.suite import Suite
from distilled_student.multitask import metrics as M

METRICS = ("kws_accuracy", "sv_eer")
PUBLISHED_AS = {"ks": "kws_accuracy", "asv": "sv_eer"}


def _values(results: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of one run that its row averages."""
    values = {"train_seconds": results["train_seconds"]}
    if "kws" in results:
        values["kws_accuracy"] = results["kws"]["accuracy"]
    if "sv" in results:
        values |= {"sv_eer": results["sv"]["eer"], "min_dcf": results["sv"]["min_dcf_0.05"]}
    return values


def _intervals(scores: Sequence[Mapping[str, np.ndarray]]) -> dict[str, list[float] | None]:
    """95 % bootstrap of each task's mean over seeds, in percent: over test utterances, over test speakers."""
    found: dict[str, list[float] | None] = {}
    first = scores[0]
    if "kws_labels" in first:
        right = [s["kws_labels"] == s["kws_predicted"] for s in scores]
        same = all(np.array_equal(s["kws_labels"], first["kws_labels"]) for s in scores)
        # a seed may draw its own unknown words and silence where there is no test archive
        each = np.mean(right, axis=0) if same else np.concatenate(right)
        found["kws_accuracy"] = [100 * bound for bound in M.mean_interval(each)]
    if "sv_scores" in first:
        each = np.stack([s["sv_scores"] for s in scores])
        interval = M.eer_interval(each, first["sv_labels"], first["sv_left"], first["sv_right"])
        found["sv_eer"] = None if interval is None else [100 * bound for bound in interval]
    return found


def published(suite: Suite, model: str, setting: str) -> dict[str, Any] | None:
    """The published ``kws_accuracy``, ``sv_eer`` and ``parameters`` (M) of a cell, with ``sources``; None if none."""
    name, ours = suite.models[model].published, suite.settings[setting]
    if suite.results == "paper":
        for row in read_paper_results():
            if (row.model, row.setting) == (name, ours.published):
                return {**{key: getattr(row, key) for key in (*METRICS, "parameters")}, "sources": [row.source.url]}
    if suite.results == "superb" and setting in PUBLISHED_AS:
        for row in read_baselines():
            if row.upstream == name:
                number = {PUBLISHED_AS[setting]: getattr(row, setting)}
                return {**number, "parameters": row.parameters, "sources": [s.url for s in row.sources.values()]}
    return None


def make_row(suite: Suite, model: str, setting: str, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """One cell of the suite: JSON can hold it.

    Args:
        outcomes: Of its seeds, failed ones too.
    """
    label = suite.settings[setting].label
    row: dict[str, Any] = {"name": f"{model}, {label}" if label else model, "model": model, "setting": setting}
    row["errors"] = {str(o.run.seed): o.error for o in outcomes if o.error is not None}
    row["published"] = published(suite, model, setting)
    done = [outcome for outcome in outcomes if outcome.results is not None and outcome.scores is not None]
    if not done:
        return row
    row["seeds"] = [{"seed": outcome.run.seed, **_values(outcome.results)} for outcome in done]
    for key in row["seeds"][0].keys() - {"seed"}:
        values = [seed[key] for seed in row["seeds"]]
        row[key] = float(np.mean(values))
        if len(values) > 1:
            row[f"{key}_deviation"] = float(np.std(values, ddof=1))
    row["intervals"] = _intervals([outcome.scores for outcome in done])
    upstreams = [outcome.results["upstream"] for outcome in done]
    heads = sum(done[0].results.get("head_parameters", {}).values())
    row["parameters"], row["macs_per_second"] = upstreams[0]["parameters"] + heads, upstreams[0]["macs_per_second"]
    row["rtf"] = float(np.median([upstream["rtf"] for upstream in upstreams]))
    row["device"] = done[0].results.get("device")
    return row
