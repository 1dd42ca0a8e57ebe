"""SIGTERM and Ctrl-C: a training ends its step, saves and leaves; the second one leaves at once."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from tqdm import tqdm

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interrupted(SystemExit):
    """A training was asked to leave, and has saved."""


class Interruption:
    """Whether this process has been asked to leave."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self._process = os.getpid()

    def __bool__(self) -> bool:
        return self.signal is not None

    def _note(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a data worker, forked with this: Ctrl-C is its parent's affair
            if number == signal.SIGTERM:
                os._exit(128 + number)
        elif self:
            os._exit(128 + number)
        else:
            self.signal = number
            name = signal.Signals(number).name
            # past Python's buffers, in which the signal may have come upon a write
            os.write(2, f"\n{name}: saving at the end of this step; once more to leave at once\n".encode())

    @contextmanager
    def watched(self) -> Iterator[Interruption]:
        """Take the signals as long as this lasts. In another thread than the main one Python cannot."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        before = {number: signal.signal(number, self._note) for number in SIGNALS}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def leave(self, what: str) -> None:
        """End the process with the code that shells expect of it, if it was asked to; ``what`` is told.

        Raises:
            Interrupted: with 128 and the signal's number.
        """
        if self.signal is not None:
            tqdm.write(what, file=sys.stderr)
            raise Interrupted(128 + self.signal)
