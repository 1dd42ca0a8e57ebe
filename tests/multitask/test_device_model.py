"""The model that a device runs, against s3prl's runner on the same checkpoint; the loss of accuracy in int8."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import soundfile
import torch
from conftest import THREE_LAYERS, tone
from helpers.trees import speech_commands, tasks
from torch.nn.utils.rnn import pad_sequence

import distilled_student as ds
from distilled_student import cli
from distilled_student.common.errors import UserError
from distilled_student.export.graph import Graph, speech_samples, write_onnx
from distilled_student.export.int8 import quantize_best
from distilled_student.export.utterance import trace_model
from distilled_student.host import launch
from distilled_student.host.plugin import register
from distilled_student.host.upstreams import StudentUpstream
from distilled_student.multitask.device_model import Features, measure, open_joint, thresholds
from distilled_student.multitask.evaluate import evaluate
from distilled_student.multitask.metrics import equal_error_threshold

# shorter than 0.1 s; between two frames, rounded half to even (2,080 samples are 6.5 frames and give 6; 2,400 samples
# are 7.5 frames and give 8); longer
SAMPLES = (900, 1_600, 2_080, 2_400, 8_000, 8_123, 12_345, 16_000)


def train(folder: Path, *upstream: str, fill: bool = True) -> Path:
    """A joint run of two steps on tones; its experiment folder. ``fill``: of the speaker task."""
    values = {f"config.runner.{key}": 2 for key in ("total_steps", "log_step", "eval_step", "save_step")}
    for name, settings in tasks(folder).items():
        values |= {f"config.downstream_expert.tasks.{name}.{key}": value for key, value in settings.items()}
    values |= {"config.downstream_expert.num_workers": 0, "config.downstream_expert.gain_db": -3.0}
    values["config.downstream_expert.tasks.sv.fill"] = fill
    overrides = ",,".join(f"{key}={value}" for key, value in values.items())
    command = ["-m", "train", *upstream, "-d", "multitask", "-p", str(folder / "exp"), "--device", "cpu"]
    assert launch.main([*command, "-o", overrides]) == 0
    return folder / "exp"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A joint run that trains the student too."""
    folder = tmp_path_factory.mktemp("joint")
    small = {"hidden_size": 16, "heads": 2, "feed_forward": 32, "position_kernel": 8, "position_groups": 2}
    torch.manual_seed(0)
    ds.save_student(ds.build_student(ds.StudentConfig(**THREE_LAYERS, **small)), folder / "student")
    return train(folder, "-u", "distilled_student", "-k", str(folder / "student"), "-f")


def test_outputs_equal_an_evaluations_for_single_utterances_and_in_a_batch(run: Path) -> None:
    runner, model = launch.open_runner(run / "best-dev.ckpt", device="cpu"), open_joint(run)
    expert = runner.downstream.model
    waveforms = [0.5 * tone(n / 16_000 + 0.01, seed=n)[:n] for n in SAMPLES]
    lengths = torch.tensor(SAMPLES)
    batch = model(pad_sequence(waveforms, batch_first=True), lengths)
    for i, wav in enumerate(waveforms):
        alone = model(wav[None], lengths[i : i + 1])
        expected = []
        in_training = {  # silence follows keyword clips up to one second; speakers' utterances are repeated up to 0.4 s
            "kws": torch.nn.functional.pad(wav, (0, max(0, 16_000 - len(wav)))),
            "sv": torch.from_numpy(np.resize(wav, max(6_400, len(wav)))),
        }
        for name, longer in in_training.items():
            padded = [expert.gain * longer]
            with torch.no_grad():
                features = runner.featurizer.model(padded, runner.upstream.model(padded))
                expected.append(expert.outputs(name, features))
        kws, sv = expected
        for output, at in ((alone, 0), (batch, i)):
            torch.testing.assert_close(output.keyword_scores[at], kws[0].softmax(dim=0), atol=1e-5, rtol=0)
            torch.testing.assert_close(output.speaker_embedding[at], sv[0], atol=1e-5, rtol=0)
            assert int(output.frames[at]) == int(alone.frames[0])
    assert model.labels == ["_silence_", "_unknown_", "yes", "no"]
    slope, offset = expert.tasks["sv"].calibration[0].tolist()
    found = {key: value for key, value in model.metadata({}).items() if key.startswith("sv")}
    assert found == pytest.approx({"sv_slope": slope, "sv_offset": offset, "sv_threshold": -offset / slope})
    assert model.student.predictions is None, "not used"


@pytest.mark.parametrize("key", ["hidden_states", "predictions", "last_hidden_state", "concatenated", "all"])
@pytest.mark.parametrize(("layer", "normalize"), [(None, False), (1, False), (None, True)])
def test_features_equal_those_of_s3prls_featurizer(
    key: str, layer: int | None, normalize: bool, small_logmel: ds.StudentConfig
) -> None:
    register()
    from s3prl.upstream.interfaces import Featurizer

    torch.manual_seed(0)
    upstream = StudentUpstream(ds.build_student(small_logmel)).eval()
    featurizer = Featurizer(upstream, key, "cpu", layer, normalize)
    if (weights := getattr(featurizer, "weights", None)) is not None:
        weights.data.normal_()
        weights = weights.detach().softmax(dim=0)
    wav = tone(0.6)
    with torch.no_grad():
        features = Features(key, layer, weights, normalize)(upstream.student(wav[None]))
        expected = featurizer([wav], upstream([wav]))[0]
    torch.testing.assert_close(features[0, : len(expected)], expected, atol=1e-5, rtol=0)


