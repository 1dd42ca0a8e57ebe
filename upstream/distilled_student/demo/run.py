"""The demo: distil, fine-tune jointly, evaluate, compare; offline, from what ships in the package."""

from __future__ import annotations

import datetime
import os
import platform
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from distilled_student.demo.corpus import expand, fingerprint
from distilled_student.errors import UserError
from distilled_student.report import mean_rows, print_table, row, write_report
from distilled_student.settings import cache_folder, find_config, read_yaml, typed
from distilled_student.storage import load_student, save_student
from distilled_student.student import Student

console = Console()


def corpus_folder() -> Path:
    """The embedded corpus in both public layouts, expanded once."""
    folder = cache_folder() / f"corpus-{fingerprint()[:12]}"
    with console.status("expanding the embedded corpus"):
        try:
            return expand(folder)
        except OSError as error:
            raise UserError(f"{folder}: cannot be written ({error.strerror}); set XDG_CACHE_HOME") from None


def _has_fast_bf16() -> bool:
    """Whether bfloat16 is worth while here: without instructions of its own it is slower than float32."""
    able = getattr(torch.cpu, "get_capabilities", dict)()  # an older torch does not tell
    return torch.cuda.is_available() or any(value for name, value in able.items() if "bf16" in name)


def _distil(output: Path, corpus: Path, seed: int, overrides: list[str]) -> float:
    from distilled_student.distillation.config import DistillConfig
    from distilled_student.distillation.train import distill

    path = find_config("demo", "distill")
    own = {
        "output": str(output),
        "seed": seed,
        "precision": "bf16" if _has_fast_bf16() else "fp32",
        "data": {"paths": [str(corpus / "speech_commands" / "train"), str(corpus / "voxceleb1" / "dev")]},
    }
    values = read_yaml(path)
    values = {**values, **own, "data": {**values["data"], **own["data"]}}
    start = time.monotonic()
    distill(typed(DistillConfig, values, path, overrides), path)
    return time.monotonic() - start


def _fine_tune(expdir: Path, corpus: Path, upstream: list[str], seed: int, overrides: list[str]) -> float:
    from distilled_student import host

    tasks = "config.downstream_expert.tasks"
    pairs = [
        f"{tasks}.kws.train_root={corpus / 'speech_commands' / 'train'}",
        f"{tasks}.kws.test_root={corpus / 'speech_commands' / 'test'}",
        f"{tasks}.sv.root={corpus / 'voxceleb1'}",
        f"config.runner.bf16={_has_fast_bf16()}",
        *overrides,
    ]
    options = ["-s", "concatenated", "-d", "multitask", "-c", "demo"]
    command = ["-m", "train", *upstream, *options, "-p", str(expdir), "--seed", str(seed)]
    console.print("run_downstream.py", *command, style="dim", soft_wrap=True)
    start = time.monotonic()
    if host.main([*command, "-o", ",,".join(pairs)]) != 0:
        raise UserError(f"{expdir}: joint training failed; see the line above")
    return time.monotonic() - start


def _one_seed(folder: Path, corpus: Path, seed: int, distil: list[str], joint: list[str]) -> list[dict[str, Any]]:
    """All stages with one seed; the rows in the order of the report."""
    from distilled_student.multitask.evaluate import evaluate

    console.rule(f"seed {seed}: distil a student from the embedded teacher")
    _distil(folder / "student", corpus, seed, distil)
    torch.manual_seed(seed)
    save_student(Student(load_student(folder / "student").config), folder / "untrained")
    student, untrained = ["-u", "distilled_student", "-k", str(folder / "student")], str(folder / "untrained")
    runs = {
        "student": ([*student, "-f"], joint),
        "student, frozen": (student, joint),
        # random weights need the heads' learning rate, not the gentle one that keeps what was learned before
        "student, from scratch": (
            ["-u", "distilled_student", "-k", untrained, "-f"],
            ["config.runner.upstream_lr=null", *joint],
        ),
        "teacher": (["-u", "teacher", "-k", "shipped", "-f"], joint),
    }
    rows = []
    for name, (upstream, overrides) in runs.items():
        console.rule(f"seed {seed}: joint fine-tuning, {name}")
        expdir = folder / _slug(name)
        seconds = _fine_tune(expdir, corpus, upstream, seed, overrides)
        rows.append(row(name, evaluate(expdir), seconds))
    return rows


def _slug(name: str) -> str:
    return name.replace(", ", "-").replace(" ", "-")


def run_demo(
    output: Path,
    seeds: int = 1,
    distil: list[str] | None = None,
    joint: list[str] | None = None,
    corpus: Path | None = None,
) -> Path:
    """Run everything and write the report.

    Args:
        output: Folder of the report; runs go below ``output/runs``, which is made anew.
        seeds: Repetitions, with seeds 0, 1, ...
        distil, joint: ``key=value`` overrides of ``configs/distill/demo.yaml`` and ``configs/multitask/demo.yaml``
            (the latter in the meaning of ``run_downstream.py -o``).
        corpus: Folder with both layouts, instead of the embedded one.

    Returns:
        ``output/results.json``.
    """
    if seeds < 1:
        raise UserError(f"--seeds {seeds}: needs 1 or more")
    start = time.monotonic()
    runs = output / "runs"
    try:
        shutil.rmtree(runs, ignore_errors=True)
        runs.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"{output}: cannot be written ({error.strerror})") from None
    corpus = corpus or corpus_folder()
    rows = mean_rows([_one_seed(runs / f"seed-{s}", corpus, s, distil or [], joint or []) for s in range(seeds)])
    expdirs = {r["name"]: runs / "seed-0" / _slug(r["name"]) for r in rows}
    minutes = (time.monotonic() - start) / 60
    notes = (
        f"Made speech, {seeds} seed{'s' if seeds > 1 else ''}, {datetime.date.today()}, {platform.machine()} with "
        f"{os.cpu_count()} cores, {minutes:.1f} minutes. The teacher is the small stand-in that ships with the "
        "package, the corpus is synthetic: compare the rows with each other, not with published figures."
    )
    write_report(output, rows, expdirs, "Demo: one student, two tasks", notes)
    print_table(rows, f"Demo, {minutes:.1f} minutes; report: {output / 'report.md'}")
    return output / "results.json"
