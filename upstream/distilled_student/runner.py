"""s3prl's runner, mended: processes without a GPU, a last checkpoint, errors that name what is wrong."""

from __future__ import annotations

import contextlib
import os
import pickle
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from tqdm import tqdm

from distilled_student.arguments import checkpoints, source
from distilled_student.errors import UserError
from distilled_student.files import is_damaged, save_torch
from distilled_student.interruption import Interruption
from distilled_student.mending import Mends
from distilled_student.processes import is_leader, only_run_in, together
from distilled_student.provenance import write_provenance
from distilled_student.random_states import seed_all
from distilled_student.runner_config import mend_numbers

MAX_SKIPPED = 10  # steps in a row without a finite gradient

MENDS: Mends = {
    "s3prl.run_downstream": [
        # a folder that was copied or moved would write into the one that it came from
        ("            'device'\n        ]", "            'device', 'expdir'\n        ]"),
    ],
    "s3prl.downstream.runner": [
        # a run that is killed while it saves left half a checkpoint, and none before it, which it had removed
        ("torch.save(all_states, path)", "self.save_states(all_states, path)"),
        ("                    check_ckpt_num(self.args.expdir)\n", ""),
        # SIGTERM and Ctrl-C save, too
        ("if global_step % self.config['runner']['save_step'] == 0:", "if self.saves_at(global_step):"),
        ("pbar.update(1)", "pbar.update(1); self.leave_at(global_step)"),
        # an infinite gradient is as bad as one that is NaN
        ("elif math.isnan(grad_norm):", "elif not self.accepts(grad_norm, global_step):"),
        ("torch.cuda.amp.GradScaler()", "self.make_scaler()"),
    ],
}


def _is_download(error: BaseException | None) -> bool:
    """Whether an error, or one that it came from, is that of a download: of urllib, requests or huggingface_hub."""
    while error is not None:
        rooms = {kind.__module__.partition(".")[0] for kind in type(error).__mro__}
        if isinstance(error, ConnectionError | TimeoutError) or rooms & {
            "urllib",
            "requests",
            "http",
            "huggingface_hub",
        }:
            return True
        error = error.__cause__ or error.__context__
    return False


def _elsewhere(name: str) -> str:
    """What to do about an upstream whose weights cannot be downloaded here."""
    from s3prl import hub

    local = f"{name.split('_')[0]}_local"
    how = f"-u {local} -k FILE, or " if local in hub.options() else ""
    return f"cannot be downloaded here; download it on another machine and give {how}-u teacher -k FOLDER"


class _LastStep(Exception):
    """A process that is not the leader has made its last step."""


