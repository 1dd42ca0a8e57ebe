"""The gradient of a distillation step: its scale, and the factor of the front end, against a plain computation."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import pytest
import torch
from conftest import SMALL

import distilled_student as ds
from distilled_student.distillation.config import DistillConfig
from distilled_student.distillation.data.cuts import DataConfig, make_loader, read_cuts
from distilled_student.distillation.trainer import Distillation


@pytest.mark.parametrize("factor", [1.0, 0.1, 0.0])
@pytest.mark.parametrize("reduction", ["frame", "mean", "sum"])
def test_the_gradient_is_that_of_the_papers_sum_divided_as_configured(
    reduction: str, factor: float, audio_folder: Path, tmp_path: Path, small_cnn: ds.StudentConfig
) -> None:
    torch.manual_seed(1)
    ds.save_student(ds.build_student(small_cnn), tmp_path / "teacher")
    student = {**SMALL, "conv_dim": [8] * 7, "layers": 1, "dropout": 0.0}
    del student["targets"], student["target_size"]
    data = DataConfig([str(audio_folder)], batch_seconds=4, max_seconds=2, workers=0)
    config = DistillConfig(str(tmp_path / "teacher"), str(tmp_path / "out"), data, targets=[1, 2], student=student)
    config.reduction, config.front_end_gradient, config.teacher_precision = reduction, factor, "fp32"
    run = Distillation(config, "test.yaml")
    batch = next(iter(make_loader(read_cuts(config.data)[0], config.data, seed=0, epoch=0)))

    own, frames, total = copy.deepcopy(run.student), 0, 0.0
    for wave, length in zip(batch.waveforms, batch.lengths.tolist(), strict=True):  # one utterance, target, frame each
        states = run.teacher.encoder(wave[None, :length]).hidden_states
        predictions = own(wave[None, :length]).predictions[0]
        frames += predictions.shape[1]
        for target, layer in enumerate([1, 2]):
            for found, expected in zip(predictions[target], states[layer][0].detach(), strict=True):
                cosine = (found @ expected) / (found.norm() * expected.norm())
                total = total + (found - expected).abs().mean() + torch.log(1 + torch.exp(-cosine))
    (total / {"frame": frames, "mean": 2 * frames, "sum": 1}[reduction]).backward()
    squares = 0.0
    for name, parameter in own.named_parameters():
        squares += float(parameter.grad.square().sum()) * (factor**2 if name.startswith("frontend.") else 1)

    meters = run.step(batch)
    assert float(meters["gradient_norm"]) == pytest.approx(math.sqrt(squares), rel=1e-4)
    assert float((meters["l1"] + meters["cosine"]).sum()) == pytest.approx(float(total.detach()) / frames, rel=1e-5)


def test_a_run_of_an_earlier_version_is_resumed_with_the_defaults_of_newer_settings(
    audio_folder: Path, tmp_path: Path, small_cnn: ds.StudentConfig
) -> None:
    ds.save_student(ds.build_student(small_cnn), tmp_path / "teacher")
    data = DataConfig([str(audio_folder)], batch_seconds=4, max_seconds=2, workers=0)
    config = DistillConfig(str(tmp_path / "teacher"), str(tmp_path / "out"), data, targets=[1], student="tiny")
    config.initialize = False
    run = Distillation(config, "test.yaml")
    run.save()
    file = next((tmp_path / "out" / "checkpoints").glob("*.pt"))
    content = torch.load(file, weights_only=False)
    del content["settings"]["front_end_gradient"]
    torch.save(content, file)
    assert Distillation(config, "test.yaml").resume()
    config.front_end_gradient = 0.1
    with pytest.raises(ds.UserError, match=r"front_end_gradient: was 1.0, is 0.1"):
        Distillation(config, "test.yaml").resume()
