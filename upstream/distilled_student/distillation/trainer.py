"""One distillation run: teacher, student, optimiser and position in the data; the training step; its checkpoints."""

from __future__ import annotations

import logging
import math
import os
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
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
from distilled_student.common.errors import UserError, short_reason
from distilled_student.common.files import newest_undamaged, read_torch, save_torch
from distilled_student.common.processes import start_workers, sum_over_processes
from distilled_student.common.provenance import weights_fingerprint
from distilled_student.common.random_states import random_states, seed_all, set_random_states
from distilled_student.common.settings import changes
from distilled_student.distillation.config import DistillConfig, settings_fixed_on_resume, student_config_for
from distilled_student.distillation.data.cuts import Batch, make_loader
from distilled_student.distillation.data.shards import Unit
from distilled_student.distillation.data.stream import make_stream
from distilled_student.distillation.held_out import HeldOut, HeldOutLoss
from distilled_student.distillation.initialize import Initialization, initialize
from distilled_student.distillation.loss import LossParts, distillation_loss
from distilled_student.distillation.optimizer import make_optimizer, make_scheduler
from distilled_student.distillation.target_cache import TargetCache
from distilled_student.distillation.targets import Teacher, align, check_frame_shifts
from distilled_student.student.cost import has_fast_bf16
from distilled_student.student.network import Student
from distilled_student.teachers.encoders import Encoder
from distilled_student.teachers.open import open_teacher

log = logging.getLogger(__name__)
TEACHER_WEIGHTS = "sha256 of the teacher's weights"  # a key of the settings in a checkpoint


@dataclass
class TrainingState:
    """Counters of a run. A checkpoint stores them with the tensors of model and optimiser."""

    step: int = 0
    epoch: int = 0
    batch: int = 0  # batches of this epoch that are used
    audio_seconds: float = 0.0
    skipped: int = 0  # steps whose loss was not finite
    curve: list[list[float]] = field(default_factory=list)  # [step, loss per frame]
    held_out: list[list[float]] = field(default_factory=list)  # [step, loss per frame of held-out audio]

    @property
    def best(self) -> list[float] | None:
        """The entry of ``held_out`` with the lowest loss, the first one of several."""
        return min(self.held_out, key=lambda entry: entry[1], default=None)


