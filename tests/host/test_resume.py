"""Interrupted trainings, damaged checkpoints and infinite gradients are reported, and no finished step is lost."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import os
import re
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
import safetensors.numpy
import soundfile
import torch
from conftest import tone
from stress import kills

from distilled_student.checkpoints.folder import load_student, save_student
from distilled_student.cli import main
from distilled_student.common.errors import UserError
from distilled_student.common.files import save_torch
from distilled_student.common.interruption import Interrupted, Interruption, resumed_by
from distilled_student.common.shipped_models import ASSETS
from distilled_student.host import launch
from distilled_student.host.evaluation_loop import EvaluationLoop
from distilled_student.multitask.evaluate import evaluate
from distilled_student.student.network import build_student

KILLS = Path(kills.__file__)


@pytest.mark.slow
def test_a_training_that_is_killed_several_times_ends_bit_for_bit_as_an_uninterrupted_one() -> None:
    command = [sys.executable, str(KILLS), "--kills", "4"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # a process with several computing threads cannot be forked
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    for name, result in json.loads(done.stdout.splitlines()[-1]).items():
        assert len(result["kills"]) >= 3 and result["lost"] == [], name


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the settings and data of a distillation and of a joint training, of 24 steps each."""
    folder = tmp_path_factory.mktemp("settings")
    kills.distillation(folder / "distillation")
    kills.joint(folder / "joint")
    return folder


def distil(settings: Path, *options: str) -> int:
    """Run the distillation and return its exit code."""
    try:
        main(["distill", str(settings / "distillation" / "distill.yaml"), *options])
    except SystemExit as error:
        return int(error.code or 0)
    return 0


def joint_arguments(settings: Path, output: Path, *options: str) -> list[str]:
    """The arguments of ``run_downstream.py`` for the joint training."""
    folder = settings / "joint"
    models = ["-u", "distilled_student", "-k", folder / "student", "-f", "-d", "multitask"]
    arguments = ["-m", "train", *models, "-c", folder / "joint.yaml", "-p", output, "--device", "cpu", *options]
    return [str(argument) for argument in arguments]


