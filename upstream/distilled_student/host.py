"""The one door to s3prl: mends it and its hosts, registers the plugin, runs s3prl's launcher.

Their faults are known here, in ``hostaudio``, ``runner``, ``experts`` and ``recipes`` alone. Delete the mends when
s3prl is repaired; nothing else in the package changes.
"""

from __future__ import annotations

import functools
import importlib
import itertools
import os
import sys
import warnings
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from tqdm import tqdm

from distilled_student import experts, hostaudio, mending, recipes
from distilled_student.arguments import Parser, check_names, checkpoints, override, pick_device, read_experiment, source
from distilled_student.errors import UserError
from distilled_student.runner import MENDS, MendedRunner
from distilled_student.runner_config import check_config
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


def _upstream(name: str) -> Callable[..., torch.nn.Module]:
    """The factory ``name`` of :mod:`distilled_student.upstreams`, imported when it is called."""

    def build(*args: Any, **kwargs: Any) -> torch.nn.Module:
        return getattr(importlib.import_module("distilled_student.upstreams"), name)(*args, **kwargs)

    return build


def _add_plugin() -> None:
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
def register() -> None:
    """Make s3prl usable on today's libraries and register ``distilled_student``, ``teacher`` and ``multitask``.

    Call it before the first import of s3prl. The one visible registration; calling it again does nothing.
    """
    hostaudio.mend()
    _mend_huggingface_hub()
    mending.mend({**MENDS, **experts.MENDS, **recipes.MENDS})
    # s3prl stores its arguments in checkpoints; named as safe, so that torch's weights-only check stays on.
    torch.serialization.add_safe_globals([Namespace])

    from s3prl import run_downstream
    from s3prl.downstream import runner

    # The runner counts the states-*.ckpt of the folder by their steps, and fails where a name has none.
    runner.glob = SimpleNamespace(glob=lambda pattern: list(map(str, checkpoints(Path(pattern).parent))))
    run_downstream.hack_isinstance = lambda: None  # it replaces the builtin, for torch before 1.8
    run_downstream.override = override  # s3prl's evaluates the string as code
    run_downstream.Runner = type("Runner", (MendedRunner, RunnerOptions, run_downstream.Runner), {})
    _add_plugin()


def open_runner(checkpoint: str | Path, device: str | None = None, overrides: Sequence[str] = ()) -> Any:
    """s3prl's ``Runner`` with upstream, featurizer and downstream built from a checkpoint and loaded with it.

    Args:
        checkpoint: a file written by ``run_downstream.py -m train``.
        device: the best this machine has by default.
        overrides: in the meaning of ``-o``, such as ``config.downstream_expert.tasks.kws.root=/data``.

    Raises:
        UserError: not such a checkpoint, or something in it cannot be found or built here.
    """
    register()
    from s3prl import run_downstream

    state = read_experiment(checkpoint, "evaluate")
    args, config = state["Args"], state["Config"]
    args.mode, args.local_rank, args.init_ckpt = "evaluate", None, os.path.abspath(checkpoint)
    args.expdir = os.path.dirname(args.init_ckpt)
    args.past_exp, args.override = args.init_ckpt, ",,".join(overrides) or None
    args.device = pick_device(device)
    for string in overrides:
        override(string, args, config)
    check_names(args)
    check_config(source(vars(args)), config, args.downstream)
    return run_downstream.Runner(args, config)


def one_line(error: Exception) -> str:
    """The message; of an error raised in a data loader's worker, the one inside the traceback it comes wrapped in."""
    return " ".join(str(error).rpartition(f"{UserError.__module__}.UserError: ")[2].split())


def run(arguments: Sequence[str]) -> None:
    """s3prl's ``run_downstream.py`` with these arguments; an experiment folder without a checkpoint is removed again.

    Raises:
        UserError: something that was given cannot be used; one line.
    """
    if "--device=cpu" in arguments or ("--device", "cpu") in itertools.pairwise(arguments):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # s3prl clears the GPU's cache, if there is one, by the device's name
    for library in (r".?torch\.cuda\.amp", r".?torch\.jit"):
        warnings.filterwarnings("ignore", message=library, category=FutureWarning)
    parser = Parser(arguments)
    try:
        register()
        from s3prl import run_downstream

        run_downstream.argparse = SimpleNamespace(ArgumentParser=lambda: parser)
        run_downstream.main()
    except (UserError, OSError) as error:
        parser.undo()
        raise UserError(one_line(error)) from error
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def main(argv: Sequence[str] | None = None) -> int:
    """``run_downstream.py``: s3prl's own command line, from any folder. Returns the exit code, 2 for a user's error."""
    try:
        run(list(sys.argv[1:] if argv is None else argv))
    except UserError as error:
        tqdm.write(f"error: {error}", file=sys.stderr)  # on a line of its own, below s3prl's progress bars
        return 2
    except KeyboardInterrupt:  # before training has begun, which takes it itself
        tqdm.write("interrupted", file=sys.stderr)
        return 130
    return 0
