"""Speech of synthesizers for the network of one's own words."""

from __future__ import annotations

import random
import shutil
import sys
from pathlib import Path

import pytest
import soundfile

from distilled_student.word_maps import synthetic

ARABIC = "\u0643\u062a\u0627\u0628"  # a word in letters that only the voices of its language can read


@pytest.fixture
def lists(tmp_path: Path) -> list[str]:
    texts = {"fr": "maison\nrue/S.\nx\n2e\nanticonstitutionnellement\n", "ar": f"{ARABIC}\n"}
    for language, text in texts.items():
        (tmp_path / f"{language}.dic").write_text(text, encoding="utf-8")
    return [f"{language}:{tmp_path / language}.dic" for language in texts]


def test_words_are_read_without_flags_of_dictionaries_digits_and_what_is_too_long(lists: list[str]) -> None:
    assert synthetic.read_words(lists) == {"fr": ["maison", "rue"], "ar": [ARABIC]}


def test_voices_say_words_of_their_language_and_the_others_words_in_latin_letters(
    lists: list[str], tmp_path: Path
) -> None:
    words, rng = synthetic.read_words(lists), random.Random(0)
    found = {"espeak-ng": ["ar", "fr-be", "sw"], "flite": ["slt"], "text2wave": ["kal_diphone"]}
    drawn = [synthetic.draw(words, words["fr"], found, tmp_path / "0.wav", rng) for _ in range(200)]
    assert {one.command[0] for one in drawn} == set(found)
    for one in drawn:
        said = set((one.text or one.command[-1]).replace(",", "").split())
        is_arabic = one.command[0] == "espeak-ng" and one.command[2].startswith("ar")
        assert said <= set(words["ar" if is_arabic else "fr"])
    rng = random.Random(0)
    assert drawn == [synthetic.draw(words, words["fr"], found, tmp_path / "0.wav", rng) for _ in range(200)]


def run(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["synthetic", *arguments])
    synthetic.main()


@pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="espeak-ng is not installed")
def test_the_command_writes_files_with_speech(
    lists: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run([str(tmp_path / "out"), *lists, "--files", "4"], monkeypatch)
    files = sorted((tmp_path / "out").glob("*.wav"))
    assert files and all(soundfile.info(file).duration > 0.5 for file in files)


@pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="espeak-ng is not installed")
def test_voices_that_spell_latin_letters_have_a_list_of_their_language_or_are_left_out(lists: list[str]) -> None:
    found = {"espeak-ng": ["ar", "fr-fr", "he", "sw"]}
    assert synthetic.usable(found, synthetic.read_words(lists)) == {"espeak-ng": ["ar", "fr-fr", "sw"]}
    assert synthetic.usable(found, synthetic.read_words(lists[:1])) == {"espeak-ng": ["fr-fr", "sw"]}


def test_what_is_missing_or_wrong_is_said(lists: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flite: dict[str, list[str]] = {"flite": ["slt"]}
    latin = tmp_path / "latin.dic"
    latin.write_bytes("\u00e9t\u00e9\n".encode("latin-1"))
    full = tmp_path / "full"
    full.mkdir()
    (full / "a.wav").touch()
    out = str(tmp_path / "out")
    for arguments, found, message in (
        ([out, *lists], {}, "install espeak-ng"),
        ([out, *lists[1:]], flite, "a list of words in Latin letters is missing"),
        ([out, "fr:nothing"], flite, "fr:nothing: expected LANGUAGE:FILE"),
        ([out, f"fr:{latin}"], flite, "latin.dic: cannot be read as a list of words, is not UTF-8"),
        ([out, *lists, "--files", "0"], flite, "--files: 0: expected 1 or more"),
        ([out, *lists], {"espeak-ng": ["sw"]}, "ar: is no language of"),
        ([str(full), *lists], flite, "full: is not empty"),
        ([str(latin), *lists], flite, "latin.dic: cannot be written: .* is a file; give a folder"),
    ):
        monkeypatch.setattr(synthetic, "voices", lambda found=found: found)
        with pytest.raises(SystemExit, match=message):
            run(arguments, monkeypatch)
        assert not Path(out).exists()
