"""What keyword folders hold: speakers, classes that are no words, and files that are not used are named."""

from __future__ import annotations

import shutil
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from helpers.trees import speech_commands, write_tone

from distilled_student.common.errors import UserError
from distilled_student.multitask.tasks import kws
from distilled_student.multitask.tasks.kws_index import class_index, test_index

FOLDER = "([^/]+)/[^/]+$"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return speech_commands(tmp_path / "sc", speakers=6)


def settings(root: Path, **more: Any) -> kws.Settings:
    values = {"keywords": ["yes", "no"], "validation_percentage": 30, "testing_percentage": 0, **more}
    return kws.Settings(train_root=str(root / "train"), test_root=str(root / "test"), **values)


def keys(root: Path, **more: Any) -> dict[str, list[str]]:
    """The keyword and unknown clips of each set."""
    sets, _ = class_index(settings(root, unknown_percentage=None, **more), 0, "F")
    return {part: [clip.key for clip in clips if clip.volume is None] for part, clips in sets.items()}


def test_clips_without_nohash_are_named_and_a_pattern_keeps_a_person_in_one_set(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for path in (root / "train").glob("[!_]*/*.wav"):
        speaker = path.name.split("_")[0]
        for take in range(3):
            shutil.copy(path, path.with_name(f"{speaker}-{take}.wav"))
        path.unlink()
    found = keys(root)
    assert len({name.split("-")[0].split("/")[1] for name in found["validation"]}) > 2, "people in both sets"
    assert "72 clips are not named SPEAKER_nohash_TAKE, such as bed/spk0-0.wav" in caplog.text
    assert "set F.speaker_pattern" in caplog.text
    caplog.clear()
    found = keys(root, speaker_pattern="([^/-]+)-[^/]*$")
    people = {part: {name.split("/")[1].split("-")[0] for name in names} for part, names in found.items()}
    assert people["validation"] and people["training"] and not people["validation"] & people["training"]
    assert "nohash" not in caplog.text


def test_a_folder_for_each_speaker_is_refused_or_read_with_a_pattern(root: Path) -> None:
    for part in ("train", "test"):
        for path in list((root / part).glob("[!_]*/*.wav")) + list((root / part).glob("_[us]*/*.wav")):
            moved = path.parent / path.name.split("_")[0] / "clip.wav"
            moved.parent.mkdir()
            path.rename(moved)
    with pytest.raises(UserError, match=r"F\.train_root: .*clip\.wav: is deeper than WORD/FILE: .* set sp"):
        keys(root)
    with pytest.raises(UserError, match=r"F\.test_root: .*clip\.wav: is deeper than WORD/FILE"):
        test_index(settings(root), "F")
    found = keys(root, speaker_pattern=FOLDER)
    people = {part: {name.split("/")[1] for name in names} for part, names in found.items()}
    assert sum(map(len, people.values())) == 6 and not people["validation"] & people["training"]
    assert len(test_index(settings(root, speaker_pattern=FOLDER), "F")) == 8


@pytest.mark.parametrize(
    "name",
    ["_silence_", "silence", "_noise_", "Noise", "background noise", "BackgroundNoise", "no_speech", "sil", "_other_"],
)
def test_a_folder_that_is_no_word_is_not_trained_as_unknown(name: str, root: Path) -> None:
    write_tone(root / "train" / name / "a_nohash_0.wav", 100, 0.2)
    with pytest.raises(UserError, match=rf"F\.train_root: .*{name}: is no word, .* move silence and noise to _back"):
        keys(root)


def test_the_words_taken_as_unknown_are_logged(root: Path, capsys: pytest.CaptureFixture) -> None:
    write_tone(root / "train/_unknown_/a_nohash_0.wav", 100, 0.2)
    keys(root)
    assert "F.train_root: 3 words are taken as '_unknown_': _unknown_, bed, cat" in capsys.readouterr().err


def test_case_and_unicode_form_of_folders_do_not_matter(root: Path) -> None:
    composed, decomposed = (unicodedata.normalize(form, "Fenêtre") for form in ("NFC", "NFD"))
    expected = keys(root)
    for part in ("train", "test"):
        (root / part / "yes").rename(root / part / decomposed)
    (root / "train/_background_noise_").rename(root / "train/_Background_Noise_")
    found = keys(root, keywords=[composed.upper(), "No"])
    assert {part: len(names) for part, names in found.items()} == {part: len(names) for part, names in expected.items()}
    labels = [clip.label for clip in test_index(settings(root, keywords=[composed, "NO"]), "F")]
    assert labels == [0, 0, 1, 1, 2, 2, 3, 3]
    with pytest.raises(ValueError, match="keywords: need one or more different words"):
        kws.Settings(keywords=["yes", "Yes"])


@pytest.mark.parametrize("word", ["_silence_", "_x", "", "a/b", "..", " yes"])
def test_a_keyword_is_a_folder_that_does_not_begin_with_an_underscore(word: str) -> None:
    with pytest.raises(ValueError, match=r"keywords: '.*': expected the name of a folder"):
        kws.Settings(keywords=[word])


def test_folders_of_no_class_and_files_in_no_folder_are_named(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_tone(root / "test/bird/x_nohash_0.wav", 100, 0.2)
    for part in ("train", "test"):
        write_tone(root / part / "loose.wav", 100, 0.2)
    keys(root)
    assert len(test_index(settings(root), "F")) == 8
    assert "F.test_root" in caplog.text and "these folders are no class and are not tested: bird" in caplog.text
    for part in ("train", "test"):
        assert f"F.{part}_root: {root / part}: 1 audio files are in no word's folder" in caplog.text


def test_test_speakers_who_are_trained_on_are_named(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    task = kws.Task(settings(root), 4, 0, "F")
    task.prepare_training()
    assert "training speakers" not in caplog.text
    speaker = next(clip.speaker for clip in task.index[0]["training"] if clip.speaker)
    for name in (f"yes/{speaker}_nohash_7.wav", f"_unknown_/bird_{speaker}_nohash_7.wav"):
        write_tone(root / "test" / name, 100, 0.2)
    kws.Task(settings(root), 4, 0, "F").prepare_training()
    assert f"F.test_root: 1 test speakers are training speakers, such as '{speaker}'" in caplog.text


def test_a_set_without_speakers_says_what_to_set(root: Path) -> None:
    task = kws.Task(settings(root, validation_percentage=0.001), 4, 0, "F")
    with pytest.raises(UserError, match=r"F\.validation_percentage: .* no speaker into dev at 0\.001 %: set a larger"):
        task.evaluation_data("dev")
    task = kws.Task(settings(root, validation_percentage=99.9), 4, 0, "F")
    with pytest.raises(UserError, match=r"leaves no training speaker: set smaller validation_percentage"):
        task.prepare_training()


def test_a_keyword_without_training_clips_is_named(root: Path) -> None:
    held_out = {name.split("/")[1] for name in keys(root)["validation"]}
    for path in (root / "train/no").iterdir():
        if path.name not in held_out:
            path.unlink()
    with pytest.raises(UserError, match=r"leaves keyword 'no' no training clip: set smaller"):
        kws.Task(settings(root), 4, 0, "F").prepare_training()
