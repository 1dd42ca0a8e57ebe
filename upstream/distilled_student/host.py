"""The one module that knows s3prl and its hosts' faults: mends them, registers the plugin, runs s3prl's launcher.

Delete the mends when s3prl is repaired; nothing else in the package changes.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import itertools
import os
import pickle
import sys
import warnings
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, NoReturn

import torch
import torch.distributed as dist

from distilled_student import hostaudio
from distilled_student.arguments import Parser, check_names, checkpoints, override, pick_device, read_experiment, source
from distilled_student.errors import UserError
from distilled_student.runner_config import check_config, mend_numbers
from distilled_student.runner_options import RunnerOptions


class _Gone:
    """A name that huggingface_hub 1.0 dropped: s3prl may import it, and is told so when it uses it."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __call__(self, *args: object, **kwargs: object) -> NoReturn:
        raise UserError(f"--hub huggingface, --push_to_hf_hub: need {self._name} of huggingface_hub before 1.0")

    def __getattr__(self, attribute: str) -> NoReturn:
        if attribute.startswith("__"):  # inspection is not use
            raise AttributeError(attribute)
        self()


def _mend_huggingface_hub() -> None:
    import huggingface_hub

    for name in ("HfFolder", "Repository"):
        if not hasattr(huggingface_hub, name):
            setattr(huggingface_hub, name, _Gone(name))


class DistributedSamplerWrapper(torch.utils.data.DistributedSampler):
    """Each process's share of another sampler's draw: the one name s3prl's ``speech_commands`` takes from catalyst."""

    def __iter__(self) -> Iterator[int]:
        drawn = list(self.dataset)
        return iter([drawn[index] for index in super().__iter__()])


def _mend_catalyst() -> None:
    try:
        importlib.import_module("catalyst.data.sampler")
    except (ImportError, AttributeError):  # not installed, or unmaintained and broken by a newer Python
        for name in ("catalyst", "catalyst.data", "catalyst.data.sampler"):
            sys.modules[name] = ModuleType(name)
        sys.modules["catalyst.data.sampler"].DistributedSamplerWrapper = DistributedSamplerWrapper


def _upstream(name: str) -> Callable[..., torch.nn.Module]:
    """The factory ``name`` of :mod:`distilled_student.upstreams`, imported when it is called."""

    def build(*args: Any, **kwargs: Any) -> torch.nn.Module:
        return getattr(importlib.import_module("distilled_student.upstreams"), name)(*args, **kwargs)

    return build


def _register() -> None:
    from s3prl import hub

    hub.distilled_student = _upstream("student_upstream")
    hub.teacher = _upstream("teacher_upstream")

    def attribute(name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(importlib.import_module("distilled_student.multitask.expert"), name)

    # An alias, not a second import of the same file: a class must not exist twice.
    expert = ModuleType("s3prl.downstream.multitask.expert", "Alias of distilled_student.multitask.expert.")
    expert.__getattr__ = attribute
    sys.modules[expert.__name__] = expert


@functools.cache
def prepare() -> None:
    """Make s3prl usable on today's libraries and register ``distilled_student``, ``teacher`` and ``multitask``.

    Call it before the first import of s3prl. The one visible registration; calling it again does nothing.
    """
    hostaudio.mend()
    _mend_huggingface_hub()
    _mend_catalyst()
    # s3prl stores its arguments in checkpoints; named as safe, so that torch's weights-only check stays on.
    torch.serialization.add_safe_globals([Namespace])

    from s3prl import run_downstream
    from s3prl.downstream import runner

    # The runner counts the states-*.ckpt of the folder by their steps, and fails where a name has none.
    runner.glob = SimpleNamespace(glob=lambda pattern: list(map(str, checkpoints(Path(pattern).parent))))
    run_downstream.hack_isinstance = lambda: None  # it replaces the builtin, for torch before 1.8
    run_downstream.override = override  # s3prl's evaluates the string as code
    run_downstream.Runner = type("Runner", (_MendedRunner, RunnerOptions, run_downstream.Runner), {})
    _register()


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


class _MendedRunner:
    """Goes before s3prl's ``Runner``: processes without a GPU, a last checkpoint, errors that name what is wrong."""

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
            return get_dataloader(split, **kwargs)

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
        torch.save(state, last)
        for old in checkpoints(folder)[: -int(self.config["runner"]["max_keep"])]:
            old.unlink()


def open_runner(checkpoint: str | Path, device: str | None = None, overrides: Sequence[str] = ()) -> Any:
    """s3prl's ``Runner`` with upstream, featurizer and downstream built from a checkpoint and loaded with it.

    Args:
        checkpoint: a file written by ``run_downstream.py -m train``.
        device: the best this machine has by default.
        overrides: in the meaning of ``-o``, such as ``config.downstream_expert.tasks.kws.root=/data``.

    Raises:
        UserError: not such a checkpoint, or something in it cannot be found or built here.
    """
    prepare()
    from s3prl import run_downstream

    state = read_experiment(checkpoint, "evaluate")
    args, config = state["Args"], state["Config"]
    args.mode, args.local_rank, args.init_ckpt = "evaluate", None, os.path.abspath(checkpoint)
    args.past_exp, args.override = args.init_ckpt, ",,".join(overrides) or None
    args.device = pick_device(device)
    for string in overrides:
        override(string, args, config)
    check_names(args)
    check_config(source(vars(args)), config, args.downstream)
    return run_downstream.Runner(args, config)


def _one_line(error: Exception) -> str:
    """The message; of an error raised in a data loader's worker, the one inside the traceback it comes wrapped in."""
    return " ".join(str(error).rpartition(f"{UserError.__module__}.UserError: ")[2].split())


def main(argv: Sequence[str] | None = None) -> int:
    """``run_downstream.py``: s3prl's own command line, from any folder. Returns the exit code, 2 for a user's error."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if "--device=cpu" in arguments or ("--device", "cpu") in itertools.pairwise(arguments):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # s3prl clears the GPU's cache, if there is one, by the device's name
    for library in (r".?torch\.cuda\.amp", r".?torch\.jit"):
        warnings.filterwarnings("ignore", message=library, category=FutureWarning)
    parser = Parser(arguments)
    try:
        prepare()
        from s3prl import run_downstream

        run_downstream.argparse = SimpleNamespace(ArgumentParser=lambda: parser)
        run_downstream.main()
    except (UserError, OSError) as error:
        parser.undo()
        print(f"error: {_one_line(error)}", file=sys.stderr)
        return 2
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    return 0
