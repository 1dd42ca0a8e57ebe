"""Trainings that are interrupted, damaged, disturbed: nothing is lost, and it is said."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch
from conftest import tone
from stress import kills

from distilled_student.cli import main
from distilled_student.common.files import save_torch
from distilled_student.common.interruption import Interrupted
from distilled_student.host import launch
from distilled_student.multitask.evaluate import evaluate

KILLS = Path(kills.__file__)


def test_a_training_that_is_killed_again_and_again_ends_bit_for_bit_as_one_left_alone() -> None:
    command = [sys.executable, str(KILLS), "--kills", "4"]
    one = {**os.environ, "OMP_NUM_THREADS": "1"}  # a process that computes with several cannot be forked
    done = subprocess.run(command, env=one, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    for name, found in json.loads(done.stdout.splitlines()[-1]).items():
        assert len(found["kills"]) >= 3 and found["lost"] == [], name


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with both trainings' files."""
    folder = tmp_path_factory.mktemp("settings")
    kills.distillation(folder / "distillation")
    kills.joint(folder / "joint")
    return folder


def distil(settings: Path, *options: str) -> int:
    try:
        main(["distill", str(settings / "distillation" / "distill.yaml"), *options])
    except SystemExit as error:
        return int(error.code or 0)
    return 0


def joint(settings: Path, output: Path, *options: str) -> list[str]:
    arguments = [
        "-m",
        "train",
        "-u",
        "distilled_student",
        "-k",
        settings / "joint" / "student",
        "-f",
        "-d",
        "multitask",
    ]
    common = ["-c", settings / "joint" / "joint.yaml", "-p", output, "--device", "cpu", *options]
    return [*map(str, arguments), *map(str, common)]


