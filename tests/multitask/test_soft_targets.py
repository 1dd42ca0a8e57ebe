"""A finished run as the teacher of keywords. Reference: the divergence written out in numpy."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.joint_runs import joint_command
from helpers.trees import tasks
from torch import Tensor

from distilled_student.host import launch
from distilled_student.multitask.expert import DownstreamExpert
from distilled_student.multitask.soft_targets import RunTeacher, soft_target_loss


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
def test_the_loss_is_the_divergence_of_the_probabilities_written_out(temperature: float) -> None:
    rng = np.random.default_rng(0)
    outputs, targets = rng.normal(size=(2, 7, 12)) * 3
    p, q = softmax(targets / temperature), softmax(outputs / temperature)
    expected = temperature**2 * (p * np.log(p / q)).sum(axis=1).mean()
    found = soft_target_loss(torch.from_numpy(outputs), torch.from_numpy(targets), temperature)
    np.testing.assert_allclose(found.item(), expected, rtol=1e-5)


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("corpora")


@pytest.fixture(scope="module")
def groups(corpora: Path) -> dict[str, dict]:
    return tasks(corpora)


@pytest.fixture(scope="module")
def teacher(corpora: Path, groups: dict[str, dict]) -> Path:
    command = joint_command(corpora, {"total_steps": 2}, groups)
    assert launch.main([*command, "-p", str(corpora / "teacher")]) == 0
    return corpora / "teacher"


def train(folder: Path, groups: dict[str, dict], steps: int = 2, **kws: object) -> int:
    with_teacher = groups | {"kws": groups["kws"] | kws}
    folder.mkdir(exist_ok=True)
    return launch.main([*joint_command(folder, {"total_steps": steps}, with_teacher), "-p", str(folder / "exp")])


def test_a_training_follows_its_teacher_and_its_provenance_names_it(
    groups: dict[str, dict], teacher: Path, tmp_path: Path
) -> None:
    assert train(tmp_path / "alone", groups) == 0
    assert train(tmp_path / "with_teacher", groups, teacher=str(teacher)) == 0
    alone, with_teacher = (
        torch.load(tmp_path / f"{name}/exp/states-2.ckpt", weights_only=True)["Downstream"]
        for name in ("alone", "with_teacher")
    )
    assert alone.keys() == with_teacher.keys()  # the teacher is not saved
    assert not alone["tasks.kws.head.linear.weight"].equal(with_teacher["tasks.kws.head.linear.weight"])
    models = json.loads((tmp_path / "with_teacher/exp/provenance.json").read_text())["models"]
    assert models["kws.teacher"]["checkpoint"] == str(teacher / "best-dev.ckpt")


def test_the_teacher_answers_as_its_own_evaluation_does(teacher: Path) -> None:
    runner = launch.open_runner(teacher / "best-dev.ckpt", device="cpu")
    wavs = list(0.1 * torch.randn(3, 16_000, generator=torch.Generator().manual_seed(0)))
    with torch.no_grad():
        for entry in runner.all_entries:
            entry.model.eval()
        features = runner.featurizer.model(wavs, runner.upstream.model(wavs))
        expected = runner.expert.outputs("kws", features)
    torch.testing.assert_close(RunTeacher(str(teacher), "keyword_scores", "F").scores(wavs), expected)


def test_the_teacher_gets_no_speech_from_before_an_utterance(teacher: Path) -> None:
    expert: DownstreamExpert = launch.open_runner(teacher / "best-dev.ckpt", device="cpu").expert
    received: list[Sequence[Tensor]] = []

    class Listener:
        def scores(self, waveforms: Sequence[Tensor]) -> Tensor:
            received.append(waveforms)
            return torch.zeros(1)

    expert.tasks["kws"].teacher = Listener()
    expert.soft_targets([torch.arange(500), torch.arange(300)], "kws", [0, 1], ["a", "b"], [320, 0])
    assert [wav.tolist() for wav in received[0]] == [list(range(320, 500)), list(range(300))]
    assert expert.soft_targets([torch.arange(500)], "sv", [0], ["a"], [0]) is None


def test_a_teacher_that_cannot_teach_is_refused_before_training(
    groups: dict[str, dict], teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tmp_path, groups, teacher=str(tmp_path / "nothing")) == 2
    assert "tasks.kws.teacher" in (message := capsys.readouterr().err) and "nothing" in message
    others = list(reversed(groups["kws"]["keywords"]))
    assert train(tmp_path, groups, teacher=str(teacher), keywords=others) == 2
    assert f"tasks.kws.teacher: {teacher}: knows other keywords" in capsys.readouterr().err
    assert train(tmp_path, groups, teacher=str(teacher), validation_percentage=41) == 2
    message = capsys.readouterr().err
    assert "tasks.kws.validation_percentage: 41" in message and "was trained on people who are held out here" in message
    assert train(tmp_path, groups, teacher=str(teacher), teacher_weight=0) == 2
    assert "tasks.kws: teacher_weight: needs a number above 0" in capsys.readouterr().err
