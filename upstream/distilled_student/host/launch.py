"""Runs s3prl's ``run_downstream.py`` with the plugin, and opens its checkpoints."""

from __future__ import annotations

import itertools
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tqdm import tqdm

from distilled_student import __version__
from distilled_student.common.errors import UserError, message_of

# torch and s3prl take seconds to import: each function imports what it needs, so that --version answers at once


def open_runner(checkpoint: str | Path, device: str | None = None, overrides: Sequence[str] = ()) -> Any:
    """s3prl's ``Runner`` with upstream, featurizer and downstream built from a checkpoint and loaded with it.

    Args:
        checkpoint: a file written by ``run_downstream.py -m train``.
        device: the best this machine has by default.
        overrides: in the meaning of ``-o``, such as ``config.downstream_expert.tasks.kws.root=/data``.

    Raises:
        UserError: not such a checkpoint, or something in it cannot be found or built here.
    """
    from distilled_student.common.devices import pick_device
    from distilled_student.host.command_line import check_names
    from distilled_student.host.overrides import override
    from distilled_student.host.plugin import register
    from distilled_student.host.saved_runs import read_experiment
    from distilled_student.host.yaml_sections import check_config, source

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


def run(arguments: Sequence[str]) -> None:
    """s3prl's ``run_downstream.py`` with these arguments; an experiment folder without a checkpoint is removed again.

    Raises:
        UserError: something that was given cannot be used; one line.
    """
    import torch.distributed as dist

    from distilled_student.host.command_line import Parser
    from distilled_student.host.plugin import register

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
        raise UserError(message_of(error)) from error
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def main(argv: Sequence[str] | None = None) -> int:
    """``run_downstream.py``: s3prl's own command line, from any folder. Returns the exit code, 2 for a user's error."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if "--version" in arguments:
        print(f"distilled-student {__version__}")
        return 0
    try:
        run(arguments)
    except UserError as error:
        tqdm.write(f"error: {error}", file=sys.stderr)  # on a line of its own, below s3prl's progress bars
        return 2
    except KeyboardInterrupt:  # before training has begun, which takes it itself
        tqdm.write("interrupted", file=sys.stderr)
        return 130
    return 0
