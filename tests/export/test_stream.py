"""Exported streams: numpy and onnxruntime compute on chunks what PyTorch computes on the whole utterance."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SMALL, tone
from helpers.exports import NAME, export_chunks, stream_model
from test_streaming import joint

import distilled_student as ds
from distilled_student.multitask import device_model
from distilled_student.multitask.device_model import JointModel

pytest.importorskip("onnxscript")
import onnx as library

from distilled_student import onnx
from distilled_student.export import stream as stream_export
from distilled_student.export.int8 import prepare_matmuls, quantize
from distilled_student.export.stream import StreamGraph, check_stream, export_stream, stream_inputs
from distilled_student.onnx import DetectorSettings
from distilled_student.onnx.words import CONCATENATED
from distilled_student.speed.streaming import time_chunks
from distilled_student.streaming import Step, Stream, listen


@pytest.fixture(scope="module")
def exported(made_once: Callable[..., Path]) -> tuple[JointModel, Path]:
    return stream_model(), made_once("exported-chunks", export_chunks) / NAME


@pytest.mark.parametrize("sizes", [[640], [1_600], [37, 700, 5_001, 319]])
def test_an_exported_stream_has_the_hidden_states_and_scores_of_the_whole_utterance(
    exported: tuple[JointModel, Path], sizes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, file = exported
    monkeypatch.setattr(model.tasks["sv"].settings, "crop_seconds", 1.0)  # as long as the window
    wave, stream, outputs = tone(0.96), onnx.Stream(file), []
    ends = np.cumsum(np.tile(sizes, 30))
    for samples in np.split(wave.numpy(), ends[ends < len(wave)]):
        if (output := stream.feed(samples)) is not None:
            outputs.append(output)
    whole = model(wave[None], torch.tensor([len(wave)]))
    assert len(outputs) > 1
    hidden_states = np.concatenate([output["hidden_state"] for output in outputs])
    np.testing.assert_allclose(hidden_states, whole.hidden_state[0], atol=1e-4)
    all_states = torch.cat(model.student(model.gain * wave[None]).hidden_states, dim=2)[0].detach()
    found = np.concatenate([output[CONCATENATED] for output in outputs])
    np.testing.assert_allclose(found, all_states[: len(found)], atol=1e-4)
    assert found.shape[1] == len(all_states[0]) > hidden_states.shape[1]
    np.testing.assert_allclose(outputs[-1]["keyword_scores"], whole.keyword_scores[0], atol=1e-4)
    np.testing.assert_allclose(outputs[-1]["speaker_embedding"], whole.speaker_embedding[0], atol=1e-4)


def test_an_exported_stream_spots_the_keyword_and_discards_its_state_at_a_reset(
    exported: tuple[JointModel, Path],
) -> None:
    model, file = exported
    stream, wave = onnx.Stream(file), tone(0.32)
    assert stream.spot(wave[:600].numpy()) is None, "no frame is complete"
    stream.reset()
    spotted = stream.spot((wave * 32_768).to(torch.int16).numpy())
    scores = model(wave[None], torch.tensor([len(wave)])).keyword_scores[0]
    assert spotted.score == pytest.approx(
        float(scores[2:].max()), abs=1e-3
    )  # the first two labels are silence and unknown


def test_an_exported_stream_refuses_samples_far_above_one(exported: tuple[JointModel, Path]) -> None:
    stream, loud = onnx.Stream(exported[1]), 32768 * tone(0.32).numpy()
    for call in (stream.feed, stream.spot):
        with pytest.raises(ValueError, match=r"^samples: a peak of .*: divide samples of 16 bits by 32768$"):
            call(loud)


def test_a_stream_in_pytorch_and_an_exported_one_report_the_same_keywords(
    exported: tuple[JointModel, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, file = exported
    wave, stream = tone(3.2), onnx.Stream(file)
    best = sorted(float(stream.feed(hop.numpy())["keyword_scores"][2:].max()) for hop in wave.split(1_280))
    threshold = (best[9] + best[10]) / 2
    of_utterances = threshold / (threshold + 10 * (1 - threshold))  # a tenth of the odds
    monkeypatch.setattr(device_model, "measured_threshold", lambda model, run, name: of_utterances)
    for settings in (DetectorSettings(threshold), DetectorSettings(threshold, smoothing=0.16, hold_off=0.3)):
        stream.detector = onnx.Detector(model.labels, settings)
        stream.reset()
        hits = stream.listen(wave.numpy(), is_last=True)
        expected = [(hit.seconds, hit.label, pytest.approx(hit.score, abs=1e-4)) for hit in hits]
        chosen = None if settings == DetectorSettings(threshold) else settings  # None: the default of streams
        for chunk_ms in (30, 100, 4_000):
            assert [tuple(found) for found in listen(Stream(model), wave, chunk_ms, settings=chosen)] == expected != []


def test_an_exported_stream_has_a_threshold_of_its_own(
    exported: tuple[JointModel, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert onnx.Stream(exported[1]).detector.settings.threshold == pytest.approx(10 / 11), "no utterances: 0.5"
    monkeypatch.setattr(device_model, "measured_threshold", lambda model, run, name: 0.75)
    traced = library.load(exported[1])  # tracing again would take long
    monkeypatch.setattr(stream_export, "trace_step", lambda step: traced)
    export_stream(exported[0], tmp_path / "stream.onnx")
    model = onnx.load(tmp_path / "stream.onnx")
    assert (model.threshold, model.detector_settings.threshold) == (0.75, pytest.approx(30 / 31))


def test_stream_and_model_refuse_each_others_files(exported: tuple[JointModel, Path], tmp_path: Path) -> None:
    file = exported[1]
    with pytest.raises(ValueError, match="is a stream; run it with Stream"):
        onnx.load(file).spot(tone(0.5).numpy())
    graph = library.load(file)
    del graph.metadata_props[:]
    for key, value in {"sample_rate": "16000", "shortest": "1600"}.items():
        graph.metadata_props.add(key=key, value=value)
    library.save(graph, tmp_path / "other.onnx")
    with pytest.raises(ValueError, match="is not a stream"):
        onnx.Stream(tmp_path / "other.onnx")


def test_a_stream_that_differs_from_its_model_is_an_error(exported: tuple[JointModel, Path]) -> None:
    model, file = exported
    other = joint(model.student.config)
    other.tasks["kws"].head.linear.bias += torch.arange(12)
    with pytest.raises(ds.UserError, match=r"keyword_scores: differs by .* from PyTorch in chunks of 320 samples"):
        check_stream(file, Step(other).eval(), [tone(0.5)])


def test_a_student_that_is_not_causal_is_not_exported_as_a_stream(tmp_path: Path) -> None:
    with pytest.raises(ds.UserError, match="group norm"):
        export_stream(joint(ds.StudentConfig(**SMALL)), tmp_path / "stream.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("seconds", [0.1, 0.5, 1.3])
@pytest.mark.parametrize("precision", ["float32", "dynamic", "static"])
def test_int8_is_measured_on_what_a_device_gets_after_the_last_chunk_of_40_ms(
    exported: tuple[JointModel, Path], tmp_path: Path, precision: str, seconds: float
) -> None:
    file = Path(shutil.copy(exported[1], tmp_path))
    if precision != "float32":
        file = quantize(file, prepare_matmuls(file), precision, stream_inputs(file, [tone(1.0)]))
    graph, stream, wave = StreamGraph(file), onnx.Stream(file), tone(seconds)
    stream.model.padded_to = graph.stream.model.padded_to = {"keyword_scores": 16_000}
    stream.model.repeated_to = graph.stream.model.repeated_to = {"speaker_embedding": 7_680}
    outputs = [output for chunk in wave.split(640) if (output := stream.feed(chunk.numpy())) is not None]
    found = graph(wave[None], torch.tensor([len(wave)]))
    expected = {**outputs[-1], "hidden_state": np.concatenate([output["hidden_state"] for output in outputs])}
    # the rounding of float32 moves a few activations to the next of the 256 values of static int8
    tolerance = {"float32": 1e-5, "dynamic": 0.0, "static": 0.02}[precision]
    for name, value in {"hidden_state": found.hidden_state, **found.tasks}.items():
        np.testing.assert_allclose(value[0], expected[name], atol=tolerance * np.abs(expected[name]).max())


def test_the_cost_of_a_chunk_is_measured_for_pytorch_and_onnx(exported: tuple[JointModel, Path]) -> None:
    figures = time_chunks(*exported, chunk_ms=(40, 80), seconds=0.4)
    assert list(figures) == ["40", "80"]
    for forms in figures.values():
        assert list(forms) == ["PyTorch", "ONNX"]
        for cost in forms.values():
            assert 0 < cost["median_ms"] <= cost["p99_ms"]
            assert cost["cpu_share"] > 0
