"""One distillation run: teachers, student, optimiser and position in the data; the training step; its checkpoints."""

from __future__ import annotations

import logging
import math
import os
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import gather_object
from lhotse import CutSet
from lhotse.cut import Cut
from torch import Tensor

from distilled_student.checkpoints.folder import load_student
from distilled_student.common.audio import SAMPLE_RATE
from distilled_student.common.effects import Effects
from distilled_student.common.errors import UserError, short_reason
from distilled_student.common.files import newest_undamaged, read_torch, save_torch
from distilled_student.common.processes import start_workers, sum_over_processes
from distilled_student.common.random_states import random_states, seed_all, set_random_states
from distilled_student.common.sample_range import skip_range_check
from distilled_student.common.settings import changes
from distilled_student.distillation.code_cache import CodeCache
from distilled_student.distillation.config import (
    DistillConfig,
    default_settings,
    settings_fixed_on_resume,
    student_config_for,
)
from distilled_student.distillation.data.cuts import Batch, make_loader
from distilled_student.distillation.data.shards import Unit
from distilled_student.distillation.data.stream import make_stream
from distilled_student.distillation.data.student_input import StudentInput
from distilled_student.distillation.heads import StudentWithHeads, make_head
from distilled_student.distillation.held_out import HeldOut, HeldOutLoss
from distilled_student.distillation.initialize import Initialization, initialize
from distilled_student.distillation.loss import LossParts, distillation_loss
from distilled_student.distillation.optimizer import make_optimizer, make_scheduler
from distilled_student.distillation.target_cache import TargetCache
from distilled_student.distillation.target_source import TargetSource, open_encoder, read_cached, short_names
from distilled_student.distillation.targets import Teacher, UtteranceTeacher
from distilled_student.student.cost import has_fast_bf16
from distilled_student.student.network import Student
from distilled_student.teachers.encoders import Encoder

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
    """One run: teachers, student, optimiser and their position in the data.

    Attributes:
        student: The student.
        model: What is trained, `StudentWithHeads`, prepared by accelerate.
        sources: The teachers, in the order of their heads.

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
        for model in (self.student, *self.teachers):
            skip_range_check(model)  # it waits for a GPU
        self.find_targets = self.find_held_out_targets = None
        if config.cache:
            self.find_targets = partial(read_cached, [source.cache for source in self.sources])
            self.find_held_out_targets = partial(read_cached, [source.held_out_cache for source in self.sources])

        augment = config.data.augment
        effects = Effects(augment, f"{where}: data.augment") if augment.any else None
        self.student_input = None if effects is None else StudentInput(effects, config.seed)

        self.state = TrainingState()
        if config.front_end_gradient != 1:
            for parameter in self.student.frontend.parameters():
                parameter.register_hook(lambda gradient: gradient * config.front_end_gradient)
        own = self.student.config
        whole = StudentWithHeads(self.student, [make_head(own, teacher) for teacher in self.teachers[1:]])
        self.heads = whole.heads
        optimizer = make_optimizer(whole, self.initialization.names, config)
        self.scheduler = make_scheduler(optimizer, config)
        if config.compile:
            for layer in self.student.layers:  # the rest of the student depends on the lengths
                layer.compile(dynamic=True)
        self.model, self.optimizer = self.accelerator.prepare(whole, optimizer)
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
        """Open the teachers and initialise the student from the first one."""
        config, where, teachers = self.config, self.where, self.config.all_teachers()
        self.sources: list[TargetSource] = []
        for name, settings in zip(short_names(teachers), teachers, strict=True):
            encoder = open_encoder(settings, where)
            if not self.sources:
                self.student = Student(student_config_for(config, encoder.hidden_size, where, encoder.normalization()))
                self.initialization = self._initialize(encoder)
            own, device = self.student.config, self.accelerator.device
            self.sources.append(TargetSource(name, settings, config, encoder, own, device, where))

    def _initialize(self, encoder: Encoder) -> Initialization:
        """Give the student its first weights: those of another student, the teacher's, or random ones."""
        if not self.config.start_from:
            return initialize(self.student, encoder) if self.config.initialize else Initialization()
        before, own = load_student(self.config.start_from), self.student.config
        if before.predictions is None:  # packed without them: they start at random
            before.config = replace(before.config, targets=own.targets, target_size=own.target_size)
        names = [one.name for one in fields(own) if getattr(before.config, one.name) != getattr(own, one.name)]
        if names:
            reason = f"is a student of another configuration ({', '.join(names)})"
            raise UserError(f"{self.where}: start_from: {self.config.start_from}: {reason}")
        self.student.load_state_dict(self.student.state_dict() | before.state_dict())
        log.info("student starts from the weights of %s", self.config.start_from)
        return Initialization()

    @property
    def teachers(self) -> list[Teacher | UtteranceTeacher]:
        """The teachers of `sources`."""
        return [source.teacher for source in self.sources]

    @property
    def teacher(self) -> Teacher:
        """The first teacher."""
        return self.sources[0].teacher

    @property
    def cache(self) -> TargetCache | None:
        """The first teacher's cache."""
        return self.sources[0].cache

    def _reseed(self) -> None:
        """Reseed the random generators of every process but the first.

        A checkpoint holds only the first one's states. The others' seeds depend only on the step, so that a resumed
        run continues with the same random numbers.
        """
        if self.accelerator.process_index:
            seed_all(self.config.seed, self.accelerator.process_index, self.state.step)

    def prepare_codes(self, cuts: Sequence[Cut]) -> None:
        """Read or train the codebooks of cached targets, see `CodeCache.prepare`. The first process trains them."""
        for source in self.sources:
            if isinstance(source.cache, CodeCache):
                with self.accelerator.main_process_first():
                    seconds, device = self.config.cache_codes_seconds, self.accelerator.device
                    source.cache.prepare(cuts, seconds, source.teacher, device)

    # the training step

    def step(self, batch: Batch) -> dict[str, Tensor]:
        """One update on the batches of all processes together.

        Returns this process's share of the meters: ``loss``, ``l1`` and ``cosine`` of each target, ``gradient_norm``
        and ``steps``. They stay on the device, and the step never waits for the device. If the gradient is not finite,
        parameters do not change and all meters are 0.
        """
        idle = len(batch.lengths) == 0
        if idle:  # the other processes wait for this one's gradients: run a second of silence that counts no frames
            silence = {"waveforms": torch.zeros(1, SAMPLE_RATE), "lengths": torch.tensor([SAMPLE_RATE])}
            batch = replace(batch, **silence, targets=[None])

        # the loss, over the frames of all processes
        parts = self.loss_parts(batch, self.model, idle)
        seconds = parts[0].frames.new_tensor(0.0 if idle else batch.seconds(), dtype=torch.float32)
        *frames, seconds = sum_over_processes(torch.stack([*(part.frames.float() for part in parts), seconds]))
        per_frame = [1.0 / count.clamp(min=1) for count in frames]
        loss = self._weighted_loss(parts, per_frame)

        # the update; accelerate averages gradients over processes, but the loss is a sum
        self.accelerator.backward(loss * self.accelerator.num_processes)
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), self.config.clip)
        finite = self._update(loss, norm) & (frames[0] > 0)

        self._new_steps.append((batch.names, ~finite & (frames[0] > 0)))
        self._new_seconds += seconds
        weighted = [source.weight * part.total for source, part in zip(self.sources, parts, strict=True)]
        meters = {
            "loss": torch.stack([value * scale for value, scale in zip(weighted, per_frame, strict=True)]).sum(),
            "l1": torch.cat([part.l1 * scale for part, scale in zip(parts, per_frame, strict=True)]),
            "cosine": torch.cat([part.cosine * scale for part, scale in zip(parts, per_frame, strict=True)]),
        }
        meters = {name: value.detach() for name, value in meters.items()}
        meters |= {"gradient_norm": norm.detach() / self.accelerator.num_processes}
        meters = {name: torch.where(finite, value, torch.zeros_like(value)) for name, value in meters.items()}
        return meters | {"steps": finite.float() / self.accelerator.num_processes}

    def _weighted_loss(self, parts: Sequence[LossParts], per_frame: Sequence[Tensor]) -> Tensor:
        """The weighted sum of the teachers' losses, reduced as the settings say.

        ``per_frame``: for each teacher 1 / its valid frames in all processes.
        """
        losses = []
        for source, part, scale in zip(self.sources, parts, per_frame, strict=True):
            scales = {"frame": scale, "mean": scale / source.teacher.target_count, "sum": 1.0}
            losses.append(part.total * scales[self.config.reduction] * source.weight)
        return torch.stack(losses).sum()

    def loss_parts(
        self, batch: Batch, model: torch.nn.Module, idle: bool = False, held_out: bool = False
    ) -> list[LossParts]:
        """The loss of ``model``, a `StudentWithHeads`, for each teacher on this process's batch.

        Args:
            idle: No frame counts.
            held_out: Whether the audio is held out, see `TargetSource.targets`.
        """
        waveforms = batch.waveforms.to(self.accelerator.device, non_blocking=True)
        inputs = waveforms
        if batch.student_waveforms is not None:
            inputs = batch.student_waveforms.to(self.accelerator.device, non_blocking=True)
        found = [source.targets(batch, number, waveforms, held_out) for number, source in enumerate(self.sources)]

        with self.accelerator.autocast():
            output, predictions = model(inputs, batch.lengths)

        parts, frames = [], output.predictions.shape[2]
        for source, (targets, lengths), predicted in zip(self.sources, found, predictions, strict=True):
            targets, valid = source.align(targets, lengths, output.lengths, frames)
            parts.append(distillation_loss(predicted, targets, torch.zeros_like(valid) if idle else valid))
        return parts

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
        more = {"student_input": self.student_input, "where": where}
        for batch in make_stream(self.config.data, self.units, self.config.seed, rank, world, used, count, **more):
            self.state.batch += 1
            # every process learns the stream and the position of every other one: the first saves them all
            position = torch.zeros(world, 5, dtype=torch.long)
            position[rank] = torch.tensor([batch.stream, *batch.position])
            position = sum_over_processes(position.to(self.stream_positions.device))
            self.stream_positions[torch.arange(world, device=position.device), position[:, 0]] = position[:, 1:]
            yield batch

    def _batches_of_cuts(self, cuts: CutSet) -> Iterator[Batch]:
        rank, world, state = self.accelerator.process_index, self.accelerator.num_processes, self.state
        any_readable = state.batch > 0
        while True:
            position = self.config.seed, state.epoch, state.batch
            loader = make_loader(cuts, self.config.data, *position, rank, world, self.find_targets, self.student_input)
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
            save_torch(self.student.state_dict(), self._best_file(step))
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
            self.student.load_state_dict(read_torch(file))
        except Exception as error:  # a damaged file can raise any exception
            reason = short_reason(error)
            raise UserError(f"{file}: the best student cannot be read ({reason}); use another output") from None

    # checkpoints

    def _fixed_settings(self) -> dict[str, Any]:
        """The settings that must not change when the run is resumed."""
        data = {} if self.units is None else {"data.units": len(self.units), "data.streams": self.config.data.streams}
        more = {"processes": self.accelerator.num_processes}
        for number, source in enumerate(self.sources):
            more[f"{TEACHER_WEIGHTS} {number + 1}" if number else TEACHER_WEIGHTS] = source.provenance["sha256"]
            if isinstance(source.cache, CodeCache):
                more[f"sha256 of the codebooks of teacher {number + 1}"] = source.cache.version
        return settings_fixed_on_resume(self.config) | data | more

    def save(self) -> None:
        """Write a checkpoint and delete the oldest one. Called by all processes; the first one writes."""
        self.sync()
        if not self.accelerator.is_main_process:
            return self._reseed()
        folder = self.output / "checkpoints"
        folder.mkdir(parents=True, exist_ok=True)
        content = {
            "student": self.student.state_dict(),
            **({"heads": self.heads.state_dict()} if len(self.heads) else {}),
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
            now = self._fixed_settings()
            before = default_settings() | {TEACHER_WEIGHTS: now[TEACHER_WEIGHTS]} | content["settings"]
            if changed := changes({key: before.get(key) for key in now}, now):
                what = f"holds another run, with other settings ({changed})"
                raise UserError(f"{file}: {what}: set them back or choose another output")
            self.student.load_state_dict(content["student"])
            self.heads.load_state_dict(content.get("heads", {}))
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
