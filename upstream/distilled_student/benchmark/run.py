"""``distilled-student benchmark``: plan, estimate, run, report."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from distilled_student.benchmark.commands import Bench
from distilled_student.benchmark.estimate import Estimate, Estimator
from distilled_student.benchmark.execute import Outcome, execute, finished, upstream_cost
from distilled_student.benchmark.report import print_table, write_report
from distilled_student.benchmark.rows import make_row
from distilled_student.benchmark.suite import Run, plan, read_suite
from distilled_student.errors import UserError
from distilled_student.storage import is_student

console = Console()


def open_bench(
    suite: str | Path, data: Path, output: Path, steps: int | None = None, device: str | None = None, **more: list[str]
) -> Bench:
    """A suite by name or file, and where it runs; ``more``: see `Bench`.

    Raises:
        UserError: no such suite, a fault in its file, or a number of steps that is not positive.
    """
    if steps is not None and steps < 1:
        raise UserError(f"--steps {steps}: needs 1 or more")
    return Bench(read_suite(suite), data.absolute(), output.absolute(), steps, device, **more)


def rows_of(bench: Bench, outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """The report's rows, a cell each, in the suite's order."""
    cells: dict[tuple[str, str], list[Outcome]] = {}
    for outcome in outcomes:
        cells.setdefault((outcome.run.model, outcome.run.setting), []).append(outcome)
    rows = []
    for (model, setting), of in cells.items():
        done = next((outcome.run for outcome in of if outcome.results is not None), None)
        cost = upstream_cost(bench, done) if done else None
        rows.append(make_row(bench.suite, model, setting, of, cost))
    return rows


def run_suite(bench: Bench, runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Run what is missing; the report is written anew after every run, so that an interruption leaves one.

    Returns:
        The report's rows, see `make_row`.
    """
    outcomes: dict[Run, Outcome] = {run: Outcome(run, error="not run yet") for run in runs}
    rows: list[dict[str, Any]] = []
    for number, run in enumerate(runs, start=1):
        console.rule(f"{number}/{len(runs)}: {run.name}, seed {run.seed}")
        outcomes[run] = execute(bench, run)
        if outcomes[run].error is not None:
            console.print(outcomes[run].error, style="red", markup=False, soft_wrap=True)
        rows = rows_of(bench, list(outcomes.values()))
        write_report(bench.output, bench.suite, rows, list(outcomes.values()))
    print_table(bench.suite, rows, f"{bench.suite.title}; report: {bench.output / 'report.md'}")
    return rows


def _state(bench: Bench, run: Run) -> str:
    try:
        if finished(bench, run) is not None:
            return "done"
        return "data missing" if bench.missing(run) else "to do"
    except UserError as error:
        return str(error)


def dry_run(bench: Bench, runs: Sequence[Run], tflops: float) -> Estimate:
    """Print the runs, what each will cost, and their commands; nothing is written.

    Args:
        tflops: What the device is taken to sustain, in 1e12 operations a second.

    Returns:
        The sum over what is to do.
    """
    estimator, total = Estimator(bench), Estimate()
    table = Table(title=bench.suite.title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("run", "seed", "state", "steps", "audio h", "PFLOP", "hours"):
        table.add_column(heading, justify="left" if heading in ("run", "state") else "right")
    seen, commands, lacking = set(), [], {}
    for run in runs:
        folder = bench.student(run)
        work = [(f"{run.name}", str(run.seed), _state(bench, run), estimator.run(run))]
        if bench.suite.models[run.model].distill and folder not in seen:
            seen.add(folder)
            state = "done" if is_student(folder) else work[0][2]
            name = f"distill {bench.suite.models[run.model].distill}"
            work.insert(0, (name, str(bench.distillation(run)[0].seed), state, estimator.distillation(run)))
        for name, seed, state, estimate in work:
            figures = (
                f"{estimate.audio_hours:,.1f}",
                f"{estimate.operations / 1e15:,.1f}",
                f"{estimate.hours(tflops):,.1f}",
            )
            table.add_row(name, seed, state, f"{estimate.steps:,}", *figures)
            total += estimate if state != "done" else Estimate()
        lacking |= dict.fromkeys(bench.missing(run))
        if run.seed == 0:
            commands.append(
                shlex.join(["run_downstream.py", *bench.command(run, run.folder(bench.output) / "experiment")])
            )
    console.print(table)
    console.print(
        f"To do: {total.hours(tflops):,.1f} hours, an estimate: {total.operations / 1e15:,.0f} PFLOP at {tflops:g} TFLOP/s "
        f"and {total.steps:,} steps; heads are not counted."
    )
    for line in [*lacking, *commands]:
        console.print(line, style="dim", markup=False, soft_wrap=True, highlight=False)
    return total


def benchmark(
    suite: str | Path,
    data: Path,
    output: Path,
    seeds: int | None = None,
    only: Sequence[str] = (),
    extra: bool = False,
    estimate: bool = False,
    steps: int | None = None,
    device: str | None = None,
    tflops: float = 10.0,
    **more: list[str],
) -> list[dict[str, Any]]:
    """The command; see its help. ``estimate`` is ``--dry-run``, ``more``: see `Bench`. Returns the rows of the report."""
    bench = open_bench(suite, data, output, steps, device, **more)
    if seeds is not None and seeds < 1:
        raise UserError(f"--seeds {seeds}: needs 1 or more")
    if not tflops > 0:
        raise UserError(f"--tflops {tflops}: needs a positive number")
    runs = plan(bench.suite, seeds or bench.suite.seeds, only, extra)
    if estimate:
        dry_run(bench, runs, tflops)
        return []
    return run_suite(bench, runs)
