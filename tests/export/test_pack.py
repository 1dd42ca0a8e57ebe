"""Packed models: what is used without the run that trained it answers as the run does."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from conftest import SMALL, tone
from helpers.trees import tasks, write_tone
from safetensors.torch import load_file

import distilled_student as ds
from distilled_student import cli, onnx
from distilled_student.common.errors import UserError
from distilled_student.export.graph import fingerprint
from distilled_student.export.pack import share_weights
from distilled_student.host import launch
from distilled_student.multitask.device_model import as_packed, open_joint
from distilled_student.multitask.evaluate import evaluate

pytest.importorskip("onnxscript")
PRINTED = "printed"  # file with the output of `pack`


def command(*words: str) -> int:
    """The exit code of ``distilled-student``."""
    with pytest.raises(SystemExit) as left:
        cli.main(list(words))
    return left.value.code


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An evaluated joint run of a causal student, whose heads use all of its outputs."""
    folder = tmp_path_factory.mktemp("joint")
    config = ds.StudentConfig(
        **{"frontend": "logmel", "conv_dim": [8, 16], "conv_kernel": [3, 3], "conv_stride": [1, 2], "conv_bias": True},
        **{"conv_norm": "none", "projection": False, "projection_norm": False, "causal": True, "attention_context": 20},
        **{**SMALL, "target_size": SMALL["hidden_size"]},
    )
    torch.manual_seed(0)
    ds.save_student(ds.build_student(config), folder / "student")
    values = {f"config.runner.{key}": 2 for key in ("total_steps", "log_step", "eval_step", "save_step")}
    for name, settings in tasks(folder).items():
        values |= {f"config.downstream_expert.tasks.{name}.{key}": value for key, value in settings.items()}
        values[f"config.downstream_expert.tasks.{name}.layer"] = "weighted"
    values["config.downstream_expert.tasks.sv.fill"] = False  # a graph that encodes once is exported in half the time
    layers = config.layers + 1 + len(config.targets)
    values |= {"config.downstream_expert.num_workers": 0, "config.downstream_expert.gain_db": -3.0}
    values |= {"config.downstream_expert.layers": layers}
    words = ["-m", "train", "-u", "distilled_student", "-k", str(folder / "student"), "-f", "-d", "multitask"]
    words += ["-s", "all", "-p", str(folder / "exp"), "--device", "cpu"]
    assert launch.main([*words, "-o", ",,".join(f"{key}={value}" for key, value in values.items())]) == 0
    evaluate(folder / "exp", device="cpu")
    return folder / "exp"


@pytest.fixture(scope="module")
def packed(run: Path) -> Path:
    folder = run.parent / "packed"
    with (run.parent / PRINTED).open("w") as printed, contextlib.redirect_stdout(printed):
        assert command("pack", str(run), "-o", str(folder), "--max-loss", "100") == 0
    return folder


def test_packing_prints_what_each_graph_loses_on_development_data_and_uses_no_test_data(packed: Path) -> None:
    printed = (packed.parent / PRINTED).read_text()
    for name in ("utterance.onnx", "stream.onnx"):
        last = next(line for line in printed.splitlines() if line.startswith(f"{name}: "))
        assert re.search(r": int8 \w+, .* MB; points lost on development data: kws -?\d+\.\d\d, sv -?\d+\.\d\d$", last)
    rows = [line.split()[:2] for line in printed.splitlines() if "%" in line]
    assert rows == 2 * [["kws", "dev"], ["sv", "dev"]]


