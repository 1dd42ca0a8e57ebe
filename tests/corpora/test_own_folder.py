"""A folder of own recordings: its layout, its words, its people, and who is held out."""

from __future__ import annotations

import hashlib
import unicodedata
from pathlib import Path

import pytest

from distilled_student.common.errors import UserError
from distilled_student.corpora.held_out import check_number, number_held_out
from distilled_student.corpora.own_folder import OwnFolder, read_own_folder, split_people

KEY = "own.yaml: downstream_expert"
NAMES = ["anna", "ben", "cleo", "dora", "emil"]


def fill(root: Path, *paths: str) -> Path:
    """Empty files, as only their names are read."""
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()
    return root


def read(root: Path, layout: str | None = None, keywords: tuple[str, ...] = ()) -> OwnFolder:
    return read_own_folder(root, f"{KEY}.data", layout, keywords)


def who_says_what(folder: OwnFolder) -> dict[str, tuple[str, str]]:
    return {clip.path.name: (clip.speaker, clip.word) for clip in folder.clips}


def people_folder(root: Path, names: list[str], words: tuple[str, ...] = ("go", "halt"), takes: int = 2) -> OwnFolder:
    return read(fill(root, *(f"{w}/{n}_{take}.wav" for n in names for w in words for take in range(takes))))


@pytest.mark.parametrize(
    ("name", "speaker"),
    [
        ("anna_1.wav", "anna"),
        ("anna_yes_take 2.flac", "anna"),
        ("0a7c2a8d_nohash_0.wav", "0a7c2a8d"),
        ("two_names_nohash_0.wav", "two_names"),
        ("Anna Maria 3.wav", "Anna Maria"),
        ("ben-12.MP3", "ben"),
        ("ben (2).ogg", "ben"),
        ("ben.wav", "ben"),
        ("7.wav", "7"),
    ],
)
def test_the_name_of_a_file_in_a_words_folder_begins_with_its_speaker(tmp_path: Path, name: str, speaker: str) -> None:
    folder = read(fill(tmp_path, f"halt/{name}", "halt/other_1.wav"))
    assert folder.layout == "WORD/SPEAKER_*" and who_says_what(folder)[name] == (speaker, "halt")


def test_names_that_all_begin_with_the_same_part_are_people_up_to_the_last_underscore(tmp_path: Path) -> None:
    folder = read(fill(tmp_path, "go/speaker_1_1.wav", "go/speaker_1_2.wav", "go/speaker_2_1.wav"))
    assert folder.people == ["speaker_1", "speaker_2"]


def test_folders_of_folders_are_speakers_with_words(tmp_path: Path) -> None:
    folder = read(fill(tmp_path, "Anna/go/1.wav", "Anna/halt/x.flac", "Ben/go/1.wav"))
    assert folder.layout == "SPEAKER/WORD" and (folder.people, folder.words) == (["Anna", "Ben"], ["go", "halt"])


def test_folders_of_folders_are_words_with_speakers_where_keywords_or_the_layout_say_so(tmp_path: Path) -> None:
    fill(tmp_path, "go/Anna/1.wav", "halt/Anna/2.wav", "go/Ben/3.wav")
    for folder in (read(tmp_path, keywords=("GO",)), read(tmp_path, "WORD/SPEAKER")):
        assert (folder.people, folder.words) == (["Anna", "Ben"], ["go", "halt"])


def test_spellings_in_another_case_or_unicode_form_are_one_word_and_one_person(tmp_path: Path) -> None:
    other = unicodedata.normalize("NFD", "für Übung")
    folder = read(fill(tmp_path, "Für Übung/Zoë_1.wav", f"{other}/zoë_2.wav", "GO/Zoë_3.wav", "go/ben_1.wav"))
    assert folder.people == ["Zoë", "ben"] and folder.words == ["Für Übung", "GO"]


def test_noise_other_words_and_stray_files_are_no_words(tmp_path: Path) -> None:
    paths = ["go/a_1.wav", "go/b_1.wav", "_background_noise_/fan.wav", "_unknown_/a_9.wav", "notes.txt", "go/list.txt"]
    folder = read(fill(tmp_path, *paths, "go/c_1.m4a", "loose.wav"))
    assert folder.words == ["go"] and folder.people == ["a", "b"]
    assert [path.name for path in folder.noises] == ["fan.wav"]
    assert [(clip.path.name, clip.speaker) for clip in folder.other] == [("a_9.wav", "a")]
    assert "c_1.m4a" in folder.unused[0] and "ffmpeg" in folder.unused[0] and "loose.wav" in folder.unused[1]


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        ([], "has no recordings: expected WORD/SPEAKER_"),
        (["a_1.wav"], "has 1 files such as a_1.wav, but no folders"),
        (["go/a_1.m4a"], "a_1.m4a: .m4a is not read: convert it"),
        (["go/a_1.wav", "go/b_1.wav", "go/deep/c_1.wav"], r"deep/c_1.wav: expected WORD/SPEAKER_\*.wav, as most files"),
        (["a/go/1.wav", "b/go/1.wav", "c/1.wav"], r"c/1.wav: expected SPEAKER/WORD/\*.wav, as most files"),
        (["go/a_1.wav", "noise/b_1.wav"], "noise: is no word, but would be trained as one: move noise and silence to"),
        (["train/go/a_1.wav", "test/go/b_1.wav"], "holds the parts test, train: give .*/test"),
    ],
)
def test_a_folder_in_another_layout_is_answered_with_the_file_and_the_remedy(
    tmp_path: Path, paths: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=f"^{KEY}.data: .*{message}"):
        read(fill(tmp_path, *paths))


