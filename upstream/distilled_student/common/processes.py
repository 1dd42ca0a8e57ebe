"""Several processes of one training: sums over them, the end of one of them, data workers, one run per folder."""

from __future__ import annotations

import ctypes
import os
import re
import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist
from filelock import FileLock, Timeout
from torch import Tensor
from torch.utils.data import DataLoader

from distilled_student.common.errors import UserError
from distilled_student.common.interruption import SIGNALS, Interruption

T = TypeVar("T")
PR_SET_PDEATHSIG = 1  # from linux/prctl.h
PROCESS_LOST = "another process of this run has ended; run the same command again to resume from the last checkpoint"
# messages of gloo and NCCL when the process at the other end of a connection has ended
_CONNECTION_LOST = re.compile(
    r"gloo|NCCL|connection (was )?(closed|reset|refused)|broken pipe|timed out", re.IGNORECASE
)


def is_leader() -> bool:
    """Whether this is the process that logs and saves."""
    return not dist.is_initialized() or dist.get_rank() == 0


def count_processes() -> int:
    """Number of processes that train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


@torch.no_grad()
def sum_over_processes(values: Tensor) -> Tensor:
    """The sum of ``values`` over all processes. Stays on the device and does not synchronise with it."""
    values = values.detach().clone()
    if count_processes() > 1:
        dist.all_reduce(values)
    return values


@contextmanager
def stops_with_other_processes(interruption: Interruption) -> Iterator[None]:
    """While several processes train: when one has ended, the others stop with an error message.

    Raises:
        UserError: another process has ended.
        Interrupted: another process has ended, and this one has received a signal to exit.
    """
    try:
        yield
    except RuntimeError as error:
        if not dist.is_initialized() or not _CONNECTION_LOST.search(str(error)):
            raise
        interruption.leave(PROCESS_LOST)
        raise UserError(PROCESS_LOST) from None


@contextmanager
def only_run_in(folder: Path) -> Iterator[None]:
    """Lock a folder for one run. The lock ends with the process, even if that is killed.

    Raises:
        UserError: another run has locked it, or the folder cannot be written.
    """
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise UserError(
            f"{folder}: another run is writing into it; wait for its end or choose another folder"
        ) from None
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror})") from None
    try:
        for part in folder.glob("*.part"):  # left by a run that was killed while it saved
            part.unlink()
        yield
    finally:
        lock.release()


def start_workers(loader: Iterable[T]) -> Iterator[T]:
    """``iter(loader)`` with data workers that ignore the signals to end, and end with this process.

    Schedulers, ``timeout`` and terminals signal the whole process group. The training then needs its workers until it
    has saved. The signals are blocked while the workers start, because a new process inherits this.
    """
    if isinstance(loader, DataLoader) and loader.worker_init_fn is None:  # of a downstream of s3prl
        loader.worker_init_fn = end_with_parent
    if not hasattr(signal, "pthread_sigmask"):  # Windows has no process groups
        return iter(loader)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        return iter(loader)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def end_with_parent(worker: int) -> None:
    """A DataLoader's ``worker_init_fn``: the worker ends when its parent process ends, even if that is killed.

    Otherwise a worker whose parent was killed can wait forever to hand over a batch. Of the signals to end, the worker
    obeys only a SIGTERM of its parent, see `start_workers`. Linux only.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        threading.Thread(target=_exit_at_sigterm_of, args=(os.getppid(),), daemon=True).start()


def _exit_at_sigterm_of(parent: int) -> None:
    """Exit when the parent process sends SIGTERM: torch does so to a worker that does not end in time."""
    while True:
        received = signal.sigwaitinfo(SIGNALS)
        if received.si_signo == signal.SIGTERM and received.si_pid == parent:
            os._exit(0)
