"""A checkpoint's classes keep their names: other speakers or keywords of the same number are refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from helpers.trees import tasks, voxceleb

from distilled_student.common import audio
from distilled_student.common.errors import UserError
from distilled_student.host import launch
from distilled_student.multitask.evaluate import evaluate
from distilled_student.multitask.expert import DownstreamExpert
from distilled_student.multitask.tasks import sv
from distilled_student.multitask.tasks.settings import AugmentSettings

RUNNER = {"total_steps": 2, "gradient_clipping": 1, "gradient_accumulate_steps": 1, "log_step": 1, "eval_step": 2}
RUNNER |= {"save_step": 2, "max_keep": 1, "eval_dataloaders": ["dev"]}
KEYWORDS = "config.downstream_expert.tasks.kws.keywords"


def expert(values: dict[str, Any], folder: Path, mode: str = "train") -> DownstreamExpert:
    runner = {"gradient_accumulate_steps": 1}
    return DownstreamExpert(6, 160, {"tasks": values}, str(folder), config="my.yaml", seed=1, runner=runner, mode=mode)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with corpora, ``c.yaml`` and a finished run ``exp``."""
    folder = tmp_path_factory.mktemp("run")
    config = {"runner": RUNNER, "optimizer": {"name": "TorchOptim", "torch_optim_name": "SGD", "lr": 1.0e-3}}
    (folder / "c.yaml").write_text(yaml.safe_dump({**config, "downstream_expert": {"tasks": tasks(folder)}}))
    assert launch.main([*start(folder), "-p", str(folder / "exp")]) == 0
    return folder


def start(folder: Path) -> list[str]:
    return ["-m", "train", "-u", "fbank", "-d", "multitask", "-c", str(folder / "c.yaml"), "--device", "cpu"]


def without_names(checkpoint: Path, to: Path) -> Path:
    """A copy of a checkpoint as versions before 0.2 wrote it."""
    state = torch.load(checkpoint, weights_only=True)
    position = json.loads(bytes(state["Downstream"]["_extra_state"].tolist()))
    assert position.pop("classes")["kws"] == ["_silence_", "_unknown_", "yes", "no"]
    state["Downstream"]["_extra_state"] = torch.tensor(list(json.dumps(position).encode()), dtype=torch.uint8)
    to.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, to)
    return to


