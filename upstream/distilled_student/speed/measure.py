"""Figures that can be compared: all is called in turn, so that what slows the machine down slows all of it."""

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

PROCESS = Path("/proc/self")  # Linux alone tells a process's peak and lets it be forgotten


def interleaved(
    functions: Mapping[str, Callable[[], object]], rounds: int, warmup: int = 1, at_least: float = 0.0
) -> dict[str, list[float]]:
    """Seconds per call of each function, one figure per round; every round calls them all, each beginning with another.

    Args:
        warmup: Rounds before those that count.
        at_least: Seconds for which a function is called again before it is the next one's turn. The round's figure is
            the mean of its calls. A short function would else only be seen with the caches that a long one left.
    """
    names = list(functions)
    times: dict[str, list[float]] = {name: [] for name in names}
    for number in range(-warmup, rounds):
        first = number % len(names)
        for name in [*names[first:], *names[:first]]:
            calls, start = 0, time.perf_counter()
            while calls == 0 or time.perf_counter() - start < at_least:
                functions[name]()
                calls += 1
            if number >= 0:
                times[name].append((time.perf_counter() - start) / calls)
    return times


class Ratio(NamedTuple):
    """Median over the rounds, and the quartiles around it."""

    median: float
    low: float
    high: float


def ratio(reference: Sequence[float], times: Sequence[float]) -> Ratio:
    """How many times as fast as the ``reference``: both of one call of `interleaved`, divided round by round."""
    low, median, high = np.quantile(np.divide(reference, times), (0.25, 0.5, 0.75)).tolist()
    return Ratio(median, low, high)


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    """torch on so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def open_session(file: Path, count: int, profile: Path | None = None) -> Any:
    """An ``onnxruntime.InferenceSession`` on so many threads; ``profile``: beginning of the name of its profile."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = count, 1
    options.add_session_config_entry("session.force_spinning_stop", "1")  # else its threads wait in the next one's time
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(profile)
    return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


def _kilobytes(field: str) -> int:
    lines = (PROCESS / "status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def _peak(prepare: Callable[..., Callable[[], object]], arguments: Sequence[Any]) -> int:
    run = prepare(*arguments)
    before = _kilobytes("VmRSS")
    (PROCESS / "clear_refs").write_text("5")  # the peak so far, of the imports, is forgotten
    run()
    return 1024 * (_kilobytes("VmHWM") - before)


def peak_memory(prepare: Callable[..., Callable[[], object]], *arguments: Any) -> int | None:
    """Bytes that a fresh process needs at most for what ``prepare(*arguments)`` returns, beyond what it had before.

    ``prepare`` imports, and what it returns builds or loads and runs: so libraries do not count, weights do. It must be
    a function of a module. None where the system does not tell (``getrusage`` does not do: a process begins with the
    peak of the one that started it).
    """
    if not (PROCESS / "clear_refs").exists():
        return None
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_peak, prepare, arguments).result()