def test_a_packed_stream_has_the_threshold_for_few_alarms_and_pytorch_takes_it(
    packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    copy, speech = tmp_path / "copy", tmp_path / "speech.wav"
    shutil.copytree(packed, copy)
    default = onnx.load(packed).stream().detector.settings.threshold
    assert default == pytest.approx(onnx.stream_threshold(onnx.load(packed / "stream.onnx").threshold))
    soundfile.write(speech, tone(6.4).numpy(), 16_000)
    words = ["export", str(packed), "--int8", "--streaming", "-o", str(copy / "stream.onnx"), "--alarms", str(speech)]
    assert command(*words, "--rate", "3600") == 0
    chosen = onnx.load(copy).stream().detector.settings
    assert f"stream.onnx: threshold of streams {chosen.threshold:.6g}: " in capsys.readouterr().out
    stream, hits = onnx.load(copy).stream(), []
    for samples in tone(6.4).numpy().reshape(-1, 1_280):
        hits += stream.listen(samples)
    assert len(hits) <= 6 and open_joint(copy).detector_settings(0.3) == chosen != open_joint(packed).stored_detector
    (copy / "stream.onnx").write_bytes(b"no graph")
    with pytest.raises(UserError, match=r"stream\.onnx: not readable as an ONNX file"):
        open_joint(copy)
    for wrong, message in ((["--alarms", "gone"], "--alarms gone: no such file"), (["--rate", "0"], "--rate 0: must")):
        assert command("pack", str(packed.parent / "exp"), "-o", str(tmp_path / "new"), *wrong) == 2
        assert message in capsys.readouterr().err


def test_a_packed_model_answers_as_its_run(run: Path, packed: Path) -> None:
    of_run, model = open_joint(run), open_joint(packed)
    wave, lengths = tone(1.0)[None], torch.tensor([16_000])
    expected, found = of_run(wave, lengths), model(wave, lengths)
    for name in ("hidden_state", "keyword_scores", "speaker_embedding"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), atol=5e-3, rtol=5e-3)  # float16
    assert model.labels == of_run.labels and model.gain == of_run.gain
    threshold = model.keyword_threshold()
    assert threshold == pytest.approx(of_run.keyword_threshold()) and threshold == model.stored_thresholds["kws"]
    assert {key: value for key, value in model.metadata({}).items() if key.startswith("sv")} == pytest.approx(
        {key: value for key, value in of_run.metadata({}).items() if key.startswith("sv")}
    )


def test_a_packed_model_holds_no_speakers_and_no_folders_of_the_training(packed: Path) -> None:
    assert not [name for name in load_file(packed / "heads.safetensors") if "objective" in name]
    text = (packed / "joint.json").read_text()
    assert "root" not in text and str(packed.parent) not in text
    assert json.loads(text)["features"]["key"] == "all"
    names = {"README.md", "config.json", "heads.safetensors", "joint.json", "model.safetensors", "results.json"}
    assert {file.name for file in packed.iterdir()} == names | {"stream.onnx", "utterance.onnx"}


def test_the_graphs_of_a_packed_model_are_int8_and_have_one_set_of_scores(packed: Path) -> None:
    model, wave = ds.load(packed), tone(1.0)
    whole = model.scores(wave.numpy())
    assert model.session.get_modelmeta().custom_metadata_map["precision"].startswith("int8")
    stream = model.stream()
    assert stream.model.session.get_modelmeta().custom_metadata_map["precision"].startswith("int8")
    for chunk in wave.numpy().reshape(-1, 640):
        outputs = stream.feed(chunk)
    np.testing.assert_allclose(outputs["keyword_scores"], list(whole.values()), atol=0.05)
    cosine = outputs["speaker_embedding"] @ model.embed(wave.numpy()) / np.linalg.norm(outputs["speaker_embedding"])
    assert cosine > 0.98


def test_all_exports_of_a_model_have_one_fingerprint(run: Path, packed: Path, tmp_path: Path) -> None:
    model = open_joint(packed)
    assert ds.load(packed).fingerprint == ds.load(packed).stream().model.fingerprint == fingerprint(model)
    before = fingerprint(model)
    model.tasks["sv"].calibration += 1.0
    assert fingerprint(model) == before, "a new calibration keeps the enrolled speakers"
    next(model.tasks["sv"].parameters()).data += 1e-3
    assert fingerprint(model) != before


def test_a_packed_model_is_exported_and_distilled_from_and_trained_as_any_student(packed: Path, tmp_path: Path) -> None:
    student = ds.load_student(packed)
    assert student.config.causal
    assert command("export", str(packed), "-o", str(tmp_path / "a.onnx"), "--int8", "--streaming") == 0
    assert (tmp_path / "a.onnx").read_bytes() == (packed / "stream.onnx").read_bytes()
    assert command("export", str(packed), "-o", str(tmp_path / "c.onnx"), "--int8") == 0
    wave = tone(1.0).numpy()
    assert onnx.load(tmp_path / "c.onnx").scores(wave) == ds.load(packed).scores(wave), "alone, without the stream"
    assert command("export", str(packed), "-o", str(tmp_path / "b.onnx")) == 0
    exported, packed_model = onnx.load(tmp_path / "b.onnx"), open_joint(packed)
    assert exported.threshold == pytest.approx(packed_model.keyword_threshold())


