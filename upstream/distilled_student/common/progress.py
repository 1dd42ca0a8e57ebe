"""Progress of a long command: one bar on a terminal, and elsewhere a line every half minute."""

from __future__ import annotations

import sys
import time
from typing import ClassVar, TextIO

from tqdm import tqdm

SECONDS = 30.0  # between two lines where there is no terminal


class Progress:
    """Counts what is done of ``total``; a context manager.

    While an inner one runs, the bar of the outer one is hidden: there is one bar at a time.

    Args:
        total: Number of items. what: Name of the work. done: Items done before, by an earlier run.
        shown: False for a process that is to stay silent.
    """

    _open: ClassVar[list[Progress]] = []

    def __init__(self, total: int, what: str, done: int = 0, shown: bool = True, file: TextIO | None = None) -> None:
        self.total, self.what, self.done, self._before = total, what, done, done
        self._file = file or sys.stderr
        self._started = self._last = time.monotonic()
        on_terminal = shown and self._file.isatty()
        self._lines = shown and not on_terminal
        if self._open and self._open[-1]._bar is not None:
            self._open[-1]._bar.clear()
        self._bar = None
        if on_terminal:
            self._bar = tqdm(
                total=total, initial=done, desc=what, file=self._file, dynamic_ncols=True, leave=False, position=0
            )
        self._open.append(self)

    def update(self, count: int = 1) -> None:
        """``count`` more items are done."""
        self.done += count
        if self._bar is not None:
            self._bar.update(count)
        elif self._lines and time.monotonic() - self._last >= SECONDS:
            self._last = time.monotonic()
            rate = (self.done - self._before) / max(self._last - self._started, 1e-9)
            print(f"{self.what}: {self.done} of {self.total}, {rate:.3g} per second", file=self._file, flush=True)

    def close(self) -> None:
        """Remove the bar, and show that of the outer work again."""
        if self not in self._open:
            return
        self._open.remove(self)
        if self._bar is not None:
            self._bar.close()
            if self._open and self._open[-1]._bar is not None:
                self._open[-1]._bar.refresh()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def note(text: str) -> None:
    """A line on standard error, above the bar where there is one."""
    tqdm.write(text, file=sys.stderr)
