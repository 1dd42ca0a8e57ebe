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

from distilled_student.benchmark.commands import Bench
from distilled_student.benchmark.suite import Run
from distilled_student.benchmark.superb_results import EXPERTS
from distilled_student.checkpoints.folder import CONFIG, load_student, save_student
from distilled_student.common.devices import pick_device
from distilled_student.common.errors import UserError
from distilled_student.common.files import read_json, write_json
from distilled_student.common.interruption import Interrupted
from distilled_student.host import launch
from distilled_student.student import cost
from distilled_student.student.network import build_student

log = logging.getLogger(__name__)
RESULTS, SCORES, RECORD = "results.json", "scores-test.npz", "run.json"
CHECKPOINTS = ("states-*.ckpt", "step-*.pt")  # of joint training and of distillation


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
    found = any(path for pattern in CHECKPOINTS for path in folder.rglob(pattern))
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
    if not before:
        raise UserError(f"{record}: holds no settings: choose another --output or remove {folder}")
    for key in {**now, **before}:
        if before.get(key) != now.get(key):
            was = f"{key} was {before.get(key)}, is {now.get(key)}"
            raise UserError(f"{record}: {was}: choose another --output or remove {folder}")


def _seconds(folder: Path) -> float:
    """Of all attempts at a training; one that was killed counts up to its last checkpoint."""
    if not ((folder / RECORD).is_file() and _began(folder)):
        return 0.0
    record = read_json(folder / RECORD)
    saved = [path.stat().st_mtime for pattern in CHECKPOINTS for path in folder.rglob(pattern)]
    killed = max([0.0, *(last - record["started"] for last in saved)]) if "started" in record else 0.0
    return record.get("seconds", 0.0) + killed


@contextmanager
def _timed(folder: Path, settings: dict[str, Any]) -> Iterator[None]:
    """Keep a training's settings and its seconds, see `_seconds`."""
    before, start = _seconds(folder), time.monotonic()  # the other clock may be set meanwhile
    write_json(folder / RECORD, {"settings": settings, "seconds": before, "started": time.time()})
    try:
        yield
    finally:
        write_json(folder / RECORD, {"settings": settings, "seconds": before + time.monotonic() - start})


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
    last = expdir / f"states-{steps}.ckpt"
    if not last.is_file():
        command = bench.command(run, expdir)
        log.info("run_downstream.py %s", shlex.join(command))
        with _timed(folder, bench.settings(run)):
            launch.run(command)
        if not last.is_file():
            raise UserError(f"{expdir}: the training has ended without {last.name}")
    return expdir


def _evaluate_checkpoint(bench: Bench, run: Run, checkpoint: Path) -> None:
    """s3prl's evaluation on the test data as it lies now, into the checkpoint's folder where that is now."""
    pairs = ",,".join(bench.places(run, checkpoint.parent))
    device = ["--device", bench.device] if bench.device else []
    launch.run(["-m", "evaluate", "-e", str(checkpoint), "-t", "test", *device, "-o", pairs])


def _upstream_cost(bench: Bench, run: Run) -> dict[str, Any]:
    from s3prl import hub

    upstream = getattr(hub, bench.suite.models[run.model].upstream)(ckpt=bench.upstream_weights(run))
    return cost.summary(upstream.to(pick_device(bench.device)))


def _evaluate(bench: Bench, run: Run, expdir: Path) -> None:
    """Write ``results.json`` and ``scores-test.npz`` into the run's folder."""
    folder, downstream = expdir.parent, bench.suite.settings[run.setting].downstream
    if downstream == "multitask":
        from distilled_student.multitask.evaluate import TIMING, evaluate

        results = evaluate(expdir, device=bench.device, overrides=bench.places(run, expdir))
        results["upstream"] |= read_json(expdir / TIMING)
        shutil.copyfile(expdir / SCORES, folder / SCORES)
    else:
        evaluate_checkpoint = functools.partial(_evaluate_checkpoint, bench, run)
        results, arrays = EXPERTS[downstream](expdir, bench.configuration(run), evaluate_checkpoint)
        results["upstream"] = _upstream_cost(bench, run)
        np.savez_compressed(folder / SCORES, **arrays)
    results |= {"train_seconds": _seconds(folder), "device": pick_device(bench.device)}
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
    results = read_json(folder / RESULTS)
    if lacking := {"train_seconds", "upstream"} - results.keys():
        raise UserError(
            f"{folder / RESULTS}: lacks {', '.join(sorted(lacking))}; remove it, and the run is evaluated anew"
        )
    try:
        with np.load(folder / SCORES) as arrays:
            return Outcome(run, results, dict(arrays))
    except Exception as error:  # whatever numpy raises on a damaged file, or on pickled objects, which it does not load
        raise UserError(f"{folder / SCORES}: is damaged ({error}); remove it, and the run is evaluated anew") from None


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
    except Interrupted:  # everything, not this run alone
        raise
    except UserError as error:
        log.error("%s, seed %d: %s", run.name, run.seed, error)
        return Outcome(run, error=str(error))
    except (Exception, SystemExit) as error:  # whatever torch or s3prl raise; the other runs go on
        log.exception("%s, seed %d", run.name, run.seed)
        return Outcome(run, error=f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")