@pytest.mark.parametrize("named", [True, False])
def test_keywords_in_another_order_are_refused_in_resuming_in_evaluation_and_as_initial_weights(
    named: bool, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    checkpoint = shutil.copy(trained / "exp/states-2.ckpt", tmp_path / "states-2.ckpt")
    if not named:
        without_names(checkpoint, checkpoint)
    swapped = f"{KEYWORDS}=['no','yes']"
    message = r"tasks\.kws\.keywords: class 2 is 'no', but 'yes' in the checkpoint, whose classes cannot be replaced"
    with pytest.raises(UserError, match=message):
        evaluate(tmp_path, checkpoint="states-2.ckpt", device="cpu", overrides=[swapped])
    resumed = ["-m", "train", "-e", str(checkpoint), "--device", "cpu", "-o", f"config.runner.total_steps=3,,{swapped}"]
    initial = [*start(trained), "-i", str(checkpoint), "-p", str(tmp_path / "new"), "-o", swapped]
    for command in (resumed, initial):
        assert launch.main(command) == 2
        assert "kws.keywords: class 2 is 'no', but 'yes' in the checkpoint" in capsys.readouterr().err
    assert launch.main([*initial[:-1], "config.runner.total_steps=1"]) == 0


def test_other_speakers_of_the_same_number_are_refused(trained: Path, tmp_path: Path) -> None:
    values = tasks(tmp_path)
    e = expert(values, tmp_path)
    state = e.state_dict()
    speaker = next(iter(e.tasks["sv"].index.training))
    (tmp_path / "vox/dev/wav" / speaker).rename(tmp_path / "vox/dev/wav/id1zzz")
    other = expert(values, tmp_path)
    assert len(other.tasks["sv"].index.training) == len(e.tasks["sv"].index.training)
    with pytest.raises(UserError, match=rf"my\.yaml: .*tasks\.sv\.root: class 0 is '.*', but '{speaker}' in the check"):
        other.load_state_dict(state)
    moved = {**values, "sv": {**values["sv"], "root": str(tmp_path / "moved")}}
    (tmp_path / "vox/dev/wav/id1zzz").rename(tmp_path / "vox/dev/wav" / speaker)
    (tmp_path / "vox").rename(tmp_path / "moved")
    again = expert(moved, tmp_path)
    again.load_state_dict(state)  # the same speakers in another folder
    assert again.tasks["sv"].class_names == list(e.tasks["sv"].index.training)


def test_an_older_checkpoint_without_names_is_resumed_with_a_message(
    trained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint = without_names(trained / "exp/states-2.ckpt", tmp_path / "states-2.ckpt")
    command = ["-m", "train", "-e", str(checkpoint), "--device", "cpu", "-o", "config.runner.total_steps=3"]
    assert launch.main(command) == 0
    assert "tasks.sv: the checkpoint does not hold the names of the classes: only their number" in caplog.text
    state = torch.load(tmp_path / "states-3.ckpt", weights_only=True)["Downstream"]["_extra_state"]
    assert list(json.loads(bytes(state.tolist()))["classes"]) == ["kws", "sv"]


def test_tested_speakers_who_are_classes_of_the_checkpoint_are_counted(
    trained: Path, caplog: pytest.LogCaptureFixture
) -> None:
    names = ["id1000", "id1001", "id1002", "id1003", "id1004", "id1005", "id2000"]
    lines = [f"{int(a == b)} {a}/s0/00000.wav {b}/s1/00000.wav" for a in names for b in names]
    (trained / "all.txt").write_text("\n".join(lines))
    results = evaluate(trained / "exp", device="cpu", trials=str(trained / "all.txt"))["sv"]
    assert results["speakers"] == 7 and results["trained_speakers"] == 4, "of six, two are held out"
    assert "4 of 7 speakers are training speakers" in caplog.text
    (trained / "vox/test").rename(trained / "elsewhere")
    (trained / "veri.txt").write_text("1 wav/id2000/s0/00000.wav wav/id2000/s1/00000.wav\n"
                                      "0 wav/id2000/s0/00000.wav wav/id2001/s1/00000.wav\n")  # fmt: skip
    try:
        found = evaluate(trained / "exp", device="cpu", trials=str(trained / "veri.txt"),
                         trials_root=str(trained / "elsewhere"))["sv"]  # fmt: skip
    finally:
        (trained / "elsewhere").rename(trained / "vox/test")
    assert found["trials"] == 2 and "trained_speakers" not in found
    lines = ["1 x/id2000/s0/00000.wav y/id2000/s1/00000.wav", "0 x/id2000/s0/00000.wav y/id2001/s1/00000.wav"]
    for line in lines:
        for name in line.split()[1:]:
            (trained / "wavs/wav" / name[0]).mkdir(parents=True, exist_ok=True)
            (trained / "wavs/wav" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(trained / "vox/test/wav" / name[2:], trained / "wavs/wav" / name)
    (trained / "parts.txt").write_text("\n".join(lines))
    there = {"device": "cpu", "trials": str(trained / "parts.txt"), "trials_root": str(trained / "wavs")}
    with pytest.raises(UserError, match=r"parts\.txt: line 1: .*set .*speaker_pattern.*: --speaker-pattern"):
        evaluate(trained / "exp", **there)
    assert evaluate(trained / "exp", **there, speaker_pattern="^[^/]+/([^/]+)/")["sv"]["speakers"] == 2
    with pytest.raises(UserError, match=r"--trials-root .*: needs --trials"):
        evaluate(trained / "exp", trials_root="x")


# Speakers at other speeds


def test_a_speaker_at_another_speed_is_a_class_of_its_own(tmp_path: Path) -> None:
    root = voxceleb(tmp_path)
    settings = sv.Settings(root=str(root), dev_speakers=2, dev_trials=8, crop_seconds=0.3)
    settings.augment = AugmentSettings(speed=0.7, speed_factors=[0.8, 1.0, 1.25, 0.8])
    task = sv.Task(settings, 4, 0, "F")
    task.prepare_training()
    speakers = list(task.index.training)
    assert task.class_names == [
        *speakers,
        *(f"{n} at speed 0.8" for n in speakers),
        *(f"{n} at speed 1.25" for n in speakers),
    ]
    assert len(task.objective.weight) == 12 and len(task.cohort()) == 4, "the cohort has natural voices only"
    data, seen = task.training_data(), set()
    for draw in range(60):
        item = data.item(draw % len(data.items), np.random.default_rng(draw))
        path = Path(item.key)
        speaker, pitch = path.parents[1].name, 100 + 40 * int(path.parents[1].name[-3:])
        spectrum = np.abs(np.fft.rfft(item.waveform.numpy(), 1 << 16))
        measured = spectrum.argmax() * audio.SAMPLE_RATE / (1 << 16)
        speed = [1, 0.8, 1.25][item.label // 4]
        assert item.label % 4 == speakers.index(speaker) and measured == pytest.approx(pitch * speed, rel=0.03)
        seen.add(item.label // 4)
    assert seen == {0, 1, 2}


def test_without_speed_there_are_no_further_classes_and_no_class_is_left_without_utterances(tmp_path: Path) -> None:
    task = sv.Task(sv.Settings(root=str(voxceleb(tmp_path)), dev_speakers=2, dev_trials=8), 4, 0, "F")
    task.prepare_training()
    assert task.class_names == list(task.index.training)
    with pytest.raises(ValueError, match=r"augment\.speed: 1 leaves no utterance at its own speed"):
        sv.Settings(augment=AugmentSettings(speed=1.0))
    sv.Settings(augment=AugmentSettings(speed=1.0, speed_factors=[0.9, 1.0, 1.1]))


@pytest.mark.parametrize(
    ("saved", "here", "remedy"),
    [
        (
            0.5,
            0.0,
            r"the speeds \[0\.9, 1\.1\]: set speed_factors=\[0\.9, 1\.1\], and speed=1\.0e-9 if none",
        ),
        (0.0, 0.5, r"the speeds \[\]: set speed=0"),
        (1e-9, 0.5, None),
    ],
)
def test_classes_of_the_same_speakers_at_other_speeds_name_the_speeds_and_not_the_folders(
    saved: float, here: float, remedy: str | None, tmp_path: Path
) -> None:
    root = str(voxceleb(tmp_path))
    first, second = (
        sv.Task(sv.Settings(root=root, dev_speakers=2, dev_trials=8, augment=AugmentSettings(speed=speed)), 4, 0, "F")
        for speed in (saved, here)
    )
    for task in (first, second):
        task.prepare_training()
    if remedy is None:
        second.check_classes(first.class_names)
    else:
        with pytest.raises(UserError, match=rf"^F\.augment\.speed: each speed is a class of its own, .* {remedy}"):
            second.check_classes(first.class_names)