def test_a_student_without_a_joint_run_has_no_heads(tmp_path: Path, small_cnn: ds.StudentConfig) -> None:
    ds.save_student(ds.build_student(small_cnn), tmp_path)
    model = open_joint(tmp_path)
    output = model(tone(1.0)[None], torch.tensor([16_000]))
    assert output.keyword_scores is None and output.speaker_embedding is None
    assert output.hidden_state.shape == (1, 49, 16) and output.frames.tolist() == [49]
    assert model.labels == [] and model.metadata({}) == {}


def test_a_run_with_another_upstream_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"best-dev\.ckpt: its upstream is fbank, not a distilled_student"):
        open_joint(train(tmp_path, "-u", "fbank"))


def test_int8_is_refused_if_it_loses_more_than_allowed(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    model, files = open_joint(run), [tmp_path / "a.onnx", tmp_path / "b.onnx"]
    model.tasks["sv"].settings.fill = False  # a graph that encodes once is traced in half the time
    before = model.metadata({})
    for file in files:
        write_onnx(trace_model(model) if file is files[0] else onnx.load(files[0]), file, {})
    waveforms = speech_samples(model, 6)
    assert {len(wav) for wav in waveforms} == {8_000, 12_000, 14_400, 16_000}, "from the run's development data"
    with pytest.raises(UserError, match=r"int8: loses .* points on development data, more than --max-loss -101"):
        quantize_best(model, files[1], waveforms, -101)  # no gain is so large
    best = quantize_best(model, files[0], waveforms, 100)
    rows = [line.split()[:2] for line in capsys.readouterr().out.splitlines() if "%" in line]
    assert rows == 3 * [["kws", "dev"], ["kws", "test"], ["sv", "dev"], ["sv", "test"]]
    assert best.precision.split()[0] == "int8" and model.metadata({}) == before, "measuring changes no calibration"
    wave, graph = tone(1.0)[None], Graph(best.file)
    scores = graph(wave, torch.tensor([16_000])).keyword_scores
    torch.testing.assert_close(scores, model(wave, torch.tensor([16_000])).keyword_scores, atol=0.05, rtol=0)
    assert 0 < thresholds(model, graph)["kws"] < 1 and best.thresholds == thresholds(model, graph)


def test_measure_gives_the_scores_of_an_evaluation(run: Path) -> None:
    model, results = open_joint(run), evaluate(run, device="cpu")
    assert measure(model, model, "test", "kws").score == results["kws"]["accuracy"]
    assert measure(model, model, "test", "sv").score == pytest.approx(-results["sv"]["eer"])


def test_a_run_is_exported_and_streamed_without_its_data(
    tmp_path: Path, small_logmel: ds.StudentConfig, capsys: pytest.CaptureFixture
) -> None:
    config = dataclasses.replace(small_logmel, positions="conv", causal=True)
    torch.manual_seed(0)
    ds.save_student(ds.build_student(config), tmp_path / "student")
    trained = train(tmp_path, "-u", "distilled_student", "-k", str(tmp_path / "student"), fill=False)
    before = open_joint(trained)
    for corpus in ("sc", "vox"):
        shutil.rmtree(tmp_path / corpus)
    soundfile.write(tmp_path / "recording.wav", tone(2.0).numpy(), 16_000)
    model, waveform = open_joint(trained), tone(1.0)[None]
    lengths = torch.tensor([16_000])
    assert model.labels == ["_silence_", "_unknown_", "yes", "no"] and model.metadata({}) == before.metadata({})
    for name, expected in before(waveform, lengths).tasks.items():
        assert torch.equal(model(waveform, lengths).tasks[name], expected)
    for arguments in (
        ["export", str(trained), "-o", str(tmp_path / "model.onnx")],
        ["export", str(trained), "-o", str(tmp_path / "stream.onnx"), "--streaming"],
        ["stream", str(trained), str(tmp_path / "recording.wav"), "--threshold", "0"],
    ):
        with pytest.raises(SystemExit) as end:
            cli.main(arguments)
        assert end.value.code == 0, capsys.readouterr().err
    assert (tmp_path / "model.onnx").is_file() and (tmp_path / "stream.onnx").is_file()
    with pytest.raises(UserError, match=r"tasks\.kws\.test_root: .*sc/test: no such folder"):
        evaluate(trained, device="cpu")
    (tmp_path / "sc").mkdir()
    speech_commands(tmp_path / "sc")
    with pytest.raises(UserError, match=r"tasks\.sv\.root: .*vox: no such folder"):
        evaluate(trained, device="cpu")


def test_int8_needs_development_data(run: Path) -> None:
    model = open_joint(run)
    model.tasks["kws"].settings.train_root = "gone"
    with pytest.raises(UserError, match="train_root: gone: no such folder"):
        quantize_best(model, run / "never-read.onnx", [], 0.3)


def test_the_equal_error_threshold_is_where_both_error_rates_are_nearest() -> None:
    scores, labels = (0.9, 0.8, 0.3, 0.6, 0.2), (True, True, True, False, False)
    assert equal_error_threshold(scores, labels) == pytest.approx(
        (0.6 + 0.3) / 2
    )  # one of three is missed, one of two is accepted
    assert equal_error_threshold((0.9, 0.2), (True, False)) == pytest.approx((0.9 + 0.2) / 2)
    assert equal_error_threshold((0.9, 0.2), (True, True)) is None
