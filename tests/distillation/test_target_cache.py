"""Teacher targets on disk: reused, never stale, computed again where damaged, their size logged beforehand."""

from __future__ import annotations

import dataclasses
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import SMALL
from torch import Tensor

import distilled_student as ds
from distilled_student.checkpoints.folder import load_student
from distilled_student.distillation.config import DistillConfig
from distilled_student.distillation.data.cuts import DataConfig, make_loader, read_cuts
from distilled_student.distillation.target_cache import TargetCache
from distilled_student.distillation.targets import Teacher
from distilled_student.distillation.train import distill
from distilled_student.distillation.trainer import Distillation
from distilled_student.teachers.encoders import StudentEncoder


@pytest.fixture
def teacher_folder(tmp_path: Path, small_cnn: ds.StudentConfig) -> Path:
    torch.manual_seed(1)
    ds.save_student(ds.build_student(small_cnn), tmp_path / "teacher")
    return tmp_path / "teacher"


@pytest.fixture
def config(tmp_path: Path, audio_folder: Path, teacher_folder: Path) -> DistillConfig:
    student = {**SMALL, "conv_dim": [8] * 7, "layers": 1}
    del student["targets"], student["target_size"]
    return DistillConfig(
        teacher=str(teacher_folder),
        output=str(tmp_path / "out"),
        data=DataConfig([str(audio_folder)], batch_seconds=4, max_seconds=1.5, workers=0),
        targets=[1, 2],
        student=student,
        steps=4,
        teacher_precision="fp32",
        cache=str(tmp_path / "cache"),
    )


def _encoded(run: Distillation) -> list[Tensor]:
    """A list that receives the lengths of each batch that the teacher encodes from now on."""
    encoded: list[Tensor] = []
    run.teacher.register_forward_pre_hook(lambda teacher, inputs: encoded.append(inputs[1]))
    return encoded


def _epoch(run: Distillation, epoch: int) -> None:
    cuts, _ = read_cuts(run.config.data)
    for batch in make_loader(cuts, run.config.data, seed=0, epoch=epoch, find_targets=run.find_targets):
        run.step(batch)


def test_a_second_epoch_does_not_use_the_teacher(config: DistillConfig) -> None:
    run = Distillation(config, "test.yaml")
    encoded = _encoded(run)
    _epoch(run, 0)
    pieces = sum(len(lengths) for lengths in encoded)
    assert pieces == len(list(Path(config.cache).rglob("*.safetensors"))) == 15  # three files in two pieces
    _epoch(run, 1)
    assert sum(len(lengths) for lengths in encoded) == pieces
    again = Distillation(config, "test.yaml")  # as a new process would
    encoded = _encoded(again)
    _epoch(again, 0)
    assert not encoded


def test_cached_targets_are_the_teachers_in_half_precision(config: DistillConfig) -> None:
    run = Distillation(config, "test.yaml")
    cuts, _ = read_cuts(config.data)
    for epoch in range(2):
        for batch in make_loader(cuts, config.data, seed=0, epoch=epoch, find_targets=run.cache.read):
            states, lengths = run.teacher(batch.waveforms, batch.lengths)
            found, frames = run.cache.targets(batch, batch.waveforms, run.teacher)
            assert torch.equal(frames, lengths)
            for row, count in enumerate(frames.tolist()):
                expected = states[row, :, :count]
                torch.testing.assert_close(found[row, :, :count].float(), expected, atol=1e-5, rtol=2**-10)


def _other_weights(student: ds.Student) -> None:
    with torch.no_grad():
        student.layers[0].linear1.bias[0] += 1e-3


def _other_settings(student: ds.Student) -> None:
    student.config = dataclasses.replace(student.config, normalize=True)


