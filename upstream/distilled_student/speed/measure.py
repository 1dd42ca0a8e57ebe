"""Timing and memory: all that is compared runs in turn, so that a slow phase of the machine slows all of it."""

from __future__ import annotations

import contextlib
import multiprocessing
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from distilled_student.common.progress import Progress

PROCESS = Path("/proc/self")  # only Linux reports the peak memory of a process and can reset it


def interleaved(
    functions: Mapping[str, Callable[[], object]], rounds: int, warmup: int = 1, at_least: float = 0.0, what: str = ""
) -> dict[str, list[float]]:
    """Seconds per call of each function, one figure per round.

    Every round calls all functions. The function that comes first changes from round to round.

    Args:
        warmup: Rounds before those that count.
        at_least: A function is called again until this many seconds have passed; the round's figure is the mean of
            its calls. Otherwise a short function would always run with the caches that a long one has filled.
        what: Name of the measurement for the progress bar; empty: no bar.
    """
    names = list(functions)
    times: dict[str, list[float]] = {name: [] for name in names}
    with Progress(warmup + rounds, what, shown=bool(what)) as progress:
        for number in range(-warmup, rounds):
            first = number % len(names)
            for name in [*names[first:], *names[:first]]:
                calls, start = 0, time.perf_counter()
                while calls == 0 or time.perf_counter() - start < at_least:
                    functions[name]()
                    calls += 1
                if number >= 0:
                    times[name].append((time.perf_counter() - start) / calls)
            progress.update()
    return times


class Ratio(NamedTuple):
    """Median and quartiles over the rounds."""

    median: float
    low: float
    high: float


def ratio(reference: Sequence[float], times: Sequence[float]) -> Ratio:
    """How many times as fast as the ``reference``: the times of one call of `interleaved`, divided round by round."""
    low, median, high = np.quantile(np.divide(reference, times), (0.25, 0.5, 0.75)).tolist()
    return Ratio(median, low, high)


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    """Run torch on ``count`` threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def open_session(file: Path, count: int, profile: Path | None = None) -> Any:
    """An ``onnxruntime.InferenceSession`` on ``count`` threads; ``profile``: first part of its profile's file name."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = count, 1
    # without this, threads of one session wait busily while the next session is timed
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(profile)
    return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


def _kilobytes(field: str) -> int:
    lines = (PROCESS / "status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def _peak(prepare: Callable[..., Callable[[], object]], arguments: Sequence[Any]) -> int:
    run = prepare(*arguments)
    before = _kilobytes("VmRSS")
    (PROCESS / "clear_refs").write_text("5")  # resets the peak, which the imports have set
    run()
    return 1024 * (_kilobytes("VmHWM") - before)


def peak_memory(prepare: Callable[..., Callable[[], object]], *arguments: Any) -> int | None:
    """Peak memory in bytes of what ``prepare(*arguments)`` returns, run in a fresh process.

    Memory that the process has before that call does not count. ``prepare`` imports; what it returns builds or loads
    the model and runs it. So libraries do not count, and weights do. ``prepare`` must be a function of a module.

    Returns:
        None where the system does not report the peak. (``getrusage`` is no substitute: a process starts with the peak
        of its parent.)
    """
    if not (PROCESS / "clear_refs").exists():
        return None
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_peak, prepare, arguments).result()
