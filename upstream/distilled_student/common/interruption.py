"""Signals that ask a training to end: it finishes its step, saves and exits. A second signal exits at once.

SIGTERM, SIGHUP (a closed terminal), Ctrl-C, and the signals that schedulers send when the time of a job ends: SIGUSR1
and SIGUSR2 (Slurm's ``--signal``, Grid Engine's ``-notify``) and SIGXCPU.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import FrameType

from distilled_student.common.progress import note

_NAMES = ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU")  # Windows has the first two only
SIGNALS = tuple(getattr(signal, name) for name in _NAMES if hasattr(signal, name))
# `timeout` and `torchrun` signal a process and its group, which the process is in: the same signal twice
SAME_SIGNAL_SECONDS = 1.0


class Interrupted(SystemExit):
    """Training was interrupted by a signal and has saved a checkpoint."""


_command: ContextVar[str | None] = ContextVar("command", default=None)


@contextmanager
def resumed_by(command: str) -> Iterator[None]:
    """Inside this context an interruption names ``command``, which runs several trainings, as what resumes them."""
    before = _command.set(command)
    try:
        yield
    finally:
        _command.reset(before)


class Interruption:
    """Whether this process has received a signal to exit: true in a boolean context if it has."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self._process, self._received = os.getpid(), 0.0

    def __bool__(self) -> bool:
        return self.signal is not None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a data worker, forked with this handler: it ends with its parent
            return
        now = time.monotonic()
        if self:
            if number != self.signal or now > self._received + SAME_SIGNAL_SECONDS:
                os._exit(128 + number)
        else:
            self.signal, self._received = number, now
            name = signal.Signals(number).name
            # not through Python's buffered stderr: the signal may have interrupted a write to it
            os.write(2, f"\n{name}: saving at the end of this step; send it again to exit at once\n".encode())

    @contextmanager
    def watched(self) -> Iterator[Interruption]:
        """Handle the signals inside this context. Only in the main thread: Python allows no handlers in others."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        before = {number: signal.signal(number, self._handle) for number in SIGNALS}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def leave(self, saved: str, remedy: str = "") -> None:
        """If a signal was received, print what was saved and how to resume, and exit.

        Args:
            saved: What was saved, or another reason to exit.
            remedy: How this training resumes. Inside `resumed_by` its command is printed instead.

        Raises:
            Interrupted: with the exit code that shells expect, 128 plus the signal's number.
        """
        if self.signal is not None:
            command = _command.get()
            note("; ".join(filter(None, [saved, remedy if command is None else f"resume: {command}"])))
            raise Interrupted(128 + self.signal)

    def leave_suite(self, finished: str) -> None:
        """After the last step: `leave` if this training is one of several (`resumed_by`), which must not continue.

        A training of its own is finished, and its command ends without an error.

        Args:
            finished: What is finished.
        """
        if _command.get() is not None:
            self.leave(finished)
