"""Kills trainings at random points, restarts them, and compares the result with an uninterrupted training.

    python tests/stress/kills.py [--kills N] [--rounds N]

Every attempt is a forked process, so that libraries are imported once. A kill is SIGKILL before or after an update or
while a checkpoint is written, SIGTERM, or a full disk. At the end the checkpoints must be the same, bit for bit.
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
FULL_DISK_BYTES = 1 << 16  # with a full disk no file can become larger
# kind of kill: exit status
KINDS = {"before": -9, "after": -9, "writing": -9, "renaming": -9, "SIGTERM": 143, "full disk": 2}


def differences(one: Any, other: Any, where: str = "") -> Iterator[str]:
    """Keys where two checkpoints differ. Settings, which contain paths, are not compared."""
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


def die_at(kind: str, after: int) -> None:
    """Make this process die at update number ``after``, or at the save that follows it."""
    updates = 0

    def die() -> None:
        os.kill(os.getpid(), signal.SIGTERM if kind == "SIGTERM" else signal.SIGKILL)

    def with_count(clip: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            nonlocal updates
            updates += 1
            if updates == after and kind in ("before", "SIGTERM"):
                die()
            if updates == after and kind == "full disk":
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                resource.setrlimit(resource.RLIMIT_FSIZE, (FULL_DISK_BYTES, FULL_DISK_BYTES))
            return clip(*args, **kwargs)

        return counted

    def with_end(zero_grad: Callable[..., Any]) -> Callable[..., Any]:
        def ended(*args: Any, **kwargs: Any) -> Any:
            if updates == after and kind == "after":
                die()
            return zero_grad(*args, **kwargs)

        return ended

    def with_death(work: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args, **kwargs: die() if updates >= after else work(*args, **kwargs)

    torch.nn.utils.clip_grad_norm_ = with_count(torch.nn.utils.clip_grad_norm_)
    torch.optim.Optimizer.zero_grad = with_end(torch.optim.Optimizer.zero_grad)
    if kind == "writing":
        files._checksum = with_death(files._checksum)
    if kind == "renaming":
        files.replace_file = with_death(files.replace_file)


def attempt(run: Callable[[], int], log: Path, kind: str | None = None, after: int = 0) -> int:
    """Run in a forked process. Returns its exit status, negative for a signal."""
    if (child := os.fork()) == 0:
        with log.open("ab") as out:
            os.dup2(out.fileno(), 1)
            os.dup2(out.fileno(), 2)
        code = 70
        try:
            if kind is not None:
                die_at(kind, after)
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
    """A command, and the path of its last checkpoint in the output folder."""

    def __init__(self, name: str, run: Callable[[Path], int], last: str) -> None:
        self.name, self.run, self.last = name, run, last

    def uninterrupted(self, folder: Path) -> Any:
        """The last checkpoint of a run without a kill."""
        code = attempt(lambda: self.run(folder / "uninterrupted"), folder / "uninterrupted.log")
        assert code == 0, (folder / "uninterrupted.log").read_text()[-2000:]
        return torch.load(folder / "uninterrupted" / self.last, weights_only=True)

    def killed(self, folder: Path, kills: int, rng: random.Random) -> tuple[Any, list[str]]:
        """The last checkpoint of a run that is killed up to ``kills`` times, and the kinds of these kills."""
        kinds, output = [], folder / "killed"
        for _ in range(kills):
            kind, after, log = rng.choice(list(KINDS)), rng.randint(1, STEPS // 2), folder / f"killed-{len(kinds)}.log"
            code = attempt(lambda: self.run(output), log, kind, after)
            if code == 0:
                break
            assert code == KINDS[kind], f"{kind} after {after}: {code}: {log.read_text()[-2000:]}"
            assert kind != "full disk" or "cannot be written" in log.read_text()
            kinds.append(kind)
        else:
            assert attempt(lambda: self.run(output), folder / "last.log") == 0, (folder / "last.log").read_text()
        assert not list(output.rglob("*.part")), "a killed save has left temporary files"
        return torch.load(output / self.last, weights_only=True), kinds


def distillation(folder: Path) -> Training:
    """A small student from a small teacher, with dropout."""
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
    """The same from shards: a restart must find its position in each stream."""
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
    """Joint training through the runner: fine-tuning, the sum of two losses, several evaluations and epochs."""
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


def kill_all(folder: Path, kills: int, seed: int = 0) -> dict[str, Any]:
    """Kill all trainings. Returns for each the kinds of kills, and where its result differs."""
    found = {}
    for make in (distillation, streamed, joint):
        training = make(folder / make.__name__)
        expected = training.uninterrupted(folder / make.__name__)
        state, kinds = training.killed(folder / make.__name__, kills, random.Random(seed))
        found[training.name] = {"kills": kinds, "lost": list(differences(expected, state))}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(1)  # a process with several computing threads cannot be forked
    register()
    from s3prl import run_downstream  # noqa: F401  imported before the forks

    for seed in range(args.rounds):
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(kill_all(Path(folder), args.kills, seed)), flush=True)


if __name__ == "__main__":
    main()
