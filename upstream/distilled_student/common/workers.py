"""Data workers that end with the process that they work for, however that ends."""

from __future__ import annotations

import ctypes
import signal
import sys

PR_SET_PDEATHSIG = 1  # of linux/prctl.h


def end_with_parent(worker: int) -> None:
    """For a DataLoader's ``worker_init_fn``: without its parent, a worker may wait for ever to hand over a batch."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
