"""Targets in codes: what is trained on, their size, their codebooks, resuming, and held-out audio."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.distillations import small_distillation
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from distilled_student.common.errors import UserError
from distilled_student.common.settings import typed
from distilled_student.distillation import quantizer
from distilled_student.distillation.code_cache import CodeCache
from distilled_student.distillation.config import DistillConfig, TeacherConfig
from distilled_student.distillation.data.cuts import Batch, make_loader, read_cuts
from distilled_student.distillation.held_out import HeldOut
from distilled_student.distillation.target_cache import TargetCache
from distilled_student.distillation.train import distill
from distilled_student.distillation.trainer import Distillation


@pytest.fixture(autouse=True)
def small_codebooks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantizer, "ENTRIES", 16)
    monkeypatch.setattr(quantizer, "KMEANS_ROUNDS", 2)


@pytest.fixture
def config(audio_folder: Path, tmp_path: Path) -> DistillConfig:
    torch.manual_seed(1)
    cache = str(tmp_path / "cache")
    return small_distillation(audio_folder, tmp_path, cache=cache, cache_codes=3, cache_codes_seconds=10.0)


def prepared(config: DistillConfig) -> Distillation:
    run = Distillation(config, "test.yaml")
    run.prepare_codes(list(read_cuts(config.data)[0]))
    return run


def epoch(run: Distillation, number: int = 0) -> Iterable[Batch]:
    return make_loader(read_cuts(run.config.data)[0], run.config.data, 0, number, find_targets=run.find_targets)


def test_the_student_is_trained_on_the_decoded_targets_and_later_epochs_do_not_use_the_teacher(
    config: DistillConfig,
) -> None:
    run, encoded = prepared(config), []
    live = Distillation(replace(config, cache=None, cache_codes=0), "test.yaml").teacher
    run.teacher.register_forward_pre_hook(lambda teacher, inputs: encoded.append(inputs[1]))
    for number in range(2):
        for batch in epoch(run, number):
            found, frames = run.sources[0].targets(batch, 0, batch.waveforms)
            for row, length in enumerate(batch.lengths.tolist()):
                states = live(batch.waveforms[row : row + 1, :length])[0][0]
                assert frames[row] == states.shape[1]
                for target in range(2):  # decoded in a plain loop from codes of the live targets
                    own = run.cache.quantizers[target]
                    for frame, codes in enumerate(own.encode(states[target]).tolist()[:3]):
                        components = torch.cat([own.entries[book, code] for book, code in enumerate(codes)])
                        expected = own.mean + own.scale * (own.rotation @ components)
                        torch.testing.assert_close(found[row, target, frame], expected, rtol=1e-4, atol=1e-4)
    pieces = len(list(run.cache.folder.glob("*/*.safetensors")))
    assert sum(map(len, encoded)) == pieces > 10


def test_a_frame_takes_the_given_bytes(config: DistillConfig, caplog: pytest.LogCaptureFixture) -> None:
    run = prepared(config)
    for batch in epoch(run):
        run.step(batch)
        for found in (run.find_targets(w[:n]) for w, n in zip(batch.waveforms, batch.lengths.tolist(), strict=True)):
            assert found[0].dtype == torch.uint8 and found[0].shape[::2] == (2, 3)
    with caplog.at_level(logging.INFO):
        run.cache.reserve(360_000.0, run.teacher)
    assert "needs 0.11 GB" in caplog.text  # 50 frames * 3 bytes * 2 layers * 360,000


def test_codebooks_are_trained_once_and_their_error_is_logged(
    config: DistillConfig, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with caplog.at_level(logging.INFO):
        first = prepared(config)
    assert len(re.findall(r"codes of layer [12]: [\d.]+% of the variance lost, L1 [\d.]+", caplog.text)) == 2
    monkeypatch.setattr(CodeCache, "_train", None)
    second = prepared(config)
    assert second.cache.version == first.cache.version and second.cache.errors == first.cache.errors
    assert all(0 < error.lost < 1 and 0 < error.cosine <= 1 for error in first.cache.errors)


def test_codes_of_other_codebooks_are_not_used(config: DistillConfig) -> None:
    run = prepared(config)
    for batch in epoch(run):
        run.step(batch)
    assert all(found[0] is not None for batch in epoch(run) for found in batch.targets)
    file = run.cache.folder / "codebooks.safetensors"
    file.write_bytes(file.read_bytes()[:-5])  # damaged: they are trained again
    config.cache_codes_seconds = 4.0
    other = prepared(config)
    assert other.cache.version != run.cache.version
    assert all(found[0] is None for batch in epoch(other) for found in batch.targets)


def test_codes_of_an_earlier_method_are_not_used(config: DistillConfig) -> None:
    run = prepared(config)
    for batch in epoch(run):
        run.step(batch)
    file = run.cache.folder / "codebooks.safetensors"
    with safe_open(file, "pt") as stored:  # the method before had no rotation
        parts = {name: stored.get_tensor(name) for name in ("mean", "scale", "entries")}
        metadata = stored.metadata()
    digest = hashlib.sha256(b"".join(part.numpy().tobytes() for part in parts.values()))
    metadata["codebooks"] = digest.hexdigest()
    save_file(parts, file, metadata)
    for codes in run.cache.folder.glob("*/*.safetensors"):
        save_file({"targets": load_file(codes)["targets"]}, codes, {"codebooks": digest.hexdigest()})
    again = prepared(config)
    assert again.cache.version == run.cache.version
    assert all(found[0] is None for batch in epoch(again) for found in batch.targets)


def test_states_that_are_not_finite_are_named_before_the_codebooks_are_trained(config: DistillConfig) -> None:
    run = Distillation(config, "test.yaml")
    run.teacher.register_forward_hook(lambda teacher, inputs, result: (result[0] * torch.inf, result[1]))
    with pytest.raises(UserError, match=r"test.yaml: cache: .* hidden states are not finite"):
        run.prepare_codes(list(read_cuts(config.data)[0]))


def test_a_cache_in_half_precision_and_one_in_codes_share_a_folder(config: DistillConfig) -> None:
    halves = Distillation(replace(config, cache_codes=0), "test.yaml")
    assert type(halves.cache) is TargetCache
    for batch in epoch(halves):
        halves.step(batch)
    run = prepared(config)
    assert all(found == [None] for batch in epoch(run) for found in batch.targets)
    assert run.sources[0].held_out_cache.folder == halves.cache.folder


def test_held_out_audio_is_measured_against_targets_that_are_not_in_codes(config: DistillConfig) -> None:
    config.data.held_out = config.data.paths
    run = prepared(config)
    live = Distillation(replace(config, cache=None, cache_codes=0), "test.yaml")
    live.student.load_state_dict(run.student.state_dict())
    expected = HeldOut(config.data, "data").measure(live).loss
    for _ in range(2):  # while the cache is written, and from the cache
        assert HeldOut(config.data, "data").measure(run).loss == pytest.approx(expected, rel=1e-3)
    with torch.no_grad():
        in_codes = sum(float(run.loss_parts(batch, run.model)[0].total) for batch in epoch(run))
        exact = sum(float(live.loss_parts(batch, live.model)[0].total) for batch in epoch(live))
    assert abs(in_codes / exact - 1) > 1e-3


def test_an_interrupted_run_resumes_to_the_same_student_and_not_with_other_codebooks(config: DistillConfig) -> None:
    whole = distill(config, "test.yaml")
    card = (whole / "README.md").read_text()
    assert len(re.findall(r"\| targets in codes, layer [12] \| 3 bytes per frame: [\d.]+% of the variance", card)) == 2
    config.output += "-again"
    distill(replace(config), "test.yaml")
    (Path(config.output) / "checkpoints/step-00000006.pt").unlink()
    again = distill(config, "test.yaml")
    assert (again / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    (file,) = Path(config.cache).glob("*/codebooks.safetensors")
    file.unlink()
    config.cache_codes_seconds = 4.0
    with pytest.raises(UserError, match="sha256 of the codebooks of teacher 1: was"):
        distill(replace(config, steps=7), "test.yaml")
    with pytest.raises(UserError, match="cache_codes: was 3, is 0"):
        distill(replace(config, cache_codes=0, steps=7), "test.yaml")


def test_embeddings_of_utterances_stay_in_half_precision(config: DistillConfig, tmp_path: Path) -> None:
    lstm, linear = torch.nn.LSTM(40, 12, 3), torch.nn.Linear(12, 10)
    weights = {f"lstm.{name}": value for name, value in lstm.state_dict().items()}
    weights |= {f"linear.{name}": value for name, value in linear.state_dict().items()}
    torch.save({"model_state": weights}, tmp_path / "speaker.pt")
    config.teachers = [
        TeacherConfig(config.teacher, [1, 2]),
        TeacherConfig(str(tmp_path / "speaker.pt"), "utterance"),
    ]
    run = prepared(config)
    for batch in epoch(run):
        run.step(batch)
    for batch in epoch(run):
        assert all(codes.dtype == torch.uint8 and half.dtype == torch.float16 for codes, half in batch.targets)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"cache_codes": 4}, "cache_codes: needs cache, the folder of the codes"),
        ({"cache_codes": 129, "cache": "x"}, "cache_codes: needs 0 to 128 bytes, not 129"),
        ({"cache_codes_seconds": 0.0}, "cache_codes_seconds: needs a positive number"),
    ],
)
def test_a_wrong_setting_is_named(values: dict, message: str) -> None:
    with pytest.raises(UserError, match=f"test.yaml: {message}"):
        typed(DistillConfig, {"teacher": "shipped", "output": "x", "data": {"paths": ["x"]}, **values}, "test.yaml")


def test_the_log_says_how_many_seconds_of_a_small_corpus_the_codebooks_are_trained_on(
    config: DistillConfig, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    config.cache_codes_seconds = 600.0
    seconds = sum(cut.duration for cut in read_cuts(config.data)[0])
    assert seconds < 60
    prepared(config)
    assert f"training codebooks of 3 bytes a frame on {seconds:.0f} s of audio" in caplog.text
