"""Executes a named run: distils, trains and evaluates what is missing, and resumes an interrupted training."""

from __future__ import annotations

import functools
import json
import logging
import shlex
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import patch_environment

from distilled_student.benchmark.commands import STUDENT_DATA, Bench
from distilled_student.benchmark.suite import Run
from distilled_student.benchmark.superb_results import EXPERTS
from distilled_student.benchmark.trials import trial_reasons
from distilled_student.checkpoints.folder import CONFIG, load_student, save_student
from distilled_student.common.devices import pick_device
from distilled_student.common.errors import UserError
from distilled_student.common.files import read_json, write_json
from distilled_student.common.interruption import Interrupted
from distilled_student.common.settings import flat
from distilled_student.host import launch
from distilled_student.multitask.tasks import task_module
from distilled_student.student import cost
from distilled_student.student.network import build_student

log = logging.getLogger(__name__)
RESULTS, RECORD = "results.json", "run.json"
CHECKPOINTS = ("states-*.ckpt", "step-*.pt")  # of joint training and of distillation


@dataclass(frozen=True)
class Outcome:
    """Results of a run, as in its ``results.json``, and its scores; otherwise an error that says why there are none."""

    run: Run
    results: dict[str, Any] | None = None
    scores: dict[str, np.ndarray] | None = None
    error: str | None = None


def _scores(bench: Bench) -> str:
    """Name of the file with a run's scores."""
    return f"scores-{bench.suite.split}.npz"


def _has_started(folder: Path) -> bool:
    """Whether a training's folder holds checkpoints or results, which belong to one set of settings."""
    has_checkpoint = any(path for pattern in CHECKPOINTS for path in folder.rglob(pattern))
    return has_checkpoint or any((folder / name).is_file() for name in (RESULTS, CONFIG))