class Distillation:
    """One run: teacher, student, optimiser and their position in the data.

    Args:
        config: The run's settings.
        where: The settings file, for error messages.
        units: The units of a streamed corpus, see `open_units`; None if the data are cuts.

    Raises:
        UserError: the settings, the teacher and this machine do not fit together.
    """

    def __init__(self, config: DistillConfig, where: str | Path, units: Sequence[Unit] | None = None) -> None:
        self.where, self.units = where, units
        AcceleratorState._reset_state()  # otherwise one process cannot train in two precisions, one after the other
        several_processes = int(os.environ.get("WORLD_SIZE", 1)) > 1
        self.accelerator = Accelerator(
            mixed_precision="no" if config.precision == "fp32" else config.precision,
            cpu=several_processes and not torch.cuda.is_available(),  # accelerate does not detect this itself
        )
        device = self.accelerator.device
        if config.teacher_precision == "auto":
            config = replace(config, teacher_precision="bf16" if has_fast_bf16(device) else "fp32")
        self.config = config
        for key in ("precision", "teacher_precision"):
            if getattr(config, key) == "fp16" and device.type == "cpu":
                raise UserError(f"{where}: {key}: fp16 needs a GPU; on a CPU use bf16")
        random.seed(config.seed)
        np.random.seed(config.seed)
        torch.manual_seed(config.seed)
        self._open_models()
        for part in (part for model in (self.student, self.teacher) for part in model.modules()):
            if isinstance(part, Student):
                part.checks_range = (
                    False  # the samples were checked when they were read; this check would wait for a GPU
                )
        self.cache: TargetCache | None = None
        if config.cache:
            self.cache = TargetCache(config.cache, self.teacher.fingerprint(), f"{where}: cache")

        self.state = TrainingState()
        if config.front_end_gradient != 1:
            for parameter in self.student.frontend.parameters():
                parameter.register_hook(lambda gradient: gradient * config.front_end_gradient)
        optimizer = make_optimizer(self.student, self.initialization.names, config)
        self.scheduler = make_scheduler(optimizer, config)
        if config.compile:
            for layer in self.student.layers:  # the rest of the student depends on the lengths
                layer.compile(dynamic=True)
        self.model, self.optimizer = self.accelerator.prepare(self.student, optimizer)
        self.output = Path(config.output)
        # position of the last used batch (pass, unit, chunk, batch) of each process and each of its streams
        self.stream_positions = torch.full((self.accelerator.num_processes, config.data.streams, 4), -1, device=device)
        self.meter_sums: dict[str, Tensor] = {}  # since the last log line
        # results of the last steps, on the device until `sync`: seconds of audio; file names and whether it was skipped
        self._new_seconds = torch.zeros((), device=device)
        self._new_steps: list[tuple[Sequence[str], Tensor]] = []
        self.skipped_in_a_row: list[Sequence[str]] = []  # file names of each step
        self._reseed()

    def _open_models(self) -> None:
        """Open the teacher and initialise the student."""
        config, where = self.config, self.where
        try:
            encoder = open_teacher(config.teacher)
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
        # before the teacher's last layers are deleted
        self.teacher_provenance = {"name": config.teacher, "revision": encoder.revision, **weights_fingerprint(encoder)}
        self.student = Student(student_config_for(config, encoder.hidden_size, where, encoder.normalization()))
        self.initialization = initialize(self.student, encoder) if config.initialize else Initialization()
        try:
            check_frame_shifts(encoder.frame_shift, self.student.config.frame_shift)
            self.offset = self._offset(encoder)
            self.teacher = Teacher(encoder, config.targets, config.teacher_precision).to(self.accelerator.device)
        except (ValueError, UserError) as error:
            raise UserError(f"{where}: {error}") from None

    def _offset(self, encoder: Encoder) -> float | None:
        """Samples from the centre of the teacher's first frame to that of the student's; None for ``align: number``."""
        if self.config.align == "number":
            return None
        if encoder.first_centre is None:
            raise ValueError("align: centre: where the teacher's frames are centred is not known; use number")
        return self.student.config.first_centre - encoder.first_centre

    def _reseed(self) -> None:
        """Reseed the random generators of every process but the first.

        A checkpoint holds only the first one's states. The others' seeds depend only on the step, so that a resumed
        run continues with the same random numbers.
        """
        if self.accelerator.process_index:
            seed_all(self.config.seed, self.accelerator.process_index, self.state.step)

    # the training step

    def step(self, batch: Batch) -> dict[str, Tensor]:
        """One update on the batches of all processes together.

        Returns this process's share of the meters: ``loss``, ``l1``, ``cosine``, ``gradient_norm`` and ``steps``. They
        stay on the device, and the step never waits for the device. If the gradient is not finite, parameters do not
        change and all meters are 0.
        """
        idle = len(batch.lengths) == 0
        if idle:  # the other processes wait for this one's gradients: run a second of silence that counts no frames
            silence = {"waveforms": torch.zeros(1, SAMPLE_RATE), "lengths": torch.tensor([SAMPLE_RATE])}
            batch = replace(batch, **silence, targets=[None])

        # the loss, over the frames of all processes
        parts = self.loss_parts(batch, self.model, idle)
        seconds = parts.frames.new_tensor(0.0 if idle else batch.seconds(), dtype=torch.float32)
        frames, seconds = sum_over_processes(torch.stack([parts.frames.float(), seconds]))
        per_frame = 1.0 / frames.clamp(min=1)
        scales = {"frame": per_frame, "mean": per_frame / len(self.config.targets), "sum": 1.0}
        loss = parts.total * scales[self.config.reduction]

        # the update; accelerate averages gradients over processes, but the loss is a sum
        self.accelerator.backward(loss * self.accelerator.num_processes)
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), self.config.clip)
        finite = self._update(loss, norm) & (frames > 0)

        self._new_steps.append((batch.names, ~finite & (frames > 0)))
        self._new_seconds += seconds
        meters = {"loss": parts.total, "l1": parts.l1, "cosine": parts.cosine}
        meters = {name: value.detach() * per_frame for name, value in meters.items()}
        meters |= {"gradient_norm": norm.detach() / self.accelerator.num_processes}
        meters = {name: torch.where(finite, value, torch.zeros_like(value)) for name, value in meters.items()}
        return meters | {"steps": finite.float() / self.accelerator.num_processes}

    def loss_parts(self, batch: Batch, model: torch.nn.Module, idle: bool = False) -> LossParts:
        """The loss of ``model``, the student, on this process's batch; with ``idle`` no frame counts."""
        waveforms = batch.waveforms.to(self.accelerator.device, non_blocking=True)

        # the teacher's hidden states
        if self.cache is None:
            targets, teacher_lengths = self.teacher(waveforms, batch.lengths)
        else:
            targets, teacher_lengths = self.cache.targets(batch, waveforms, self.teacher)

        # the student's predictions
        with self.accelerator.autocast():
            output = model(waveforms, batch.lengths)

        targets, valid = self._align(targets, teacher_lengths, output.lengths, output.predictions.shape[2])
        return distillation_loss(output.predictions, targets, torch.zeros_like(valid) if idle else valid)

    def _align(self, targets: Tensor, lengths: Tensor, student_lengths: Tensor, frames: int) -> tuple[Tensor, Tensor]:
        """`align` with both models' frame shifts. Raises UserError naming the teacher."""
        shift, student_shift = self.teacher.encoder.frame_shift, self.student.config.frame_shift
        try:
            return align(targets, lengths, shift, student_lengths, student_shift, frames, self.offset)
        except ValueError as error:
            raise UserError(f"{self.where}: teacher {self.config.teacher}: {error}") from None

    def _update(self, loss: Tensor, norm: Tensor) -> Tensor:
        """Step the optimiser if the gradient is finite. Returns whether it was, as a bool on the device."""
        if self.accelerator.scaler is None:
            finite = torch.isfinite(norm)
            # torch's gradient scaler skips a step of a fused optimiser in this way, without waiting for the device
            self.optimizer.optimizer.found_inf = (~finite).float()
        else:  # the scaler skips such steps itself; in its first steps the scale is too large and gradients overflow
            finite = sum_over_processes(torch.isfinite(loss).float()) == self.accelerator.num_processes
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.scheduler.step()
        return finite

    def sync(self) -> None:
        """Read the results of the last steps from the device and add them to the state. Waits for the device.

        Raises:
            UserError: too many steps in a row were skipped; names their files.
        """
        self.state.audio_seconds += float(self._new_seconds)
        self._new_seconds.zero_()
        steps, self._new_steps = self._new_steps, []
        flags = torch.stack([skipped for _, skipped in steps]).tolist() if steps else []
        for (names, _), skipped in zip(steps, flags, strict=True):
            if not skipped:
                self.skipped_in_a_row.clear()
                continue
            self.skipped_in_a_row.append(names)
            self.state.skipped += 1
            log.warning("a step was skipped: its loss is not finite on %s", ", ".join(names))
            if len(self.skipped_in_a_row) >= self.config.max_skipped:
                files = sorted({name for names in gather_object(self.skipped_in_a_row) for name in names})
                found = f"{len(self.skipped_in_a_row)} steps in a row had no finite loss, on {', '.join(files)}"
                raise UserError(f"{self.where}: max_skipped: {found}: lower learning_rate or check these files")

    # the data

    def batches(self, cuts: CutSet | None) -> Iterator[Batch]:
        """Endless batches from the run's position in the data: of ``cuts``, or for None of the streamed units."""
        return self._streamed_batches() if cuts is None else self._batches_of_cuts(cuts)

    def _streamed_batches(self) -> Iterator[Batch]:
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        used = {i: position for i, position in enumerate(self.stream_positions[rank].tolist()) if position[0] >= 0}
        count, where = self.state.batch, f"{self.where}: data"
        for batch in make_stream(self.config.data, self.units, self.config.seed, rank, world, used, count, where=where):
            self.state.batch += 1
            # every process learns the stream and the position of every other one: the first saves them all
            position = torch.zeros(world, 5, dtype=torch.long)
            position[rank] = torch.tensor([batch.stream, *batch.position])
            position = sum_over_processes(position.to(self.stream_positions.device))
            self.stream_positions[torch.arange(world, device=position.device), position[:, 0]] = position[:, 1:]
            yield batch

    def _batches_of_cuts(self, cuts: CutSet) -> Iterator[Batch]:
        rank, world, state = self.accelerator.process_index, self.accelerator.num_processes, self.state
        find_targets = self.cache.read if self.cache else None
        any_readable = state.batch > 0
        while True:
            position = self.config.seed, state.epoch, state.batch
            loader = make_loader(cuts, self.config.data, *position, rank, world, find_targets)
            for batch in start_workers(loader):
                state.batch += 1
                any_readable = any_readable or not batch.failed or len(batch.lengths) > 0
                yield batch
            if not any_readable:
                paths = ", ".join(self.config.data.paths)
                raise UserError(f"{self.where}: data.paths: {paths}: no file could be read")
            state.epoch, state.batch = state.epoch + 1, 0

    # held-out audio

    def measure(self, held_out: HeldOut) -> HeldOutLoss:
        """The loss on held-out audio, added to the state; the weights are kept where it is the lowest so far."""
        found, step = held_out.measure(self), self.state.step
        if math.isfinite(found.loss):
            self.state.held_out.append([step, found.loss])
        if self.state.best == [step, found.loss] and self.accelerator.is_main_process:
            save_torch(self.accelerator.unwrap_model(self.model).state_dict(), self._best_file(step))
        return found

    def _best_file(self, step: int) -> Path:
        return self.output / "checkpoints" / f"best-{step:08d}.pt"

    def load_best(self) -> None:
        """Give the student the weights with the lowest loss on held-out audio, if that was measured.

        Raises:
            UserError: their file is damaged or missing.
        """
        if self.state.best is None:
            return
        file = self._best_file(int(self.state.best[0]))
        try:
            self.accelerator.unwrap_model(self.model).load_state_dict(read_torch(file))
        except Exception as error:  # a damaged file can raise any exception
            reason = short_reason(error)
            raise UserError(f"{file}: the best student cannot be read ({reason}); use another output") from None

    # checkpoints

    def _fixed_settings(self) -> dict[str, Any]:
        """The settings that must not change when the run is resumed."""
        data = {} if self.units is None else {"data.units": len(self.units), "data.streams": self.config.data.streams}
        more = {"processes": self.accelerator.num_processes, TEACHER_WEIGHTS: self.teacher_provenance["sha256"]}
        return settings_fixed_on_resume(self.config) | data | more

    def save(self) -> None:
        """Write a checkpoint and delete the oldest one. Called by all processes; the first one writes."""
        self.sync()
        if not self.accelerator.is_main_process:
            return self._reseed()
        folder = self.output / "checkpoints"
        folder.mkdir(parents=True, exist_ok=True)
        content = {
            "student": self.accelerator.unwrap_model(self.model).state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "scaler": self.accelerator.scaler.state_dict() if self.accelerator.scaler else None,
            "random": random_states(),
            "progress": vars(self.state),
            "sums": self.meter_sums,
            "failing": [list(names) for names in self.skipped_in_a_row],
            "places": self.stream_positions.cpu(),
            "settings": self._fixed_settings(),
        }
        save_torch(content, folder / f"step-{self.state.step:08d}.pt")
        for old in sorted(folder.glob("step-*.pt"))[: -self.config.keep]:
            old.unlink()
        for file in folder.glob("best-*.pt"):  # only now: a run that resumes from an older checkpoint needs its best
            if self.state.best is None or file != self._best_file(int(self.state.best[0])):
                file.unlink()

    def resume(self) -> bool:
        """Load the newest undamaged checkpoint in the output folder. Returns whether there is one.

        Raises:
            UserError: all checkpoints are damaged or foreign, or the settings have changed.
        """
        file = newest_undamaged(sorted((self.output / "checkpoints").glob("step-*.pt")))
        if file is None:
            return False
        try:
            content = read_torch(file)
            # a checkpoint of an earlier version lacks newer settings, which have their defaults
            defaults = {f.name: f.default for f in fields(DistillConfig)} | {"data.held_out": []}
            now = self._fixed_settings()
            before = defaults | {TEACHER_WEIGHTS: now[TEACHER_WEIGHTS]} | content["settings"]
            if changed := changes({key: before.get(key) for key in now}, now):
                what = f"holds another run, with other settings ({changed})"
                raise UserError(f"{file}: {what}: set them back or choose another output")
            self.accelerator.unwrap_model(self.model).load_state_dict(content["student"])
            self.optimizer.load_state_dict(content["optimizer"])
            self.scheduler.load_state_dict(content["scheduler"])
            if self.accelerator.scaler and content["scaler"]:
                self.accelerator.scaler.load_state_dict(content["scaler"])
            self.state, self.skipped_in_a_row = TrainingState(**content["progress"]), list(content["failing"])
            self.meter_sums = {name: value.to(self.accelerator.device) for name, value in content["sums"].items()}
            if self.units is not None:
                self.stream_positions = content["places"].to(self.accelerator.device)
            set_random_states(content["random"])
            self._reseed()
        except UserError:
            raise
        except Exception as error:  # a damaged or foreign file can raise any exception
            reason = short_reason(error)
            raise UserError(f"{file}: cannot be resumed from ({reason}); remove it or choose another output") from None
        log.info("resumed from %s", file)
        return True