@pytest.fixture
def send_signal_at(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A function that sends this process a signal at an update. Training must restore the signal handlers."""

    def at(step: int, number: int) -> None:
        updates, clip = 0, torch.nn.utils.clip_grad_norm_

        def counted(*args: Any, **kwargs: Any) -> Any:
            nonlocal updates
            updates += 1
            if updates == step:
                os.kill(os.getpid(), number)
            return clip(*args, **kwargs)

        monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", counted)

    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    yield at
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == handlers


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_distillation_saves_and_stops_at_a_signal(
    settings: Path, tmp_path: Path, send_signal_at: Any, number: int, capfd: pytest.CaptureFixture[str]
) -> None:
    send_signal_at(3, number)
    assert distil(settings, f"output={tmp_path}") == 128 + number
    assert [path.name for path in (tmp_path / "checkpoints").glob("*.pt")] == ["step-00000003.pt"]
    err = capfd.readouterr().err
    assert signal.Signals(number).name in err and "saved step 3; run the same command again to resume" in err


def test_joint_training_saves_and_stops_at_a_signal(
    settings: Path, tmp_path: Path, send_signal_at: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    send_signal_at(3, signal.SIGTERM)
    with pytest.raises(Interrupted) as interrupted:
        launch.main(joint_arguments(settings, tmp_path / "exp"))
    assert interrupted.value.code == 143 and "saved step 3" in capfd.readouterr().err
    assert (tmp_path / "exp" / "states-3.ckpt").is_file()


def test_a_signal_in_an_evaluation_stops_it_and_a_resumed_training_makes_up_for_it(
    settings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert launch.main(joint_arguments(settings, tmp_path / "whole")) == 0
    make_batches, evaluations = EvaluationLoop._batches, []

    def interrupting(self: EvaluationLoop, split: str, **epoch: int) -> Any:
        if split == "dev":
            evaluations.append(split)
            if len(evaluations) <= 2:  # also when the resumed training evaluates
                os.kill(os.getpid(), signal.SIGTERM)
        return make_batches(self, split, **epoch)

    monkeypatch.setattr(EvaluationLoop, "_batches", interrupting)
    for _ in range(2):
        with pytest.raises(Interrupted):
            launch.main(joint_arguments(settings, tmp_path / "exp"))
        assert "saved step 10; resume" in capfd.readouterr().err
        assert not (tmp_path / "exp" / "best-dev.ckpt").exists()
    assert launch.main(joint_arguments(settings, tmp_path / "exp")) == 0
    assert len(evaluations) == 4, "step 10 three times, step 20 once"
    for name in ("best-dev.ckpt", f"states-{kills.STEPS}.ckpt"):
        whole, resumed = (
            torch.load(tmp_path / run / name, weights_only=False, map_location="cpu") for run in ("whole", "exp")
        )
        assert list(kills.differences(whole, resumed)) == []


@pytest.mark.parametrize("of_suite", [False, True])
def test_a_signal_in_the_last_step_stops_a_suite_and_lets_a_single_training_finish(
    settings: Path, tmp_path: Path, send_signal_at: Any, of_suite: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    suite = resumed_by("distilled-student demo") if of_suite else contextlib.nullcontext()
    send_signal_at(kills.STEPS, signal.SIGTERM)
    with suite:
        assert distil(settings, f"output={tmp_path / 'student'}") == (143 if of_suite else 0)
        assert (tmp_path / "student" / "model.safetensors").is_file()
        send_signal_at(kills.STEPS, signal.SIGTERM)
        with pytest.raises(Interrupted) if of_suite else contextlib.nullcontext():
            assert launch.main(joint_arguments(settings, tmp_path / "exp")) == 0
    assert (tmp_path / "exp" / f"states-{kills.STEPS}.ckpt").is_file()
    trained = re.findall(r"all 24 steps of (.*) are trained; resume: distilled-student demo", capfd.readouterr().err)
    assert trained == ([str(tmp_path / "student"), str(tmp_path / "exp")] if of_suite else [])


def test_a_second_signal_stops_training_at_once_without_a_save(settings: Path, tmp_path: Path) -> None:
    config, log = settings / "distillation" / "distill.yaml", tmp_path / "log"
    command = [sys.executable, "-m", "distilled_student.cli", "distill", str(config), f"output={tmp_path / 'out'}"]
    program = f"from distilled_student.cli import main; main({[*command[3:], 'steps=100000']})"
    with log.open("w") as out:
        process = subprocess.Popen([sys.executable, "-c", program], stderr=out, stdout=out)
    deadline = time.monotonic() + 120
    while "step 7/" not in log.read_text():
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)
    os.kill(process.pid, signal.SIGSTOP)  # so that both signals arrive before a checkpoint can be saved
    os.kill(process.pid, signal.SIGTERM)
    os.kill(process.pid, signal.SIGINT)
    os.kill(process.pid, signal.SIGCONT)
    assert process.wait(timeout=20) in (130, 143)
    assert "saved step" not in log.read_text()


def test_a_damaged_checkpoint_is_skipped_and_the_previous_one_used(
    settings: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    command = joint_arguments(settings, tmp_path / "exp")
    assert launch.main(command) == 0
    expected = torch.load(tmp_path / "exp" / "states-24.ckpt", weights_only=True)
    log = (tmp_path / "exp" / "log.jsonl").read_text()
    newest = tmp_path / "exp" / "states-24.ckpt"
    newest.write_bytes(newest.read_bytes()[:-1000])
    assert launch.main(command) == 0 and "states-24.ckpt: damaged" in caplog.text
    assert list(kills.differences(expected, torch.load(newest, weights_only=True))) == []
    assert len(list((tmp_path / "exp").glob("states-*.ckpt"))) == 2, "runner.max_keep"
    assert (tmp_path / "exp" / "log.jsonl").read_text() == log, "no line is logged twice"


def test_distillation_keeps_as_many_checkpoints_as_its_setting_says(settings: Path, tmp_path: Path) -> None:
    assert distil(settings, f"output={tmp_path}", "steps=4", "save_every=1", "keep=2") == 0
    names = sorted(path.name for path in (tmp_path / "checkpoints").glob("*.pt"))
    assert names == ["step-00000003.pt", "step-00000004.pt"]


def test_a_copied_folder_resumes_in_itself_and_the_original_does_not_change(settings: Path, tmp_path: Path) -> None:
    assert launch.main(joint_arguments(settings, tmp_path / "old", "-o", "config.runner.total_steps=6")) == 0
    shutil.copytree(tmp_path / "old", tmp_path / "new")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "old").iterdir()}
    for options in (["-e", str(tmp_path / "new")], ["-a", "-p", str(tmp_path / "new")]):
        assert launch.main(["-m", "train", *options, "--device", "cpu", "-o", "config.runner.total_steps=8"]) == 0
    assert (tmp_path / "new" / "states-8.ckpt").is_file()
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "old").iterdir()} == before


def test_a_command_with_other_settings_does_not_overwrite_a_run(
    settings: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert launch.main(joint_arguments(settings, tmp_path, "-o", "config.runner.total_steps=2")) == 0
    assert launch.main(joint_arguments(settings, tmp_path, "-o", "config.runner.total_steps=2,,args.seed=3")) == 2
    line = capfd.readouterr().err.splitlines()[-1]
    assert "holds another run, with other settings (args.seed: was 1337, is 3): choose another folder" in line


def test_a_finished_run_says_that_it_is_finished(
    settings: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    command = joint_arguments(settings, tmp_path / "exp", "-o", "config.runner.total_steps=2")
    assert launch.main(command) == 0 and "finished: all" not in capfd.readouterr().err
    assert launch.main(command) == 0
    more = f"run_downstream.py -m train -e {tmp_path}/exp -o config.runner.total_steps=4"
    assert f"{tmp_path}/exp: finished: all 2 steps are trained; for more steps: {more}" in capfd.readouterr().err
    options = [f"output={tmp_path}/student", "steps=2"]
    assert distil(settings, *options) == 0 and "finished: all" not in caplog.text
    assert distil(settings, *options) == 0
    assert f"{tmp_path}/student: finished: all 2 steps are trained; for more steps set steps, now 2" in caplog.text


def test_a_command_over_a_run_of_another_kind_says_what_the_folder_holds(
    settings: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "joint").mkdir()
    (tmp_path / "joint/states-2.ckpt").touch()
    shutil.copytree(settings / "joint" / "student", tmp_path / "student")
    for folder, what in (("joint", "holds a joint training run"), ("student", "holds a model without the checkpoints")):
        before = {path: path.stat().st_mtime_ns for path in (tmp_path / folder).iterdir()}
        assert distil(settings, f"output={tmp_path / folder}") == 2
        assert f"output: {tmp_path / folder}: {what}" in capfd.readouterr().err
        assert {path: path.stat().st_mtime_ns for path in (tmp_path / folder).iterdir()} == before
    assert launch.main(joint_arguments(settings, tmp_path / "student")) == 2
    assert f"-p {tmp_path}/student: holds a student or its distillation" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("files", "held"),
    [
        ((), ""),
        (
            ("checkpoints/step-00000007.pt",),
            "; it holds a distillation that was interrupted at step 7: run its command",
        ),
        (("checkpoints/.lock",), "; it holds a distillation that was interrupted before its first checkpoint"),
        (("provenance.json", "log.jsonl"), "; it holds a training that was interrupted before its first checkpoint"),
        (
            ("config.json", "model.safetensors"),
            "; it holds a student: train it with run_downstream.py -m train -u distilled_student -k {folder}"
            " -d multitask -p EXPDIR",
        ),
        (("joint/states-3.ckpt",), "; did you mean {folder}/joint?"),
    ],
)
def test_a_missing_an_interrupted_and_a_wrong_folder_are_different_messages(
    files: tuple[str, ...], held: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match="gone: no such folder"):
        evaluate(tmp_path / "gone")
    folder = tmp_path / "folder"
    for name in files or ("notes.txt",):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    with pytest.raises(SystemExit) as end:
        main(["evaluate", str(folder)])
    expected = f"{folder}: has no checkpoint: neither best-dev.ckpt nor states-*.ckpt{held.format(folder=folder)}"
    assert end.value.code == 2 and expected in capfd.readouterr().err
    assert launch.main(["-m", "evaluate", "-e", str(folder)]) == 2
    assert f"-e {folder}: no states-*.ckpt in this folder{held.format(folder=folder)}" in capfd.readouterr().err
    with pytest.raises(UserError, match=re.escape(f"no states-*.ckpt in its folder{held.format(folder=folder)}")):
        evaluate(folder)


def test_an_interruption_names_the_command_that_runs_several_trainings(capfd: pytest.CaptureFixture[str]) -> None:
    interruption = Interruption()
    interruption.signal = signal.SIGTERM
    with resumed_by("distilled-student demo --output exp"), pytest.raises(Interrupted):
        interruption.leave("saved step 3", "resume: run_downstream.py -m train -e exp/runs")
    with pytest.raises(Interrupted):
        interruption.leave("saved step 4", "run the same command again to resume")
    assert capfd.readouterr().err.splitlines() == [
        "saved step 3; resume: distilled-student demo --output exp",
        "saved step 4; run the same command again to resume",
    ]


def test_a_second_run_in_the_same_folder_is_refused(
    settings: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from distilled_student.common.processes import only_run_in

    (tmp_path / "out" / "checkpoints").mkdir(parents=True)
    with only_run_in(tmp_path / "out" / "checkpoints"):
        assert distil(settings, f"output={tmp_path / 'out'}") == 2
    assert "another run is writing into it" in capfd.readouterr().err.splitlines()[-1]
    (tmp_path / "joint").mkdir()
    with only_run_in(tmp_path / "joint"):
        assert launch.main(joint_arguments(settings, tmp_path / "joint")) == 2
    assert "another run is writing into it" in capfd.readouterr().err.splitlines()[-1]


def make_gradients_infinite(monkeypatch: pytest.MonkeyPatch, steps: set[int]) -> None:
    """Make a gradient of these updates infinite; the first update is 1."""
    updates, clip = 0, torch.nn.utils.clip_grad_norm_

    def clipped(parameters: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal updates
        updates += 1
        parameters = list(parameters)
        if updates in steps:
            next(p for p in parameters if p.grad is not None).grad.fill_(math.inf)
        return clip(parameters, *args, **kwargs)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", clipped)


def test_distillation_skips_and_counts_steps_whose_gradient_is_not_finite(
    settings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    make_gradients_infinite(monkeypatch, {2, 3, 9})
    assert distil(settings, f"output={tmp_path}", "max_skipped=3") == 0
    state = torch.load(tmp_path / "checkpoints" / "step-00000024.pt", weights_only=True)
    assert state["progress"]["skipped"] == 3 and "3 steps were skipped" in caplog.text
    assert all(torch.isfinite(value).all() for value in state["student"].values())
    assert all(math.isfinite(loss) for _, loss in state["progress"]["curve"])
    assert {float(entry["step"]) for entry in state["optimizer"]["state"].values()} == {21.0}


def test_distillation_stops_after_too_many_skipped_steps_in_a_row_and_names_their_files(
    settings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    make_gradients_infinite(monkeypatch, {6, 7, 8})
    assert distil(settings, f"output={tmp_path}", "max_skipped=3") == 2
    line = capfd.readouterr().err.splitlines()[-1]
    assert "3 steps in a row had no finite loss, on" in line and ".wav" in line
    assert (tmp_path / "checkpoints" / "step-00000005.pt").is_file()


def test_joint_training_skips_such_steps_and_stops_after_too_many_in_a_row_naming_their_files(
    settings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    make_gradients_infinite(monkeypatch, {2, 3})
    assert launch.main(joint_arguments(settings, tmp_path / "a", "-o", "config.runner.total_steps=4")) == 0
    state = torch.load(tmp_path / "a" / "states-4.ckpt", weights_only=True)
    assert {float(entry["step"]) for entry in state["Optimizer"]["state"].values()} == {2.0}
    assert "2 steps were skipped" in capfd.readouterr().err
    monkeypatch.undo()
    make_gradients_infinite(monkeypatch, {1, 2})
    assert launch.main(joint_arguments(settings, tmp_path / "b", "-o", "config.runner.max_skipped=2")) == 2
    line = next(line for line in capfd.readouterr().err.splitlines() if "error: " in line)
    assert "2 steps in a row had no finite gradient" in line
    assert "nohash" in line and "vox" in line, "files of both tasks, because a step uses the sum of their losses"


def test_distillation_skips_recordings_far_outside_the_range_of_audio(
    settings: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Floats at the scale of 16 bits are named; a run without any other file ends with an error."""
    folder = tmp_path / "loud"
    folder.mkdir()
    for i in range(4):
        soundfile.write(folder / f"{i}.wav", (1e4 * tone(0.5, seed=i)).numpy(), 16_000, subtype="FLOAT")
    assert distil(settings, f"output={tmp_path / 'out'}", f"data.paths=[{folder}]", "steps=3") == 2
    assert all(f"{i}.wav: a peak of" in caplog.text for i in range(4))
    assert "divide samples of 16 bits by 32768" in caplog.text


def test_after_a_signal_during_a_save_the_next_step_is_saved_and_training_stops(
    settings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from distilled_student.host import runner

    def save_interrupted(states: Any, path: Any) -> None:
        if states["Step"] == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        save_torch(states, path)

    monkeypatch.setattr(runner, "save_torch", save_interrupted)
    with pytest.raises(Interrupted):
        launch.main(joint_arguments(settings, tmp_path))
    assert "saved step 6" in capfd.readouterr().err and (tmp_path / "states-6.ckpt").is_file()


def test_the_same_seed_gives_the_same_bytes_with_any_number_of_workers_and_any_evaluation_batch_size(
    settings: Path, tmp_path: Path
) -> None:
    results = []
    for name, workers in (("a", 0), ("b", 2)):
        options = ["-o", f"config.runner.total_steps=6,,config.downstream_expert.num_workers={workers}"]
        assert launch.main(joint_arguments(settings, tmp_path / name, *options)) == 0
        evaluate(tmp_path / name, checkpoint="states-6.ckpt")
        sizes = [f"config.downstream_expert.tasks.{task}.eval_batch_size={1 + workers}" for task in ("kws", "sv")]
        evaluate(tmp_path / name, checkpoint="states-6.ckpt", overrides=sizes)
        results.append((tmp_path / name / "results.json").read_bytes())
    assert results[0] == results[1]


def test_provenance_of_each_result_is_in_its_folder(settings: Path, tmp_path: Path) -> None:
    assert distil(settings, f"output={tmp_path / 'student'}", "steps=2") == 0
    content = json.loads((tmp_path / "student" / "provenance.json").read_text())
    assert content["settings"]["learning_rate"] == 2e-4 and content["seed"] == 0
    audio = sorted((settings / "distillation" / "audio").iterdir())
    seconds = sum(soundfile.info(path).duration for path in audio)
    assert content["data"]["train"]["utterances"] == len(audio)
    assert content["data"]["train"]["seconds"] == pytest.approx(seconds, abs=0.01)
    assert torch.__version__.startswith(content["versions"]["torch"]) and content["command"]
    assert launch.main(joint_arguments(settings, tmp_path / "exp", "-o", "config.runner.total_steps=2")) == 0
    evaluate(tmp_path / "exp", checkpoint="states-2.ckpt")
    trained, tested = (json.loads((tmp_path / "exp" / f"provenance{of}.json").read_text()) for of in ("", "-test"))
    assert set(trained["data"]["train"]) == {"kws", "sv"} == set(tested["data"])
    assert trained["settings"]["config"]["runner"]["total_steps"] == 2
    assert trained["settings"]["config"]["downstream_expert"]["tasks"]["sv"]["as_norm_top"] == 100, "a default value"
    upstream, state = tested["models"]["upstream"], torch.load(tmp_path / "exp" / "states-2.ckpt", weights_only=True)
    student = build_student(load_student(settings / "joint" / "student").config)
    student.load_state_dict({name.removeprefix("student."): value for name, value in state["Upstream"].items()})
    save_student(student, tmp_path / "trained")
    assert upstream["sha256"] == sha256_of(tmp_path / "trained") != trained["models"]["upstream"]["sha256"]
    assert trained["models"]["upstream"]["sha256"] == sha256_of(settings / "joint" / "student")
    assert trained["seed"] == 1337 and len(tested["data"]["sv"]["sha256"]) == 64


def sha256_of(folder: Path) -> str:
    """The hash that docs/evaluation.md describes, from the file of a student's weights."""
    digest = hashlib.sha256()
    for name, value in sorted(safetensors.numpy.load_file(folder / "model.safetensors").items()):
        digest.update(f"{name} {value.dtype} {list(value.shape)}\n".encode() + value.tobytes())
    return digest.hexdigest()


def test_the_weights_of_teacher_and_student_are_in_the_provenance(settings: Path, tmp_path: Path) -> None:
    teacher = tmp_path / "teacher"
    save_student(load_student(ASSETS / "teacher"), teacher)
    assert distil(settings, f"output={tmp_path / 'student'}", "steps=2", f"teacher={teacher}") == 0
    models = json.loads((tmp_path / "student" / "provenance.json").read_text())["models"]
    assert (models["teacher"]["name"], models["teacher"]["revision"]) == (str(teacher), None)
    assert models["teacher"]["sha256"] == sha256_of(teacher)
    assert models["student"]["sha256"] == sha256_of(tmp_path / "student")
    run = ["-m", "train", "-u", "distilled_student", "-k", str(tmp_path / "student"), "-d", "example", "-f", "-p"]
    settings_of = "config.runner.total_steps={},,config.runner.save_step=1,,config.runner.eval_step=9"
    for steps, start in ((1, []), (2, ["-a"])):  # the second time it is resumed, with trained weights
        assert launch.main([*start, *run, str(tmp_path / "exp"), "-o", settings_of.format(steps)]) == 0
        upstream = json.loads((tmp_path / "exp" / "provenance.json").read_text())["models"]["upstream"]
        assert upstream["checkpoint"] == str(tmp_path / "student")
        assert upstream["sha256"] == sha256_of(tmp_path / "student")


def test_a_distillation_is_not_resumed_with_other_weights_of_its_teacher(
    settings: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    student = load_student(ASSETS / "teacher")
    save_student(student, tmp_path / "teacher")
    options = [f"output={tmp_path / 'student'}", f"teacher={tmp_path / 'teacher'}"]
    assert distil(settings, "steps=1", *options) == 0
    with torch.no_grad():
        student.layers[0].linear1.bias[0] += 1
    save_student(student, tmp_path / "teacher")
    assert distil(settings, "steps=2", *options) == 2
    assert "sha256 of the teacher's weights: was " in capfd.readouterr().err


def test_distillation_runs_outside_the_main_thread(settings: Path, tmp_path: Path) -> None:
    """Python sets signal handlers in the main thread only."""
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(distil(settings, f"output={tmp_path}", "steps=2")))
    thread.start()
    thread.join()
    assert codes == [0]


def test_augmentation_may_exceed_the_range_that_files_must_have(settings: Path, tmp_path: Path) -> None:
    augment = "config.downstream_expert.tasks.kws.augment"
    options = ["-o", f"config.runner.total_steps=2,,{augment}.gain=1.0,,{augment}.gain_db=[40.0,50.0]"]
    assert launch.main(joint_arguments(settings, tmp_path, *options)) == 0
