"""Several processes of one training: the same result as one process; when one ends, the others stop with a message."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import yaml
from stress import kills

from distilled_student.cli import main

PROGRAM = "import sys; from distilled_student.{module} import main; sys.exit(main())"
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def start(folder: Path, module: str, arguments: Sequence[str], processes: int) -> subprocess.Popen:
    """A command of `distilled_student.MODULE` by torchrun, its output in ``folder/MODULE-PROCESSES.log``."""
    program = folder / f"{module}.py"
    program.write_text(PROGRAM.format(module=module))
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    with (folder / f"{module}-{processes}.log").open("w") as log:
        command = [sys.executable, *(launch if processes > 1 else []), str(program), *arguments]
        return subprocess.Popen(command, stdout=log, stderr=log, env=ENVIRONMENT, cwd=folder, start_new_session=True)


def finish(folder: Path, module: str, arguments: Sequence[str], processes: int) -> None:
    code = start(folder, module, arguments, processes).wait(timeout=240)
    assert code == 0, (folder / f"{module}-{processes}.log").read_text()[-3000:]


def change(file: Path, **values: object) -> None:
    content = yaml.safe_load(file.read_text())
    for path, value in values.items():
        *groups, key = path.split("__")
        group = content
        for name in groups:
            group = group[name]
        group[key] = value
    file.write_text(yaml.safe_dump(content))


@pytest.fixture(scope="module")
def distilled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two processes, and a run of one process with the same batches."""
    folder = tmp_path_factory.mktemp("distilled") / "a b"
    kills.distillation(folder)
    change(folder / "distill.yaml", student__dropout=0.0, log_every=1, steps=12)
    finish(folder, "cli", ["distill", "distill.yaml", "output=two"], 2)
    with pytest.raises(SystemExit) as end:
        main(["distill", str(folder / "distill.yaml"), f"output={folder / 'one'}", "data.batch_seconds=6"])
    assert not end.value.code
    return folder


def test_two_processes_distil_with_the_same_loss_curve_as_one(distilled: Path) -> None:
    one, two = (
        torch.load(distilled / name / "checkpoints/step-00000012.pt", weights_only=True) for name in ("one", "two")
    )
    losses = [torch.tensor(state["progress"]["curve"]) for state in (one, two)]
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-4, atol=0)
    assert two["progress"]["audio_seconds"] == pytest.approx(one["progress"]["audio_seconds"])


def test_resuming_with_another_number_of_processes_is_an_error_in_one_line(
    distilled: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(["distill", str(distilled / "distill.yaml"), f"output={distilled / 'two'}", "steps=14"])
    line = capfd.readouterr().err.splitlines()[-1]
    assert end.value.code == 2 and line.startswith("error: ") and "processes: was 2, is 1" in line


@pytest.mark.slow
def test_when_one_process_is_killed_the_other_stops_with_a_message_and_the_run_can_be_resumed(distilled: Path) -> None:
    command = ["distill", "distill.yaml", "output=killed", "steps=100000", "save_every=5"]
    process = start(distilled, "cli", command, 2)
    saved = distilled / "killed" / "checkpoints"
    deadline = time.monotonic() + 120
    while not list(saved.glob("step-*.pt")):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.1)
    children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
    os.kill(int(children[-1]), signal.SIGKILL)
    assert process.wait(timeout=60) != 0
    text = (distilled / "cli-2.log").read_text()
    assert "another process of this run has ended" in text
    newest = max(int(path.stem[5:]) for path in saved.glob("step-*.pt"))
    finish(distilled, "cli", [*command[:-2], f"steps={newest + 3}", "save_every=5"], 2)
    assert (saved / f"step-{newest + 3:08d}.pt").is_file()


@pytest.mark.slow
def test_two_processes_train_jointly_with_the_same_loss_curve_as_one(tmp_path: Path) -> None:
    kills.joint(tmp_path / "data")
    file = tmp_path / "data" / "joint.yaml"
    config = tmp_path / "data" / "student" / "config.json"
    config.write_text(config.read_text().replace('"dropout": 0.1', '"dropout": 0.0'))
    change(file, runner__log_step=1, runner__total_steps=12, runner__eval_step=6)
    sizes = ",,".join(f"config.downstream_expert.tasks.{name}.batch_size=8" for name in ("kws", "sv"))
    common = ["-m", "train", "-u", "distilled_student", "-k", "data/student", "-f", "-d", "multitask", "-c", str(file)]
    finish(tmp_path, "host.launch", [*common, "-p", "two", "--device", "cpu"], 2)
    finish(tmp_path, "host.launch", [*common, "-p", "one", "--device", "cpu", "-o", sizes], 1)
    logs = {}
    for name in ("one", "two"):
        lines = map(json.loads, (tmp_path / name / "log.jsonl").read_text().splitlines())
        logs[name] = list(lines)
    assert [line["split"] for line in logs["one"]] == [line["split"] for line in logs["two"]]
    for one, two in zip(logs["one"], logs["two"], strict=True):
        if one.pop("split") == two.pop("split") == "train":
            assert two == pytest.approx(one, rel=1e-4), "losses"
        else:
            assert two["kws"]["accuracy"] == one["kws"]["accuracy"] and two["sv"]["eer"] == one["sv"]["eer"]
