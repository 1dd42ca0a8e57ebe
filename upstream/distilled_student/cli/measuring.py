"""The commands that measure: the demo, suites of runs, speed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from distilled_student.common.early_checks import (
    check_choice,
    check_device,
    check_file,
    check_folder,
    check_no_data,
    check_output_folder,
    check_positive,
    check_rate,
)
from distilled_student.common.errors import UserError


def register(app: typer.Typer, panel: str) -> None:
    """Add the commands to the command line; ``panel`` is their heading in its help."""
    for command in (demo, benchmark, speed):
        app.command(rich_help_panel=panel)(command)


def demo(
    output: Annotated[Path, typer.Option(help="Folder for runs, results and report.")] = Path("exp/demo"),
    seeds: Annotated[int, typer.Option(help="Number of seeds; everything is repeated with each.")] = 1,
) -> None:
    """Run the whole pipeline offline in some minutes: distil, train jointly, evaluate, compare."""
    check_positive("--seeds", seeds)
    check_output_folder("--output", output)
    from distilled_student.demo.run_demo import run_demo

    run_demo(output, seeds)


def benchmark(
    suite: Annotated[
        str, typer.Argument(help="paper, superb, edge, ablations, sizes, sizes-real, demo, or a YAML file.")
    ],
    data: Annotated[
        Path | None, typer.Option(help="Folder of corpora that `prepare` fills; demo and sizes ship their own.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Folder for runs and report; default: exp/benchmark/SUITE.")
    ] = None,
    students: Annotated[Path | None, typer.Option(help="Folder of distilled students that suites share.")] = None,
    seeds: Annotated[int | None, typer.Option(help="Number of seeds of every run; default: the suite's.")] = None,
    only: Annotated[
        list[str] | None, typer.Option(help="Only runs MODEL/SETTING that match, such as 'hubert/*'; can be repeated.")
    ] = None,
    extra: Annotated[bool, typer.Option("--all", help="Include the runs beyond the published tables.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print the runs and their estimated cost.")] = False,
    steps: Annotated[int | None, typer.Option(help="Stop every training after this many steps, as a trial.")] = None,
    device: Annotated[str | None, typer.Option(help="Device, such as cpu or cuda; default: the best one here.")] = None,
    tflops: Annotated[
        float | None,
        typer.Option(help="With --dry-run: TFLOP/s (float32) of another device; default: measured on this one."),
    ] = None,
    verbose: Annotated[bool, typer.Option("--verbose", help="With --dry-run: print the commands of all runs.")] = False,
) -> None:
    """Run a benchmark suite, resume what was interrupted, and report the results next to the published ones."""
    from distilled_student.benchmark.suite import plan, read_suite
    from distilled_student.common.settings import find_config
    from distilled_student.common.shipped_configs import shipped_configs

    check_positive("--seeds", seeds)
    check_positive("--steps", steps)
    check_rate("--tflops", tflops)
    check_device("--device", device)
    plan(read_suite(suite), 1, only or (), extra)  # raises for a name that is in no run
    shipped = shipped_configs()
    has_own_data = find_config(suite, "benchmark") in (shipped["benchmark/demo"], shipped["benchmark/sizes"])
    if data is None and not has_own_data:
        raise UserError("--data: no folder given; `distilled-student prepare` fills one")
    home, name = Path("exp/benchmark"), Path(suite).stem
    if not dry_run:
        check_folder("--data", data)
        check_output_folder("--output", output or home)
        check_output_folder("--students", students)
        named = [] if data is None else [("--data", str(data))]
        for option, folder in (("--output", output), ("--students", students)):
            check_no_data(option, folder, named if folder is not None else [])
    from distilled_student.benchmark.run_suite import benchmark as run
    from distilled_student.benchmark.run_suite import open_bench

    more: dict[str, list[str]] = {}
    if has_own_data:
        from distilled_student.corpora import embedded
        from distilled_student.demo.run_demo import precision

        data, more = data or embedded.cached(), precision()
    if output is None and steps is None and name != "demo":
        students = students or home / "distill"
    # a trial (--steps) has a folder of its own: its runs must not be taken for complete ones
    output = output or home / (name if steps is None else f"{name}-{steps}-steps")
    bench = open_bench(suite, data, output, students, steps, device, **more)
    run(bench, seeds, only or (), extra, tflops if dry_run else None, dry=dry_run, verbose=verbose)


def speed(
    output: Annotated[Path, typer.Option(help="Folder for results, table and profiles.")] = Path("exp/speed"),
    only: Annotated[str, typer.Option(help="Parts to measure, separated by commas; default: all.")] = "",
    rounds: Annotated[int, typer.Option(help="Number of repetitions of each measurement.")] = 7,
    accuracy: Annotated[
        list[str] | None, typer.Option(help="CORPUS=FILE with the results.json of a benchmark; can be repeated.")
    ] = None,
    history: Annotated[
        Path | None, typer.Option(help="File to append the results to; slower results are reported.")
    ] = None,
    report: Annotated[Path | None, typer.Option(help="Measure nothing; print the tables of this results.json.")] = None,
    into: Annotated[
        list[Path] | None, typer.Option(help="With --report: document to insert the tables into; can be repeated.")
    ] = None,
) -> None:
    """Measure the speed of the models on this machine, next to HuBERT base."""
    from distilled_student.speed.part_names import PART_NAMES

    parts = [name for name in only.split(",") if name]
    for name in parts:
        check_choice("--only", name, PART_NAMES)
    check_positive("--rounds", rounds)
    check_file("--report", report)
    for document in into or ():
        check_file("--into", document)
    for pair in accuracy or ():
        check_file("--accuracy", Path(pair.partition("=")[2]) if "=" in pair else None)
    if report is None:
        check_output_folder("--output", output)
    if history is not None and history.is_dir():
        raise UserError(f"--history {history}: is a folder; give the name of a file")
    from distilled_student.speed.measure_all import measure_parts, write_tables

    if report is not None:
        write_tables(report, accuracy or (), into or ())
    else:
        measure_parts(output, parts, rounds, accuracy or (), history)