class MendedRunner:
    """Goes before s3prl's ``Runner``, whose methods it extends."""

    def __init__(self, args: Namespace, config: dict[str, Any]) -> None:
        if dist.is_initialized() and args.local_rank is None:
            args.local_rank = int(os.environ["LOCAL_RANK"])  # a resume looks for it in the checkpoint
        mend_numbers(config)
        super().__init__(args, config)

    def _load_weight(self, model: Any, name: str) -> None:
        try:
            super()._load_weight(model, name)
        except (RuntimeError, ValueError, KeyError) as error:
            raise UserError(f"{self.args.init_ckpt}: {name}: does not fit this experiment: {error}") from None

    def _get_upstream(self) -> Any:
        try:
            return super()._get_upstream()
        except (AssertionError, OSError, pickle.UnpicklingError) as error:
            name, file = self.args.upstream, self.args.upstream_ckpt
            if _is_download(error):
                raise UserError(f"-u {name}: {_elsewhere(name)}") from error
            reason = str(error) or "its file is missing or of another kind"
            raise UserError(f"-u {name} -k {file}: {reason}") from error

    def _get_featurizer(self) -> Any:
        wanted, layer = self.args.upstream_feature_selection, self.args.upstream_layer_selection
        try:
            entry = super()._get_featurizer()
            if getattr(entry.model, "module", entry.model).feature_selection == wanted:
                upstream = getattr(self.upstream.model, "module", self.upstream.model)
                if hasattr(upstream, "selected"):  # ours make no others then
                    upstream.selected = wanted
                return entry
        except (ValueError, AttributeError, IndexError) as error:
            with torch.no_grad():
                found = self.upstream.model([torch.zeros(16_000, device=self.args.device)])
            if wanted in found and not isinstance(error, IndexError):
                raise
        else:
            with torch.no_grad():
                found = self.upstream.model([torch.zeros(16_000, device=self.args.device)])
        if wanted in found:
            raise UserError(f"-l {layer}: -u {self.args.upstream} has {len(found[wanted])} layers of {wanted}, from 0")
        raise UserError(f"-s {wanted}: -u {self.args.upstream} has only {', '.join(sorted(found))}")

    @property
    def _where(self) -> str:
        return f"{source(vars(self.args))}: downstream_expert"

    def _get_downstream(self) -> Any:
        try:
            return super()._get_downstream()
        except KeyError as error:  # of SUPERB's tasks and ours the keys have been checked
            raise UserError(f"{self._where}: key {error}: missing") from error

    def _init_model(self, model: torch.nn.Module, name: str, trainable: bool, interfaces: Sequence[str] = ()) -> Any:
        from s3prl.downstream.runner import ModelEntry

        if not dist.is_initialized():
            return super()._init_model(model, name, trainable, interfaces)
        self._load_weight(model, name)
        if trainable and any(parameter.requires_grad for parameter in model.parameters()):
            devices = [self.args.local_rank] if torch.device(self.args.device).type == "cuda" else None
            # Only the leader evaluates: a broadcast of buffers there would wait for processes that take no part.
            inner, model = (
                model,
                torch.nn.parallel.DistributedDataParallel(
                    model, device_ids=devices, find_unused_parameters=True, broadcast_buffers=False
                ),
            )
            for interface in interfaces or ():
                setattr(model, interface, getattr(inner, interface))
        return ModelEntry(model, name, trainable, interfaces)

    def _get_optimizer(self, models: Any) -> Any:
        self._optimizer = optimizer = super()._get_optimizer(models)
        if is_leader():
            return optimizer
        # s3prl counts steps in the leader alone; the others would wait for it for ever after the last one.
        done, zero_grad = self.init_ckpt.get("Step", 0), optimizer.zero_grad
        total, save_step = (self.config["runner"][key] for key in ("total_steps", "save_step"))
        seed_all(self.args.seed, dist.get_rank(), done)

        def counted(*args: Any, **kwargs: Any) -> None:  # s3prl calls it once a step
            nonlocal done
            zero_grad(*args, **kwargs)
            done += 1
            if done >= total:
                raise _LastStep
            if done % save_step == 0:  # the leader's random states are in its checkpoint, the others' follow from it
                seed_all(self.args.seed, dist.get_rank(), done)

        optimizer.zero_grad = counted
        return optimizer

    def _get_scheduler(self, optimizer: Any) -> Any:
        self._scheduler = super()._get_scheduler(optimizer)
        if "Optimizer" in self.init_ckpt:  # making a scheduler has set the learning rate of step 0
            optimizer.load_state_dict(self.init_ckpt["Optimizer"])
        return self._scheduler

    # What s3prl's training loop calls, see MENDS
    def make_scaler(self) -> torch.amp.GradScaler:
        """Of ``runner.fp16``, with the scale that it had in the checkpoint."""
        self._scaler = torch.amp.GradScaler("cuda")
        if "Scaler" in self.init_ckpt:
            self._scaler.load_state_dict(self.init_ckpt["Scaler"])
        return self._scaler

    def saves_at(self, step: int) -> bool:
        """Whether the leader, who alone asks, writes ``states-STEP.ckpt``."""
        self._leaves = bool(self._interruption)  # asked once: a signal during this save is the next step's affair
        return self._leaves or step % int(self.config["runner"]["save_step"]) == 0

    def leave_at(self, step: int) -> None:
        """End here, if SIGTERM or Ctrl-C asked for it."""
        if self._leaves and step < int(self.config["runner"]["total_steps"]):
            self._interruption.leave(f"saved step {step}; run_downstream.py -m train -e {self.args.expdir} goes on")

    def accepts(self, norm: torch.Tensor, step: int) -> bool:
        """Whether a gradient is finite; else the step is skipped.

        Raises:
            UserError: ``runner.max_skipped`` (10) steps in a row are; names their utterances.
        """
        if torch.isfinite(norm):
            self._failing.clear()
            return True
        self.skipped_steps += 1
        self._failing.append(list(map(str, getattr(self._expert, "last_keys", ()))))
        names = ", ".join(self._failing[-1]) or "its batch"
        tqdm.write(f"step {step} was skipped: its gradient is {float(norm)}, on {names}", file=sys.stderr)
        if len(self._failing) >= int(self.config["runner"].get("max_skipped", MAX_SKIPPED)):
            where = f"{source(vars(self.args))}: runner.max_skipped"
            names = ", ".join(sorted({name for step in self._failing for name in step})) or "unknown files"
            reason = f"{len(self._failing)} steps in a row had no finite gradient, on {names}"
            raise UserError(f"{where}: {reason}: lower the learning rate or look at these files")
        return False

    def save_states(self, states: dict[str, Any], path: str | Path) -> None:
        """A checkpoint, whole or not at all; then those of ``states-STEP.ckpt`` that are too many are removed."""
        if self._scaler is not None:
            states["Scaler"] = self._scaler.state_dict()
        save_torch(states, path)
        for old in checkpoints(Path(self.args.expdir))[: -int(self.config["runner"]["max_keep"])]:
            old.unlink()

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        """s3prl's, by the leader alone: the others would find the same."""
        return super().evaluate(*args, **kwargs) if is_leader() else []

    @property
    def _expert(self) -> torch.nn.Module:
        return getattr(self.downstream.model, "module", self.downstream.model)

    def train(self) -> None:
        """s3prl's, then the last step's checkpoint, which s3prl saves only where save_step divides total_steps.

        Raises:
            UserError: the data, another process or the disk fail. Interrupted: SIGTERM or Ctrl-C, after a checkpoint.
        """
        self._scheduler = self._scaler = None
        self._leaves, self.skipped_steps = False, 0
        self._failing: list[list[str]] = []
        self._interruption = Interruption()
        held = only_run_in(Path(self.args.expdir)) if is_leader() else contextlib.nullcontext()
        with held, self._interruption.watched(), together(self._interruption):
            self._write_provenance()
            if is_leader() and hasattr(self._expert, "forget"):
                self._expert.forget(self.init_ckpt.get("Step", 0))
            epoch = self._train()
            if dist.is_initialized():
                dist.barrier()
            self._save_last(epoch)

    def _write_provenance(self) -> None:
        if not is_leader():
            return
        data, config = {}, self.config
        if hasattr(self._expert, "fingerprints"):  # ours
            data, config = self._expert.fingerprints("train"), {**config, "downstream_expert": self._expert.resolved()}
        settings = {"arguments": vars(self.args), "config": config}
        write_provenance(Path(self.args.expdir), settings, self.args.seed, {"train": data})

    def _save_last(self, epoch: int) -> None:
        step, folder = int(self.config["runner"]["total_steps"]), Path(self.args.expdir)
        if self.skipped_steps:
            tqdm.write(f"{self.skipped_steps} steps were skipped: their gradient was not finite", file=sys.stderr)
        last = folder / f"states-{step}.ckpt"
        if not is_leader() or (last.exists() and not is_damaged(last)) or self.init_ckpt.get("Step", 0) >= step:
            return
        state = {"Optimizer": self._optimizer.state_dict(), "Step": step, "Epoch": epoch}
        state |= {"Args": self.args, "Config": self.config}
        for entry in self.all_entries:
            if entry.trainable:
                state[entry.name] = getattr(entry.model, "module", entry.model).state_dict()
        if self._scheduler:
            state["Scheduler"] = self._scheduler.state_dict()
        if dist.is_initialized():
            state["WorldSize"] = dist.get_world_size()
        self.save_states(state, last)

    def _train(self) -> int:
        """s3prl's training loop; the number of its last epoch."""
        downstream = self.downstream.model
        epoch, get_dataloader = self.init_ckpt.get("Epoch", 0), downstream.get_dataloader

        def watched(split: str, **kwargs: Any) -> Any:
            nonlocal epoch
            epoch = kwargs.get("epoch", epoch)
            try:
                loader = get_dataloader(split, **kwargs)
            except ValueError as error:  # torch draws from no empty data set
                raise UserError(f"{self._where}: no data to {split} with ({error})") from error
            if not len(loader):  # s3prl would ask for the next epoch's batches for ever
                raise UserError(f"{self._where}: less data to {split} with than makes one batch")
            return loader

        downstream.get_dataloader = watched
        try:
            with contextlib.suppress(_LastStep):
                super().train()
        finally:
            downstream.get_dataloader = get_dataloader
        return epoch
