"""Noise for the student and the clean utterance for the teacher: values, resuming, workers, the cache, settings."""

from __future__ import annotations

import logging
import re
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from helpers.distillations import small_distillation
from helpers.trees import write_tone

from distilled_student.common.effect_settings import EffectSettings
from distilled_student.common.effects import Effects
from distilled_student.common.errors import UserError
from distilled_student.common.settings import typed
from distilled_student.distillation.config import DistillConfig
from distilled_student.distillation.data.config import DataConfig
from distilled_student.distillation.data.cuts import Batch, make_loader, read_cuts
from distilled_student.distillation.data.shards import open_units
from distilled_student.distillation.data.stream import make_stream
from distilled_student.distillation.data.student_input import StudentInput
from distilled_student.distillation.early_checks import check_settings
from distilled_student.distillation.held_out import HeldOut
from distilled_student.distillation.loss import distillation_loss
from distilled_student.distillation.train import distill
from distilled_student.distillation.trainer import Distillation

NOISE = EffectSettings(noise=1.0, snr=[5.0, 5.0])


@pytest.fixture
def config(audio_folder: Path, tmp_path: Path) -> DistillConfig:
    data = DataConfig([str(audio_folder)], augment=NOISE, batch_seconds=6, max_seconds=2, workers=0)
    return small_distillation(audio_folder, tmp_path, data)


def batches(config: DistillConfig, epoch: int = 0, start: int = 0, rank: int = 0, world: int = 1) -> list[Batch]:
    make = StudentInput(Effects(config.data.augment, "augment"), config.seed)
    cuts = read_cuts(config.data)[0]
    return list(make_loader(cuts, config.data, config.seed, epoch, start, rank, world, student_input=make))


def inputs_by_audio(found: list[Batch]) -> dict[bytes, np.ndarray]:
    """The student's input of each utterance, by the samples of the utterance."""
    return {
        batch.waveforms[row, :length].numpy().tobytes(): batch.student_waveforms[row, :length].numpy()
        for batch in found
        for row, length in enumerate(batch.lengths.tolist())
    }


def test_the_students_input_has_noise_at_the_given_ratio_and_the_utterance_is_kept(config: DistillConfig) -> None:
    originals = set()
    for file in Path(config.data.paths[0]).rglob("*.wav"):
        samples = soundfile.read(file, dtype="float32")[0]
        originals |= {samples[at : at + 32_000].tobytes() for at in range(0, len(samples), 32_000)}
    found = inputs_by_audio(batches(config))
    assert found.keys() <= originals and len(found) > 10
    for audio, student in found.items():
        clean = np.frombuffer(audio, dtype=np.float32).astype(np.float64)
        ratio = 10 * np.log10(np.mean(clean**2) / np.mean((student - clean) ** 2))
        assert ratio == pytest.approx(5.0, abs=0.01)


def test_noise_is_cut_from_the_recordings_of_the_folder(config: DistillConfig, tmp_path: Path) -> None:
    write_tone(tmp_path / "noise" / "tone.wav", 1000, seconds=4.0)
    config.data.augment = replace(NOISE, noise_root=str(tmp_path / "noise"))
    for audio, student in inputs_by_audio(batches(config)).items():
        noise = student - np.frombuffer(audio, dtype=np.float32)
        spectrum = np.abs(np.fft.rfft(noise * np.hanning(len(noise))))
        assert np.argmax(spectrum) * 16_000 / len(noise) == pytest.approx(1000, abs=10)


def test_what_is_drawn_depends_on_the_utterance_the_pass_and_the_seed_alone(config: DistillConfig) -> None:
    first, second = inputs_by_audio(batches(config)), inputs_by_audio(batches(config, epoch=1))
    assert first.keys() == second.keys() and not any(np.array_equal(first[audio], second[audio]) for audio in first)
    of_two_processes = inputs_by_audio(batches(config, world=2)) | inputs_by_audio(batches(config, rank=1, world=2))
    of_two_workers = inputs_by_audio(batches(replace(config, data=replace(config.data, workers=2))))
    resumed = inputs_by_audio(batches(config, start=2))
    for other in (of_two_processes, of_two_workers, resumed):
        assert other and all(np.array_equal(first[audio], student) for audio, student in other.items())
    other_seed = inputs_by_audio(batches(replace(config, seed=1)))
    assert not any(np.array_equal(first[audio], other_seed[audio]) for audio in first)


def test_a_resumed_stream_draws_the_same(config: DistillConfig, tmp_path: Path) -> None:
    manifest = tmp_path / "cuts.jsonl"
    read_cuts(config.data)[0].to_file(manifest)
    data = replace(config.data, paths=[str(manifest)], streams=2)
    units, make = open_units(data, limit=0), StudentInput(Effects(data.augment, "augment"), 0)
    whole = list(islice(make_stream(data, units, 0, student_input=make), 20))
    positions = {batch.stream: batch.position for batch in whole[:9]}
    rest = make_stream(data, units, 0, positions=positions, count=9, student_input=make)
    for one, other in zip(whole[9:], rest, strict=False):
        assert torch.equal(one.student_waveforms, other.student_waveforms)
    assert len({batch.position[0] for batch in whole}) > 1  # more than one pass, with noise of its own
    passes = [inputs_by_audio([b for b in whole if b.position[0] == number]) for number in (0, 1)]
    shared = passes[0].keys() & passes[1].keys()
    assert shared and not any(np.array_equal(passes[0][audio], passes[1][audio]) for audio in shared)


