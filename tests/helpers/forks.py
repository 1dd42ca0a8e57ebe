"""Runs a command several times, each in a fork of one process that has imported its libraries, to start at once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import Any

SERVER = """
import json, os, sys
for line in sys.stdin:
    request, values = json.loads(line)
    if request == "wait":
        answer = os.waitstatus_to_exitcode(os.waitpid(*values, 0)[1])
    elif answer := os.fork():
        os.setpgid(answer, answer)
    else:
        folder, out, err, variables, arguments = values
        os.setpgid(0, 0)
        os.chdir(folder)
        os.environ.update(variables)
        for file, number in (out, 1), (err, 2):
            os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
        sys.exit(main(arguments))
    print(json.dumps(answer), flush=True)
"""


class Forks:
    """A process that runs ``program``, which imports or defines ``main``, and then forks of it. A context."""

    def __init__(self, program: str) -> None:
        command = [sys.executable, "-c", program + SERVER]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # a process with several computing threads cannot fork
        self._server = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def _ask(self, request: str, *values: Any) -> Any:
        print(json.dumps([request, values]), file=self._server.stdin, flush=True)
        return json.loads(self._server.stdout.readline())

    def start(self, *arguments: str, folder: Path, out: Path, err: Path, **variables: str) -> int:
        """Start ``sys.exit(main(arguments))`` in a fork, the leader of a process group; returns its process ID.

        Args:
            folder: The working folder.
            out, err: Files for stdout and stderr.
            variables: Of the environment.
        """
        return self._ask("start", str(folder), str(out), str(err), variables, arguments)

    def wait(self, process: int, seconds: float = 180.0) -> int:
        """The exit code of a process, negative for a signal, when it has ended; after ``seconds`` it is killed."""
        late = threading.Timer(seconds, os.killpg, (process, signal.SIGKILL))
        late.start()
        try:
            return self._ask("wait", process)
        finally:
            late.cancel()

    def __enter__(self) -> Forks:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._server.communicate()
