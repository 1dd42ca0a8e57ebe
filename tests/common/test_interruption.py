"""Signals to the whole process group of a training, as schedulers, `timeout` and terminals send them."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from helpers.forks import Forks
from stress import kills
from torch.utils.data import DataLoader, Dataset

from distilled_student.common.interruption import Interrupted, Interruption
from distilled_student.common.processes import end_with_parent, start_workers

PROGRAM = """
import importlib
import distilled_student.distillation.train, distilled_student.multitask.expert
distilled_student.load_student("tiny")  # torch imports more at the first use
def main(arguments):
    return importlib.import_module(f"distilled_student.{arguments[0]}").main(arguments[1:])
"""
SECONDS = 120


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    with Forks(PROGRAM) as forks:
        yield forks


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    kills.distillation(folder / "distillation")
    kills.joint(folder / "joint")
    return folder


def distil(data: Path, output: Path, workers: int) -> list[str]:
    config = str(data / "distillation" / "distill.yaml")
    options = [f"output={output}", f"data.workers={workers}", "steps=100000", "log_every=1"]
    return ["cli", "distill", config, *options]


def train(data: Path, output: Path, workers: int) -> list[str]:
    folder = data / "joint"
    settings = f"config.downstream_expert.num_workers={workers},,config.runner.total_steps=100000"
    models = ["-u", "distilled_student", "-k", str(folder / "student"), "-f", "-d", "multitask"]
    options = ["-c", str(folder / "joint.yaml"), "-p", str(output), "--device", "cpu", "-o", settings]
    return ["host.launch", "-m", "train", *models, *options]


def members(group: int) -> list[int]:
    """The processes of a process group, without those that have ended."""
    found = subprocess.run(["ps", "-eo", "pid=,pgid=,stat="], capture_output=True, text=True).stdout
    lines = [line.split() for line in found.splitlines()]
    return [int(pid) for pid, pgid, state, *_ in lines if int(pgid) == group and not state.startswith("Z")]


def wait_for(condition: Callable[[], object], log: Path) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, log.read_text()[-3000:]
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("command", "checkpoints", "number", "workers"),
    [
        (distil, "checkpoints/step-*.pt", signal.SIGTERM, 0),
        (distil, "checkpoints/step-*.pt", signal.SIGHUP, 2),
        (train, "states-*.ckpt", signal.SIGUSR1, 0),
        (train, "states-*.ckpt", signal.SIGTERM, 2),
    ],
)
def test_a_signal_to_the_process_group_saves_and_ends_all_processes(
    command: Callable[[Path, Path, int], list[str]],
    checkpoints: str,
    number: int,
    workers: int,
    forks: Forks,
    data: Path,
    tmp_path: Path,
) -> None:
    log, output = tmp_path / "log", tmp_path / "out"
    process = forks.start(*command(data, output, workers), folder=tmp_path, out=log, err=log)
    try:
        wait_for(lambda: list(output.glob(checkpoints)) or not members(process), log)
        assert len(members(process)) >= 1 + workers, log.read_text()[-3000:]
        os.kill(process, number)  # `timeout` signals its command, and then the group
        os.killpg(process, number)
        wait_for(lambda: not members(process), log)
        assert forks.wait(process) == 128 + number, log.read_text()[-3000:]
        text = log.read_text()
        assert "saved step" in text and "Traceback" not in text
        saved = int(text.rpartition("saved step ")[2].partition(";")[0])
        assert any(str(saved) in path.stem for path in output.glob(checkpoints))
    finally:
        if members(process):
            os.killpg(process, signal.SIGKILL)


class Slow(Dataset):
    """Items that take a while, so that a signal reaches the workers while they read."""

    def __len__(self) -> int:
        return 1000

    def __getitem__(self, index: int) -> int:
        time.sleep(0.02)
        return os.getpid()


@pytest.fixture
def batches() -> Iterator[Iterator[torch.Tensor]]:
    loader = DataLoader(Slow(), batch_size=1, num_workers=2, worker_init_fn=end_with_parent)
    yield start_workers(loader)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_workers_ignore_the_signals_of_others_and_end_when_the_loader_ends(
    batches: Iterator[torch.Tensor], number: int
) -> None:
    workers = {int(next(batches)) for _ in range(4)}
    assert len(workers) == 2
    # not from this process, whose signals a worker obeys
    subprocess.run(["kill", f"-{int(number)}", *map(str, workers)], check=True)
    assert {int(next(batches)) for _ in range(10)} == workers
    started = time.monotonic()
    batches._shutdown_workers()
    assert time.monotonic() - started < 4, "they end at once"
    assert not any(Path(f"/proc/{worker}").exists() for worker in workers)


def test_workers_obey_their_parent(batches: Iterator[torch.Tensor]) -> None:
    worker = int(next(batches))
    os.kill(worker, signal.SIGTERM)
    assert os.waitpid(worker, 0)[1] == 0


def test_starting_workers_leaves_the_signals_of_this_process_as_they_were(batches: Iterator[torch.Tensor]) -> None:
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, []) & {signal.SIGTERM, signal.SIGINT}


def test_the_same_signal_twice_within_a_second_is_one_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second request, or another signal, ends the process at once."""
    ended: list[int] = []
    monkeypatch.setattr(os, "_exit", ended.append)
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    interruption = Interruption()
    interruption._handle(signal.SIGTERM, None)
    now[0] += 0.9
    interruption._handle(signal.SIGTERM, None)
    assert interruption and not ended
    interruption._handle(signal.SIGINT, None)
    assert ended == [130]
    now[0] += 0.2
    interruption._handle(signal.SIGTERM, None)
    assert ended == [130, 143]
    with pytest.raises(Interrupted):
        interruption.leave("saved")


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU"])
def test_every_signal_that_a_scheduler_sends_asks_for_a_checkpoint(name: str, capfd: pytest.CaptureFixture) -> None:
    interruption, number = Interruption(), getattr(signal, name)
    with interruption.watched():
        os.kill(os.getpid(), number)
        deadline = time.monotonic() + 5
        while not interruption and time.monotonic() < deadline:
            time.sleep(0.01)
    assert interruption.signal == number and f"{name}: saving at the end of this step" in capfd.readouterr().err
    with pytest.raises(Interrupted) as end:
        interruption.leave("saved")
    assert end.value.code == 128 + number
