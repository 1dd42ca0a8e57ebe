"""The command `listen`: keywords of a file or a microphone, and who said them."""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from helpers.people import run_command

from distilled_student import cli, onnx
from distilled_student.common.errors import UserError
from distilled_student.common.shipped_models import MODELS
from distilled_student.corpora.shipped import read_index, read_voice
from distilled_student.device import listening
from distilled_student.device.profiles import Profiles
from distilled_student.onnx import Detector

RATE = 16_000


def said(voice: str, word: str) -> np.ndarray:
    clip = next(clip for clip in read_index() if clip.voice == voice and clip.text == word)
    return read_voice(voice)[clip.start : clip.start + clip.samples]


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pauses and two keywords: stop by one voice, on by another."""
    file, pause = tmp_path_factory.mktemp("listening") / "a.wav", np.zeros(2 * RATE, np.float32)
    soundfile.write(file, np.concatenate([pause, said("am_adam", "stop"), pause, said("af_heart", "on")]), RATE)
    return file


def run(*words: str) -> int:
    with pytest.raises(SystemExit) as left:
        cli.main(list(words))
    return left.value.code


def test_each_keyword_of_a_file_is_a_line(recording: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    profiles = ["--profiles", str(tmp_path)]
    assert run("listen", str(recording), "--model", "tiny", *profiles, "--json") == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    stream = onnx.load("tiny").stream()
    samples = soundfile.read(recording, dtype="float32")[0]
    expected = stream.listen(np.concatenate([samples, np.zeros(RATE // 2, np.float32)]))  # half a second of silence
    assert [(hit["seconds"], hit["label"]) for hit in found] == [(hit.seconds, hit.label) for hit in expected]
    assert [hit["label"] for hit in found] == ["stop", "on"] and {hit["speaker"] for hit in found} == {None}
    assert run("listen", str(recording), "--model", "tiny", *profiles, "--hold-off", "60") == 0
    line = capsys.readouterr().out
    assert line.split()[2] == "stop" and line.count("\n") == 1


def test_a_file_without_a_keyword_ends_with_exit_code_1(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    soundfile.write(tmp_path / "silence.wav", np.zeros(RATE), RATE)
    assert run("listen", str(tmp_path / "silence.wav"), "--model", "tiny", "--profiles", str(tmp_path / "p")) == 1
    assert capsys.readouterr().out == ""
    assert run("listen", str(tmp_path / "gone.wav"), "--model", "tiny") == 2
    assert "gone.wav: no such file" in capsys.readouterr().err


def test_each_keyword_says_who_and_with_an_owner_only_theirs_are_reported(
    recording: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    model = onnx.load("tiny")
    people = Profiles(tmp_path, model, "tiny")
    for name, voice in (("Adam", "am_adam"), ("Heart", "af_heart")):
        words = [said(voice, word) for word in ("yes", "no", "go", "right", "down")]
        people.write(name, np.stack([model.embed(word) for word in words]), sum(map(len, words)) / RATE)
    arguments = ["listen", str(recording), "--model", "tiny", "--profiles", str(tmp_path), "--json"]
    assert run(*arguments, "--false-accepts", "5%") == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    stream, enrolled = model.stream(), people.read_all()[0]
    samples = soundfile.read(recording, dtype="float32")[0]
    expected = stream.listen(samples, enrolled, None, 0.05, is_last=True)
    assert [(hit["label"], hit["speaker"]) for hit in found] == [(hit.label, hit.speaker) for hit in expected]
    code = run(*arguments, "--owner", "Heart")
    of_owner = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {hit["speaker"] for hit in of_owner} <= {"Heart"} and "stop" not in {hit["label"] for hit in of_owner}
    assert code == (0 if of_owner else 1)
    assert run(*arguments, "--owner", "Nobody") == 2
    assert "Nobody: is not enrolled" in capsys.readouterr().err


def test_a_microphone_is_read_in_blocks_and_says_that_it_listens_once_it_is_open(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class InputStream:
        def __init__(self, rate: int, size: int, device: Any, channels: int, kind: str, callback: Callable) -> None:
            assert (rate, channels, kind) == (RATE, 1, "float32")
            if device == "none":
                raise ValueError("no device")
            self.callback, self.size = callback, size

        def __enter__(self) -> None:
            for value in (0.25, 0.5):
                self.callback(np.full((self.size, 1), value, np.float32), self.size, None, None)

        def __exit__(self, *_: object) -> None:
            pass

    fake = types.SimpleNamespace(InputStream=InputStream, PortAudioError=OSError)
    monkeypatch.setitem(sys.modules, "sounddevice", fake)
    blocks = listening.microphone_blocks("3")
    assert [float(next(blocks)[0]) for _ in range(2)] == [0.25, 0.5]
    assert capsys.readouterr().err == "listening; Ctrl-C ends it\n"
    with pytest.raises(UserError, match=r"--device none: not usable as a microphone \(no device\)"):
        next(listening.microphone_blocks("none"))
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    with pytest.raises(UserError, match=r"the microphone needs sounddevice: pip install '\.\[microphone\]'"):
        next(listening.microphone_blocks())
    assert capsys.readouterr().err == ""


def test_the_command_stream_takes_an_exported_file_and_finds_what_its_stream_finds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, speech = MODELS / "tiny" / "stream.onnx", tmp_path / "speech.wav"
    samples = read_voice("am_adam")[: 16_000 * 12]
    soundfile.write(speech, samples, 16_000, subtype="FLOAT")
    stream = onnx.Stream(file)
    stream.detector = Detector(stream.model.labels, replace(stream.detector.settings, threshold=0.5), 0.08)
    expected = "".join(
        f"{hit.seconds:7.2f} s  {hit.label}  {hit.score:.2f}\n" for hit in stream.listen(samples, is_last=True)
    )
    for chunk in ("7", "100"):
        code, out, _ = run_command(("stream", file, speech, "--threshold", "0.5", "--chunk-ms", chunk), capsys)
        assert (code, out) == (0, expected) and expected
    assert run_command(("stream", file, speech, "--threshold", "1"), capsys) == (0, "", f"{speech}: no keyword\n")
    code, _, err = run_command(("stream", file, speech, "--window", "2"), capsys)
    assert code == 2 and f"--window 2: the window is part of {file}: leave it out" in err
    code, _, err = run_command(("stream", tmp_path / "gone.onnx", speech), capsys)
    assert code == 2 and "gone.onnx: no such file or folder" in err


def test_the_command_stream_takes_a_packed_folder(recording: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [run_command(("stream", model, recording), capsys)[:2] for model in (MODELS / "tiny", "tiny")]
    assert lines[0] == lines[1] and lines[0][0] == 0 and "stop" in lines[0][1]


def test_a_word_that_ends_with_its_recording_is_found_by_every_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip, silence = said("am_adam", "stop"), np.zeros(RATE // 2, np.float32)
    soundfile.write(tmp_path / "stop.wav", clip, RATE, subtype="FLOAT")
    hits = onnx.load("tiny").stream().listen(np.concatenate([clip, silence]))
    assert [hit.label for hit in hits] == ["stop"] and hits[0].seconds > len(clip) / RATE
    line = f"{hits[0].seconds:7.2f} s  stop  {hits[0].score:.2f}\n"
    listen = ("listen", tmp_path / "stop.wav", "--model", "tiny", "--profiles", tmp_path)
    for words in (
        listen,
        *(("stream", model, tmp_path / "stop.wav") for model in ("tiny", MODELS / "tiny/stream.onnx")),
    ):
        assert run_command(words, capsys)[:2] == (0, line)
    with_torch = run_command(("stream", "tiny", tmp_path / "stop.wav", "--window", "1"), capsys)[1]
    assert with_torch[:16] == line[:16], "without int8 the score may differ"
