"""The distillation loop: one pass from a typed configuration to a student folder."""

from __future__ import annotations

import logging
import math
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from lhotse import CutSet
from tensorboardX import SummaryWriter
from torch import Tensor

from distilled_student.cost import has_fast_bf16
from distilled_student.distillation.cache import TargetCache
from distilled_student.distillation.card import write_card
from distilled_student.distillation.config import DistillConfig, fitted_student, lasting
from distilled_student.distillation.data import Batch, Skipped, make_loader, read_cuts
from distilled_student.distillation.initialize import initialize
from distilled_student.distillation.loss import distillation_loss
from distilled_student.distillation.pace import Speed, measure_pace
from distilled_student.distillation.targets import Teacher, align, check_rates
from distilled_student.errors import UserError
from distilled_student.storage import save_student
from distilled_student.student import Student
from distilled_student.teachers import open_teacher

log = logging.getLogger(__name__)


@dataclass
class Progress:
    """Where training stands; with the tensors beside it, all that a checkpoint holds."""

    step: int = 0
    epoch: int = 0
    batch: int = 0  # batches already used of this epoch
    audio_seconds: float = 0.0
    curve: list[list[float]] = field(default_factory=list)  # [step, loss per frame]


class Distillation:
    """One run: teacher, student, optimiser and their place in the data."""

    def __init__(self, config: DistillConfig, where: str | Path) -> None:
        self.config, self.where = config, where
        AcceleratorState._reset_state()  # it refuses a second run of another precision in one process
        self.accelerator = Accelerator(mixed_precision="no" if config.precision == "fp32" else config.precision)
        device = self.accelerator.device
        if config.teacher_precision == "auto":
            fast = "bf16" if has_fast_bf16(device) else "fp32"
            self.config = config = replace(config, teacher_precision=fast)
        for key in ("precision", "teacher_precision"):
            if getattr(config, key) == "fp16" and device.type == "cpu":
                raise UserError(f"{where}: {key}: fp16 needs a GPU; a CPU has bf16")
        torch.manual_seed(config.seed)
        try:
            encoder = open_teacher(config.teacher)
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
        self.student = Student(fitted_student(config, encoder.hidden_size, where, encoder.normalization()))
        self.taken = initialize(self.student, encoder.weights()) if config.initialize else {}
        try:
            check_rates(encoder.frame_shift, self.student.config.frame_shift)
            self.teacher = Teacher(encoder, config.targets, config.teacher_precision).to(device)
        except (ValueError, UserError) as error:
            raise UserError(f"{where}: {error}") from None
        self.cache: TargetCache | None = None
        if config.cache:
            self.cache = TargetCache(config.cache, self.teacher.fingerprint(), f"{where}: cache")
        self.progress = Progress()
        adam = {"betas": tuple(config.betas), "eps": config.eps, "weight_decay": config.weight_decay}
        optimizer = torch.optim.AdamW(self._groups(), lr=config.learning_rate, fused=True, **adam)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, self._rate)
        if config.compile:
            for layer in self.student.layers:  # the rest looks at lengths
                layer.compile(dynamic=True)
        self.model, self.optimizer = self.accelerator.prepare(self.student, optimizer)
        self.scheduler = scheduler
        self.output = Path(config.output)

    def _groups(self) -> list[dict[str, Any]]:
        """The optimiser's parameter groups: what was drawn afresh, and what was taken from the teacher."""
        rate, names = self.config.copied_learning_rate, {name for part in self.taken.values() for name in part}
        if rate is None or not names:
            return [{"params": list(self.student.parameters())}]
        copied = [p for name, p in self.student.named_parameters() if name in names]
        fresh = [p for name, p in self.student.named_parameters() if name not in names]
        return [{"params": fresh}, {"params": copied, "lr": rate}]

    def _rate(self, step: int) -> float:
        warmup = max(1, round(self.config.warmup * self.config.steps))
        return min((step + 1) / warmup, max(0.0, (self.config.steps - step) / max(1, self.config.steps - warmup)))

    def step(self, batch: Batch) -> dict[str, Tensor]:
        """One update. Returns the meters, as tensors that stay on the device, which is never waited for."""
        waveforms = batch.waveforms.to(self.accelerator.device, non_blocking=True)
        if self.cache is None:
            targets, teacher_lengths = self.teacher(waveforms, batch.lengths)
        else:
            targets, teacher_lengths = self.cache.targets(batch, waveforms, self.teacher)
        with self.accelerator.autocast():
            output = self.model(waveforms, batch.lengths)
        frames = output.predictions.shape[2]
        shifts = self.teacher.encoder.frame_shift, self.student.config.frame_shift
        try:
            targets, valid = align(targets, teacher_lengths, shifts[0], output.lengths, shifts[1], frames)
        except ValueError as error:
            raise UserError(f"{self.where}: teacher {self.config.teacher}: {error}") from None
        parts = distillation_loss(output.predictions, targets, valid)
        per_frame = 1.0 / parts.frames.clamp(min=1)
        loss = parts.total * (per_frame if self.config.reduction == "frame" else 1.0)
        self.accelerator.backward(loss)
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), self.config.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.scheduler.step()
        return {
            "loss": parts.total.detach() * per_frame,
            "l1": parts.l1.detach() * per_frame,
            "cosine": parts.cosine.detach() * per_frame,
            "gradient_norm": norm.detach(),
        }

    def batches(self, cuts: CutSet) -> Iterator[Batch]:
        """Batches for ever, from the place where training stands."""
        accelerator, progress = self.accelerator, self.progress
        heard = self.progress.batch > 0
        while True:
            place = self.config.seed, progress.epoch, progress.batch
            rank, world = accelerator.process_index, accelerator.num_processes
            found = self.cache.read if self.cache else None
            for batch in make_loader(cuts, self.config.data, *place, rank, world, found):
                progress.batch += 1
                heard = heard or len(batch.lengths) > 0
                yield batch
            if not heard:
                paths = ", ".join(self.config.data.paths)
                raise UserError(f"{self.where}: data.paths: {paths}: no file could be read")
            progress.epoch, progress.batch = progress.epoch + 1, 0

    def save(self) -> None:
        """Write a checkpoint beside, rename it, and drop the oldest."""
        if not self.accelerator.is_main_process:
            return
        folder = self.output / "checkpoints"
        folder.mkdir(parents=True, exist_ok=True)
        state = {
            "student": self.accelerator.unwrap_model(self.model).state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "random": torch.get_rng_state(),
            "progress": vars(self.progress),
            "settings": lasting(self.config),
        }
        path = folder / f"step-{self.progress.step:08d}.pt"
        torch.save(state, path.with_suffix(".new"))
        os.replace(path.with_suffix(".new"), path)
        for old in sorted(folder.glob("step-*.pt"))[: -self.config.keep]:
            old.unlink()

    def resume(self) -> bool:
        """Take up the newest checkpoint in the output folder, if there is one."""
        found = sorted((self.output / "checkpoints").glob("step-*.pt"))
        if not found:
            return False
        try:
            state = torch.load(found[-1], map_location="cpu", weights_only=True)
            before, now = state["settings"], lasting(self.config)
            self.accelerator.unwrap_model(self.model).load_state_dict(state["student"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.scheduler.load_state_dict(state["scheduler"])
            torch.set_rng_state(state["random"])
            self.progress = Progress(**state["progress"])
        except Exception as error:  # whatever a damaged or foreign file raises, it is that file's fault
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            raise UserError(
                f"{found[-1]}: cannot be resumed from ({reason}); remove it or choose another output"
            ) from None
        if changed := [key for key in now if before.get(key) != now[key]]:
            key = changed[0]
            raise UserError(f"{found[-1]}: {key}: was {before.get(key)}, is {now[key]}; go on with it or change output")
        log.info("resumed from %s", found[-1])
        return True


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
    if not math.isfinite(loss):
        raise UserError(f"{run.where}: learning_rate: the loss is {loss} at step {progress.step}: lower it")
    progress.curve.append([progress.step, loss])
    if not run.accelerator.is_main_process:
        return
    log.info(_log_line(progress, meters, config, speed, left))
    if writer is not None:
        writer.add_scalar("loss", loss, progress.step)
        for layer, l1, cosine in zip(config.targets, meters["l1"].tolist(), meters["cosine"].tolist(), strict=True):
            writer.add_scalar(f"layer-{layer}/l1", l1, progress.step)
            writer.add_scalar(f"layer-{layer}/cosine", cosine, progress.step)
        writer.add_scalar("gradient_norm", float(meters["gradient_norm"]), progress.step)
        writer.add_scalar("learning_rate", run.scheduler.get_last_lr()[0], progress.step)
        writer.add_scalar("audio_seconds_per_second", speed.audio, progress.step)
        writer.add_scalar("share_of_peak", speed.share, progress.step)


def train(run: Distillation, cuts: CutSet, skipped: Skipped) -> None:
    """Update until ``config.steps``, logging and saving on the way."""
    config, progress = run.config, run.progress
    writer = SummaryWriter(str(run.output / "tensorboard")) if run.accelerator.is_main_process else None
    run.model.train()
    sums: dict[str, Tensor] = {}
    pace = measure_pace(run.student, run.teacher, config.precision, run.accelerator.device)
    count, heard, taught, since = 0, 0.0, 0.0, time.monotonic()
    batches = run.batches(cuts)
    while progress.step < config.steps:
        batch = next(batches)
        for name, reason in batch.failed.items():
            skipped.add(name, reason)
        if len(batch.lengths) == 0:
            continue
        meters = run.step(batch)
        sums = {k: sums[k] + v if sums else v for k, v in meters.items()}
        count += 1
        progress.step += 1
        heard, taught = heard + batch.seconds(), taught + batch.seconds(untaught=True)
        progress.audio_seconds += batch.seconds()
        if progress.step % config.log_every == 0 or progress.step == config.steps:
            elapsed = time.monotonic() - since
            speed, left = pace.speed(heard, taught, elapsed), (config.steps - progress.step) * elapsed / count
            _report(run, {k: v / count for k, v in sums.items()}, writer, speed, left)
            sums, count, heard, taught, since = {}, 0, 0.0, 0.0, time.monotonic()
        if progress.step % config.save_every == 0 or progress.step == config.steps:
            run.save()
    if writer is not None:
        writer.close()


def distill(config: DistillConfig, where: str | Path) -> Path:
    """Distil a student as ``config`` (read from ``where``) says, resuming what is in its output folder.

    Returns:
        The student folder, ``config.output``; ``load_student`` and ``-k`` read it.

    Raises:
        UserError: unusable data, teacher, configuration or output folder; one line.
    """
    output = Path(config.output)
    cuts, skipped = read_cuts(config.data, f"{where}: data")
    run = Distillation(config, where)
    new = not output.exists()
    try:
        output.mkdir(parents=True, exist_ok=True)
        (output / "checkpoints").mkdir(exist_ok=True)
    except OSError as error:
        raise UserError(f"{output}: cannot be written ({error.strerror})") from None
    hours = sum(cut.duration for cut in cuts) / 3600
    if run.cache:
        run.cache.reserve(hours * 3600, run.teacher)
    log.info("%d pieces, %.2f hours of audio; %d files skipped", len(cuts), hours, len(skipped))
    run.resume()
    try:
        train(run, cuts, skipped)
    except UserError:
        if new and not any((output / "checkpoints").iterdir()):
            shutil.rmtree(output)  # nothing half-written
        raise
    if run.accelerator.is_main_process:
        student = run.accelerator.unwrap_model(run.model)
        write_card(output, student.eval(), config, run.progress.curve, run.progress.audio_seconds, hours, run.taken)
        save_student(student, output, getattr(torch, config.weights))
        if len(skipped):
            log.warning("%d files were skipped: %s", len(skipped), ", ".join(list(skipped.reasons)[:10]))
        log.info("student written to %s", output)
    run.accelerator.end_training()
    return output
