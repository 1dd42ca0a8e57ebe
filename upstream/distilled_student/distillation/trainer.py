"""One distillation: teacher, student, optimiser, their place in the data, and all that a checkpoint holds of them."""

from __future__ import annotations

import logging
import os
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import gather_object
from lhotse import CutSet
from torch import Tensor

from distilled_student.common.audio import SAMPLE_RATE
from distilled_student.common.errors import UserError
from distilled_student.common.files import newest_whole, read_torch, save_torch
from distilled_student.common.processes import summed
from distilled_student.common.random_states import random_states, seed_all, set_random_states
from distilled_student.distillation.config import DistillConfig, fitted_student, lasting
from distilled_student.distillation.data.cuts import Batch, make_loader
from distilled_student.distillation.data.shards import Unit
from distilled_student.distillation.data.stream import make_stream
from distilled_student.distillation.initialize import initialize
from distilled_student.distillation.loss import distillation_loss
from distilled_student.distillation.target_cache import TargetCache
from distilled_student.distillation.targets import Teacher, align, check_rates
from distilled_student.student.cost import has_fast_bf16
from distilled_student.student.network import Student
from distilled_student.teachers.open import open_teacher

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
            silence = {"waveforms": torch.zeros(1, SAMPLE_RATE), "lengths": torch.tensor([SAMPLE_RATE])}
            batch = replace(batch, **silence, targets=[None])
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
            "scaler": self.accelerator.scaler.state_dict() if self.accelerator.scaler else None,
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
            if self.accelerator.scaler and state["scaler"]:
                self.accelerator.scaler.load_state_dict(state["scaler"])
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
