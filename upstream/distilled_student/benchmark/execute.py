"""Runs what is missing and goes on with what was interrupted; a run that fails does not stop the others."""

from __future__ import annotations

import json
import logging
import os
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
from distilled_student.benchmark.suite import Run, slug
from distilled_student.benchmark.superb import EXPERTS
from distilled_student.errors import UserError
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


def write_json(path: Path, content: Any) -> None:
    """Beside, then renamed: a reader never sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"{path.name}.new")
    beside.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    os.replace(beside, path)


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _check(record: Path, settings: dict[str, Any]) -> None:
    """Raise UserError where a record of a training says that it had other settings."""
    before = _read_json(record).get("settings")
    for key, value in json.loads(json.dumps(settings)).items():
        if before is not None and before.get(key) != value:
            raise UserError(
                f"{record}: {key} was {before.get(key)}, is {value}: choose another --output or remove {record.parent}"
            )


@contextmanager
def _timed(record: Path, settings: dict[str, Any]) -> Iterator[None]:
    """Keep a training's settings and its seconds, all attempts together."""
    before, start = _read_json(record).get("seconds", 0.0), time.monotonic()
    write_json(record, {"settings": settings, "seconds": before})
    try:
        yield
    finally:
        if any(record.parent.rglob("states-*.ckpt")) or any(record.parent.rglob("step-*.pt")):
            write_json(record, {"settings": settings, "seconds": before + time.monotonic() - start})
        else:  # it never began: nothing binds the next attempt
            record.unlink()


def _distil(bench: Bench, run: Run) -> None:
    from distilled_student.distillation.config import lasting
    from distilled_student.distillation.train import distill

    config, path = bench.distillation(run)
    folder, settings = bench.student(run), {**lasting(config), "steps": config.steps}
    settings = {key: value for key, value in settings.items() if key not in ("teacher", "data.paths")}  # may be moved
    _check(folder / RECORD, settings)
    if not (folder / CONFIG).is_file():
        with _timed(folder / RECORD, settings):
            distill(config, path)
    if bench.suite.models[run.model].untrained and not (bench.untrained(run) / CONFIG).is_file():
        torch.manual_seed(run.seed)
        save_student(build_student(load_student(folder).config), bench.untrained(run))


def _train(bench: Bench, run: Run) -> Path:
    folder = run.folder(bench.output)
    expdir = folder / "experiment"
    if not (expdir / f"states-{bench.total_steps(run)}.ckpt").is_file():
        command = bench.command(run, expdir)
        log.info("run_downstream.py %s", " ".join(command))
        with _timed(folder / RECORD, bench.settings(run)):
            host.run(command)
    return expdir


def _evaluate(bench: Bench, run: Run, expdir: Path) -> None:
    """Write ``results.json`` and ``scores-test.npz`` into the run's folder."""
    folder, downstream = expdir.parent, bench.suite.settings[run.setting].downstream
    if downstream == "multitask":
        from distilled_student.multitask.evaluate import evaluate

        results = evaluate(expdir, device=bench.device, overrides=bench.moved(run))
        shutil.copyfile(expdir / SCORES, folder / SCORES)
    else:
        results, arrays = EXPERTS[downstream](expdir, bench.device)
        np.savez_compressed(folder / SCORES, **arrays)
    results["train_seconds"] = _read_json(folder / RECORD).get("seconds", 0.0)
    write_json(folder / RESULTS, results)


def finished(bench: Bench, run: Run) -> Outcome | None:
    """What a run that was evaluated has found; None for one that was not. Raises UserError for other settings."""
    folder = run.folder(bench.output)
    _check(folder / RECORD, bench.settings(run))
    if not (folder / RESULTS).is_file():
        return None
    with np.load(folder / SCORES) as arrays:
        return Outcome(run, _read_json(folder / RESULTS), dict(arrays))


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
        return finished(bench, run)
    except UserError as error:
        log.error("%s, seed %d: %s", run.name, run.seed, error)
        return Outcome(run, error=str(error))
    except (RuntimeError, OSError, ValueError, ImportError) as error:  # of torch or s3prl: the others still run
        log.exception("%s, seed %d", run.name, run.seed)
        return Outcome(run, error=f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")


def upstream_cost(bench: Bench, run: Run) -> dict[str, Any]:
    """Parameters, multiply-accumulates and real-time factor of a run's upstream, measured once and kept."""
    record = bench.output / "upstreams" / f"{slug(run.model)}.json"
    if not record.is_file():
        host.register()
        from s3prl import hub

        command = bench.command(run, bench.output)
        weights = command[command.index("-k") + 1] if "-k" in command else None
        upstream = getattr(hub, bench.suite.models[run.model].upstream)(ckpt=weights)
        write_json(record, cost.summary(upstream.to(host.pick_device(bench.device))))
    return _read_json(record)
