"""Runs what is missing and goes on with what was interrupted; a run that fails does not stop the others."""

from __future__ import annotations

import functools
import json
import logging
import shlex
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from distilled_student import cost, host
from distilled_student.benchmark.commands import Bench
from distilled_student.benchmark.suite import Run
from distilled_student.benchmark.superb import EXPERTS
from distilled_student.errors import UserError
from distilled_student.files import read_json, write_json
from distilled_student.storage import CONFIG, load_student, save_student
from distilled_student.student import build_student

log = logging.getLogger(__name__)
RESULTS, SCORES, RECORD = "results.json", "scores-test.npz", "run.json"


@dataclass(frozen=True)
class Outcome:
    """A run's results, as in its ``results.json``, and its scores; or why there are none."""

    run: Run
    results: dict[str, Any] | None = None
    scores: dict[str, np.ndarray] | None = None
    error: str | None = None


def _began(folder: Path) -> bool:
    """Whether there is anything in a folder of a training that its settings bind."""
    made = (RESULTS, CONFIG)
    found = any(folder.rglob("states-*.ckpt")) or any(folder.rglob("step-*.pt"))
    return found or any((folder / name).is_file() for name in made)


def _flat(values: Any, key: str = "") -> dict[str, Any]:
    if not isinstance(values, dict):
        return {key: values}
    return {k: v for name, value in values.items() for k, v in _flat(value, f"{key}.{name}".lstrip(".")).items()}


def _check(folder: Path, settings: dict[str, Any]) -> None:
    """Raise UserError where a training in this folder had other settings."""
    record = folder / RECORD
    if not record.is_file() or not _began(folder):
        return
    before, now = _flat(read_json(record).get("settings", {})), _flat(json.loads(json.dumps(settings)))
    for key in {**now, **before}:
        if before.get(key) != now.get(key):
            was = f"{key} was {before.get(key)}, is {now.get(key)}"
            raise UserError(f"{record}: {was}: choose another --output or remove {folder}")


@contextmanager
def _timed(folder: Path, settings: dict[str, Any]) -> Iterator[None]:
    """Keep a training's settings and its seconds, all attempts together."""
    record = folder / RECORD
    before = read_json(record).get("seconds", 0.0) if record.is_file() and _began(folder) else 0.0
    start = time.monotonic()
    write_json(record, {"settings": settings, "seconds": before})
    try:
        yield
    finally:
        write_json(record, {"settings": settings, "seconds": before + time.monotonic() - start})


def _distil(bench: Bench, run: Run) -> None:
    from distilled_student.distillation.train import distill

    folder, untrained = bench.student(run), bench.untrained(run)
    _check(folder, bench.distilled(run))
    if not (folder / CONFIG).is_file():
        with _timed(folder, bench.distilled(run)):
            distill(*bench.distillation(run))
    if bench.suite.models[run.model].untrained and not (untrained / CONFIG).is_file():
        torch.manual_seed(run.seed)
        save_student(build_student(load_student(folder).config), untrained)


def _train(bench: Bench, run: Run) -> Path:
    folder = run.folder(bench.output)
    expdir, steps = folder / "experiment", bench.configuration(run)["runner"]["total_steps"]
    if not (expdir / f"states-{steps}.ckpt").is_file():
        command = bench.command(run, expdir)
        log.info("run_downstream.py %s", shlex.join(command))
        with _timed(folder, bench.settings(run)):
            host.run(command)
    return expdir


def _evaluate_checkpoint(bench: Bench, run: Run, checkpoint: Path) -> None:
    """s3prl's evaluation on the test data as it lies now, into the checkpoint's folder where that is now."""
    pairs = ",,".join([f"args.expdir={checkpoint.parent}", *bench.moved(run)])
    device = ["--device", bench.device] if bench.device else []
    host.run(["-m", "evaluate", "-e", str(checkpoint), "-t", "test", *device, "-o", pairs])


def _upstream_cost(bench: Bench, run: Run) -> dict[str, Any]:
    from s3prl import hub

    command = bench.command(run, bench.output)
    weights = command[command.index("-k") + 1] if "-k" in command else None
    upstream = getattr(hub, bench.suite.models[run.model].upstream)(ckpt=weights)
    return cost.summary(upstream.to(host.pick_device(bench.device)))


def _evaluate(bench: Bench, run: Run, expdir: Path) -> None:
    """Write ``results.json`` and ``scores-test.npz`` into the run's folder."""
    folder, downstream = expdir.parent, bench.suite.settings[run.setting].downstream
    if downstream == "multitask":
        from distilled_student.multitask.evaluate import evaluate

        results = evaluate(expdir, device=bench.device, overrides=bench.moved(run))
        shutil.copyfile(expdir / SCORES, folder / SCORES)
    else:
        evaluate_checkpoint = functools.partial(_evaluate_checkpoint, bench, run)
        results, arrays = EXPERTS[downstream](expdir, bench.configuration(run), evaluate_checkpoint)
        results["upstream"] = _upstream_cost(bench, run)
        np.savez_compressed(folder / SCORES, **arrays)
    results |= {"train_seconds": read_json(folder / RECORD)["seconds"], "device": host.pick_device(bench.device)}
    write_json(folder / RESULTS, results)


def finished(bench: Bench, run: Run) -> Outcome | None:
    """What a run that was evaluated has found; None for one that was not.

    Raises:
        UserError: its folder holds results of other settings, or damaged ones.
    """
    folder = run.folder(bench.output)
    _check(folder, bench.settings(run))
    if not ((folder / RESULTS).is_file() and (folder / SCORES).is_file()):
        return None
    with np.load(folder / SCORES) as arrays:
        return Outcome(run, read_json(folder / RESULTS), dict(arrays))


def execute(bench: Bench, run: Run) -> Outcome:
    """A run to its end, as far as it is not there yet; what went wrong is in the outcome, not raised."""
    try:
        if (outcome := finished(bench, run)) is not None:
            return outcome
        if lacking := bench.missing(run):
            return Outcome(run, error="; ".join(lacking))
        if bench.suite.models[run.model].distill:
            _distil(bench, run)
        _evaluate(bench, run, _train(bench, run))
        return finished(bench, run) or Outcome(run, error="left no results")
    except UserError as error:
        log.error("%s, seed %d: %s", run.name, run.seed, error)
        return Outcome(run, error=str(error))
    except (Exception, SystemExit) as error:  # whatever torch or s3prl raise; the other runs go on
        log.exception("%s, seed %d", run.name, run.seed)
        return Outcome(run, error=f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")
