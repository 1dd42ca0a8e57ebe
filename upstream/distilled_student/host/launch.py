"""``run_downstream.py``: s3prl's command with this plugin, and runs opened from their checkpoints.

Imports nothing large at its start: a simple mistake is answered first (`early_checks`).
"""

from __future__ import annotations

import itertools
import os
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from distilled_student.common.errors import UserError, message_of
from distilled_student.host.command_line import parse
from distilled_student.host.early_checks import check_early


def open_runner(checkpoint: str | Path, device: str | None = None, overrides: Sequence[str] = ()) -> Any:
    """Our `Runner` with upstream, featurizer and downstream built and loaded from a checkpoint.

    Args:
        checkpoint: A file written by ``run_downstream.py -m train``.
        device: None for the best that this machine has.
        overrides: As ``-o`` takes them, such as ``config.downstream_expert.tasks.kws.root=/data``.

    Raises:
        UserError: not such a checkpoint, or something in it cannot be found or built here.
    """
    from distilled_student.common.devices import pick_device
    from distilled_student.host.overrides import override
    from distilled_student.host.plugin import register
    from distilled_student.host.resolve import check_imports
    from distilled_student.host.saved_runs import read_experiment
    from distilled_student.host.trial_step import check_config
    from distilled_student.host.yaml_sections import source

    register()
    from distilled_student.host.runner import Runner

    state = read_experiment(checkpoint, "evaluate")
    args, config = state["Args"], state["Config"]
    args.mode, args.local_rank, args.init_ckpt = "evaluate", None, os.path.abspath(checkpoint)
    args.expdir = os.path.dirname(args.init_ckpt)
    args.past_exp, args.override = args.init_ckpt, ",,".join(overrides) or None
    args.device = pick_device(device)
    for string in overrides:
        override(string, args, config)
    check_imports(args)
    check_config(source(vars(args)), config, args.downstream)
    return Runner(args, config)


def run(arguments: Sequence[str]) -> None:
    """s3prl's ``main`` with these arguments; a new experiment folder without a checkpoint is removed on failure.

    Raises:
        UserError: something that was given cannot be used; one line.
    """
    try:
        args = parse(arguments)
        check_early(args)
        if "--device=cpu" in arguments or ("--device", "cpu") in itertools.pairwise(arguments):
            os.environ["CUDA_VISIBLE_DEVICES"] = ""  # s3prl's experts use a GPU where they find one
        _run_s3prl(args)
    except (UserError, OSError) as error:  # OSError: a name that is too long, a folder that may not be read
        raise UserError(message_of(error)) from error


def _run_s3prl(args: Namespace) -> None:
    import torch.distributed as dist

    from distilled_student.host.plugin import register
    from distilled_student.host.resolve import ResolvedArguments

    resolved = ResolvedArguments(args)
    try:
        register()
        from s3prl import run_downstream

        run_downstream.argparse = SimpleNamespace(ArgumentParser=lambda: resolved)
        run_downstream.main()
    except (UserError, OSError):
        resolved.undo()
        raise
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def main(argv: Sequence[str] | None = None) -> int:
    """The console script ``run_downstream.py``. Returns the exit code: 2 for a user's error, 130 after Ctrl-C."""
    try:
        run(list(sys.argv[1:] if argv is None else argv))
    except UserError as error:
        _print_below_bars(f"error: {error}")
        return 2
    except KeyboardInterrupt:  # before training, which handles it itself
        _print_below_bars("interrupted")
        return 130
    return 0


def _print_below_bars(line: str) -> None:
    from tqdm import tqdm

    tqdm.write(line, file=sys.stderr)
