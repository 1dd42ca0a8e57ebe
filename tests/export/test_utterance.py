"""Exported graphs against PyTorch: the same outputs at any length and in any batch, and complete metadata."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from conftest import SMALL, THREE_LAYERS, tone
from helpers.exports import NAME, export_utterances, utterance_model
from onnx import TensorProto, numpy_helper
from test_streaming import CAUSAL, joint
from torch.nn.utils.rnn import pad_sequence

import distilled_student as ds
import distilled_student.onnx
from distilled_student.common.errors import UserError
from distilled_student.export import graph, utterance
from distilled_student.export.graph import Graph
from distilled_student.export.utterance import export_onnx
from distilled_student.multitask.device_model import JointModel
from distilled_student.multitask.short_utterances import pad_to
from distilled_student.student.log_mel import fourier_matrices, power_by_matrices
from distilled_student.teachers.open import open_speaker_encoder

PAPER = "the paper's"  # `helpers.exports.utterance_model`
NORMALIZED = ds.StudentConfig(**SMALL, **THREE_LAYERS, normalize=True)
WHISPER = dataclasses.replace(
    CAUSAL, causal=False, positions="sinusoidal", conv_norm="layer", encoder_stride=2, shared=True
)
MODELS = {  # arguments of `joint`
    "heads on predictions": (NORMALIZED, "predictions", False, False),
    "with SUPERB's heads": (WHISPER, "concatenated", True, False),
    "causal": (dataclasses.replace(CAUSAL, encoder_stride=2), "last_hidden_state", False, False),
}
SAMPLES = (
    1_600,
    2_080,
    2_400,
    7_999,
    8_000,
    20_001,
)  # the first is the shortest; 2,080 and 2,400 are between two frames


@pytest.fixture(scope="module", params=[PAPER, *MODELS])
def exported(
    request: pytest.FixtureRequest, made_once: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[JointModel, Path]:
    if request.param == PAPER:
        return utterance_model(), made_once("exported-utterances", export_utterances) / NAME
    model, file = joint(*MODELS[request.param]), tmp_path_factory.mktemp("exported") / "model.onnx"
    model.tasks["sv"].calibration[0] = torch.tensor([20.0, -9.0])
    export_onnx(model, file, checkpoint="best-dev.ckpt")
    return model, file


def test_a_graph_computes_what_pytorch_computes_alone_and_in_any_batch(exported: tuple[JointModel, Path]) -> None:
    model, exported_graph = exported[0], Graph(exported[1])
    waves, lengths = [tone(1.3, seed=n)[:n] for n in SAMPLES], torch.tensor(SAMPLES)
    batch = exported_graph(pad_sequence(waves, batch_first=True), lengths)
    for i, wave in enumerate(waves):
        length = lengths[i : i + 1]
        expected, alone = model(wave[None], length), exported_graph(wave[None], length)
        frames = int(expected.frames)
        assert int(alone.frames) == int(batch.frames[i]) == frames
        for output, at in ((alone, 0), (batch, i)):
            torch.testing.assert_close(output.hidden_state[at, :frames], expected.hidden_state[0], atol=1e-4, rtol=0)
            torch.testing.assert_close(output.keyword_scores[at], expected.keyword_scores[0], atol=1e-4, rtol=0)
            torch.testing.assert_close(output.speaker_embedding[at], expected.speaker_embedding[0], atol=1e-4, rtol=0)
        assert not batch.hidden_state[i, frames:].any()


def test_a_graph_and_the_devices_class_repeat_what_is_shorter_than_a_training_crop_if_the_training_did(
    exported: tuple[JointModel, Path],
) -> None:
    model, file = exported
    fills = model.tasks["sv"].settings.fill
    waves = [tone(1.3, seed=n)[:n] * torch.linspace(1.0, 0.2, n) for n in (800, 9_600, 20_000)]
    batch = Graph(file)(pad_sequence(waves, batch_first=True), torch.tensor([len(wave) for wave in waves]))
    for i, wave in enumerate(waves):
        # 2 s, the `crop_seconds` of training; without them at least 0.1 s
        longer = torch.from_numpy(np.resize(wave, 32_000)) if fills else pad_to(wave, 1_600)
        features = model.features(model.student(model.gain * longer[None]))
        frames = round(len(longer) / 320)
        index = torch.arange(frames).clamp(max=features.shape[1] - 1)  # as s3prl, which repeats the last frame
        expected = model.head("speaker_embedding", features[:, index], torch.tensor([frames]))[0]
        torch.testing.assert_close(batch.speaker_embedding[i], expected, atol=1e-4, rtol=0)
        found = torch.from_numpy(distilled_student.onnx.load(file).embed(wave.numpy()))
        torch.testing.assert_close(found, torch.nn.functional.normalize(expected, dim=0), atol=1e-4, rtol=0)


def test_an_exported_file_is_a_speaker_encoder_for_distillation(exported: tuple[JointModel, Path]) -> None:
    model, encoder = exported[0], open_speaker_encoder(exported[1])
    waves, lengths = [tone(1.3, seed=n)[:n] for n in SAMPLES], torch.tensor(SAMPLES)
    found = encoder(pad_sequence(waves, batch_first=True), lengths)
    for row, wave in enumerate(waves):
        expected = model(wave[None], lengths[row : row + 1]).speaker_embedding[0]
        torch.testing.assert_close(found[row], expected, atol=1e-4, rtol=0)


def test_a_file_has_complete_metadata_and_no_local_paths(exported: tuple[JointModel, Path]) -> None:
    model, file = exported
    proto = onnx.load(file)
    about = {entry.key: entry.value for entry in proto.metadata_props}
    assert json.loads(about["labels"]) == model.labels and about["sample_rate"] == "16000"
    assert (about["sv_slope"], about["sv_offset"], about["sv_threshold"]) == ("20.0", "-9.0", "0.45")
    assert (about["checkpoint"], about["version"], about["precision"]) == ("best-dev.ckpt", ds.__version__, "float32")
    assert ds.StudentConfig(**json.loads(about["config"])) == model.student.config
    assert "keyword_threshold" not in about, "it is measured on development data, and there are none"
    inputs, outputs = (
        {v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in values}
        for values in (proto.graph.input, proto.graph.output)
    )
    assert inputs == {"waveforms": ["batch", "samples"], "lengths": ["batch"]}
    assert outputs["hidden_state"] == ["batch", "frames", 16] and outputs["frames"] == ["batch"]
    assert outputs["keyword_scores"] == ["batch", 12] and outputs["speaker_embedding"] == ["batch", 8]
    assert str(Path(graph.__file__).parents[2]).encode() not in file.read_bytes()


def test_a_file_has_all_weights_that_are_used_once_and_no_others(exported: tuple[JointModel, Path]) -> None:
    model, file = exported
    used = [
        weight
        for name, weight in model.named_parameters()
        if "predictions" not in name or model.select.key == "predictions"
    ]
    weights = sum(weight.numel() for weight in used)
    stored = sum(numpy_helper.to_array(w).size for w in onnx.load(file).graph.initializer)
    config = model.student.config
    spectrum = 20 * 20 * 40 + 40 * 22 + 201 * config.mel_bins if config.frontend == "logmel" else 0
    magnitudes = 8 if config.positions == "conv" else 0  # weight norm is computed at export
    shapes = 1_000  # constants of one number each
    assert weights - magnitudes <= stored < 1.01 * weights + spectrum + shapes


def test_the_power_spectrum_by_matrix_products_is_that_of_the_fourier_transform() -> None:
    x = torch.randn(2, 3, 400, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = torch.fft.rfft(x).abs().square()
    torch.testing.assert_close(power_by_matrices(x, *fourier_matrices()), expected, atol=1e-9, rtol=1e-9)


def test_a_graph_that_differs_is_an_error_and_leaves_no_file(
    exported: tuple[JointModel, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, file = exported
    monkeypatch.setattr(utterance, "trace_model", lambda model: onnx.load(file))  # tracing again would take long
    monkeypatch.setattr(graph, "TOLERANCE", 0.0)  # float32 sums in another order always differ
    with pytest.raises(UserError, match=r"hidden_state: differs by .* from PyTorch on \[\d+\] samples"):
        export_onnx(model, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_in_int8_nearly_all_weights_have_one_byte(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    torch.manual_seed(0)
    student = ds.build_student(dataclasses.replace(CAUSAL, hidden_size=64, conv_dim=[64, 64], feed_forward=256))
    export_onnx(student, tmp_path / "model.onnx", int8=True)
    printed = capsys.readouterr().out
    assert "cosine with float32: dynamic 0.99" in printed and f"\n{tmp_path / 'model.onnx'}: int8 " in printed
    proto = onnx.load(tmp_path / "model.onnx")
    assert {e.key: e.value for e in proto.metadata_props}["precision"] in ("int8 dynamic", "int8 static")
    sizes = {weight.name: numpy_helper.to_array(weight).size for weight in proto.graph.initializer}
    types = {weight.name: weight.data_type for weight in proto.graph.initializer}
    large = [name for name, size in sizes.items() if size > 1_000 and "mel" not in name]
    in_float = [name for name in large if types[name] == TensorProto.FLOAT]
    assert any(name.endswith("/int8") for name in large), "the positional convolution is stored in int8, too"
    spectrum = 20 * 20 * 40  # only the matrix products of the log-mel stay in float32
    assert all(sizes[name] <= spectrum for name in in_float) and len(in_float) <= 2
