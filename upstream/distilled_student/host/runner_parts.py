"""The parts that s3prl's runner is made of, built with errors that name the option at fault."""

from __future__ import annotations

import copy
import importlib
import os
import pickle
import re
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from distilled_student.common.errors import UserError
from distilled_student.common.files import read_json
from distilled_student.common.provenance import FILE, weights_fingerprint
from distilled_student.host.task_gradients import TaskGradients
from distilled_student.host.task_moments import TaskMoments
from distilled_student.host.weight_average import WeightAverage
from distilled_student.host.yaml_sections import repair_numbers, source
from distilled_student.patches.apply import apply_patches

apply_patches()  # before the first import of s3prl

from s3prl.downstream import runner as s3prl_runner  # noqa: E402
from s3prl.optimizers import get_optimizer  # noqa: E402

# the number of a transformer layer in a parameter's name; the convolutions of a front end are no such layers
LAYER = re.compile(r"^(?!.*(?:frontend|feature_extractor)).*\blayers?\.(\d+)\.")
# options that choose the upstream's features; a head fits those of its training, even where others have the same shape
FEATURE_OPTIONS = {
    "-s": "upstream_feature_selection",
    "-l": "upstream_layer_selection",
    "--upstream_feature_normalize": "upstream_feature_normalize",
}
OURS = ("distilled_student", "teacher")  # upstreams whose weights all come from the checkpoint that -k names
DOWNLOADERS = {"urllib", "requests", "http", "huggingface_hub"}


def layer_depths(upstream: nn.Module) -> dict[int, int]:
    """``id`` of each parameter of an upstream -> the depth of its layer, for ``runner.layer_decay``.

    The parameters of layer i, as ``layers.I`` in their names says, have depth i + 1; those before the first layer, such
    as the front end, have depth 0; those after the last one, such as prediction layers, have the depth of the last.
    """
    depths, depth = {}, 0
    for name, parameter in upstream.named_parameters():
        if found := LAYER.search(name):
            depth = int(found[1]) + 1
        depths[id(parameter)] = depth
    return depths


def unwrapped(model: Any) -> Any:
    """The model inside ``DistributedDataParallel``, or the model itself."""
    return getattr(model, "module", model)


def _is_download(error: BaseException | None) -> bool:
    """Whether an error, or an error that caused it, comes from a download."""
    while error is not None:
        packages = {kind.__module__.partition(".")[0] for kind in type(error).__mro__}
        if isinstance(error, ConnectionError | TimeoutError) or packages & DOWNLOADERS:
            return True
        error = error.__cause__ or error.__context__
    return False


def _without_download(name: str) -> str:
    """What to do about an upstream whose weights cannot be downloaded."""
    from s3prl import hub

    local = f"{name.split('_')[0]}_local"
    option = f"-u {local} -k FILE, or " if local in hub.options() else ""
    return f"cannot be downloaded here; download it on another machine and give {option}-u teacher -k FOLDER"