@pytest.mark.parametrize(
    ("change", "layers", "precision"),
    [
        (_other_weights, [1, 2], "fp32"),
        (_other_settings, [1, 2], "fp32"),
        (lambda student: None, [2, 1], "fp32"),
        (lambda student: None, [2], "fp32"),
        (lambda student: None, [1, 2], "bf16"),
    ],
    ids=["weights", "settings", "order", "layers", "precision"],
)
def test_targets_of_another_teacher_are_not_used(
    change: Callable[[ds.Student], None], layers: list[int], precision: str, teacher_folder: Path, tmp_path: Path
) -> None:
    wave = torch.randn(16_000)
    first, same = (Teacher(StudentEncoder(load_student(teacher_folder)), [1, 2]) for _ in range(2))
    TargetCache(tmp_path, first.fingerprint()).write(wave, torch.zeros(2, 49, 16))
    assert TargetCache(tmp_path, same.fingerprint()).read(wave) is not None
    student = load_student(teacher_folder)
    change(student)
    other = Teacher(StudentEncoder(student), layers, precision)
    assert TargetCache(tmp_path, other.fingerprint()).read(wave) is None


def test_targets_of_other_audio_are_not_used(tmp_path: Path) -> None:
    cache, wave = TargetCache(tmp_path, "0" * 64), torch.randn(16_000)
    cache.write(wave, torch.zeros(2, 49, 16))
    assert cache.read(wave) is not None
    louder = wave.clone()
    louder[8_000] += 1e-3
    for other in (louder, wave[:-1], torch.cat([wave, torch.zeros(1)])):
        assert cache.read(other) is None


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-10],
        lambda data: data[:-1] + bytes([data[-1] ^ 1]),
        lambda data: b"\0" * len(data),
        lambda data: b"",
    ],
)
def test_a_damaged_file_is_computed_again(config: DistillConfig, damage: Callable[[bytes], bytes]) -> None:
    run = Distillation(config, "test.yaml")
    _epoch(run, 0)
    file = next(Path(config.cache).rglob("*.safetensors"))
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    encoded = _encoded(run)
    _epoch(run, 0)
    assert sum(len(lengths) for lengths in encoded) == 1
    assert len(file.read_bytes()) == len(whole)


def test_the_size_of_the_cache_is_logged_before_writing(
    config: DistillConfig, caplog: pytest.LogCaptureFixture
) -> None:
    run = Distillation(config, "test.yaml")
    with caplog.at_level(logging.INFO):
        run.cache.reserve(3600.0, run.teacher)
    assert "needs 0.01 GB, holds 0.00 GB" in caplog.text  # 50 frames * 16 features * 2 layers * 2 bytes * 3600


def test_a_disk_without_enough_space_is_an_error_before_the_first_step(
    config: DistillConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=1000))
    with pytest.raises(ds.UserError, match=r"test\.yaml: cache: .* needs 0\.00 GB more, its disk has 0\.00"):
        distill(config, "test.yaml")
    assert not list(Path(config.output).glob("checkpoints/*.pt"))


def test_a_folder_that_cannot_be_created_is_an_error(config: DistillConfig, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ds.UserError, match=r"test\.yaml: cache: .* cannot be written"):
        distill(dataclasses.replace(config, cache=str(tmp_path / "file" / "cache")), "test.yaml")


def test_states_that_half_precision_cannot_hold_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(ds.UserError, match="too large for half precision"):
        TargetCache(tmp_path, "0" * 64).write(torch.zeros(400), torch.full((1, 1, 4), 1e5))


def test_an_interrupted_run_with_a_cache_resumes_to_the_same_student(config: DistillConfig, tmp_path: Path) -> None:
    config = dataclasses.replace(config, save_every=2, keep=3, steps=6)
    distill(config, "test.yaml")
    other = dataclasses.replace(config, output=str(tmp_path / "interrupted"), cache=str(tmp_path / "another"))
    distill(other, "test.yaml")
    for step in (4, 6):
        (Path(other.output) / f"checkpoints/step-{step:08d}.pt").unlink()
    distill(other, "test.yaml")
    one, two = (load_student(output).state_dict() for output in (config.output, other.output))
    assert all(torch.equal(value, two[name]) for name, value in one.items())
    with pytest.raises(ds.UserError, match="cache: was True, is False"):
        distill(dataclasses.replace(other, cache=None, steps=7), "test.yaml")
