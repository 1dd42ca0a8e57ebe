"""Teacher's and student's frames aligned by their centres, which are measured here from what a frame depends on."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from helpers.references import FORMS, SMALL, save_fairseq, save_transformers
from torch import Tensor

import distilled_student as ds
from distilled_student.distillation.config import DistillConfig
from distilled_student.distillation.data.cuts import DataConfig
from distilled_student.distillation.targets import align
from distilled_student.distillation.trainer import Distillation
from distilled_student.teachers.open import open_teacher
from distilled_student.teachers.s3prl_encoder import S3prlEncoder


def measured_centre(student: ds.Student, frame: int = 20) -> float:
    """The middle of the samples that a frame of the front end has a gradient for, minus the frame's shift."""
    wave = (0.1 * torch.randn(1, 16_000)).requires_grad_()
    frames, _ = student.frontend(wave, torch.tensor([16_000]))
    frames[0, frame].square().sum().backward()
    used = wave.grad[0].nonzero()[:, 0]
    return float(used.min() + used.max()) / 2 - frame * student.config.frame_shift


@pytest.mark.parametrize(
    ("changes", "centre"),
    [
        ({}, 199.5),
        ({"conv_kernel": [8, 4], "conv_stride": [4, 4], "conv_dim": [8, 8]}, None),
        ({"frontend": "logmel"}, 0.0),
        ({"frontend": "logmel", "conv_kernel": [5, 5]}, 0.0),
        ({"frontend": "logmel", "conv_kernel": [4, 3]}, None),
        ({"frontend": "logmel", "causal": True, "positions": "none"}, -200.0),
        ({"frontend": "logmel", "causal": True, "positions": "none", "conv_kernel": [2, 4]}, None),
    ],
)
def test_the_centre_of_a_frame_is_the_middle_of_what_it_is_computed_from(
    changes: dict[str, Any], centre: float | None, small_cnn: ds.StudentConfig, small_logmel: ds.StudentConfig
) -> None:
    config = dataclasses.replace(
        small_logmel if "frontend" in changes else small_cnn, **{"conv_norm": "none", **changes}
    )
    torch.manual_seed(0)
    student = ds.build_student(config)
    if config.frontend == "logmel" and not config.causal:  # its lower limit depends on the loudest frame
        student.frontend.mel.forward = lambda waves, lengths: unlimited(student, waves, lengths)
    assert config.first_centre == pytest.approx(measured_centre(student), abs=0.51)  # hann windows begin with a zero
    assert centre is None or config.first_centre == centre


def unlimited(student: ds.Student, waves: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Log-mel without the lower limit; the first window is centred on the first sample."""
    padded = torch.nn.functional.pad(waves, (200, 200))
    windows = padded.unfold(1, 400, 160) * student.frontend.mel.window
    power = torch.fft.rfft(windows).abs().square() @ student.frontend.mel.filters
    return power.clamp(min=1e-10).log10().float(), lengths // 160


@pytest.mark.parametrize("family", ["WavLM", "SEW"])
def test_the_centre_of_a_frame_of_transformers_is_the_middle_of_its_receptive_field(
    family: str, tmp_path: Path
) -> None:
    sizes = {"conv_kernel": [10, 3, 3, 3, 3, 2, 2], "conv_stride": [5, 2, 2, 2, 2, 2, 2]}
    model = getattr(transformers, f"{family}Model")(getattr(transformers, f"{family}Config")(**SMALL, **sizes))
    teacher = open_teacher(save_transformers(model, tmp_path))
    # 400 samples for a frame of the CNN; SEW averages two, 320 samples apart
    assert teacher.first_centre == {"WavLM": 199.5, "SEW": 359.5}[family]


def test_the_centre_of_an_s3prl_teacher_is_known_if_its_front_end_is(tmp_path: Path) -> None:
    file = save_fairseq(tmp_path / "converted.pt", "hubert", SMALL, FORMS["group-post"])
    from s3prl import hub

    assert S3prlEncoder(hub.hubert_local(ckpt=str(file))).first_centre == 199.5
    assert open_teacher("fbank").first_centre is None


@pytest.mark.parametrize("offset", [-400.0, -199.5, 1.0, 100.0, 199.5])
@pytest.mark.parametrize(("shift", "student_shift"), [(320, 320), (640, 320), (160, 320)])
def test_each_frame_gets_the_frame_with_the_nearest_centre(shift: int, student_shift: int, offset: float) -> None:
    lengths, student_lengths = torch.tensor([16_000 // shift, 9_600 // shift]), torch.tensor([50, 30])
    frames = int(lengths[0])
    states = torch.arange(float(frames)).expand(2, 1, frames)[..., None]
    found, valid = align(states, lengths, shift, student_lengths, student_shift, 50, offset)
    centres = np.arange(frames) * shift
    for j in range(50):
        distances = np.abs(centres - (j * student_shift + offset))
        assert distances[int(found[0, 0, j, 0])] == distances.min()
    for row in range(2):
        inside = [j * student_shift + offset < (int(lengths[row]) - 0.5) * shift for j in range(50)]
        assert int(valid[row]) == min(sum(inside), int(student_lengths[row]))


def run(align_by: str, teacher: ds.StudentConfig, audio: Path, folder: Path, student: dict[str, Any]) -> Distillation:
    ds.save_student(ds.build_student(teacher), folder / "teacher")
    data = DataConfig([str(audio)], batch_seconds=4, max_seconds=2, workers=0)
    config = DistillConfig(str(folder / "teacher"), str(folder / "out"), data, targets=[1], student=student)
    config.align, config.initialize = align_by, False
    return Distillation(config, "test.yaml")


def test_a_run_aligns_by_number_or_by_centre(
    audio_folder: Path, tmp_path: Path, small_cnn: ds.StudentConfig, small_logmel: ds.StudentConfig
) -> None:
    fields = {name: value for name, value in vars(small_logmel).items() if not name.startswith("target")}
    states = torch.arange(10.0).expand(1, 1, 10)[..., None]
    ten = torch.tensor([10])
    expected = {"number": [0, 1, 2, 3], "centre": [0, 0, 1, 2]}  # the teacher's centres are 12.5 ms later
    for by, numbers in expected.items():
        found, _ = run(by, small_cnn, audio_folder, tmp_path, fields).sources[0].align(states, ten, ten, 10)
        assert found[0, 0, :4, 0].tolist() == numbers
