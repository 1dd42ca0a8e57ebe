"""The load of other processes on this machine, with which a measured time is too long."""

from __future__ import annotations

import os
import time
from pathlib import Path

STAT = Path("/proc/stat")
TOLERANCE = 0.25  # cores: what an idle system needs for itself


def other_load(seconds: float = 0.2) -> float | None:
    """Cores that other processes keep busy, measured while this one sleeps; None where there is no ``/proc/stat``."""
    before = _ticks()
    time.sleep(seconds)
    after = _ticks()
    if before is None or after is None or after[1] <= before[1]:
        return None
    return (os.cpu_count() or 1) * (after[0] - before[0]) / (after[1] - before[1])


def _ticks() -> tuple[int, int] | None:
    """Busy and all ticks of all cores since the start of the system."""
    try:
        user, nice, system, idle, waiting, *more = map(int, STAT.read_text().split("\n", 1)[0].split()[1:9])
    except (OSError, ValueError):
        return None
    busy = user + nice + system + sum(more)
    return busy, busy + idle + waiting


def needs_more_cores(load: float | None, threads: int) -> bool:
    """Whether other processes' ``load`` leaves fewer cores than ``threads``."""
    return load is not None and load + threads > (os.cpu_count() or 1) + TOLERANCE
