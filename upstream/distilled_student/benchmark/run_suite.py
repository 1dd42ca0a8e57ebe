"""``distilled-student benchmark``: plans the runs of a suite, estimates their cost, runs them, writes the report."""

from __future__ import annotations

import contextlib
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from distilled_student.benchmark.commands import Bench
from distilled_student.benchmark.estimate import HALF, OVERHEAD, Estimate, Estimator
from distilled_student.benchmark.execute import Outcome, execute, finished
from distilled_student.benchmark.report import draw, print_table, write_report
from distilled_student.benchmark.rows import add_differences, make_row, run_tasks
from distilled_student.benchmark.suite import Run, plan, read_suite
from distilled_student.benchmark.trials import smaller_corpora, title_of
from distilled_student.checkpoints.folder import CONFIG
from distilled_student.common.devices import pick_device
from distilled_student.common.early_checks import check_rate
from distilled_student.common.errors import UserError
from distilled_student.common.other_load import needs_more_cores, other_load
from distilled_student.common.progress import Progress
from distilled_student.student.cost import peak_flops

console = Console()


def open_bench(
    suite: str | Path,
    data: Path,
    output: Path,
    students: Path | None = None,
    steps: int | None = None,
    device: str | None = None,
    **more: list[str],
) -> Bench:
    """Read a suite, by name or file, and check the options of its runs.

    Args:
        students: Default: ``output/distill``.
        more: ``distil`` and ``joint``. For these and the other arguments see `Bench`.

    Raises:
        UserError: no such suite, an error in its file, an unusable folder, or a number of steps that is not positive.
    """
    if steps is not None and steps < 1:
        raise UserError(f"--steps {steps}: must be 1 or more")
    for option, folder in {"--data": data, "--output": output, "--students": students}.items():
        if folder is not None and ",," in str(folder):
            raise UserError(
                f"{option} {folder}: two commas separate settings of run_downstream.py: choose another name"
            )
    students = students or output / "distill"
    return Bench(read_suite(suite), data.absolute(), output.absolute(), students.absolute(), steps, device, **more)