# How many people are held out


@pytest.mark.parametrize(
    ("people", "dev", "test"), [(2, 1, 0), (3, 1, 0), (4, 1, 0), (5, 2, 0), (10, 2, 2), (30, 6, 6)]
)
def test_a_share_of_a_fifth_holds_out(people: int, dev: int, test: int) -> None:
    assert number_held_out(0.2, people) == dev
    assert number_held_out(0.2, people, is_test=True) == test


@pytest.mark.parametrize("value", [-1, 1.0, 2.5, -0.2, True])
def test_a_number_is_a_whole_number_or_a_share(value: float) -> None:
    with pytest.raises(ValueError, match=r"^dev_speakers: needs a whole number of at least 0, or a share such as 0\.2"):
        check_number("dev_speakers", value)


def reference_split(folder: OwnFolder, dev: int, test: int) -> tuple[set[str], set[str]]:
    """A plain loop over people in the order of TensorFlow's hash; those who say more words come first."""
    size = 2**27 - 1

    def order(name: str) -> tuple[int, float]:
        words = {clip.word for clip in folder.clips if clip.speaker == name}
        return -len(words), int(hashlib.sha1(name.encode()).hexdigest(), 16) % (size + 1)

    chosen: list[str] = []
    for name in sorted({clip.speaker for clip in folder.clips}, key=order):
        own = [clip for clip in folder.clips if clip.speaker == name]
        rest = {clip.word for clip in folder.clips if clip.speaker not in (*chosen, name)}
        if len(own) >= 2 and rest == {clip.word for clip in folder.clips}:
            chosen.append(name)
        if len(chosen) == dev + test:
            break
    return set(chosen[:dev]), set(chosen[dev:])


@pytest.mark.parametrize("people", [2, 3, 5, 12, 30])
def test_the_people_who_are_held_out_are_those_of_a_plain_loop(tmp_path: Path, people: int) -> None:
    folder = people_folder(tmp_path, [f"person{i}" for i in range(people)])
    dev, test = split_people(folder, folder.words, 0.2, 0.2, KEY)
    expected = reference_split(folder, number_held_out(0.2, people), number_held_out(0.2, people, is_test=True))
    assert (set(dev), set(test)) == expected and not set(dev) & set(test) and len(dev) + len(test) < people


def test_nobody_is_held_out_who_alone_says_a_word_or_has_one_clip_or_says_fewer_words(tmp_path: Path) -> None:
    fill(tmp_path, "rare/anna_1.wav", "rare/anna_2.wav", "go/zoe_1.wav")
    fill(tmp_path, "go/xaver_1.wav", "go/xaver_2.wav")  # says one of two words
    folder = people_folder(tmp_path, ["anna", "ben", "cleo"])
    for number in (1, 2):
        dev, _ = split_people(folder, folder.words, number, 0, KEY)
        assert set(dev) == reference_split(folder, number, 0)[0]
        assert not {"anna", "zoe", "xaver"} & set(dev)


def test_adding_a_person_hardly_changes_who_is_held_out(tmp_path: Path) -> None:
    before, _ = split_people(people_folder(tmp_path, NAMES), ["go", "halt"], 2, 0, KEY)
    after, _ = split_people(people_folder(tmp_path, [*NAMES, "fritz"]), ["go", "halt"], 2, 0, KEY)
    assert len(set(before) & set(after)) >= 1


@pytest.mark.parametrize(
    ("names", "dev", "test", "message"),
    [
        (["anna"], 0.2, 0.2, r"data: .*: one person, 'anna', but people are held out.*: record another person"),
        (NAMES, 5, 0, "dev_speakers: 5 for development and 0 for the test of 5 people leave nobody to train on"),
        (NAMES, 3, 2, "dev_speakers: 3 for development and 2 for the test of 5 people leave nobody"),
        (NAMES, 0, 0, "dev_speakers: 0: needs 1 or more"),
    ],
)
def test_a_split_that_is_impossible_is_answered_in_one_line(
    tmp_path: Path, names: list[str], dev: float, test: float, message: str
) -> None:
    with pytest.raises(UserError, match=f"^{KEY}.{message}"):
        split_people(people_folder(tmp_path, names), ["go", "halt"], dev, test, KEY)


def test_a_single_folder_of_speakers_is_answered_with_the_folder_in_it(tmp_path: Path) -> None:
    folder = read(fill(tmp_path, "recordings/go/anna_1.wav", "recordings/halt/ben_1.wav"))
    with pytest.raises(UserError, match=r"if 'recordings' is no person, give .*/recordings$"):
        split_people(folder, folder.words, 0.2, 0.2, KEY)
