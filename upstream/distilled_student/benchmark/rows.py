"""Turns outcomes into the report's rows: mean over seeds, bootstrap interval, published number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from distilled_student.benchmark.execute import Outcome
from distilled_student.benchmark.published import read_baselines, read_paper_results
from distilled_student.benchmark.suite import Suite
from distilled_student.benchmark.trials import smaller_tests
from distilled_student.multitask.owner_evaluation import HEADLINE, OWNER, interval_of_runs
from distilled_student.multitask.tasks import task_module
from distilled_student.multitask.tasks.base import BaseTask

METRICS = ("kws_accuracy", "sv_eer")  # TASK_METRIC of the tasks with published figures
OWNER_EER = "owner_eer"  # of the owner-and-word trials with three enrolled clips
PUBLISHED_AS = {"ks": "kws_accuracy", "asv": "sv_eer"}


def run_tasks(settings: Mapping[str, Any]) -> dict[str, type[BaseTask]]:
    """The task classes of a run by name.

    Args:
        settings: See `Bench.settings`. If they have no ``tasks``, the run is one of s3prl's own downstreams, whose
            results have the format of the tasks ``kws`` or ``sv``.
    """
    tasks = settings["downstream_expert"].get("tasks") or {"kws": {}, "sv": {}}
    return {name: task_module(name, (values or {}).get("module"), name).Task for name, values in tasks.items()}


def _headlines(results: Mapping[str, Any], tasks: Mapping[str, type[BaseTask]]) -> dict[str, str]:
    """The row's key of each task's headline metric, such as ``kws_accuracy`` -> the task."""
    return {f"{name}_{task.headline}": name for name, task in tasks.items() if name in results and task.headline}


def _values(results: Mapping[str, Any], tasks: Mapping[str, type[BaseTask]]) -> dict[str, float]:
    """The numbers of one run that its row averages over seeds."""
    values = {"train_seconds": results["train_seconds"]}
    for key, name in _headlines(results, tasks).items():
        values[key] = results[name][tasks[name].headline]
    if (cost := results.get("sv", {}).get("min_dcf_0.05")) is not None:
        values["min_dcf"] = cost
    if found := (results.get(OWNER) or {}).get(f"enrolled_{HEADLINE}"):
        values[OWNER_EER] = found["owner_and_word"]["eer"]
    return values


def _intervals(outcomes: Sequence[Outcome], tasks: Mapping[str, type[BaseTask]]) -> dict[str, list[float] | None]:
    """95 % interval of each headline metric's mean over seeds, see `BaseTask.interval`; None where there is none."""
    found: dict[str, list[float] | None] = {}
    for key, name in _headlines(outcomes[0].results, tasks).items():
        arrays = [_arrays_of(name, outcome.scores) for outcome in outcomes]
        interval = tasks[name].interval(arrays)
        found[key] = None if interval is None else list(interval)
    if all(OWNER_EER in _values(outcome.results, tasks) for outcome in outcomes):
        found[OWNER_EER] = interval_of_runs([outcome.scores for outcome in outcomes])
    return found


def _arrays_of(task: str, scores: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays of one task in a run's file of scores, by the names that the task gives them."""
    return {key.removeprefix(f"{task}_"): array for key, array in scores.items() if key.startswith(f"{task}_")}


def published(suite: Suite, model: str, setting: str) -> dict[str, Any] | None:
    """Published ``kws_accuracy``, ``sv_eer``, ``parameters`` (millions), ``sources`` of a cell; None: unpublished."""
    name, our_setting = suite.models[model].published, suite.settings[setting]
    if suite.results == "paper":
        for row in read_paper_results():
            if (row.model, row.setting) == (name, our_setting.published):
                return {**{key: getattr(row, key) for key in (*METRICS, "parameters")}, "sources": [row.source.url]}
    if suite.results == "superb" and setting in PUBLISHED_AS:
        for row in read_baselines():
            if row.upstream == name:
                number = {PUBLISHED_AS[setting]: getattr(row, setting)}
                return {**number, "parameters": row.parameters, "sources": [s.url for s in row.sources.values()]}
    return None


def make_row(
    suite: Suite, model: str, setting: str, outcomes: Sequence[Outcome], tasks: Mapping[str, type[BaseTask]]
) -> dict[str, Any]:
    """The row of one cell of the suite, of values that JSON can represent.

    Args:
        outcomes: One for each seed, including those that failed.
        tasks: See `run_tasks`.
    """
    label = suite.settings[setting].label
    row: dict[str, Any] = {"name": f"{model}, {label}" if label else model, "model": model, "setting": setting}
    row["errors"] = {str(o.run.seed): o.error for o in outcomes if o.error is not None}
    row["published"] = published(suite, model, setting)
    done = [outcome for outcome in outcomes if outcome.results is not None and outcome.scores is not None]
    if not done:
        return row
    row["seeds"] = [{"seed": outcome.run.seed, **_values(outcome.results, tasks)} for outcome in done]
    for key in set.intersection(*(set(seed) for seed in row["seeds"])) - {"seed"}:  # older results have fewer
        values = [seed[key] for seed in row["seeds"]]
        row[key] = float(np.mean(values))
        if len(values) > 1:
            row[f"{key}_deviation"] = float(np.std(values, ddof=1))
    row["intervals"] = _intervals(done, tasks)
    upstreams = [outcome.results["upstream"] for outcome in done]
    heads = sum(done[0].results.get("head_parameters", {}).values())
    row["parameters"], row["macs_per_second"] = upstreams[0]["parameters"] + heads, upstreams[0]["macs_per_second"]
    row["rtf"] = float(np.median([upstream["rtf"] for upstream in upstreams]))
    row["device"] = done[0].results.get("device")
    row["rtf_with_other_load"] = any(upstream.get("with_other_load") for upstream in upstreams)
    smaller = [smaller_tests(outcome.results) for outcome in done] if suite.results else []
    reasons = [*(outcome.results.get("trial", []) for outcome in done), *smaller]
    row["trial"] = list(dict.fromkeys(reason for of_run in reasons for reason in of_run))
    return row


def add_differences(rows: Sequence[dict[str, Any]], reference: str | None) -> None:
    """Add ``differences`` to the rows in place: of each task's figure from that of the run ``reference``.

    A run is compared with the reference's run of the same seed. ``differences`` has, by the key of the figure, the mean
    over the seeds that both have, and with several such seeds the standard deviation as ``KEY_deviation``.
    """
    compared = next((row for row in rows if f"{row['model']}/{row['setting']}" == reference), {})
    figures = {seed["seed"]: seed for seed in compared.get("seeds", ())}
    for row in rows:
        pairs = [(seed, figures[seed["seed"]]) for seed in row.get("seeds", ()) if seed["seed"] in figures]
        if row is compared or not pairs:
            continue
        row["differences"] = {}
        for key in [key for key in row["intervals"] if all(key in one and key in other for one, other in pairs)]:
            found = [one[key] - other[key] for one, other in pairs]
            row["differences"][key] = float(np.mean(found))
            if len(found) > 1:
                row["differences"][f"{key}_deviation"] = float(np.std(found, ddof=1))
