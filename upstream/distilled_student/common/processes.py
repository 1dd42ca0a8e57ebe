"""Several processes of one training: sums over them, and one of them that is gone."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
from filelock import FileLock, Timeout
from torch import Tensor

from distilled_student.common.errors import UserError
from distilled_student.common.interruption import Interruption

GONE = "another process of this run has ended; run the same command again to go on from the last checkpoint"
# what gloo and NCCL say of a connection whose other end is gone
_LOST = re.compile(r"gloo|NCCL|connection (was )?(closed|reset|refused)|broken pipe|timed out", re.IGNORECASE)


def is_leader() -> bool:
    """Whether this process is the one that writes."""
    return not dist.is_initialized() or dist.get_rank() == 0


def count_processes() -> int:
    """Of this training."""
    return dist.get_world_size() if dist.is_initialized() else 1


@torch.no_grad()
def summed(values: Tensor) -> Tensor:
    """The sum of ``values`` over all processes, on the device and without waiting for it."""
    values = values.detach().clone()
    if count_processes() > 1:
        dist.all_reduce(values)
    return values


@contextmanager
def together(interruption: Interruption) -> Iterator[None]:
    """Training with other processes: when one is gone, the others end too, with a line that says so.

    Raises:
        UserError: another process has ended. Interrupted: it has, after all were asked to.
    """
    try:
        yield
    except RuntimeError as error:
        if not dist.is_initialized() or not _LOST.search(str(error)):
            raise
        interruption.leave(GONE)
        raise UserError(GONE) from None


@contextmanager
def only_run_in(folder: Path) -> Iterator[None]:
    """Hold a folder for one run; the lock goes with its process, however that ends.

    Raises:
        UserError: another run holds it.
    """
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise UserError(f"{folder}: another run is writing into it; wait for it or choose another folder") from None
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror})") from None
    try:
        for part in folder.glob("*.part"):  # of a run that was killed while it saved
            part.unlink()
        yield
    finally:
        lock.release()
