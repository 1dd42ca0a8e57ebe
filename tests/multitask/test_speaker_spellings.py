"""Names of speakers that differ only in case or Unicode normal form are one speaker, in every task and list."""

from __future__ import annotations

import hashlib
import shutil
import unicodedata
from pathlib import Path

import pytest
from helpers.trees import WORDS, speech_commands, voxceleb, write_tone

from distilled_student.common.errors import UserError
from distilled_student.corpora.speakers import read_trials
from distilled_student.multitask.tasks import kws, sv
from distilled_student.multitask.tasks.kws_index import class_index
from distilled_student.multitask.tasks.sv_index import SpeakerIndex

COMPOSED, DECOMPOSED = (unicodedata.normalize(form, "zoë") for form in ("NFC", "NFD"))


def percentage(name: str) -> float:
    """TensorFlow's hash of a speaker's name."""
    return int(hashlib.sha1(name.encode()).hexdigest(), 16) % 2**27 * 100 / (2**27 - 1)


def keyword_settings(root: Path, **more: float) -> kws.Settings:
    values = {"validation_percentage": 50, "testing_percentage": 0, "unknown_percentage": None, **more}
    return kws.Settings(train_root=str(root / "train"), test_root=str(root / "test"), keywords=WORDS, **values)


def test_a_person_whose_name_is_spelt_in_two_ways_is_in_one_set_of_keywords(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = speech_commands(tmp_path)
    spellings = [name for i in range(12) for name in (f"Ann{i}", f"ann{i}")]
    for i, name in enumerate(spellings):
        write_tone(root / f"train/yes/{name}_nohash_0.wav", 200 + i, 0.2)
    assert any((percentage(f"Ann{i}") < 50) != (percentage(f"ann{i}") < 50) for i in range(12)), "hashes differ"
    sets, _ = class_index(keyword_settings(root), 0, "F")
    speakers = {part: {c.key.split("/")[1].split("_")[0].lower() for c in clips} for part, clips in sets.items()}
    assert not {name for name in speakers["validation"] & speakers["training"] if name.startswith("ann")}
    found = {clip.speaker for clips in sets.values() for clip in clips if "nn" in clip.speaker}
    assert found == {f"Ann{i}" for i in range(12)}
    assert "F.train_root: 12 names of speakers differ from another one only in case, such as 'Ann0' and 'ann0'" in (
        caplog.text
    )


def test_the_form_of_a_file_systems_names_does_not_change_the_sets_and_usual_names_keep_tensorflows_hash(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    parts = []
    for form in ("NFC", "NFD"):
        root = speech_commands(tmp_path / form)
        for i in range(12):
            write_tone(root / "train/yes" / f"{unicodedata.normalize(form, f'zoë{i}')}_nohash_0.wav", 200 + i, 0.2)
        sets, _ = class_index(keyword_settings(root), 0, "F")
        part = {clip.speaker: name for name, clips in sets.items() for clip in clips if clip.speaker}
        assert all((percentage(who) < 50) == (name == "validation") for who, name in part.items())
        parts.append(part)
    assert parts[0] == parts[1] and "differ" not in caplog.text


def test_a_tested_speaker_in_another_case_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = speech_commands(tmp_path)
    task = kws.Task(keyword_settings(root), 4, 0, "F")
    speaker = next(clip.speaker for clip in task.index[0]["training"] if clip.speaker)
    write_tone(root / f"test/yes/{speaker.upper()}_nohash_7.wav", 100, 0.2)
    kws.Task(keyword_settings(root), 4, 0, "F").prepare_training()
    assert f"F.test_root: 1 test speakers are training speakers, such as '{speaker.upper()}'" in caplog.text


def test_test_clips_whose_names_do_not_say_the_speaker_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = speech_commands(tmp_path)
    write_tone(root / "test/yes/a.wav", 100, 0.2)
    kws.Task(keyword_settings(root), 4, 0, "F").prepare_training()
    assert "F.test_root: 1 clips are not named SPEAKER_nohash_TAKE, such as yes/a.wav" in caplog.text


def test_folders_of_one_speaker_in_two_spellings_are_one_class(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = voxceleb(tmp_path, speakers=4)
    for source, name in (("id1000", "ID1000"), ("id1001", COMPOSED), ("id1002", DECOMPOSED)):
        shutil.copytree(root / "dev/wav" / source / "s0", root / "dev/wav" / name / "s7")
    found = SpeakerIndex(root, "veri_test.txt", 2, (), "F")
    everyone = found.training | found.development
    assert {name: len(files) for name, files in everyone.items()} == {
        "ID1000": 6,
        "id1001": 4,
        "id1002": 4,
        "id1003": 4,
        COMPOSED: 4,
    }
    assert (
        "F.root: " in caplog.text and "1 names of speakers differ from another one only in case, such as" in caplog.text
    )
    hashes = sorted(everyone, key=percentage)
    assert set(found.development) == set(hashes[:2])


def test_a_trial_list_takes_two_spellings_for_one_speaker(tmp_path: Path) -> None:
    for name in ("ann/1", "ANN/2", "bob/1", f"{COMPOSED}/1", f"{DECOMPOSED}/2"):
        write_tone(tmp_path / f"{name}.wav", 200, 0.2)
    lines = ["1 ann/1.wav ANN/2.wav", f"1 {COMPOSED}/1.wav {DECOMPOSED}/2.wav", "0 ann/1.wav bob/1.wav"]
    (tmp_path / "list.txt").write_text("\n".join(lines), encoding="utf-8")
    trials, names = read_trials(tmp_path / "list.txt", [tmp_path])
    assert trials.speaker_names == ["ANN", "bob", COMPOSED] and names == {"ann", "ANN", "bob", COMPOSED}
    (tmp_path / "list.txt").write_text("\n".join([*lines, "0 ann/1.wav ANN/2.wav"]), encoding="utf-8")
    with pytest.raises(UserError, match=r"line 4: 0 marks a trial of two speakers, but both files are of one, 'ANN'"):
        read_trials(tmp_path / "list.txt", [tmp_path])


def test_a_checkpoints_speakers_are_the_same_in_another_unicode_form(tmp_path: Path) -> None:
    task = sv.Task(sv.Settings(root=str(voxceleb(tmp_path)), dev_speakers=2), 4, 0, "F")
    task.class_names = [COMPOSED, "b"]
    task.check_classes([DECOMPOSED, "b"])
    with pytest.raises(UserError, match="class 1 is 'b', but 'c' in the checkpoint"):
        task.check_classes([DECOMPOSED, "c"])