class RunnerParts(s3prl_runner.Runner):
    """s3prl's ``Runner`` without a training loop of its own: upstream, featurizer, downstream, optimizer, scheduler."""

    def __init__(self, args: Namespace, config: dict[str, Any]) -> None:
        if dist.is_initialized() and args.local_rank is None:
            args.local_rank = int(os.environ["LOCAL_RANK"])  # stored in checkpoints; resuming compares it
        repair_numbers(config)
        super().__init__(args, config)
        if args.mode != "train" and self.init_ckpt.get("Average") is not None:
            self._get_average(1.0).apply()
        if self._is_new and config["runner"].get("weights_only"):
            self._keep_weights_only()

    def _keep_weights_only(self) -> None:
        """``runner.weights_only``: the weights of ``-i`` have been loaded; all else starts as in a new run.

        The weights are those that an evaluation uses: the averages of a training with ``runner.average``. With
        ``heads`` the upstream keeps those of ``-k``.
        """
        if self.init_ckpt.get("Average") is not None:
            self._get_average(1.0).apply()
        if self.config["runner"]["weights_only"] == "heads":
            unwrapped(self.upstream.model).load_state_dict(self._weights_of_upstream)
        models = {entry.name for entry in self.all_entries}
        self.init_ckpt = {name: weights for name, weights in self.init_ckpt.items() if name in models}
        if hasattr(self.expert, "restart"):
            self.expert.restart()

    @property
    def where(self) -> str:
        """``FILE: downstream_expert``, for messages."""
        return f"{source(vars(self.args))}: downstream_expert"

    @property
    def expert(self) -> nn.Module:
        """The downstream, not wrapped."""
        return unwrapped(self.downstream.model)

    @property
    def _is_new(self) -> bool:
        """Whether a training starts with settings of its own, possibly from a checkpoint's weights (``-i``)."""
        return self.args.mode == "train" and not self.args.past_exp

    def _check_features(self) -> None:
        """Raise UserError if a checkpoint was trained on other features of the upstream than those chosen now."""
        before = vars(self.init_ckpt.get("Args", Namespace()))
        for option, name in FEATURE_OPTIONS.items():
            now = getattr(self.args, name)
            if name in before and before[name] != now and not self._is_new:
                reason = f"is {now}, but {before[name]} in {self.args.init_ckpt}, which was trained on those features"
                raise UserError(f"args.{name} ({option}): {reason}: use the value of its training")

    def _check_upstream(self, model: nn.Module) -> None:
        """Raise UserError if a frozen upstream has other weights than in the training of the checkpoint.

        Its folder may have been replaced, by a new distillation for example. The run's provenance holds their hash;
        other upstreams than ours may have weights that are not read from a file.
        """
        provenance = Path(self.args.init_ckpt or "").parent / FILE
        is_loaded = "Upstream" in self.init_ckpt  # from the checkpoint, not from the folder
        if self._is_new or is_loaded or self.args.upstream not in OURS or not provenance.is_file():
            return
        models = read_json(provenance).get("models")
        upstream = models.get("upstream") if isinstance(models, dict) else None
        before = upstream.get("sha256") if isinstance(upstream, dict) else None
        if before is not None and before != weights_fingerprint(model)["sha256"]:
            reason = f"are not those of the training of {self.args.init_ckpt}, whose hash is in {provenance.name}"
            raise UserError(f"-k {self.args.upstream_ckpt}: the weights of the upstream {reason}: restore them")

    def upstream_provenance(self) -> dict[str, Any]:
        """The upstream's name and file (``-u``, ``-k``), its revision on the hub, and the hash of its weights."""
        model, args = unwrapped(self.upstream.model), self.args
        named = {"name": args.upstream, "checkpoint": args.upstream_ckpt, "revision": getattr(model, "revision", None)}
        return named | weights_fingerprint(model)

    def _load_weight(self, model: Any, name: str) -> None:
        try:
            if name in self.init_ckpt and hasattr(model, "check_saved"):  # ours
                model.check_saved(self.init_ckpt.get("Config") or {}, is_new=self._is_new)
            if name == "Upstream" and self.config["runner"].get("weights_only") == "heads":
                self._weights_of_upstream = copy.deepcopy(unwrapped(model).state_dict())
            super()._load_weight(model, name)
        except (RuntimeError, ValueError, KeyError, AttributeError) as error:
            raise UserError(f"{self.args.init_ckpt}: {name}: does not fit this experiment: {error}") from None

    def _get_upstream(self) -> Any:
        try:
            entry = super()._get_upstream()
            self._check_upstream(unwrapped(entry.model))
            return entry
        except (AssertionError, OSError, pickle.UnpicklingError) as error:
            name, file = self.args.upstream, self.args.upstream_ckpt
            if _is_download(error):
                raise UserError(f"-u {name}: {_without_download(name)}") from error
            reason = str(error) or "its file is missing or has the wrong format"
            raise UserError(f"-u {name} -k {file}: {reason}") from error

    def _get_featurizer(self) -> Any:
        self._check_features()
        selected, layer = self.args.upstream_feature_selection, self.args.upstream_layer_selection
        upstream = unwrapped(self.upstream.model)
        failure: Exception | None = None
        try:
            entry = super()._get_featurizer()
            if unwrapped(entry.model).feature_selection == selected:
                if hasattr(upstream, "selected"):  # our upstreams then compute these features alone
                    upstream.selected = selected
                return entry
        except (ValueError, AttributeError, IndexError) as error:
            failure = error
        with torch.no_grad():
            available = self.upstream.model([torch.zeros(16_000, device=self.args.device)])
        if selected not in available:
            raise UserError(f"-s {selected}: -u {self.args.upstream} has only {', '.join(sorted(available))}")
        if failure is not None and not isinstance(failure, IndexError):
            raise failure
        layers = len(available[selected])
        raise UserError(f"-l {layer}: -u {self.args.upstream} has {layers} layers of {selected}, from 0")

    def _get_downstream(self) -> Any:
        try:
            return super()._get_downstream()
        except KeyError as error:  # keys of SUPERB's tasks and of ours are checked before
            raise UserError(f"{self.where}: key {error}: missing") from error

    def _init_model(self, model: nn.Module, name: str, trainable: bool, interfaces: Sequence[str] = ()) -> Any:
        if name == "Upstream":
            self._prepare_upstream(model)
        if not dist.is_initialized():
            return super()._init_model(model, name, trainable, interfaces)
        self._load_weight(model, name)
        if trainable and any(parameter.requires_grad for parameter in model.parameters()):
            devices = [self.args.local_rank] if torch.device(self.args.device).type == "cuda" else None
            # only the leader evaluates: a broadcast of buffers there would wait for the other processes forever
            wrapped = DistributedDataParallel(
                model, device_ids=devices, find_unused_parameters=True, broadcast_buffers=False
            )
            for interface in interfaces or ():
                setattr(wrapped, interface, getattr(model, interface))
            model = wrapped
        return s3prl_runner.ModelEntry(model, name, trainable, interfaces)

    def _prepare_upstream(self, model: nn.Module) -> None:
        """What the downstream adds to the upstream before the weights of a checkpoint are loaded, such as branches."""
        expert = importlib.import_module(f"s3prl.downstream.{self.args.downstream}.expert").DownstreamExpert
        if hasattr(expert, "prepare_upstream"):
            expert.prepare_upstream(model, self.config["downstream_expert"], self.where, self.args.upstream_ckpt)

    def _get_optimizer(self, models: Sequence[nn.Module]) -> torch.optim.Optimizer:
        optimizer = get_optimizer(models, self.config["runner"]["total_steps"], self.config["optimizer"])
        self._set_upstream_rate(optimizer)
        self._load_weight(optimizer, "Optimizer")
        return optimizer

    def _set_upstream_rate(self, optimizer: torch.optim.Optimizer) -> None:
        """``runner.upstream_lr`` and ``runner.layer_decay``; s3prl has one learning rate for everything it trains."""
        runner = self.config["runner"]
        rate, decay = runner.get("upstream_lr"), runner.get("layer_decay")
        if rate is None and decay is None:
            return
        depths = layer_depths(unwrapped(self.upstream.model))
        top = max(depths.values(), default=0)
        for group in list(optimizer.param_groups):
            by_depth: dict[int, list[nn.Parameter]] = {}
            for parameter in group["params"]:
                if id(parameter) in depths:
                    by_depth.setdefault(depths[id(parameter)] if decay is not None else top, []).append(parameter)
            group["params"] = [parameter for parameter in group["params"] if id(parameter) not in depths]
            for depth, parameters in sorted(by_depth.items(), reverse=True):
                own_rate = (group["lr"] if rate is None else rate) * (decay or 1.0) ** (top - depth)
                optimizer.add_param_group({**group, "params": parameters, "lr": own_rate})

    def _get_average(self, decay: float | None = None) -> WeightAverage | None:
        """The average of the weights with ``decay`` (default: ``runner.average``), from the checkpoint if it has one.

        Raises:
            UserError: the checkpoint's average is of other models.
        """
        decay = self.config["runner"].get("average") if decay is None else decay
        if decay is None:
            return None
        models = {entry.name: unwrapped(entry.model) for entry in self.all_entries if entry.trainable}
        try:
            return WeightAverage(models, decay, self.init_ckpt.get("Average"))
        except (RuntimeError, KeyError, TypeError) as error:
            raise UserError(f"{self.args.init_ckpt}: Average: does not fit this experiment: {error}") from None

    def _get_task_gradients(self) -> TaskGradients | None:
        """For an expert with ``conflict`` (``downstream_expert.conflict``): of the upstream's weights."""
        conflict = getattr(self.expert, "conflict", None)
        if conflict is None:
            return None
        trained = [p for p in unwrapped(self.upstream.model).parameters() if p.requires_grad]
        return TaskGradients(trained, projects=conflict == "pcgrad")

    def _get_moments(self, optimizer: torch.optim.Optimizer) -> TaskMoments | None:
        """For an expert with ``optimizer_per_task``: the optimizer's states, from the checkpoint if it has some.

        Raises:
            UserError: the checkpoint was trained with the other value of the setting, another optimizer or other tasks.
        """
        is_used, saved = getattr(self.expert, "optimizer_per_task", False), self.init_ckpt.get("Moments")
        if "Optimizer" in self.init_ckpt and is_used != (saved is not None):
            reason = f"{self.args.init_ckpt}: was trained with {str(not is_used).lower()}, cannot resume with another"
            raise UserError(f"{self.where}.optimizer_per_task: {reason}")
        if not is_used:
            return None
        try:
            return TaskMoments(optimizer, self.expert.tasks, saved)
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{self.args.init_ckpt}: Moments: does not fit this experiment: {error}") from None

    def _get_scheduler(self, optimizer: torch.optim.Optimizer) -> Any:
        scheduler = super()._get_scheduler(optimizer)
        if "Optimizer" in self.init_ckpt:  # making a scheduler has set the learning rate of step 0
            optimizer.load_state_dict(self.init_ckpt["Optimizer"])
        return scheduler

    def _get_scaler(self) -> torch.amp.GradScaler | None:
        """For ``runner.fp16``: with the scale from the checkpoint. None without it."""
        if not self.config["runner"].get("fp16", False):
            return None
        scaler = torch.amp.GradScaler("cuda")
        if "Scaler" in self.init_ckpt:
            scaler.load_state_dict(self.init_ckpt["Scaler"])
        return scaler