def _defaults_of_tasks(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The defaults of the settings of the joint downstream's tasks, by the keys that `flat` gives them."""
    tasks = settings.get("downstream_expert", {}).get("tasks") or {}
    modules = {name: task_module(name, (group or {}).get("module"), name) for name, group in tasks.items()}
    groups = {name: asdict(module.Settings()) for name, module in modules.items()}
    return flat(json.loads(json.dumps({"downstream_expert": {"tasks": groups}})))


def _check_settings(folder: Path, settings: Callable[[Run], dict[str, Any]], run: Run) -> None:
    """Raise UserError if a training in this folder had other settings than those of the run."""
    record = folder / RECORD
    if not record.is_file() or not _has_started(folder):
        return
    of_run = settings(run)
    before, now = flat(read_json(record).get("settings", {})), flat(json.loads(json.dumps(of_run)))
    if not any(before):
        raise UserError(f"{record}: has no settings: choose another --output or remove {folder}")
    defaults = _defaults_of_tasks(of_run)
    for key in {**now, **before}:
        if key.removeprefix("student.") in STUDENT_DATA:  # in the records of older versions
            continue
        old, new = (values.get(key, defaults.get(key)) for values in (before, now))
        is_new = key not in before and key not in defaults and not new  # a later version has it, and it is off
        if old != new and not is_new:
            raise UserError(f"{record}: {key} was {old}, is {new}: choose another --output or remove {folder}")


def _seconds(folder: Path) -> float:
    """Seconds of all attempts at a training. An attempt that was killed counts up to its last checkpoint."""
    if not ((folder / RECORD).is_file() and _has_started(folder)):
        return 0.0
    record = read_json(folder / RECORD)
    saved = [path.stat().st_mtime for pattern in CHECKPOINTS for path in folder.rglob(pattern)]
    killed = max([0.0, *(last - record["started"] for last in saved)]) if "started" in record else 0.0
    return record.get("seconds", 0.0) + killed


@contextmanager
def _timed(folder: Path, settings: dict[str, Any]) -> Iterator[None]:
    """Record a training's settings and its seconds, see `_seconds`."""
    before, start = _seconds(folder), time.monotonic()  # monotonic: the system's clock may be set meanwhile
    write_json(folder / RECORD, {"settings": settings, "seconds": before, "started": time.time()})
    try:
        yield
    finally:
        write_json(folder / RECORD, {"settings": settings, "seconds": before + time.monotonic() - start})


def _distil(bench: Bench, run: Run) -> None:
    """Make the student that a run starts from, unless it exists."""
    from distilled_student.distillation.train import distill

    folder, untrained = bench.student(run), bench.untrained_student(run)
    _check_settings(folder, bench.student_settings, run)
    if not (folder / CONFIG).is_file():
        # accelerate, which chooses the device of a distillation, takes the best one here
        forced = {"ACCELERATE_USE_CPU": True} if bench.device == "cpu" else {}
        with _timed(folder, bench.student_settings(run)), patch_environment(**forced):
            distill(*bench.distillation(run))
    if bench.suite.models[run.model].untrained and not (untrained / CONFIG).is_file():
        torch.manual_seed(run.seed)
        save_student(build_student(load_student(folder).config), untrained)


def _train(bench: Bench, run: Run) -> Path:
    """Train to the last step, unless its checkpoint exists. Returns the folder of the checkpoints."""
    folder = run.folder(bench.output)
    expdir, steps = folder / "experiment", bench.configuration(run)["runner"]["total_steps"]
    last = expdir / f"states-{steps}.ckpt"
    if not last.is_file():
        command = bench.command(run, expdir)
        log.info("run_downstream.py %s", shlex.join(command))
        with _timed(folder, bench.settings(run)):
            launch.run(command)
        if not last.is_file():
            raise UserError(f"{expdir}: the training ended without {last.name}: see the messages above")
    return expdir


def _evaluate_checkpoint(bench: Bench, run: Run, checkpoint: Path) -> None:
    """s3prl's evaluation on the test data. Data and checkpoint may have moved since the training."""
    pairs = ",,".join(bench.location_overrides(run, checkpoint.parent))
    device = ["--device", bench.device] if bench.device else []
    launch.run(["-m", "evaluate", "-e", str(checkpoint), "-t", "test", *device, "-o", pairs])


def _upstream_cost(bench: Bench, run: Run) -> dict[str, Any]:
    from s3prl import hub

    upstream = getattr(hub, bench.suite.models[run.model].upstream)(ckpt=bench.upstream_weights(run))
    return cost.summary(upstream.to(pick_device(bench.device)))


def _evaluate(bench: Bench, run: Run, expdir: Path) -> None:
    """Write ``results.json`` and ``scores-SPLIT.npz`` into the run's folder."""
    folder, downstream = expdir.parent, bench.suite.settings[run.setting].downstream
    if downstream == "multitask":
        from distilled_student.multitask.evaluate import TIMING, evaluate

        locations = bench.location_overrides(run, expdir)
        results = evaluate(expdir, bench.suite.split, device=bench.device, overrides=locations)
        results["upstream"] |= read_json(expdir / TIMING)
        shutil.copyfile(expdir / _scores(bench), folder / _scores(bench))
    else:
        evaluate_checkpoint = functools.partial(_evaluate_checkpoint, bench, run)
        results, arrays = EXPERTS[downstream](expdir, bench.configuration(run), evaluate_checkpoint)
        results["upstream"] = _upstream_cost(bench, run)
        np.savez_compressed(folder / _scores(bench), **arrays)
    results |= {"train_seconds": _seconds(folder), "device": pick_device(bench.device)}
    results["trial"] = trial_reasons(bench, run)
    write_json(folder / RESULTS, results)


def finished(bench: Bench, run: Run) -> Outcome | None:
    """The outcome of a run that has been evaluated; None for any other run.

    Raises:
        UserError: its folder holds results of other settings, or damaged results.
    """
    folder = run.folder(bench.output)
    _check_settings(folder, bench.settings, run)
    scores = folder / _scores(bench)
    if not ((folder / RESULTS).is_file() and scores.is_file()):
        return None
    results = read_json(folder / RESULTS)
    if missing := {"train_seconds", "upstream"} - results.keys():
        raise UserError(f"{folder / RESULTS}: lacks {', '.join(sorted(missing))}: remove it to evaluate the run again")
    try:
        with np.load(scores) as arrays:
            return Outcome(run, results, dict(arrays))
    except Exception as error:  # numpy raises many types on damaged files, and on pickled objects
        raise UserError(f"{scores}: is damaged ({error}): remove it to evaluate the run again") from None


def execute(bench: Bench, run: Run) -> Outcome:
    """Distil, train and evaluate what a run still lacks. An error is in the outcome and is not raised."""
    try:
        if (outcome := finished(bench, run)) is not None:
            return outcome
        if missing := bench.missing(run):
            return Outcome(run, error="; ".join(missing))
        if bench.suite.models[run.model].distill:
            _distil(bench, run)
        _evaluate(bench, run, _train(bench, run))
        return finished(bench, run) or Outcome(run, error="the run ended without results")
    except Interrupted:  # stops the whole suite
        raise
    except UserError as error:
        log.error("%s, seed %d: %s", run.name, run.seed, error)
        return Outcome(run, error=str(error))
    except (Exception, SystemExit) as error:  # torch and s3prl raise many types; the other runs must not stop
        log.exception("%s, seed %d", run.name, run.seed)
        return Outcome(run, error=f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")
