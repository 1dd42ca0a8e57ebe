"""The demo: the benchmark's suite of this name, from the beginning, on the corpus that ships with the package."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

from rich.console import Console

from distilled_student.benchmark.run_suite import open_bench, run_suite
from distilled_student.benchmark.suite import plan
from distilled_student.common.errors import UserError
from distilled_student.common.settings import cache_folder
from distilled_student.demo.corpus import expand, fingerprint
from distilled_student.student.cost import has_fast_bf16

console = Console()


def corpus_folder() -> Path:
    """The embedded corpus in both public layouts, expanded once."""
    folder = cache_folder() / f"corpus-{fingerprint()[:12]}"
    try:
        return expand(folder)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror}); set XDG_CACHE_HOME") from None


def precision() -> dict[str, list[str]]:
    """What a bench of the demo's suite is given for this machine's sake."""
    fast = has_fast_bf16()
    return {"distil": [f"precision={'bf16' if fast else 'fp32'}"], "joint": [f"config.runner.bf16={fast}"]}


def run_demo(
    output: Path,
    seeds: int = 1,
    distil: list[str] | None = None,
    joint: list[str] | None = None,
    corpus: Path | None = None,
) -> Path:
    """Run everything and write the report.

    Args:
        output: Folder of the report; what an earlier demo left there is removed.
        seeds: Repetitions, with seeds 0, 1, ...
        distil, joint: ``key=value`` overrides of ``configs/distill/demo.yaml`` and ``configs/multitask/demo.yaml``
            (the latter in the meaning of ``run_downstream.py -o``).
        corpus: Folder with both layouts, instead of the embedded one.

    Returns:
        ``output/results.json``.

    Raises:
        UserError: a setting that cannot be used, a folder that cannot be written, or a run that failed.
    """
    if seeds < 1:
        raise UserError(f"--seeds {seeds}: needs 1 or more")
    start = time.monotonic()
    try:
        for name in ("runs", "distill"):
            shutil.rmtree(output / name, ignore_errors=True)
        output.mkdir(parents=True, exist_ok=True)
        (output / "results.json").unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"{output}: cannot be written ({error.strerror})") from None
    own = precision()
    more = {"distil": own["distil"] + (distil or []), "joint": own["joint"] + (joint or [])}
    bench = open_bench("demo", corpus or corpus_folder(), output, **more)
    rows = run_suite(bench, plan(bench.suite, seeds))
    for row in rows:
        for error in row["errors"].values():
            raise UserError(f"{row['name']}: {error}")
    console.print(f"{(time.monotonic() - start) / 60:.1f} minutes")
    return output / "results.json"
