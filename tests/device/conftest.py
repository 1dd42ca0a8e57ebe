"""Clips of voices of the embedded corpus, and a model with a calibration of known numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from helpers.calibrations import CALIBRATION

from distilled_student import cli
from distilled_student.common.typer_errors import run_app
from distilled_student.corpora.shipped import read_index, read_voice
from distilled_student.device import model_files
from distilled_student.onnx import Model

pytest.importorskip("onnxruntime")
# synthetic voices sound more alike than people do; the cosines of these are below 0.37
VOICES = ("af_river", "am_onyx", "if_sara")
WORDS = ("yes", "no", "stop", "left", "right", "go")


@pytest.fixture(scope="session")
def people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for each voice, with a clip of 1 s, or longer, of each word."""
    root = tmp_path_factory.mktemp("people")
    for voice in VOICES:
        audio, folder = read_voice(voice), root / voice
        folder.mkdir()
        for clip in read_index():
            if clip.voice == voice and clip.text in WORDS and clip.take == 1:
                speech = audio[clip.start : clip.start + clip.samples]
                missing = max(0, 16_000 - len(speech))
                padded = np.pad(speech, (missing // 2, missing - missing // 2))
                soundfile.write(folder / f"{clip.text}.wav", padded, 16_000)
    return root


@pytest.fixture
def command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Runs ``distilled-student`` with people in an empty folder: exit code, stdout, stderr.

    The models have the calibration of known numbers.
    """
    opened = model_files.open_model

    def open_model(name: str) -> Model:
        model = opened(name)
        model.calibration = CALIBRATION
        return model

    monkeypatch.setattr(model_files, "open_model", open_model)
    monkeypatch.setenv("DISTILLED_STUDENT_PROFILES", str(tmp_path / "profiles"))

    def run(*words: object) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            run_app(cli.app, [str(word) for word in words], "distilled-student")
        out, err = capsys.readouterr()
        return int(end.value.code or 0), out, err

    return run
