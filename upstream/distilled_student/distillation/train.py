"""Distil a student: from a typed configuration to a student folder, through the training loop in `train`."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import shutil
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lhotse import CutSet
from tensorboardX import SummaryWriter
from torch import Tensor

from distilled_student.checkpoints.folder import load_student, save_student
from distilled_student.common.errors import UserError, one_line
from distilled_student.common.interruption import Interruption
from distilled_student.common.model_cards import corpus_names
from distilled_student.common.processes import only_run_in, stops_with_other_processes, sum_over_processes
from distilled_student.common.progress import Progress
from distilled_student.common.provenance import (
    units_fingerprint,
    utterances_fingerprint,
    weights_fingerprint,
    write_provenance,
)
from distilled_student.distillation.code_cache import CodeCache
from distilled_student.distillation.config import DistillConfig
from distilled_student.distillation.data.cuts import Batch, SkippedFiles, read_cuts
from distilled_student.distillation.data.shards import open_units
from distilled_student.distillation.early_checks import check_output
from distilled_student.distillation.held_out import HeldOut, HeldOutLoss
from distilled_student.distillation.model_card import write_card
from distilled_student.distillation.throughput import Throughput, measure_workload, teacher_cost
from distilled_student.distillation.trainer import Distillation

log = logging.getLogger(__name__)


def distill(config: DistillConfig, where: str | Path) -> Path:
    """Distil a student as ``config`` says. A run in the same output folder is resumed.

    Args:
        where: The settings file, for error messages.

    Returns:
        The student folder, ``config.output``; ``load_student`` and ``-k`` read it.

    Raises:
        UserError: unusable data, teacher, configuration or output folder.
        Interrupted: SIGTERM or Ctrl-C, after a checkpoint.
    """
    check_output(config, where)
    output, is_new = Path(config.output), not Path(config.output).exists()
    held_out = HeldOut(config.data, f"{where}: data") if config.data.held_out else None
    units = open_units(config.data, f"{where}: data", int(os.environ.get("WORLD_SIZE", 1)))
    if units is not None and config.cache:
        raise UserError(f"{where}: cache: cannot be used with a streamed corpus (data.paths); remove it")
    cuts, skipped = read_cuts(config.data, f"{where}: data") if units is None else (None, SkippedFiles())
    if held_out is not None and cuts is not None:
        cuts = held_out.without(cuts, f"{where}: data")
    run = Distillation(config, where, units)
    checkpoints = output / "checkpoints"
    try:
        checkpoints.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{output}: cannot be written ({error.strerror})") from None
    with only_run_in(checkpoints) if run.accelerator.is_main_process else contextlib.nullcontext():
        try:
            _distill(run, cuts, skipped, held_out)
        except UserError:
            if is_new and not any(checkpoints.glob("*.pt")):
                shutil.rmtree(output, ignore_errors=True)  # leave no folder without a checkpoint behind
            raise
    run.accelerator.end_training()
    return output


def _distill(run: Distillation, cuts: CutSet | None, skipped: SkippedFiles, held_out: HeldOut | None) -> None:
    """Resume if there is a checkpoint, train, and write the student, its card and its provenance.

    Raises:
        Interrupted: see `train`; or a signal was received in the last step, and this is one of several trainings.
    """
    config, output, main = run.config, run.output, run.accelerator.is_main_process
    names = corpus_names(config.data.paths)
    if cuts is None:
        data = {"streamed": units_fingerprint(run.units)}
        corpus = f"{names}: {len(run.units)} parts of a streamed corpus"
    else:
        data = {"train": utterances_fingerprint((cut.id, cut.duration) for cut in cuts)}
        hours = f"{data['train']['seconds'] / 3600:.2f} hours of unlabelled audio"
        corpus = f"{names}: {len(cuts):,} utterances, {hours}"
        log.info("%d utterances, %s; %d files skipped", len(cuts), hours, len(skipped))
        for source in run.sources:
            if source.cache:
                source.cache.reserve(data["train"]["seconds"], source.teacher, len(cuts))
        run.prepare_codes(list(cuts))
    if run.resume() and run.state.step >= config.steps and main:
        more = f"for more steps set steps, now {config.steps}"
        log.info("%s: finished: all %d steps are trained; %s", output, run.state.step, more)
    models: dict[str, Any] = {
        f"teacher {number + 1}" if number else "teacher": source.provenance for number, source in enumerate(run.sources)
    }
    if main:
        write_provenance(output, asdict(config), config.seed, data, models=models)
    interruption = Interruption()
    with interruption.watched(), stops_with_other_processes(interruption):
        train(run, cuts, skipped, interruption, held_out)
    if main:  # the other processes may be here before the file of the best weights is
        run.load_best()
        student, state = run.student, run.state
        measured = None if held_out is None or state.best is None else (*state.best, held_out.seconds)
        costs = [teacher_cost(teacher) for teacher in run.teachers]
        trained = (state.curve, state.audio_seconds, corpus, run.initialization)
        codes = [source.cache.errors if isinstance(source.cache, CodeCache) else [] for source in run.sources]
        write_card(output, student.eval(), config, *trained, measured, costs, codes)
        save_student(student, output, getattr(torch, config.weights))
        initialization = {"taken": list(run.initialization.copied), "not taken": run.initialization.refused}
        models["student"] = {
            "initialised from the teacher": initialization,
            **weights_fingerprint(load_student(output)),
        }
        write_provenance(output, asdict(config), config.seed, data, models=models)
        if len(skipped):
            log.warning("%d files were skipped: %s", len(skipped), ", ".join(map(one_line, list(skipped.reasons)[:10])))
        if state.skipped:
            log.warning("%d steps were skipped: their loss was not finite", state.skipped)
        log.info("student written to %s", output)
        interruption.leave_suite(f"all {config.steps} steps of {output} are trained")


@dataclass
class _Interval:
    """Since the last log line: steps, seconds of audio of the student and of the teacher, and the time of its start."""

    steps: int = 0
    student_seconds: float = 0.0
    teacher_seconds: float = 0.0
    started: float = field(default_factory=time.monotonic)

    def add(self, batch: Batch) -> None:
        self.steps += 1
        self.student_seconds += batch.seconds()
        self.teacher_seconds += batch.uncached_seconds()


def train(
    run: Distillation,
    cuts: CutSet | None,
    skipped: SkippedFiles,
    interruption: Interruption,
    held_out: HeldOut | None = None,
) -> None:
    """The training loop: `Distillation.step` until ``config.steps``, with logs and checkpoints.

    Args:
        cuts: The data; None: the run's streamed units.
        skipped: Receives the files that cannot be read.
        held_out: Audio to measure the loss on.

    Raises:
        UserError: no data can be read, or too many steps in a row have no finite loss.
        Interrupted: a signal was received, and a checkpoint is written.
    """
    config, state = run.config, run.state
    if config.steps == 0:  # a checkpoint without updates, so that the same command finds its own run
        return run.save()
    main, device = run.accelerator.is_main_process, run.accelerator.device
    writer = SummaryWriter(str(run.output / "tensorboard")) if main else None
    run.model.train()
    workload = measure_workload(run.student, run.teachers, config.precision, device)
    batches, interval = run.batches(cuts), _Interval()
    # without a terminal the log lines below show the progress
    with Progress(config.steps, "distilling", state.step, shown=main, lines=False) as progress:
        while state.step < config.steps:
            batch = next(batches)
            for name, reason in batch.failed.items():
                skipped.add(name, reason)
            if len(batch.lengths) == 0 and run.accelerator.num_processes == 1:
                continue

            meters = run.step(batch)
            run.meter_sums = {k: run.meter_sums[k] + v if run.meter_sums else v for k, v in meters.items()}
            state.step += 1
            interval.add(batch)
            progress.update()

            last = state.step == config.steps
            logs = last or state.step % config.log_every == 0
            if logs or device.type == "cpu":  # a GPU computes while the next batch is prepared: do not wait for it
                run.sync()
            if logs:
                elapsed = time.monotonic() - interval.started
                throughput = workload.throughput(interval.student_seconds, interval.teacher_seconds, elapsed)
                seconds_left = (config.steps - state.step) * elapsed / interval.steps
                _report(run, _means(run.meter_sums), writer, throughput, seconds_left)
                run.meter_sums, interval = {}, _Interval()

            if held_out is not None and (last or state.step % config.held_out_every == 0):
                began = time.monotonic()
                _report_held_out(run, run.measure(held_out), writer)
                interval.started += time.monotonic() - began  # the throughput is that of training

            # only the main process handles the signal; the others notice that its connection has closed
            exits = main and bool(interruption)
            if exits or last or state.step % config.save_every == 0:
                run.save()
            if exits and not last:
                interruption.leave(f"saved step {state.step}", "run the same command again to resume")
    if writer is not None:
        writer.close()


def _report_held_out(run: Distillation, found: HeldOutLoss, writer: SummaryWriter | None) -> None:
    """Log the loss on held-out audio, on the main process."""
    if writer is None:
        return
    step, best = run.state.step, run.state.best
    teachers, has_several = _by_teacher(run, found.l1, found.cosine), len(run.sources) > 1
    parts = "  ".join(_in_words(teacher, has_several) for teacher in teachers)
    lowest = int(best[0]) if best else 0
    standing = "the lowest so far" if lowest == step else f"the lowest was at step {lowest}"
    log.info(f"step {step}: held-out loss {found.loss:.4f}, {standing}  {parts}")
    writer.add_scalar("held_out/loss", found.loss, step)
    for teacher in teachers if has_several else ():
        writer.add_scalar(f"held_out/{teacher.name}/loss", teacher.loss, step)


class _TeacherLoss(NamedTuple):
    """A teacher's name, its loss without the weight, and its targets with their L1 and cosine parts."""

    name: str
    loss: float
    targets: list[tuple[str, float, float]]


