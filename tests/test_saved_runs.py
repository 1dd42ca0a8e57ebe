"""What version 0.1.0 saved loads today and gives the same numbers: a student, a joint run, cached targets."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.trees import tasks

import distilled_student as ds
from distilled_student.cli import main
from distilled_student.common.files import read_torch
from distilled_student.host import launch
from distilled_student.multitask.device_model import open_joint

SAVED = Path(__file__).parent / "saved"
EXPECTED = np.load(SAVED / "expected.npz")
WAVES = torch.from_numpy((0.1 * np.random.default_rng(1).standard_normal((2, 8000))).astype(np.float32))
LENGTHS = torch.tensor([8000, 6000])
# of a second or more: since 0.2 shorter clips are padded for keywords, as in training
LONG_WAVES = torch.from_numpy((0.1 * np.random.default_rng(2).standard_normal((2, 20000))).astype(np.float32))
LONG_LENGTHS = torch.tensor([20000, 16000])


def close(found: torch.Tensor, name: str) -> None:
    """Equal but for the order of sums, which another processor may choose."""
    np.testing.assert_allclose(found.detach().numpy(), EXPECTED[name], rtol=1e-5, atol=5e-6, err_msg=name)


@torch.no_grad()
def test_a_student_folder() -> None:
    output = ds.load_student(SAVED / "student").eval()(WAVES, LENGTHS)
    close(torch.stack(list(output.hidden_states)), "hidden")
    close(output.predictions, "predictions")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder: a copy of what was saved, and the corpora that the joint run names by relative paths.

    The run names its student by the folder that it had where it was made.
    """
    shutil.copytree(SAVED, tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    state = read_torch(Path("joint/best-dev.ckpt"))
    state["Args"].upstream_ckpt = "student"
    torch.save(state, "joint/best-dev.ckpt")
    tasks(Path("corpus"))
    return tmp_path / "work"


@torch.no_grad()
def test_a_joint_run_on_a_device(folder: Path) -> None:
    model = open_joint(folder / "joint")
    close(model(LONG_WAVES, LONG_LENGTHS).keyword_scores, "long_scores")
    repeated = model(WAVES, LENGTHS).speaker_embedding
    np.testing.assert_allclose(repeated[0], EXPECTED["embeddings"][0], rtol=1e-5, atol=1e-6)
    # since 0.2 the second one, which is shorter than a training crop, is repeated, as in training
    model.tasks["sv"].settings.fill = False
    output = model(WAVES, LENGTHS)
    close(output.speaker_embedding, "embeddings")
    assert not torch.allclose(repeated[1], output.speaker_embedding[1], atol=1e-3)
    close(output.hidden_state, "hidden_state")


def test_a_joint_run_in_the_runner(folder: Path) -> None:
    state = torch.load(SAVED / "joint/best-dev.ckpt", weights_only=True)
    loaded = launch.open_runner("joint/best-dev.ckpt", "cpu").downstream.model.state_dict()
    for name, value in state["Downstream"].items():
        assert name.endswith("_extra_state") or torch.equal(loaded[name], value), name


def test_cached_targets_of_a_distillation(folder: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in Path("targets").rglob("*.safetensors")}
    with pytest.raises(SystemExit) as end:
        main(["distill", "distill.yaml"])
    assert not end.value.code
    after = {path: path.stat().st_mtime_ns for path in Path("targets").rglob("*.safetensors")}
    assert len(before) == 3 and after == before  # no target was computed again
    assert Path("distilled/model.safetensors").is_file()
