"""The distillation loop: one pass from a typed configuration to a student folder."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import shutil
import time
from dataclasses import asdict
from pathlib import Path

import torch
from lhotse import CutSet
from tensorboardX import SummaryWriter
from torch import Tensor

from distilled_student.checkpoints.folder import save_student
from distilled_student.common.errors import UserError, one_line
from distilled_student.common.interruption import Interruption
from distilled_student.common.processes import only_run_in, summed, together
from distilled_student.common.provenance import fingerprint, units_fingerprint, write_provenance
from distilled_student.distillation.config import DistillConfig
from distilled_student.distillation.data.cuts import Skipped, read_cuts
from distilled_student.distillation.data.shards import open_units
from distilled_student.distillation.model_card import write_card
from distilled_student.distillation.pace import Speed, measure_pace
from distilled_student.distillation.trainer import Distillation, Progress

log = logging.getLogger(__name__)


def _log_line(progress: Progress, meters: dict[str, Tensor], config: DistillConfig, speed: Speed, left: float) -> str:
    parts = "  ".join(
        f"layer {layer} L1 {l1:.4f} cos {cosine:.4f}"
        for layer, l1, cosine in zip(config.targets, meters["l1"].tolist(), meters["cosine"].tolist(), strict=True)
    )
    return (
        f"step {progress.step}/{config.steps}  loss {float(meters['loss']):.4f}  {parts}  "
        f"|g| {float(meters['gradient_norm']):.2f}  {speed.audio:.0f} s audio/s  {speed.flops / 1e12:.3f} TFLOP/s "
        f"({speed.share:.0%} of peak)  ETA {int(left // 60)}:{int(left % 60):02d}"
    )


def _report(
    run: Distillation, meters: dict[str, Tensor], writer: SummaryWriter | None, speed: Speed, left: float
) -> None:
    progress, config = run.progress, run.config
    loss = float(meters["loss"])
    if not math.isfinite(loss):  # every step since the last line was skipped
        return
    progress.curve.append([progress.step, loss])
    if writer is None:  # not the main process
        return
    log.info(_log_line(progress, meters, config, speed, left))
    writer.add_scalar("loss", loss, progress.step)
    for layer, l1, cosine in zip(config.targets, meters["l1"].tolist(), meters["cosine"].tolist(), strict=True):
        writer.add_scalar(f"layer-{layer}/l1", l1, progress.step)
        writer.add_scalar(f"layer-{layer}/cosine", cosine, progress.step)
    writer.add_scalar("gradient_norm", float(meters["gradient_norm"]), progress.step)
    writer.add_scalar("learning_rate", run.scheduler.get_last_lr()[0], progress.step)
    writer.add_scalar("audio_seconds_per_second", speed.audio, progress.step)
    writer.add_scalar("share_of_peak", speed.share, progress.step)


def _means(sums: dict[str, Tensor]) -> dict[str, Tensor]:
    """Of the steps that were not skipped, over all processes."""
    sums = {name: summed(value) for name, value in sums.items()}
    return {name: value / sums["steps"] for name, value in sums.items()}


def train(run: Distillation, cuts: CutSet | None, skipped: Skipped) -> None:
    """Update until ``config.steps``, logging and saving on the way.

    Raises:
        UserError: the data or another process fail. Interrupted: SIGTERM or Ctrl-C, after a checkpoint.
    """
    interruption = Interruption()
    with interruption.watched(), together(interruption):
        _train(run, cuts, skipped, interruption)


def _train(run: Distillation, cuts: CutSet | None, skipped: Skipped, interruption: Interruption) -> None:
    config, progress, main = run.config, run.progress, run.accelerator.is_main_process
    writer = SummaryWriter(str(run.output / "tensorboard")) if main else None
    run.model.train()
    pace = measure_pace(run.student, run.teacher, config.precision, run.accelerator.device)
    count, heard, taught, since = 0, 0.0, 0.0, time.monotonic()
    batches = run.batches(cuts)
    while progress.step < config.steps:
        batch = next(batches)
        for name, reason in batch.failed.items():
            skipped.add(name, reason)
        if len(batch.lengths) == 0 and run.accelerator.num_processes == 1:
            continue
        meters = run.step(batch)
        run.sums = {k: run.sums[k] + v if run.sums else v for k, v in meters.items()}
        count += 1
        progress.step += 1
        heard, taught = heard + batch.seconds(), taught + batch.seconds(untaught=True)
        logs, last = progress.step % config.log_every == 0, progress.step == config.steps
        if logs or last or run.accelerator.device.type == "cpu":  # where the device need not be waited for
            run.read()
        if logs or last:
            elapsed = time.monotonic() - since
            speed, left = pace.speed(heard, taught, elapsed), (config.steps - progress.step) * elapsed / count
            _report(run, _means(run.sums), writer, speed, left)
            run.sums, count, heard, taught, since = {}, 0, 0.0, 0.0, time.monotonic()
        leaves = main and bool(interruption)  # the others hear of it by the connection that ends
        if progress.step % config.save_every == 0 or last or leaves:
            run.save()
        if leaves and not last:
            interruption.leave(f"saved step {progress.step}; the same command goes on from there")
    if writer is not None:
        writer.close()


def distill(config: DistillConfig, where: str | Path) -> Path:
    """Distil a student as ``config`` (read from ``where``) says, resuming what is in its output folder.

    Returns:
        The student folder, ``config.output``; ``load_student`` and ``-k`` read it.

    Raises:
        UserError: unusable data, teacher, configuration or output folder; one line.
    """
    output, new = Path(config.output), not Path(config.output).exists()
    units = open_units(config.data, f"{where}: data", int(os.environ.get("WORLD_SIZE", 1)))
    if units is not None and config.cache:
        raise UserError(f"{where}: cache: is for a small set, and data.paths is streamed")
    cuts, skipped = read_cuts(config.data, f"{where}: data") if units is None else (None, Skipped())
    run = Distillation(config, where, units)
    try:
        (output / "checkpoints").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{output}: cannot be written ({error.strerror})") from None
    with only_run_in(output / "checkpoints") if run.accelerator.is_main_process else contextlib.nullcontext():
        try:
            _run(run, cuts, skipped)
        except UserError:
            if new and not any((output / "checkpoints").glob("*.pt")):
                shutil.rmtree(output, ignore_errors=True)  # nothing half-written
            raise
    run.accelerator.end_training()
    return output


def _run(run: Distillation, cuts: CutSet | None, skipped: Skipped) -> None:
    config, output, main = run.config, run.output, run.accelerator.is_main_process
    if cuts is None:
        known = {"streamed": units_fingerprint(run.units)}
        size = f"{len(run.units)} parts of a streamed corpus"
    else:
        known = {"train": fingerprint((cut.id, cut.duration) for cut in cuts)}
        size = f"{known['train']['seconds'] / 3600:.2f} hours of unlabelled audio"
        log.info("%d pieces, %s; %d files skipped", len(cuts), size, len(skipped))
        if run.cache:
            run.cache.reserve(known["train"]["seconds"], run.teacher)
    run.resume()
    if main:
        write_provenance(output, asdict(config), config.seed, known)
    train(run, cuts, skipped)
    if main:
        student = run.accelerator.unwrap_model(run.model)
        write_card(output, student.eval(), config, run.progress.curve, run.progress.audio_seconds, size, run.taken)
        save_student(student, output, getattr(torch, config.weights))
        if len(skipped):
            log.warning("%d files were skipped: %s", len(skipped), ", ".join(map(one_line, list(skipped.reasons)[:10])))
        if run.progress.skipped:
            log.warning("%d steps were skipped: their loss was not finite", run.progress.skipped)
        log.info("student written to %s", output)
