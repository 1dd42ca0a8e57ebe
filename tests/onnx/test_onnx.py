"""`distilled_student.onnx`: the results of PyTorch without torch, and one clear line for unusable input."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import wave
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
import torch
from conftest import tone
from helpers.exports import NAME, export_utterances, utterance_model
from onnx import load as load_model

from distilled_student import onnx
from distilled_student.multitask.device_model import JointModel

SOUND = (tone(0.7).numpy() * 32767).astype(np.int16)


@pytest.fixture(scope="module")
def exported(made_once: Callable[..., Path]) -> tuple[JointModel, Path]:
    return utterance_model(), made_once("exported-utterances", export_utterances) / NAME


def write(path: Path, frames: bytes, rate: int = 16_000, channels: int = 1, width: int = 2) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setparams((channels, width, rate, 0, "NONE", ""))
        file.writeframes(frames)
    return path


def test_scores_and_embeddings_are_those_of_pytorch(exported: tuple[JointModel, Path]) -> None:
    model, runner = exported[0], onnx.load(exported[1])
    for samples in (SOUND[:700], SOUND):  # the first is shorter than a graph takes
        expected = model(torch.from_numpy(samples / 32768).float()[None], torch.tensor([len(samples)]))
        probabilities = dict(zip(model.labels, expected.keyword_scores[0].tolist(), strict=True))
        assert runner.scores(samples) == pytest.approx(probabilities, abs=1e-4)
        embedding = expected.speaker_embedding[0] / expected.speaker_embedding[0].norm()
        np.testing.assert_allclose(runner.embed(samples), embedding.numpy(), atol=1e-4)


def test_a_keyword_is_spotted_only_if_its_probability_reaches_the_threshold(exported: tuple[JointModel, Path]) -> None:
    runner = onnx.load(exported[1])
    scores = runner.scores(SOUND)
    keyword = max((label for label in scores if not label.startswith("_")), key=scores.__getitem__)
    runner.threshold = scores[keyword]
    assert runner.spot(SOUND) == (keyword, scores[keyword])
    runner.threshold = scores[keyword] + 1e-6
    assert runner.spot(SOUND) == (None, scores[keyword])
    runner.threshold = None  # the export measured none
    likeliest = max(scores, key=scores.__getitem__)
    assert runner.spot(SOUND).label == (None if likeliest.startswith("_") else keyword)


def test_a_speaker_is_enrolled_with_wavs_or_embeddings(exported: tuple[JointModel, Path], tmp_path: Path) -> None:
    runner, other = onnx.load(exported[1]), tone(0.9, seed=3).numpy()
    file = write(tmp_path / "a.wav", SOUND.tobytes())
    same = runner.verify(SOUND, file)
    assert same.cosine == pytest.approx(1.0) and same.ratio == pytest.approx(11.0) and same.accepted
    a, b = runner.embed(file), runner.embed(other)
    mean = (a + b) / np.linalg.norm(a + b)
    for enrolment in ([file, other], [a, b], np.stack([a, b]), [str(file), b], mean):
        assert runner.verify(SOUND, enrolment).cosine == pytest.approx(float(a @ mean), abs=1e-5)
    assert not runner.verify(SOUND, file, threshold=11.1).accepted


@pytest.mark.parametrize("width", [1, 2, 3, 4])
@pytest.mark.parametrize("channels", [1, 2])
def test_files_of_every_sample_width_and_channel_count_are_read(width: int, channels: int, tmp_path: Path) -> None:
    wide = np.repeat(SOUND.astype("<i4") << 16, channels)
    data = wide.view(np.uint8).reshape(-1, 4)[:, 4 - width :].copy()
    if width == 1:
        data ^= 128
    samples = onnx.read_wav(write(tmp_path / "a.wav", data.tobytes(), channels=channels, width=width), 16_000)
    np.testing.assert_allclose(samples, SOUND / 32768, atol=1 / 127 if width == 1 else 1e-6)


def test_files_of_other_formats_and_rates_are_read_as_soundfile_and_soxr_read_them(tmp_path: Path) -> None:
    samples = np.stack([SOUND, SOUND // 2], axis=1)
    for name, rate, kind in (
        ("a.flac", 16_000, None),
        ("b.wav", 48_000, None),
        ("c.ogg", 44_100, None),
        ("d.wav", 8_000, "ULAW"),
    ):
        soundfile.write(tmp_path / name, samples, rate, subtype=kind)
        decoded = soundfile.read(tmp_path / name, dtype="float32")[0].mean(axis=1)
        expected = decoded if rate == 16_000 else soxr.resample(decoded, rate, 16_000)
        np.testing.assert_allclose(onnx.read_wav(tmp_path / name, 16_000), expected, atol=1e-6, err_msg=name)


def test_without_soundfile_and_soxr_other_files_name_the_library_that_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, rate in (("a.flac", 16_000), ("slow.wav", 8_000), ("good.wav", 16_000)):
        soundfile.write(tmp_path / name, SOUND, rate)
    for name in ("soundfile", "soxr"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(
        ValueError, match=r"a\.flac: not readable as a PCM or float .*need soundfile \(`pip install soundfile`\)"
    ):
        onnx.read_wav(tmp_path / "a.flac", 16_000)
    with pytest.raises(
        ValueError, match=r"slow\.wav: has a sample rate of 8000 Hz; .* 16000 Hz; .* \(`pip install soxr`\)"
    ):
        onnx.read_wav(tmp_path / "slow.wav", 16_000)
    np.testing.assert_array_equal(onnx.read_wav(tmp_path / "good.wav", 16_000), SOUND / np.float32(32_768))


def test_unusable_input_is_an_error_of_one_line_that_names_it(
    exported: tuple[JointModel, Path], tmp_path: Path
) -> None:
    runner = onnx.load(exported[1])
    (tmp_path / "text.wav").write_text("no audio")
    cases = [
        (
            write(tmp_path / "slow.wav", SOUND.tobytes(), rate=800),
            r"slow\.wav: a rate of 800 Hz, which is not within 1000 to 768000",
        ),
        (write(tmp_path / "empty.wav", b""), r"empty\.wav: expected one channel"),
        (tmp_path / "text.wav", r"text\.wav: not readable as audio \(Format not recognised"),
        (tmp_path / "gone.wav", r"gone\.wav: no such file$"),
        (tmp_path, r": is a folder; give an audio file$"),
        (np.zeros((2, 8_000)), r"samples: expected one channel \(samples,\), found shape \(2, 8000\)"),
        (np.zeros(8_000, np.int64), "samples: expected floats in .* or int16, found int64"),
        (np.full(8_000, np.nan), "samples: contains NaN or infinity"),
    ]
    for wav, message in cases:
        with pytest.raises(ValueError, match=message) as error:
            runner.verify(SOUND, wav)
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="enrolment: is empty"):
        runner.verify(SOUND, [])
    for name, reason in (("text.wav", "not readable as an ONNX file"), ("gone.onnx", "no such file or folder")):
        with pytest.raises(ValueError, match=f"{name}: {reason}") as error:
            onnx.load(tmp_path / name)
        assert "\n" not in str(error.value)


def test_a_file_without_a_stream_of_its_own_model_is_named(exported: tuple[JointModel, Path], tmp_path: Path) -> None:
    model = onnx.load(shutil.copy(exported[1], tmp_path))
    with pytest.raises(ValueError, match=r"model\.onnx: is not a stream, and its folder has no stream\.onnx; `"):
        model.stream()
    shutil.copy(onnx.SHIPPED / "tiny/stream.onnx", tmp_path)
    with pytest.raises(ValueError, match=r"stream\.onnx: is the stream of another model than .*model\.onnx"):
        model.stream()


@pytest.mark.parametrize("scale", [32768.0, 100.0])
def test_samples_far_above_one_are_refused(scale: float, exported: tuple[JointModel, Path], tmp_path: Path) -> None:
    runner, loud = onnx.load(exported[1]), (scale / 32767 * SOUND).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", loud, 16_000, subtype="FLOAT")
    for wav in (loud, loud.astype(np.float64), loud.tolist(), tmp_path / "a.wav"):
        for call in (runner.spot, runner.embed, runner.scores, lambda wav: runner.verify(SOUND, [wav])):
            with pytest.raises(ValueError, match=r": a peak of .*: divide samples of 16 bits by 32768$"):
                call(wav)
    for integers in (SOUND.astype(np.int32), SOUND.astype(np.uint8), SOUND.tolist()):
        with pytest.raises(ValueError, match=r"samples: expected floats in \[-1, 1\] or int16, found u?int"):
            runner.spot(integers)
    np.testing.assert_allclose(runner.embed(SOUND), runner.embed(SOUND / 32768), atol=1e-6)


def test_a_file_without_heads_names_the_missing_output(exported: tuple[JointModel, Path], tmp_path: Path) -> None:
    graph = load_model(exported[1])  # as the export of a student alone
    metadata = [entry for entry in graph.metadata_props if entry.key in ("sample_rate", "shortest")]
    del graph.graph.output[2:], graph.metadata_props[:]
    graph.metadata_props.extend(metadata)
    (tmp_path / "student.onnx").write_bytes(graph.SerializeToString())
    runner = onnx.load(tmp_path / "student.onnx")
    assert runner.run(SOUND, "hidden_state").shape == (34, 16)
    for call, missing in ((runner.spot, "keyword_scores"), (runner.embed, "speaker_embedding")):
        with pytest.raises(ValueError, match=rf"student\.onnx: has no {missing}, only hidden_state, frames"):
            call(SOUND)
    with pytest.raises(ValueError, match="has no calibration"):
        runner.verify(SOUND, SOUND)


def test_the_folder_works_as_a_copy_and_needs_no_torch(exported: tuple[JointModel, Path], tmp_path: Path) -> None:
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(Path(onnx.__file__).parent, tmp_path / "runner", ignore=ignored)
    write(tmp_path / "a.wav", SOUND.tobytes())
    home = tmp_path / "home"
    home.mkdir()
    switches = ("ORT_DISABLE_TELEMETRY", "CI", "XDG_CACHE_HOME")
    environment = {key: value for key, value in os.environ.items() if key not in switches} | {"HOME": str(home)}
    for name, own in (("runner", []), ("distilled_student.onnx", ["distilled_student"])):
        program = (
            f"import sys, {name} as runner; model = runner.load({str(exported[1])!r}); "
            "print(model.spot('a.wav').score, model.verify('a.wav', 'a.wav').accepted); "
            "print(sorted({'torch', 'onnx', 's3prl', 'yaml', 'distilled_student'} & set(sys.modules)))"
        )
        command = [sys.executable, "-c", program]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert list(home.iterdir()) == []  # onnxruntime's reports to Microsoft, and the identifier in them
        scores, imported = done.stdout.splitlines()
        assert float(scores.split()[0]) == pytest.approx(onnx.load(exported[1]).spot(SOUND).score, abs=1e-5)
        assert scores.split()[1] == "True" and imported == str(own)


def test_a_stream_takes_no_samples_at_all_and_stays_as_it_is() -> None:
    stream, other = (onnx.load("tiny").stream() for _ in range(2))
    samples = 0.1 * np.random.default_rng(0).standard_normal(8_000).astype(np.float32)
    assert stream.feed(np.zeros(0, np.float32)) is None and stream.spot(np.zeros(0, np.int16)) is None
    first = stream.feed(samples[:5_000])
    assert stream.feed(np.zeros(0, np.float32)) is None and stream.listen(np.zeros(0, np.float32)) == []
    np.testing.assert_array_equal(first["hidden_state"], other.feed(samples[:5_000])["hidden_state"])
    np.testing.assert_array_equal(
        stream.feed(samples[5_000:])["hidden_state"], other.feed(samples[5_000:])["hidden_state"]
    )


def test_samples_may_be_a_tensor_that_has_gradients() -> None:
    samples = 0.1 * np.random.default_rng(0).standard_normal(16_000).astype(np.float32)
    model = onnx.load("tiny")
    np.testing.assert_array_equal(model.embed(torch.tensor(samples, requires_grad=True)), model.embed(samples))