@pytest.fixture
def signalled(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Sends this process a signal at an update."""

    def at(step: int, number: int) -> None:
        made, clip = 0, torch.nn.utils.clip_grad_norm_

        def counted(*args: Any, **kwargs: Any) -> Any:
            nonlocal made
            made += 1
            if made == step:
                os.kill(os.getpid(), number)
            return clip(*args, **kwargs)

        monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", counted)

    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    yield at
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == handlers


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_distillation_saves_and_leaves_when_asked_to(
    settings: Path, tmp_path: Path, signalled: Any, number: int, capfd: pytest.CaptureFixture[str]
) -> None:
    signalled(3, number)
    assert distil(settings, f"output={tmp_path}") == 128 + number
    assert [path.name for path in (tmp_path / "checkpoints").glob("*.pt")] == ["step-00000003.pt"]
    err = capfd.readouterr().err
    assert signal.Signals(number).name in err and "saved step 3; run the same command again to resume" in err


def test_joint_training_saves_and_leaves_when_asked_to(
    settings: Path, tmp_path: Path, signalled: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    signalled(3, signal.SIGTERM)
    with pytest.raises(Interrupted) as left:
        launch.main(joint(settings, tmp_path / "exp"))
    assert left.value.code == 143 and "saved step 3" in capfd.readouterr().err
    assert (tmp_path / "exp" / "states-3.ckpt").is_file()


def test_a_second_signal_ends_it_at_once(settings: Path, tmp_path: Path) -> None:
    config, log = settings / "distillation" / "distill.yaml", tmp_path / "log"
    command = [sys.executable, "-m", "distilled_student.cli", "distill", str(config), f"output={tmp_path / 'out'}"]
    program = f"from distilled_student.cli import main; main({[*command[3:], 'steps=100000']})"
    with log.open("w") as out:
        process = subprocess.Popen([sys.executable, "-c", program], stderr=out, stdout=out)
    deadline = time.monotonic() + 120
    while "step 7/" not in log.read_text():
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)
    os.kill(process.pid, signal.SIGSTOP)  # so that both are there before anything is saved
    os.kill(process.pid, signal.SIGTERM)
    os.kill(process.pid, signal.SIGINT)
    os.kill(process.pid, signal.SIGCONT)
    assert process.wait(timeout=20) in (130, 143)
    assert "saved step" not in log.read_text()


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(
    settings: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    command = joint(settings, tmp_path / "exp")
    assert launch.main(command) == 0
    expected = torch.load(tmp_path / "exp" / "states-24.ckpt", weights_only=True)
    log = (tmp_path / "exp" / "log.jsonl").read_text()
    newest = tmp_path / "exp" / "states-24.ckpt"
    newest.write_bytes(newest.read_bytes()[:-1000])
    assert launch.main(command) == 0 and "states-24.ckpt: damaged" in caplog.text
    assert list(kills.differences(expected, torch.load(newest, weights_only=True))) == []
    assert len(list((tmp_path / "exp").glob("states-*.ckpt"))) == 2, "runner.max_keep"
    assert (tmp_path / "exp" / "log.jsonl").read_text() == log, "no line twice"


def test_a_copied_folder_goes_on_where_it_lies_now(settings: Path, tmp_path: Path) -> None:
    assert launch.main(joint(settings, tmp_path / "old", "-o", "config.runner.total_steps=6")) == 0
    shutil.copytree(tmp_path / "old", tmp_path / "new")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "old").iterdir()}
    for how in (["-e", str(tmp_path / "new")], ["-a", "-p", str(tmp_path / "new")]):
        assert launch.main(["-m", "train", *how, "--device", "cpu", "-o", "config.runner.total_steps=8"]) == 0
    assert (tmp_path / "new" / "states-8.ckpt").is_file()
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "old").iterdir()} == before


def test_another_command_does_not_write_over_a_run(
    settings: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert launch.main(joint(settings, tmp_path, "-o", "config.runner.total_steps=2")) == 0
    assert launch.main(joint(settings, tmp_path, "-o", "config.runner.total_steps=2,,args.seed=3")) == 2
    assert "holds another run, with other settings (args.seed)" in capfd.readouterr().err.splitlines()[-1]


def test_a_second_run_in_the_same_folder_is_refused(
    settings: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from distilled_student.common.processes import only_run_in

    (tmp_path / "out" / "checkpoints").mkdir(parents=True)
    with only_run_in(tmp_path / "out" / "checkpoints"):
        assert distil(settings, f"output={tmp_path / 'out'}") == 2
    assert "another run is writing into it" in capfd.readouterr().err.splitlines()[-1]
    with only_run_in(tmp_path / "out"):
        assert launch.main(joint(settings, tmp_path / "out")) == 2
    assert "another run is writing into it" in capfd.readouterr().err.splitlines()[-1]


def poison(monkeypatch: pytest.MonkeyPatch, steps: set[int]) -> None:
    """Makes the gradient of some updates infinite."""
    made, clip = 0, torch.nn.utils.clip_grad_norm_

    def clipped(parameters: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal made
        made += 1
        parameters = list(parameters)
        if made in steps:
            next(p for p in parameters if p.grad is not None).grad.fill_(math.inf)
        return clip(parameters, *args, **kwargs)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", clipped)


def test_distillation_skips_steps_without_a_finite_gradient_and_counts_them(
    settings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    poison(monkeypatch, {2, 3, 9})
    assert distil(settings, f"output={tmp_path}", "max_skipped=3") == 0
    state = torch.load(tmp_path / "checkpoints" / "step-00000024.pt", weights_only=True)
    assert state["progress"]["skipped"] == 3 and "3 steps were skipped" in caplog.text
    assert all(torch.isfinite(value).all() for value in state["student"].values())
    assert all(math.isfinite(loss) for _, loss in state["progress"]["curve"])
    assert {float(entry["step"]) for entry in state["optimizer"]["state"].values()} == {21.0}


def test_too_many_such_steps_in_a_row_end_distillation_with_the_names_of_their_files(
    settings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    poison(monkeypatch, {6, 7, 8})
    assert distil(settings, f"output={tmp_path}", "max_skipped=3") == 2
    line = capfd.readouterr().err.splitlines()[-1]
    assert "3 steps in a row had no finite loss, on" in line and ".wav" in line
    assert (tmp_path / "checkpoints" / "step-00000005.pt").is_file()


def test_joint_training_skips_them_too_and_ends_with_names(
    settings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    poison(monkeypatch, {2, 3})
    assert launch.main(joint(settings, tmp_path / "a", "-o", "config.runner.total_steps=4")) == 0
    state = torch.load(tmp_path / "a" / "states-4.ckpt", weights_only=True)
    assert {float(entry["step"]) for entry in state["Optimizer"]["state"].values()} == {2.0}
    assert "2 steps were skipped" in capfd.readouterr().err
    monkeypatch.undo()
    poison(monkeypatch, {1, 2})
    assert launch.main(joint(settings, tmp_path / "b", "-o", "config.runner.max_skipped=2")) == 2
    line = next(line for line in capfd.readouterr().err.splitlines() if "error: " in line)
    assert "2 steps in a row had no finite gradient" in line
    assert "nohash" in line and "vox" in line, "of both tasks, whose losses are added up"


def test_a_recording_of_nonsense_values_stops_nothing(settings: Path, tmp_path: Path) -> None:
    """A loud file is no bad one: its loss is finite."""
    folder = tmp_path / "loud"
    folder.mkdir()
    for i in range(4):
        soundfile.write(folder / f"{i}.wav", (1e4 * tone(0.5, seed=i)).numpy(), 16_000, subtype="FLOAT")
    assert distil(settings, f"output={tmp_path / 'out'}", f"data.paths=[{folder}]", "steps=3") == 0


def test_a_signal_while_a_checkpoint_is_written_is_saved_by_the_next_step(
    settings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from distilled_student.host import runner

    def interrupted(states: Any, path: Any) -> None:
        if states["Step"] == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        save_torch(states, path)

    monkeypatch.setattr(runner, "save_torch", interrupted)
    with pytest.raises(Interrupted):
        launch.main(joint(settings, tmp_path))
    assert "saved step 6" in capfd.readouterr().err and (tmp_path / "states-6.ckpt").is_file()


def test_the_same_seed_gives_the_same_bytes_and_neither_workers_nor_batch_sizes_change_them(
    settings: Path, tmp_path: Path
) -> None:
    found = []
    for name, workers in (("a", 0), ("b", 2)):
        options = ["-o", f"config.runner.total_steps=6,,config.downstream_expert.num_workers={workers}"]
        assert launch.main(joint(settings, tmp_path / name, *options)) == 0
        evaluate(tmp_path / name, checkpoint="states-6.ckpt")
        sizes = [f"config.downstream_expert.tasks.{task}.eval_batch_size={1 + workers}" for task in ("kws", "sv")]
        evaluate(tmp_path / name, checkpoint="states-6.ckpt", overrides=sizes)
        found.append((tmp_path / name / "results.json").read_bytes())
    assert found[0] == found[1]


def test_what_a_result_depends_on_is_in_its_folder(settings: Path, tmp_path: Path) -> None:
    assert distil(settings, f"output={tmp_path / 'student'}", "steps=2") == 0
    content = json.loads((tmp_path / "student" / "provenance.json").read_text())
    assert content["settings"]["learning_rate"] == 2e-4 and content["seed"] == 0
    audio = sorted((settings / "distillation" / "audio").iterdir())
    seconds = sum(soundfile.info(path).duration for path in audio)
    assert content["data"]["train"]["utterances"] == len(audio)
    assert content["data"]["train"]["seconds"] == pytest.approx(seconds, abs=0.01)
    assert torch.__version__.startswith(content["versions"]["torch"]) and content["command"]
    assert launch.main(joint(settings, tmp_path / "exp", "-o", "config.runner.total_steps=2")) == 0
    evaluate(tmp_path / "exp", checkpoint="states-2.ckpt")
    trained, tested = (json.loads((tmp_path / "exp" / f"provenance{of}.json").read_text()) for of in ("", "-test"))
    assert set(trained["data"]["train"]) == {"kws", "sv"} == set(tested["data"])
    assert trained["settings"]["config"]["runner"]["total_steps"] == 2
    assert trained["settings"]["config"]["downstream_expert"]["tasks"]["sv"]["as_norm_top"] == 100, "a default"
    assert trained["seed"] == 1337 and len(tested["data"]["sv"]["sha256"]) == 64


def test_a_long_run_holds_its_lock_in_a_thread_of_its_own_too(settings: Path, tmp_path: Path) -> None:
    """Signals are the main thread's; elsewhere training goes without."""
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(distil(settings, f"output={tmp_path}", "steps=2")))
    thread.start()
    thread.join()
    assert codes == [0]
