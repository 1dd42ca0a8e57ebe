"""Clips of voices of the embedded corpus, and the command line with a calibration of known numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from distilled_student import cli
from distilled_student.common.typer_errors import run_app
from distilled_student.corpora.shipped import read_index, read_voice
from distilled_student.device import model_files
from distilled_student.onnx import Calibration, Model

# cosines of other people are normal with mean 0 and deviation 0.2
CALIBRATION = Calibration(
    {"cosine": 20.0, "bias": -10.0, "cosine*log_clips": 2.0, "log_seconds": 1.0},
    {0.05: {"bias": 0.3290}, 0.01: {"bias": 0.4653}, 0.001: {"bias": 0.6180}},
    {"clips": (1, 5)},
)
# synthetic voices sound more alike than people do; the cosines of these are below 0.37
VOICES = ("af_river", "am_onyx", "if_sara")
WORDS = ("yes", "no", "stop", "left", "right", "go")


def write_clips(root: Path) -> Path:
    """Fill ``root`` with a folder for each voice, with a clip of 1 s, or longer, of each word."""
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


def use_known_calibration(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every model that a command opens have `CALIBRATION`."""
    opened = model_files.open_model

    def open_model(name: str, threads: int = 1) -> Model:
        model = opened(name, threads)
        model.calibration = CALIBRATION
        return model

    monkeypatch.setattr(model_files, "open_model", open_model)


def run_command(words: tuple[object, ...], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """Run ``distilled-student``: exit code, stdout, stderr."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        run_app(cli.app, [str(word) for word in words], "distilled-student")
    out, err = capsys.readouterr()
    return int(end.value.code or 0), out, err
