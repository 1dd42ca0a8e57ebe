"""s3prl's runner, mended: processes without a GPU, a last checkpoint, errors that name what is wrong."""

from __future__ import annotations

import contextlib
import os
import pickle
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from distilled_student.arguments import checkpoints, source
from distilled_student.errors import UserError
from distilled_student.files import save_torch
from distilled_student.mending import Mends
from distilled_student.runner_config import mend_numbers

MENDS: Mends = {
    "s3prl.downstream.runner": [
        # a run that is killed while it saves left half a checkpoint, which no resume could read
        ("import glob\n", "import glob\nfrom distilled_student.files import save_torch\n"),
        ("torch.save(all_states, path)", "save_torch(all_states, path)"),
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
        if dist.is_initialized() and dist.get_rank() > 0:
            # s3prl counts steps in the leader alone; the others would wait for it for ever after the last one.
            left, zero_grad = self.config["runner"]["total_steps"] - self.init_ckpt.get("Step", 0), optimizer.zero_grad

            def counted(*args: Any, **kwargs: Any) -> None:  # s3prl calls it once a step
                nonlocal left
                zero_grad(*args, **kwargs)
                left -= 1
                if left <= 0:
                    raise _LastStep

            optimizer.zero_grad = counted
        return optimizer

    def _get_scheduler(self, optimizer: Any) -> Any:
        self._scheduler = super()._get_scheduler(optimizer)
        return self._scheduler

    def train(self) -> None:
        """s3prl's, then the last step's checkpoint, which s3prl saves only where save_step divides total_steps."""
        downstream, self._scheduler = self.downstream.model, None
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
        with contextlib.suppress(_LastStep):
            super().train()
        if dist.is_initialized():
            dist.barrier()
        downstream.get_dataloader = get_dataloader
        step, folder = int(self.config["runner"]["total_steps"]), Path(self.args.expdir)
        last = folder / f"states-{step}.ckpt"
        is_leader = not dist.is_initialized() or dist.get_rank() == 0
        if not is_leader or last.exists() or self.init_ckpt.get("Step", 0) >= step:
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
        save_torch(state, last)
        for old in checkpoints(folder)[: -int(self.config["runner"]["max_keep"])]:
            old.unlink()
