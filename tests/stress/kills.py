"""Trainings that are killed at random places and started again, against one that is left alone.

    python tests/stress/kills.py [--kills N] [--rounds N]

Every attempt is a forked process, so that libraries are imported once. A kill is SIGKILL before or after any update or
while a checkpoint is written, SIGTERM, or a disk without room; at the end all that a checkpoint holds must be the same,
bit for bit.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import signal
import sys
import tarfile
import tempfile
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import soundfile
import torch
import yaml
from conftest import SMALL, tone
from helpers import trees

import distilled_student as ds
from distilled_student.cli import main as command
from distilled_student.common import files
from distilled_student.host import launch
from distilled_student.host.plugin import register

STEPS, SAVE_EVERY = 24, 5
ROOM = 1 << 16  # bytes of a file where the disk is full
# exit status of each way to die
KINDS = {"before": -9, "after": -9, "writing": -9, "renaming": -9, "SIGTERM": 143, "full disk": 2}


def differences(one: Any, other: Any, where: str = "") -> Iterator[str]:
    """Places where two checkpoints differ; those of files are not looked at."""
    if isinstance(one, torch.Tensor):
        if not (isinstance(other, torch.Tensor) and torch.equal(one, other)):
            yield where
    elif isinstance(one, dict):
        if one.keys() != other.keys():
            yield f"{where}: keys"
        for key in one.keys() & other.keys() - {"Args", "Config", "settings"}:
            yield from differences(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, list | tuple):
        if len(one) != len(other):
            yield f"{where}: length"
        for i, (a, b) in enumerate(zip(one, other, strict=False)):
            yield from differences(a, b, f"{where}[{i}]")
    elif not isinstance(one, Namespace) and one != other:
        yield f"{where}: {one} and {other}"


def fatal(kind: str, after: int) -> None:
    """In a process that will train: die in the given way at the ``after``-th update, or the save that follows it."""
    made = 0

    def die() -> None:
        os.kill(os.getpid(), signal.SIGTERM if kind == "SIGTERM" else signal.SIGKILL)

    def counting(clip: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            nonlocal made
            made += 1
            if made == after and kind in ("before", "SIGTERM"):
                die()
            if made == after and kind == "full disk":
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                resource.setrlimit(resource.RLIMIT_FSIZE, (ROOM, ROOM))
            return clip(*args, **kwargs)

        return counted

    def ending(zero_grad: Callable[..., Any]) -> Callable[..., Any]:
        def ended(*args: Any, **kwargs: Any) -> Any:
            if made == after and kind == "after":
                die()
            return zero_grad(*args, **kwargs)

        return ended

    def dying(work: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args, **kwargs: die() if made >= after else work(*args, **kwargs)

    torch.nn.utils.clip_grad_norm_ = counting(torch.nn.utils.clip_grad_norm_)
    torch.optim.Optimizer.zero_grad = ending(torch.optim.Optimizer.zero_grad)
    if kind == "writing":
        files._digest = dying(files._digest)
    if kind == "renaming":
        files.replace_file = dying(files.replace_file)


def attempt(run: Callable[[], int], log: Path, kind: str | None = None, after: int = 0) -> int:
    """Run in a process of its own; its exit status, negative for a signal."""
    if (child := os.fork()) == 0:
        with log.open("ab") as out:
            os.dup2(out.fileno(), 1)
            os.dup2(out.fileno(), 2)
        code = 70
        try:
            if kind is not None:
                fatal(kind, after)
            code = run()
        except SystemExit as error:
            code = int(error.code or 0)
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


class Training:
    """A command, and where its last checkpoint lies."""

    def __init__(self, name: str, run: Callable[[Path], int], last: str) -> None:
        self.name, self.run, self.last = name, run, last

    def left_alone(self, folder: Path) -> Any:
        code = attempt(lambda: self.run(folder / "alone"), folder / "alone.log")
        assert code == 0, (folder / "alone.log").read_text()[-2000:]
        return torch.load(folder / "alone" / self.last, weights_only=True)

    def killed(self, folder: Path, kills: int, rng: random.Random) -> tuple[Any, list[str]]:
        """The last checkpoint of a run that is killed up to ``kills`` times, and how it was."""
        told, output = [], folder / "killed"
        for _ in range(kills):
            kind, after, log = rng.choice(list(KINDS)), rng.randint(1, STEPS // 2), folder / f"killed-{len(told)}.log"
            code = attempt(lambda: self.run(output), log, kind, after)
            if code == 0:
                break
            assert code == KINDS[kind], f"{kind} after {after}: {code}: {log.read_text()[-2000:]}"
            assert kind != "full disk" or "cannot be written" in log.read_text()
            told.append(kind)
        else:
            assert attempt(lambda: self.run(output), folder / "last.log") == 0, (folder / "last.log").read_text()
        assert not list(output.rglob("*.part")), "what a killed save left is gone"
        return torch.load(output / self.last, weights_only=True), told


def distillation(folder: Path) -> Training:
    """Of a small student from a small teacher, with dropout."""
    (folder / "audio").mkdir(parents=True)
    for i in range(20):
        soundfile.write(folder / "audio" / f"{i:02d}.wav", tone(0.4 + 0.05 * i, seed=i).numpy(), 16_000)
    form = {**SMALL, "conv_dim": [8] * 7}
    torch.manual_seed(0)
    ds.save_student(ds.build_student(ds.StudentConfig(**form)), folder / "teacher")
    student = {key: value for key, value in form.items() if not key.startswith("target")} | {
        "layers": 1,
        "dropout": 0.1,
    }
    config = {
        "teacher": str(folder / "teacher"),
        "targets": [1, 2],
        "student": student,
        "output": "unset",
        "data": {"paths": [str(folder / "audio")], "max_seconds": 2, "batch_seconds": 3, "workers": 0},
        "steps": STEPS,
        "log_every": 7,
        "save_every": SAVE_EVERY,
    }
    (folder / "distill.yaml").write_text(yaml.safe_dump(config))

    def run(output: Path) -> int:
        try:
            command(["distill", str(folder / "distill.yaml"), f"output={output}"])
        except SystemExit as error:
            return int(error.code or 0)
        return 0

    return Training("distill", run, f"checkpoints/step-{STEPS:08d}.pt")


def streamed(folder: Path) -> Training:
    """The same from shards, whose place in each stream must be found again."""
    training = distillation(folder)
    files = sorted((folder / "audio").iterdir())
    for shard in range(4):
        with tarfile.open(folder / f"shard-{shard}.tar", "w") as tar:
            for file in files[shard::4]:
                tar.add(file, file.name)
    config = yaml.safe_load((folder / "distill.yaml").read_text())
    config["data"] |= {"paths": [str(folder / "shard-{0..3}.tar")], "streams": 2, "batch_seconds": 2}
    (folder / "distill.yaml").write_text(yaml.safe_dump(config))
    training.name = "distill from shards"
    return training


def joint(folder: Path) -> Training:
    """Joint training through s3prl's runner: fine-tuning, two losses added up, several evaluations and epochs."""
    folder.mkdir(parents=True)
    tasks = trees.tasks(folder)
    for task in tasks.values():
        task["augment"] = {"gain": 0.5, "noise": 0.5}
        task["standardize"] = True
    torch.manual_seed(0)
    form = {**SMALL, "conv_dim": [8] * 7, "dropout": 0.1}
    ds.save_student(ds.build_student(ds.StudentConfig(**form)), folder / "student")
    config = {
        "runner": {
            "total_steps": STEPS,
            "gradient_clipping": 1.0,
            "gradient_accumulate_steps": 2,
            "log_step": 4,
            "eval_step": 10,
            "save_step": SAVE_EVERY,
            "max_keep": 2,
            "eval_dataloaders": ["dev"],
        },
        "optimizer": {"name": "TorchOptim", "torch_optim_name": "Adam", "lr": 1e-3},
        "scheduler": {"name": "linear_schedule_with_warmup", "num_warmup_steps": 4},
        "downstream_expert": {"update": "sum", "tasks": tasks},
    }
    (folder / "joint.yaml").write_text(yaml.safe_dump(config))

    def run(output: Path) -> int:
        arguments = ["-m", "train", "-u", "distilled_student", "-k", folder / "student", "-f", "-d", "multitask"]
        return launch.main(
            [*map(str, arguments), "-c", str(folder / "joint.yaml"), "-p", str(output), "--device", "cpu"]
        )

    return Training("joint training", run, f"states-{STEPS}.ckpt")


def survived(folder: Path, kills: int, seed: int = 0) -> dict[str, Any]:
    """Kill all trainings; for each, the kills and what was lost by them."""
    found = {}
    for make in (distillation, streamed, joint):
        training = make(folder / make.__name__)
        expected = training.left_alone(folder / make.__name__)
        state, told = training.killed(folder / make.__name__, kills, random.Random(seed))
        found[training.name] = {"kills": told, "lost": list(differences(expected, state))}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(1)  # a process that computes with several cannot be forked
    register()
    from s3prl import run_downstream  # noqa: F401  imported once for all

    for seed in range(args.rounds):
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(survived(Path(folder), args.kills, seed)), flush=True)


if __name__ == "__main__":
    main()
