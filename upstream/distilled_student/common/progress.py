"""Progress of a long command: one bar on a terminal, and elsewhere one line every 30 seconds."""

from __future__ import annotations

import sys
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, ClassVar, TextIO

if TYPE_CHECKING:
    from tqdm import tqdm

# tqdm is imported by the functions that need it: every command of the command line imports this module

SECONDS_BETWEEN_LINES = 30.0


class Progress:
    """Counts finished items and shows their number; a context manager.

    On a terminal it draws a bar, and log messages appear above the bar. While an inner `Progress` is open, the bar of
    the outer one is hidden, so there is one bar at a time. Where the output is not a terminal, it prints whole lines
    and no carriage returns.

    Args:
        total: Number of items; None where it is unknown.
        what: Name of the work.
        done: Items that an earlier run has finished.
        unit: ``B`` for bytes, which are printed in kB, MB or GB. Empty for items.
        shown: False for a process that prints nothing.
        lines: False for work that logs lines of its own: then it prints nothing where there is no terminal.
        file: Where to print; default: standard error.
    """

    _open: ClassVar[list[Progress]] = []  # from the outermost to the innermost

    def __init__(
        self,
        total: int | None,
        what: str,
        done: int = 0,
        *,
        unit: str = "",
        shown: bool = True,
        lines: bool = True,
        file: TextIO | None = None,
    ) -> None:
        self.total, self.what, self.done, self.unit = total, what, done, unit
        self._done_before = done
        self._file = file or sys.stderr
        self._started = self._last_line = time.monotonic()
        self._on_close = ExitStack()
        self._bar: tqdm | None = None
        on_terminal = shown and self._file.isatty()
        self._prints_lines = shown and lines and not on_terminal
        if self._open:
            self._open[-1]._hide()
        if on_terminal:
            from tqdm import tqdm
            from tqdm.contrib.logging import logging_redirect_tqdm

            self._on_close.enter_context(logging_redirect_tqdm())
            self._bar = tqdm(
                total=total,
                initial=done,
                desc=what,
                unit=unit or "it",
                unit_scale=bool(unit),
                file=self._file,
                dynamic_ncols=True,
                leave=False,
                position=0,
            )
        self._open.append(self)

    def update(self, count: int = 1) -> None:
        """``count`` more items are finished."""
        self.done += count
        if self._bar is not None:
            if self._open[-1] is self:
                self._bar.update(count)
            else:  # hidden: only count
                self._bar.n += count
        elif self._prints_lines and time.monotonic() - self._last_line >= SECONDS_BETWEEN_LINES:
            self._print_line()

    def update_to(self, done: int) -> None:
        """``done`` items are finished in all; may be fewer than before, where work starts again."""
        self.update(done - self.done)

    def close(self) -> None:
        """Remove the bar and show the bar of the outer work again."""
        if self not in self._open:
            return
        self._open.remove(self)
        if self._bar is not None:
            self._bar.disable = False
            self._bar.close()
        self._on_close.close()
        if self._open:
            self._open[-1]._show()

    def _hide(self) -> None:
        if self._bar is not None:
            self._bar.clear()
            self._bar.disable = True  # otherwise tqdm redraws it after every message

    def _show(self) -> None:
        if self._bar is not None:
            self._bar.disable = False
            self._bar.refresh()

    def _print_line(self) -> None:
        self._last_line = time.monotonic()
        rate = (self.done - self._done_before) / max(self._last_line - self._started, 1e-9)
        of_total = "" if self.total is None else f" of {self._format(self.total)}"
        per_second = self._format(rate) if self.unit else f"{rate:.3g}"
        print(f"{self.what}: {self._format(self.done)}{of_total}, {per_second} per second", file=self._file, flush=True)

    def _format(self, count: float) -> str:
        from tqdm import tqdm

        return tqdm.format_sizeof(count, self.unit) if self.unit else f"{count}"

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def note(text: str) -> None:
    """Print a line on standard error, above the bar if there is one."""
    from tqdm import tqdm

    tqdm.write(text, file=sys.stderr)
