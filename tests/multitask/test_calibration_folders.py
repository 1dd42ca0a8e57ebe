"""The folders of people that `pack --calibrate` calibrates decisions about speakers on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers.trees import write_tone

from distilled_student.common.errors import UserError
from distilled_student.multitask import speaker_calibration as C
from distilled_student.multitask.calibration_folders import folder_pieces, folder_recordings


def commands(folder: Path, speakers: int = 3) -> Path:
    for word, pitch in {"Yes": 200, "no": 300}.items():
        for speaker in range(speakers):
            for take in range(3):
                write_tone(folder / word / f"0000{speaker}_nohash_{take}.wav", pitch, 0.97, speaker)
    return folder


def sentences(folder: Path) -> Path:
    for speaker in ("anna", "bo"):
        for session in ("a", "b"):
            for number in range(6):
                write_tone(folder / speaker / session / f"{number}.wav", 200 + 10 * number, 2.5, number)
    return folder


def test_people_are_folders_or_in_the_names_of_speech_commands(tmp_path: Path) -> None:
    found = {(r.speaker, r.word) for r in folder_recordings(commands(tmp_path / "commands"))}
    assert found == {(f"0000{speaker}", word) for speaker in range(3) for word in ("yes", "no")}
    recordings = folder_recordings(sentences(tmp_path / "sentences"))
    assert {(r.speaker, r.word) for r in recordings} == {("anna", None), ("bo", None)} and len(recordings) == 24


def test_folders_that_are_links_are_read(tmp_path: Path) -> None:
    sentences(tmp_path / "all")
    (tmp_path / "chosen").mkdir()
    (tmp_path / "chosen" / "anna").symlink_to(tmp_path / "all" / "anna")
    assert {r.speaker for r in folder_recordings(tmp_path / "chosen")} == {"anna"}


def test_each_folder_weighs_the_same_however_much_speech_it_has(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folders = [commands(tmp_path / "commands", 6), sentences(tmp_path / "sentences")]
    pieces = folder_pieces(folders, lambda names: [])
    printed = capsys.readouterr().err
    assert "commands: 6 people" in printed and "sentences: 2 people" in printed
    trials = C.make_trials(pieces, np.random.default_rng(0).normal(size=(len(pieces), 8)))
    is_command = np.isin(trials.seconds.round(2), [0.97, 2.91])  # one or three clips of 0.97 s
    assert is_command.sum() != (~is_command).sum()
    for target in (0, 1):
        for of_kind in (is_command, ~is_command):
            assert trials.weight[of_kind & (trials.target == target)].sum() == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("make", "trained", "reason"),
    [
        (lambda folder: write_tone(folder / "a.wav", 200), [], r"a\.wav is of nobody: put the recordings"),
        (lambda folder: write_tone(folder / "anna" / "a.wav", 200), [], "two people or more with two recordings"),
        (sentences, ["bo"], "1 of 2 people were trained on, such as 'bo'"),
    ],
)
def test_a_folder_that_cannot_be_used_is_named(tmp_path: Path, make: object, trained: list[str], reason: str) -> None:
    make(tmp_path)
    with pytest.raises(UserError, match=rf"--calibrate {tmp_path}: .*{reason}"):
        folder_pieces([tmp_path], lambda names: trained)