def rows_of(bench: Bench, outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """The report's rows, one for each cell, in the suite's order."""
    cells: dict[tuple[str, str], list[Outcome]] = {}
    for outcome in outcomes:
        cells.setdefault((outcome.run.model, outcome.run.setting), []).append(outcome)
    order = {(run.model, run.setting): index for index, run in enumerate(plan(bench.suite, 1, extra=True))}
    rows = []
    for cell in sorted(cells, key=lambda cell: order[cell]):
        finished_runs = [outcome.run for outcome in cells[cell] if outcome.results is not None]
        # the settings of a failed run may be wrong
        tasks = run_tasks(bench.settings(finished_runs[0])) if finished_runs else {}
        rows.append(make_row(bench.suite, *cell, cells[cell], tasks))
    add_differences(rows, bench.suite.reference)
    return rows


def _initial_outcomes(bench: Bench, runs: Sequence[Run]) -> dict[Run, Outcome]:
    """Outcomes of ``runs`` before any of them is executed, and of all other finished runs of the suite."""
    names = [path.name for path in (bench.output / "runs").glob("*/*/*")]
    seeds = [int(found[1]) for name in names if (found := re.fullmatch(r"seed-(\d+)", name))]
    outcomes = {run: Outcome(run, error="not run yet") for run in runs}
    for run in plan(bench.suite, 1 + max([0, *seeds]), extra=True):
        with contextlib.suppress(UserError):  # other settings or damaged: reported when the run is executed
            if (outcome := finished(bench, run)) is not None:
                outcomes[run] = outcome
    return outcomes


def run_suite(bench: Bench, runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Run what is missing, and write the report again after every run.

    The images are drawn at the end or at an interruption. The report includes runs that earlier calls finished in the
    same output folder.

    Returns:
        The report's rows, see `make_row`.
    """
    outcomes = _initial_outcomes(bench, runs)
    rows = rows_of(bench, list(outcomes.values()))
    try:
        with Progress(len(runs), bench.suite.title) as progress:
            for number, run in enumerate(runs, start=1):
                console.rule(f"{number}/{len(runs)}: {run.name}, seed {run.seed}")
                outcomes[run] = execute(bench, run)
                if outcomes[run].error is not None:
                    console.print(outcomes[run].error, style="red", markup=False, soft_wrap=True)
                rows = rows_of(bench, list(outcomes.values()))
                write_report(bench.output, bench.suite, rows)
                progress.update()
    finally:
        images = draw(bench.output, bench.suite, rows, list(outcomes.values()))
        write_report(bench.output, bench.suite, rows, images)
    title = title_of(bench.suite.title, rows)
    print_table(bench.suite, rows, f"{title}; report: {bench.output / 'report.md'}")
    if unfinished := sum(outcomes[run].results is None for run in runs):
        console.print(f"{unfinished} of {len(runs)} runs are not finished: the report says why")
    return rows


def _state(bench: Bench, run: Run) -> str:
    """``done``, ``no data``, ``small data``, ``to do``, or the error in the run's folder."""
    try:
        if finished(bench, run) is not None:
            return "done"
        return _data_state(bench, run, bench.missing(run))
    except UserError as error:
        return str(error)


def _data_state(bench: Bench, run: Run, missing: Sequence[str], distillation: bool = False) -> str:
    """``no data``, ``small data`` (fewer files than published) or ``to do``."""
    if missing:
        return "no data"
    return "small data" if smaller_corpora(bench, run, distillation) else "to do"


def _hours(hours: float) -> str:
    """Hours with one decimal, or two digits below an hour."""
    return f"{hours:,.1f}" if hours >= 1 else f"{hours:.2g}"


def measured_tflops(device: str | None) -> float:
    """The speed of the fastest matrix products in float32 on a device, in 1e12 operations per second."""
    return peak_flops(torch.device(pick_device(device)), torch.float32) / 1e12


def dry_run(bench: Bench, runs: Sequence[Run], tflops: float | None = None, verbose: bool = False) -> Estimate:
    """Print the runs, the estimated cost of each, and missing data. Writes nothing.

    Args:
        tflops: Speed that the device is assumed to sustain in float32, in 1e12 operations per second. None: that of the
            fastest matrix products on the bench's device, which is measured.
        verbose: Print the commands too.

    Returns:
        The sum over the runs that are not done.
    """
    source = ""
    if tflops is None:
        tflops = measured_tflops(bench.device)
        load = " with other load" if needs_more_cores(other_load(), torch.get_num_threads()) else ""
        source = f", measured{load} with matrix products on {pick_device(bench.device)}: trainings are slower"
    estimator, left, ready = Estimator(bench), Estimate(), Estimate()
    table = Table(title=bench.suite.title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for heading, justify in {"run": "left", "seeds": "left", "state": "left", "steps": "right"}.items():
        table.add_column(heading, justify=justify, overflow="fold", no_wrap=heading == "run")
    for heading in ("audio h", "hours"):
        table.add_column(heading, justify="right")
    lines: dict[tuple[str, str], tuple[list[str], Estimate]] = {}
    for run in runs:
        if bench.suite.models[run.model].distill:
            state = _data_state(bench, run, bench.missing_to_distil(run), distillation=True)
            state = "done" if (bench.student(run) / CONFIG).is_file() else state
            name, seed = f"distill {bench.suite.models[run.model].distill}", str(bench.distillation(run)[0].seed)
            if (name, state) not in lines:
                lines[name, state] = [], estimator.distillation(run)
            if seed not in lines[name, state][0]:
                lines[name, state][0].append(seed)
        if (key := (run.name, _state(bench, run))) not in lines:
            lines[key] = [], estimator.training(run)
        lines[key][0].append(str(run.seed))
    for (name, state), (seeds, estimate) in lines.items():
        hours = _hours(estimate.audio_hours), _hours(estimate.hours(tflops))
        table.add_row(name, " ".join(seeds), state, f"{estimate.steps:,}", *hours)
        all_seeds = sum([estimate] * len(seeds), Estimate())
        left += all_seeds if state != "done" else Estimate()
        ready += all_seeds if state == "to do" else Estimate()
    console.print(table)
    console.print(
        f"Left: {_hours(left.hours(tflops))} hours, {_hours(ready.hours(tflops))} of them with the available data. "
        f"Estimated, not measured: {_hours(left.audio_hours)} hours of audio, {_hours(left.operations / 1e15)} PFLOP "
        f"at {tflops:.3g} TFLOP/s{source} (float32; half precision assumed {HALF} times as fast), {left.steps:,} steps "
        f"with {OVERHEAD} s of overhead; heads are not counted."
    )
    missing = dict.fromkeys(line for run in runs for line in bench.missing(run))
    kinds = [(run, distillation) for run in runs for distillation in (True, False)]
    small = dict.fromkeys(line for run, kind in kinds for line in smaller_corpora(bench, run, kind))
    missing |= dict.fromkeys(f"small data: {line} in {bench.data}: runs on it are trials, no results" for line in small)
    commands: dict[str, None] = {}  # in order, without duplicates
    for run in runs if verbose else ():
        if bench.suite.models[run.model].distill:
            commands[shlex.join(["distilled-student", *bench.distil_command(run)])] = None
        commands[shlex.join(["run_downstream.py", *bench.command(run, run.folder(bench.output) / "experiment")])] = None
    for line in [*missing, *commands]:
        console.print(line, style="dim", markup=False, soft_wrap=True, highlight=False)
    return left


def benchmark(
    bench: Bench,
    seeds: int | None = None,
    only: Sequence[str] = (),
    extra: bool = False,
    tflops: float | None = None,
    dry: bool = False,
    verbose: bool = False,
) -> list[dict[str, Any]]:
    """The command ``benchmark``, see its help; with ``dry`` or ``tflops`` a dry run. Returns the report's rows."""
    if seeds is not None and seeds < 1:
        raise UserError(f"--seeds {seeds}: must be 1 or more")
    check_rate("--tflops", tflops)
    runs = plan(bench.suite, seeds or bench.suite.seeds, only, extra)
    if tflops is None and not dry:
        return run_suite(bench, runs)
    dry_run(bench, runs, tflops, verbose)
    return []
