"""One recording in two classes, or both trained on and held out: links are refused, copies are named."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from helpers.trees import WORDS, speech_commands, voxceleb, write_tone

from distilled_student.common.errors import UserError
from distilled_student.multitask.tasks import kws, sv


@pytest.fixture
def words(tmp_path: Path) -> Path:
    """Keywords whose recordings differ: those of the helper have the same noise for each word."""
    root = speech_commands(tmp_path / "sc")
    for seed, path in enumerate(sorted(root.rglob("*_nohash_*.wav"))):
        write_tone(path, 200 + seed, 0.3, seed)
    return root


@pytest.fixture
def vox(tmp_path: Path) -> Path:
    root = voxceleb(tmp_path / "vox")
    for seed, path in enumerate(sorted(root.rglob("*.wav"))):
        write_tone(path, 100 + 3 * seed, 0.3, seed)
    return root


def keywords(root: Path, **more: Any) -> kws.Task:
    values = {"validation_percentage": 30, "testing_percentage": 0, "unknown_percentage": None, **more}
    folders = {"train_root": str(root / "train"), "test_root": str(root / "test")}
    return kws.Task(kws.Settings(**folders, keywords=WORDS, **values), 4, 0, "F")


def speakers(root: Path, **more: Any) -> sv.Task:
    return sv.Task(sv.Settings(root=str(root), dev_trials=8, **{"dev_speakers": 2, **more}), 4, 0, "F")


def test_corpora_without_copies_are_trained_on_without_a_message(
    words: Path, vox: Path, caplog: pytest.LogCaptureFixture
) -> None:
    keywords(words).prepare_training()
    speakers(vox).prepare_training()
    speakers(vox, dev_speakers=0, trials=None).prepare_training()
    assert not caplog.text


def test_a_recording_in_two_keyword_classes_is_named_and_a_link_is_refused(
    words: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trained = [clip for clip in keywords(words).index[0]["training"] if clip.volume is None]
    source = next(clip.path for clip in trained if clip.key.startswith("yes/"))
    speaker = source.name.split("_")[0]
    copy = words / f"train/no/{speaker}_nohash_9.wav"
    shutil.copy(source, copy)
    keywords(words).prepare_training()
    assert f"F: {source} has the same bytes as {copy}, but they are of two classes, 'no' and 'yes'" in caplog.text
    copy.unlink()
    os.link(source, copy)
    with pytest.raises(
        UserError, match=r"F: .* is the same recording as .*, but they are of two classes, 'no' and 'yes'"
    ):
        keywords(words).prepare_training()


def test_a_trained_recording_under_another_name_in_the_test_folder_is_named(
    words: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trained = [clip for clip in keywords(words).index[0]["training"] if clip.volume is None]
    for number, source in enumerate([clip.path for clip in trained if clip.key.startswith("yes/")][:2]):
        shutil.copy(source, words / f"test/yes/stranger{number}_nohash_0.wav")
    keywords(words).prepare_training()
    assert "stranger0_nohash_0.wav has the same bytes as" in caplog.text
    assert "one is trained on and one is held out, so the results do not hold for new recordings (and 1 more)" in (
        caplog.text
    )
    (words / "test/yes/linked_nohash_0.wav").symlink_to(source)
    with pytest.raises(UserError, match=r"linked_nohash_0\.wav is the same recording as .* one is trained on"):
        keywords(words).prepare_training()


def test_a_recording_of_two_speakers_is_named_and_a_link_is_refused(
    vox: Path, caplog: pytest.LogCaptureFixture
) -> None:
    one, two = list(speakers(vox).index.training)[:2]
    source, copy = vox / f"dev/wav/{one}/s0/00000.wav", vox / f"dev/wav/{two}/s0/99999.wav"
    shutil.copy(source, copy)
    speakers(vox).prepare_training()
    assert f"F: {copy} has the same bytes as {source}, but they are of two classes, '{one}' and '{two}'" in caplog.text
    copy.unlink()
    copy.symlink_to(source)
    with pytest.raises(UserError, match=rf"F: .* is the same recording as .* two classes, '{one}' and '{two}'"):
        speakers(vox).prepare_training()


@pytest.mark.parametrize("is_link", [False, True])
def test_a_development_recording_in_an_extra_root_is_named_or_refused(
    vox: Path, tmp_path: Path, is_link: bool, caplog: pytest.LogCaptureFixture
) -> None:
    held_out = next(iter(speakers(vox).index.development))
    copy = tmp_path / "extra/somebody/1.wav"
    copy.parent.mkdir(parents=True)
    (os.link if is_link else shutil.copy)(vox / f"dev/wav/{held_out}/s0/00000.wav", copy)
    task = speakers(vox, extra_roots=[str(tmp_path / "extra")])
    if is_link:
        with pytest.raises(UserError, match=r"same recording as .*extra/somebody/1\.wav, but one is trained on"):
            task.prepare_training()
    else:
        task.prepare_training()
        assert "one is trained on and one is held out" in caplog.text


def test_a_copied_recording_of_the_test_trials_is_named(vox: Path, caplog: pytest.LogCaptureFixture) -> None:
    one = next(iter(speakers(vox).index.training))
    shutil.copy(vox / "test/wav/id2000/s0/00000.wav", vox / f"dev/wav/{one}/s0/99999.wav")
    speakers(vox).prepare_training()
    assert "test/wav/id2000/s0/00000.wav has the same bytes as" in caplog.text
    assert "one is trained on and one is held out" in caplog.text


def test_a_folder_that_is_both_trained_on_and_tested_is_refused(words: Path) -> None:
    task = keywords(words)
    trained = [clip for clip in task.index[0]["training"] if clip.volume is None]
    task.testing = trained[:3]
    with pytest.raises(
        UserError, match=r"\.wav is both trained on and held out \(3 such files\): remove one of the two"
    ):
        task.prepare_training()
