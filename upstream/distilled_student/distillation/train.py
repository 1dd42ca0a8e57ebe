"""The distillation loop: one pass from a typed configuration to a student folder."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import random
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import gather_object
from lhotse import CutSet
from tensorboardX import SummaryWriter
from torch import Tensor

from distilled_student.audio import SAMPLE_RATE
from distilled_student.cost import has_fast_bf16
from distilled_student.distillation.cache import TargetCache
from distilled_student.distillation.card import write_card
from distilled_student.distillation.config import DistillConfig, fitted_student, lasting
from distilled_student.distillation.data import Batch, Skipped, make_loader, read_cuts
from distilled_student.distillation.initialize import initialize
from distilled_student.distillation.loss import distillation_loss
from distilled_student.distillation.pace import Speed, measure_pace
from distilled_student.distillation.shards import Unit, open_units
from distilled_student.distillation.stream import make_stream
from distilled_student.distillation.targets import Teacher, align, check_rates
from distilled_student.errors import UserError
from distilled_student.files import newest_whole, read_torch, save_torch
from distilled_student.interruption import Interruption
from distilled_student.processes import only_run_in, summed, together
from distilled_student.provenance import fingerprint, units_fingerprint, write_provenance
from distilled_student.random_states import random_states, seed_all, set_random_states
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
    skipped: int = 0  # steps whose loss was not finite
    curve: list[list[float]] = field(default_factory=list)  # [step, loss per frame]


class Distillation:
    """One run: teacher, student, optimiser and their place in the data."""

    def __init__(self, config: DistillConfig, where: str | Path, units: Sequence[Unit] | None = None) -> None:
        """``units``: what is streamed, see `open_units`; None where the data are cuts."""
        self.config, self.where, self.units = config, where, units
        AcceleratorState._reset_state()  # it refuses a second run of another precision in one process
        several = int(os.environ.get("WORLD_SIZE", 1)) > 1  # on CPUs accelerate wants to be told
        self.accelerator = Accelerator(
            mixed_precision="no" if config.precision == "fp32" else config.precision,
            cpu=several and not torch.cuda.is_available(),
        )
        device = self.accelerator.device
        if config.teacher_precision == "auto":
            fast = "bf16" if has_fast_bf16(device) else "fp32"
            self.config = config = replace(config, teacher_precision=fast)
        for key in ("precision", "teacher_precision"):
            if getattr(config, key) == "fp16" and device.type == "cpu":
                raise UserError(f"{where}: {key}: fp16 needs a GPU; a CPU has bf16")
        random.seed(config.seed)
        np.random.seed(config.seed)
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
        # the last batch that each process has used of each of its streams: pass, unit, chunk, batch
        self.places = torch.full((self.accelerator.num_processes, config.data.streams, 4), -1, device=device)
        self.sums: dict[str, Tensor] = {}  # of the meters since they were logged
        self.heard = torch.zeros((), device=device)  # seconds of audio that progress does not know yet
        self.unread: list[tuple[Sequence[str], Tensor]] = []  # files of the last steps, and whether each was skipped
        self.failing: list[Sequence[str]] = []  # files of the steps in a row that were skipped
        self._reseed()

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

    def _reseed(self) -> None:
        """Each process but the first draws from states of its own, which follow from the step alone."""
        if self.accelerator.process_index:
            seed_all(self.config.seed, self.accelerator.process_index, self.progress.step)

    def step(self, batch: Batch) -> dict[str, Tensor]:
        """One update, on all processes' batches together. Returns this one's share of the meters.

        They stay on the device, which is never waited for. Without a finite gradient, parameters stay as they are.
        """
        if idle := len(batch.lengths) == 0:  # the others wait for this process all the same
            batch = replace(batch, waveforms=torch.zeros(1, SAMPLE_RATE), lengths=torch.tensor([SAMPLE_RATE]))
            batch = replace(batch, targets=[None])
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
        parts = distillation_loss(output.predictions, targets, torch.zeros_like(valid) if idle else valid)
        seconds = parts.frames.new_tensor(0.0 if idle else batch.seconds(), dtype=torch.float32)
        frames, seconds = summed(torch.stack([parts.frames.float(), seconds]))
        per_frame = 1.0 / frames.clamp(min=1)
        loss = parts.total * (per_frame if self.config.reduction == "frame" else 1.0)
        # gradients are the mean over processes, and the loss is a sum
        self.accelerator.backward(loss * self.accelerator.num_processes)
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), self.config.clip)
        finite = self._update(loss, norm) & (frames > 0)
        self.unread.append((batch.names, ~finite & (frames > 0)))
        self.heard += seconds
        meters = {"loss": parts.total, "l1": parts.l1, "cosine": parts.cosine}
        meters = {name: value.detach() * per_frame for name, value in meters.items()}
        meters |= {"gradient_norm": norm.detach() / self.accelerator.num_processes}
        meters = {name: torch.where(finite, value, torch.zeros_like(value)) for name, value in meters.items()}
        return meters | {"steps": finite.float() / self.accelerator.num_processes}

    def _update(self, loss: Tensor, norm: Tensor) -> Tensor:
        """Step the optimiser where the gradient is finite; whether it was, on the device."""
        if self.accelerator.scaler is None:
            finite = torch.isfinite(norm)
            # what torch's gradient scaler hands to a fused optimiser, so that nobody waits for the device
            self.optimizer.optimizer.found_inf = (~finite).float()
        else:  # it does so itself, and overflows at first while it looks for its scale
            finite = summed(torch.isfinite(loss).float()) == self.accelerator.num_processes
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.scheduler.step()
        return finite

    def read(self) -> None:
        """Take up what the last steps left on the device.

        Raises:
            UserError: too many steps in a row were skipped; names their files.
        """
        self.progress.audio_seconds += float(self.heard)
        self.heard.zero_()
        unread, self.unread = self.unread, []
        flags = torch.stack([skipped for _, skipped in unread]).tolist() if unread else []
        for (names, _), skipped in zip(unread, flags, strict=True):
            if not skipped:
                self.failing.clear()
                continue
            self.failing.append(names)
            self.progress.skipped += 1
            log.warning("a step was skipped: its loss is not finite on %s", ", ".join(names))
            if len(self.failing) >= self.config.max_skipped:
                files = sorted({name for names in gather_object(self.failing) for name in names})
                row = f"{len(self.failing)} steps in a row had no finite loss, on {', '.join(files)}"
                raise UserError(f"{self.where}: max_skipped: {row}: lower learning_rate or look at these files")

    def batches(self, cuts: CutSet | None) -> Iterator[Batch]:
        """Batches for ever, from the place where training stands; without ``cuts``, of what is streamed."""
        return self._streamed() if cuts is None else self._epochs(cuts)

    def _streamed(self) -> Iterator[Batch]:
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        used = {stream: place for stream, place in enumerate(self.places[rank].tolist()) if place[0] >= 0}
        count, where = self.progress.batch, f"{self.where}: data"
        for batch in make_stream(self.config.data, self.units, self.config.seed, rank, world, used, count, where=where):
            self.progress.batch += 1
            place = torch.zeros(world, 5, dtype=torch.long)
            place[rank] = torch.tensor([batch.stream, *batch.place])
            place = summed(place.to(self.places.device))
            self.places[torch.arange(world, device=place.device), place[:, 0]] = place[:, 1:]
            yield batch

    def _epochs(self, cuts: CutSet) -> Iterator[Batch]:
        accelerator, progress = self.accelerator, self.progress
        heard = self.progress.batch > 0
        while True:
            place = self.config.seed, progress.epoch, progress.batch
            rank, world = accelerator.process_index, accelerator.num_processes
            found = self.cache.read if self.cache else None
            for batch in make_loader(cuts, self.config.data, *place, rank, world, found):
                progress.batch += 1
                heard = heard or not batch.failed or len(batch.lengths) > 0
                yield batch
            if not heard:
                paths = ", ".join(self.config.data.paths)
                raise UserError(f"{self.where}: data.paths: {paths}: no file could be read")
            progress.epoch, progress.batch = progress.epoch + 1, 0

    def _lasting(self) -> dict[str, Any]:
        """What a run must be resumed with."""
        data = {} if self.units is None else {"data.units": len(self.units), "data.streams": self.config.data.streams}
        return lasting(self.config) | data | {"processes": self.accelerator.num_processes}

    def save(self) -> None:
        """Write a checkpoint, whole or not at all, and drop the oldest."""
        self.read()
        if not self.accelerator.is_main_process:
            return self._reseed()
        folder = self.output / "checkpoints"
        folder.mkdir(parents=True, exist_ok=True)
        state = {
            "student": self.accelerator.unwrap_model(self.model).state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "random": random_states(),
            "progress": vars(self.progress),
            "sums": self.sums,
            "failing": [list(names) for names in self.failing],
            "places": self.places.cpu(),
            "settings": self._lasting(),
        }
        save_torch(state, folder / f"step-{self.progress.step:08d}.pt")
        for old in sorted(folder.glob("step-*.pt"))[: -self.config.keep]:
            old.unlink()

    def resume(self) -> bool:
        """Take up the newest checkpoint in the output folder that is whole, if there is one."""
        found = newest_whole(sorted((self.output / "checkpoints").glob("step-*.pt")))
        if found is None:
            return False
        try:
            state = read_torch(found)
            before, now = state["settings"], self._lasting()
            self.accelerator.unwrap_model(self.model).load_state_dict(state["student"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.scheduler.load_state_dict(state["scheduler"])
            self.progress, self.failing = Progress(**state["progress"]), list(state["failing"])
            self.sums = {name: value.to(self.accelerator.device) for name, value in state["sums"].items()}
            if self.units is not None:
                self.places = state["places"].to(self.accelerator.device)
            set_random_states(state["random"])
            self._reseed()
        except Exception as error:  # whatever a damaged or foreign file raises, it is that file's fault
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            raise UserError(f"{found}: cannot be resumed from ({reason}); remove it or choose another output") from None
        if changed := [key for key in now if before.get(key) != now[key]]:
            key = changed[0]
            raise UserError(f"{found}: {key}: was {before.get(key)}, is {now[key]}; go on with it or change output")
        log.info("resumed from %s", found)
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
        if progress.step % config.save_every == 0 or last or (interruption and main):
            run.save()
        if main and not last:  # the others hear of it by the connection that ends
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
            log.warning("%d files were skipped: %s", len(skipped), ", ".join(list(skipped.reasons)[:10]))
        if run.progress.skipped:
            log.warning("%d steps were skipped: their loss was not finite", run.progress.skipped)
        log.info("student written to %s", output)
