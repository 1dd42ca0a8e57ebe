"""The loss on held-out audio: its value, what is trained on, and which weights become the student."""

from __future__ import annotations

import logging
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from helpers.distillations import small_distillation

import distilled_student as ds
from distilled_student.common.errors import UserError
from distilled_student.common.files import read_torch
from distilled_student.distillation.config import DistillConfig
from distilled_student.distillation.data.config import DataConfig
from distilled_student.distillation.data.cuts import make_loader, read_cuts
from distilled_student.distillation.held_out import HeldOut
from distilled_student.distillation.train import distill
from distilled_student.distillation.trainer import Distillation


@pytest.fixture
def config(audio_folder: Path, tmp_path: Path) -> DistillConfig:
    """Twelve files, of which the folder ``held_out`` has three."""
    (audio_folder / "held_out").mkdir()
    for name in ("01.wav", "05.wav", "10.wav"):
        shutil.move(audio_folder / name, audio_folder / "held_out" / name)
    data = DataConfig([str(audio_folder)], [str(audio_folder / "held_out")], batch_seconds=16, workers=0)
    return small_distillation(audio_folder, tmp_path, data, steps=4, held_out_every=1, save_every=2)


def test_the_held_out_loss_is_the_mean_over_the_frames_of_all_held_out_files(config: DistillConfig) -> None:
    run = Distillation(config, "test.yaml")
    run.model.train()
    found = HeldOut(config.data, "data").measure(run)
    assert run.model.training  # as before the measurement
    l1, cosine, frames = np.zeros(2), np.zeros(2), 0
    run.student.eval()
    for file in Path(config.data.held_out[0]).glob("*.wav"):
        wave = torch.from_numpy(soundfile.read(file, dtype="float32")[0])[None]
        with torch.no_grad():
            targets = [run.teacher.encoder(wave).hidden_states[layer][0].double().numpy() for layer in (1, 2)]
            predictions = run.student(wave).predictions[0].double().numpy()
        for layer, (target, prediction) in enumerate(zip(targets, predictions, strict=True)):
            product = (target * prediction).sum(axis=1)
            similarity = product / np.linalg.norm(target, axis=1) / np.linalg.norm(prediction, axis=1)
            l1[layer] += np.abs(target - prediction).mean(axis=1).sum()
            cosine[layer] += np.log1p(np.exp(-similarity)).sum()
        frames += len(targets[0])
    np.testing.assert_allclose(found.l1, l1 / frames, rtol=1e-5)
    np.testing.assert_allclose(found.cosine, cosine / frames, rtol=1e-5)
    assert found.loss == pytest.approx((l1 + cosine).sum() / frames, rel=1e-5)


def test_held_out_files_are_not_trained_on(config: DistillConfig) -> None:
    cuts = HeldOut(config.data, "data").without(read_cuts(config.data)[0], "data")
    names = {Path(name).name for batch in make_loader(cuts, config.data, 0, 0) for name in batch.names}
    assert len(names) == 9 and not names & {"01.wav", "05.wav", "10.wav"}
    config.data.held_out = config.data.paths
    with pytest.raises(UserError, match="held_out: leaves nothing to train on"):
        HeldOut(config.data, "data").without(read_cuts(config.data)[0], "data")


def test_a_missing_held_out_folder_is_named(config: DistillConfig) -> None:
    config.data.held_out = ["gone"]
    with pytest.raises(UserError, match=r"test.yaml: data.held_out: gone: no such folder or manifest"):
        distill(config, "test.yaml")


def test_the_weights_with_the_lowest_held_out_loss_become_the_student(
    config: DistillConfig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    measure, weights = HeldOut.measure, {}

    def worse_after_the_second_step(held_out: HeldOut, run: Distillation) -> object:
        weights[run.state.step] = {name: value.clone() for name, value in run.student.state_dict().items()}
        found = measure(held_out, run)
        return found._replace(loss=found.loss + max(0, run.state.step - 2))

    monkeypatch.setattr(HeldOut, "measure", worse_after_the_second_step)
    caplog.set_level(logging.INFO)
    folder = distill(config, "test.yaml")
    student = ds.load_student(folder)
    assert all(torch.equal(value, weights[2][name]) for name, value in student.state_dict().items())
    assert not all(torch.equal(value, weights[4][name]) for name, value in student.state_dict().items())
    assert [file.name for file in (folder / "checkpoints").glob("best-*")] == ["best-00000002.pt"]
    card = (folder / "README.md").read_text()
    assert re.search(r"\| held-out loss per frame \| [\d.]+ on 0.00 hours, the lowest: of step 2 \|", card)
    assert re.search(r"step 4: held-out loss [\d.]+, the lowest was at step 2", caplog.text)


def test_an_interrupted_run_ends_with_the_same_best_student(
    config: DistillConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = distill(config, "test.yaml")
    config.output = str(tmp_path / "again")
    measure = HeldOut.measure

    def fail_at_the_third_step(held_out: HeldOut, run: Distillation) -> object:
        if run.state.step == 3:
            raise KeyboardInterrupt
        return measure(held_out, run)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(HeldOut, "measure", fail_at_the_third_step)
        distill(config, "test.yaml")
    again = distill(config, "test.yaml")
    assert (again / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    states = [read_torch(folder / "checkpoints/step-00000004.pt")["progress"] for folder in (whole, again)]
    assert states[0]["held_out"] == states[1]["held_out"] and len(states[0]["held_out"]) == 4
