"""``distilled-student demo``: runs the benchmark's suite ``demo`` from the start, on the embedded corpus."""

from __future__ import annotations

import shlex
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from distilled_student.benchmark.commands import Bench
from distilled_student.benchmark.execute import finished
from distilled_student.benchmark.run_suite import open_bench, run_suite
from distilled_student.benchmark.suite import Run, plan, slug
from distilled_student.common.errors import UserError
from distilled_student.common.interruption import resumed_by
from distilled_student.corpora import embedded
from distilled_student.student.cost import has_fast_bf16

console = Console()


def precision() -> dict[str, list[str]]:
    """Overrides of a `Bench` that choose the precision by this machine: bf16 where it is fast."""
    fast = has_fast_bf16()
    return {"distil": [f"precision={'bf16' if fast else 'fp32'}"], "joint": [f"config.runner.bf16={fast}"]}


def _check_other_runs(bench: Bench) -> None:
    """Refuse a folder with runs of another suite, which a demo would remove."""
    own = {slug(model) for model in bench.suite.models}
    others = sorted(path.name for path in (bench.output / "runs").glob("*") if path.name not in own)
    if others:
        raise UserError(f"--output {bench.output}: holds runs of another suite ({others[0]}): choose another folder")


def _is_interrupted(bench: Bench, runs: Sequence[Run]) -> bool:
    """Whether the folder holds a part of these runs, with these settings."""
    if not any((bench.output / name).is_dir() for name in ("runs", "distill")):
        return False
    try:
        return any(finished(bench, run) is None for run in runs)
    except UserError:  # other settings or damaged
        return False


def _remove_runs(output: Path) -> None:
    """Remove what an earlier demo left. Raises UserError if the folder cannot be written."""
    try:
        for name in ("runs", "distill"):
            shutil.rmtree(output / name, ignore_errors=True)
        output.mkdir(parents=True, exist_ok=True)
        (output / "results.json").unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"{output}: cannot be written ({error.strerror})") from None


def run_demo(
    output: Path,
    seeds: int = 1,
    distil: list[str] | None = None,
    joint: list[str] | None = None,
    corpus: Path | None = None,
) -> Path:
    """Distil, train and evaluate, and write the report.

    Args:
        output: Folder of the report. An interrupted demo is resumed; the files of a finished one are removed.
        seeds: Number of repetitions, with seeds 0, 1, ...
        distil, joint: ``key=value`` overrides of ``configs/distill/demo.yaml`` and ``configs/multitask/demo.yaml``
            (the latter as for ``run_downstream.py -o``).
        corpus: Folder with both layouts; None: the embedded corpus.

    Returns:
        The path ``output/results.json``.

    Raises:
        UserError: an unusable setting, a folder that cannot be written, or a run that failed.
    """
    if seeds < 1:
        raise UserError(f"--seeds {seeds}: must be 1 or more")
    start = time.monotonic()
    overrides = precision()
    overrides = {"distil": overrides["distil"] + (distil or []), "joint": overrides["joint"] + (joint or [])}
    bench = open_bench("demo", corpus or embedded.cached(), output, **overrides)
    runs = plan(bench.suite, seeds)
    _check_other_runs(bench)
    if _is_interrupted(bench, runs):
        console.print(f"{output}: an earlier demo was interrupted: resuming it", soft_wrap=True)
    else:
        _remove_runs(output)
    command = ["distilled-student", "demo", "--output", str(output), *(["--seeds", str(seeds)] if seeds > 1 else [])]
    with resumed_by(shlex.join(command)):
        rows = run_suite(bench, runs)
    for row in rows:
        for error in row["errors"].values():
            raise UserError(f"{row['name']}: {error}")
    console.print(f"{(time.monotonic() - start) / 60:.1f} minutes")
    return output / "results.json"