def test_the_graphs_of_a_packed_model_share_their_weights(packed: Path, tmp_path: Path) -> None:
    before = ds.load(packed).scores(tone(1.0).numpy())
    for file in packed.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    whole = tmp_path / "whole.onnx"
    assert command("export", str(packed), "-o", str(whole), "--int8") == 0
    assert whole.stat().st_size > (packed / "utterance.onnx").stat().st_size
    (tmp_path / "utterance.onnx").write_bytes(whole.read_bytes())
    share_weights(tmp_path / "utterance.onnx", tmp_path / "stream.onnx")
    assert ds.load(tmp_path).scores(tone(1.0).numpy()) == before
    (tmp_path / "stream.onnx").unlink()
    with pytest.raises(ValueError, match=r"utterance\.onnx: needs stream\.onnx in its folder"):
        ds.load(tmp_path)


def test_a_packed_student_lacks_the_prediction_layers_that_no_head_uses(run: Path, tmp_path: Path) -> None:
    model = open_joint(run)
    model.student.predictions = None
    ds.save_student(model.student, tmp_path)
    student = ds.load_student(tmp_path)
    assert student.predictions is None and student.config.targets == []


def test_a_damaged_packed_model_names_its_file(packed: Path, tmp_path: Path) -> None:
    for file in packed.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "joint.json").write_text("{}")
    with pytest.raises(UserError, match=r"joint\.json: damaged, or of another version"):
        open_joint(tmp_path)
    (tmp_path / "joint.json").write_text((packed / "joint.json").read_text())
    (tmp_path / "heads.safetensors").write_bytes((packed / "model.safetensors").read_bytes())
    with pytest.raises(UserError, match=r"heads\.safetensors: does not fit joint\.json"):
        open_joint(tmp_path)


def test_a_run_that_was_not_evaluated_is_not_packed(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    copied = tmp_path / "exp"
    copied.mkdir()
    for file in run.glob("*.ckpt"):
        (copied / file.name).write_bytes(file.read_bytes())
    assert command("pack", str(copied), "-o", str(tmp_path / "out")) == 2
    assert "run `distilled-student evaluate" in capsys.readouterr().err


def test_a_run_that_loses_too_much_in_int8_leaves_no_folder_and_an_earlier_packed_model_as_it_is(
    run: Path, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def lose(*_: Any, **__: Any) -> None:
        raise UserError("int8: loses 0.32 points")

    monkeypatch.setattr("distilled_student.export.pack.export_onnx", lose)
    shutil.copytree(packed, tmp_path / "earlier")
    for name in ("new", "earlier"):
        assert command("pack", str(run), "-o", str(tmp_path / name)) == 2
        assert "loses 0.32 points" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["earlier"]
    assert all((tmp_path / "earlier" / file.name).read_bytes() == file.read_bytes() for file in packed.iterdir())


def test_speakers_are_calibrated_on_the_given_folders_instead_of_the_development_data(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    for kind, seconds in {"commands": 0.96, "sentences": 3.5}.items():
        for speaker in range(3):
            for number in range(12):
                write_tone(tmp_path / kind / f"p{speaker}" / f"{number}.wav", 150 + 90 * speaker, seconds, number)
    folders = [tmp_path / "commands", tmp_path / "sentences"]
    of_run, found = as_packed(open_joint(run)), as_packed(open_joint(run), folders)
    before, calibration = (model.tasks["sv"].speaker_calibration for model in (of_run, found))
    assert before != calibration
    assert calibration.seen["seconds"] == (0.96, 10.0) and calibration.seen["enrolled_seconds"][0] == 0.96
    assert command("pack", str(run), "-o", str(tmp_path / "out"), "--calibrate", str(tmp_path / "none")) == 2
    assert f"--calibrate {tmp_path / 'none'}: no such folder" in capsys.readouterr().err
    trained = open_joint(run).tasks["sv"].class_names[0]
    for number in range(2):
        for name in (trained, "new"):
            write_tone(tmp_path / "known" / name / f"{number}.wav", 200, 1.0, number)
    with pytest.raises(UserError, match=f"known: 1 of 2 people were trained on, such as '{trained}'"):
        as_packed(open_joint(run), [tmp_path / "known"])