def test_the_teacher_encodes_the_clean_utterance_and_the_student_the_noisy_one(config: DistillConfig) -> None:
    run, batch = Distillation(config, "test.yaml"), batches(config)[0]
    assert int(batch.lengths.min()) < batch.waveforms.shape[1]  # with padding
    run.model.eval()
    with torch.no_grad():
        (part,) = run.loss_parts(batch, run.model)
        l1, cosine = torch.zeros(2), torch.zeros(2)
        for row, length in enumerate(batch.lengths.tolist()):
            hidden = run.teacher.encoder(batch.waveforms[row : row + 1, :length]).hidden_states
            predictions = run.student(batch.student_waveforms[row : row + 1, :length]).predictions
            targets = torch.stack([hidden[1], hidden[2]], dim=1)
            single = distillation_loss(predictions, targets, torch.tensor([targets.shape[2]]))
            l1, cosine = l1 + single.l1, cosine + single.cosine
    torch.testing.assert_close(part.l1, l1, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(part.cosine, cosine, rtol=1e-4, atol=1e-5)


def test_the_cache_has_targets_of_the_clean_utterances(config: DistillConfig, tmp_path: Path) -> None:
    config.cache = str(tmp_path / "cache")
    noisy, used = Distillation(config, "test.yaml"), []
    for batch in batches(config):
        noisy.step(replace(batch, targets=[[None]] * len(batch.lengths)))
    clean = Distillation(replace(config, data=replace(config.data, augment=EffectSettings())), "test.yaml")
    clean.teacher.register_forward_pre_hook(lambda teacher, inputs: used.append(inputs))
    for batch in make_loader(read_cuts(config.data)[0], config.data, 0, 0, find_targets=clean.find_targets):
        clean.step(batch)
    assert not used


def test_held_out_audio_stays_clean(config: DistillConfig) -> None:
    config.data.held_out = config.data.paths
    assert all(batch.student_waveforms is None for batch in HeldOut(config.data, "data").batches())


@pytest.mark.parametrize("workers", [0, 1])
def test_an_interrupted_run_with_noise_ends_with_the_same_student(config: DistillConfig, workers: int) -> None:
    config.data.workers = workers
    whole = distill(config, "test.yaml")
    assert "| student's input | noise at 5 to 5 dB in 100% of the utterances |" in (whole / "README.md").read_text()
    config.output += "-again"
    distill(replace(config), "test.yaml")
    (Path(config.output) / "checkpoints/step-00000006.pt").unlink()
    again = distill(config, "test.yaml")
    assert (again / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    config.data.augment = replace(NOISE, snr=[0.0, 5.0])
    with pytest.raises(UserError, match=r"data\.augment\.snr: was \[5\.0, 5\.0\], is \[0\.0, 5\.0\]"):
        distill(config, "test.yaml")


def test_a_run_without_noise_is_resumed_from_a_checkpoint_of_before_the_setting(config: DistillConfig) -> None:
    config.data.augment = EffectSettings()
    assert Distillation(config, "test.yaml").student_input is None
    distill(config, "test.yaml")
    for file in (Path(config.output) / "checkpoints").glob("*.pt"):
        content = torch.load(file, weights_only=False)
        del content["settings"]["data.augment"]
        torch.save(content, file)
    distill(replace(config, steps=7), "test.yaml")


def test_a_damaged_noise_file_is_skipped_and_named(
    config: DistillConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "noise").mkdir()
    (tmp_path / "noise" / "bad.wav").write_bytes(b"RIFF")
    config.data.augment = replace(NOISE, noise_root=str(tmp_path / "noise"))
    (batch, *_) = batches(config)
    assert torch.equal(batch.student_waveforms, batch.waveforms) and list(batch.failed) == [
        str(tmp_path / "noise/bad.wav")
    ]
    with caplog.at_level(logging.WARNING):
        distill(config, "test.yaml")
    assert len(re.findall(r"skipped .*noise/bad\.wav: ", caplog.text)) == 1


@pytest.mark.parametrize(
    ("augment", "message"),
    [
        ({"noise": 2.0}, "test.yaml: data.augment.noise: needs a probability in [0, 1], not 2.0"),
        ({"snr": [3.0, 1.0]}, "test.yaml: data.augment.snr: needs [lowest, highest], not [3.0, 1.0]"),
        ({"speed": 0.5}, "test.yaml: data.augment.speed: no such key"),
        ({"noise": 0.5, "noise_root": "gone"}, "test.yaml: data.augment.noise_root: gone: no such folder"),
    ],
)
def test_a_wrong_setting_is_named(config: DistillConfig, augment: dict, message: str) -> None:
    data = {"paths": config.data.paths, "augment": augment}
    values = {"teacher": config.teacher, "targets": [1, 2], "output": config.output, "data": data}
    with pytest.raises(UserError, match=re.escape(message)):
        check_settings(typed(DistillConfig, values, "test.yaml"), "test.yaml")