def _by_teacher(run: Distillation, l1: Tensor, cosine: Tensor) -> list[_TeacherLoss]:
    """The parts of the loss, ``(targets,)`` of all teachers, for each teacher."""
    counts = [source.teacher.target_count for source in run.sources]
    losses = []
    for source, own_l1, own_cosine in zip(run.sources, l1.split(counts), cosine.split(counts), strict=True):
        targets = list(zip(source.target_names, own_l1.tolist(), own_cosine.tolist(), strict=True))
        losses.append(_TeacherLoss(source.name, float(own_l1.sum() + own_cosine.sum()), targets))
    return losses


def _in_words(teacher: _TeacherLoss, with_name: bool) -> str:
    """A teacher's loss for a log line."""
    parts = "  ".join(f"{target} L1 {l1:.4f} cos {cosine:.4f}" for target, l1, cosine in teacher.targets)
    return f"{teacher.name} {teacher.loss:.4f} ({parts})" if with_name else parts


def _means(sums: dict[str, Tensor]) -> dict[str, Tensor]:
    """The meters' means over all processes and all steps that were not skipped."""
    sums = {name: sum_over_processes(value) for name, value in sums.items()}
    return {name: value / sums["steps"] for name, value in sums.items()}


def _report(
    run: Distillation,
    meters: dict[str, Tensor],
    writer: SummaryWriter | None,
    throughput: Throughput,
    seconds_left: float,
) -> None:
    """Add a point to the loss curve and, on the main process, log it."""
    state, config = run.state, run.config
    loss, norm = float(meters["loss"]), float(meters["gradient_norm"])
    if not math.isfinite(loss):  # every step since the last line was skipped
        return
    state.curve.append([state.step, loss])
    if writer is None:  # not the main process
        return
    teachers, has_several = _by_teacher(run, meters["l1"], meters["cosine"]), len(run.sources) > 1
    parts = "  ".join(_in_words(teacher, has_several) for teacher in teachers)
    log.info(
        f"step {state.step}/{config.steps}  loss {loss:.4f}  {parts}  |g| {norm:.2f}  "
        f"{throughput.audio:.0f} s audio/s  {throughput.flops / 1e12:.3f} TFLOP/s "
        f"({throughput.share:.0%} of peak)  ETA {int(seconds_left // 60)}:{int(seconds_left % 60):02d}"
    )
    writer.add_scalar("loss", loss, state.step)
    for teacher in teachers:
        if has_several:
            writer.add_scalar(f"{teacher.name}/loss", teacher.loss, state.step)
        for target, l1, cosine in teacher.targets:
            tag = (f"{teacher.name}/" if has_several else "") + target.replace(" ", "-")
            writer.add_scalar(f"{tag}/l1", l1, state.step)
            writer.add_scalar(f"{tag}/cosine", cosine, state.step)
    writer.add_scalar("gradient_norm", norm, state.step)
    writer.add_scalar("learning_rate", run.scheduler.get_last_lr()[0], state.step)
    writer.add_scalar("audio_seconds_per_second", throughput.audio, state.step)
    writer.add_scalar("share_of_peak", throughput.share, state.step)
