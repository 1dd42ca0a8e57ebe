"""Profiles: JSON that only the user may read, for names of any alphabet, of one model; several enrolments add up."""

from __future__ import annotations

import json
import math
import stat
import unicodedata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from filelock import FileLock

import distilled_student as ds
from distilled_student import UserError
from distilled_student.device import enrolled, named_files
from distilled_student.device.named_files import profiles_folder
from distilled_student.device.profiles import Profiles

RNG = np.random.default_rng(0)


def vectors(count: int) -> np.ndarray:
    found = RNG.standard_normal((count, 6)).astype(np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def open_profiles(folder: Path, fingerprint: str = "aa", name: str = "edge") -> Profiles:
    model: Any = SimpleNamespace(fingerprint=fingerprint, embedding_size=6)
    return Profiles(folder, model, name)


def test_an_enrolment_is_the_mean_vector_with_the_clips_and_the_seconds(tmp_path: Path) -> None:
    profiles, rows = open_profiles(tmp_path / "p"), vectors(3)
    profiles.write("Ana", rows, 4.5)
    found = profiles.read("Ana")
    mean = rows.astype(np.float64).sum(axis=0)
    np.testing.assert_allclose(found.vector, mean / np.sqrt((mean**2).sum()), atol=1e-6)
    assert (found.clips, found.seconds) == (3, 4.5)


def test_several_enrolments_add_up_and_replace_forgets_the_earlier_ones(tmp_path: Path) -> None:
    profiles, first, second = open_profiles(tmp_path), vectors(2), vectors(1)
    profiles.write("Ana", first, 2.0)
    profiles.write("Ana", second, 1.5)
    assert (profiles.read("Ana").clips, profiles.read("Ana").seconds) == (3, 3.5)
    stored = profiles.find("Ana")
    assert stored is not None
    np.testing.assert_array_equal(stored.matrix, np.concatenate([first, second]))
    profiles.write("Ana", second, 1.5, replace=True)
    assert profiles.read("Ana").clips == 1


def test_only_the_user_may_read_the_files_and_the_folder(tmp_path: Path) -> None:
    open_profiles(tmp_path / "a" / "p").write("Ana", vectors(1), 1.0)
    assert stat.S_IMODE((tmp_path / "a" / "p").stat().st_mode) == 0o700
    for file in (tmp_path / "a" / "p").iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file


NAMES = ["علي", "Jürgen", "Ju\u0308rgen 2", "名前", "../../etc", "a/b", "CON", "ana", "ANA", "x" * 100, "🦉", "a.b:c*?"]


def test_names_of_any_alphabet_are_kept_apart_inside_the_folder(tmp_path: Path) -> None:
    profiles = open_profiles(tmp_path / "p")
    for number, name in enumerate(NAMES, 1):
        profiles.write(name, vectors(1), float(number))
    assert [profiles.read(name).seconds for name in NAMES] == list(range(1, len(NAMES) + 1))
    assert len(profiles.names()) == len(NAMES) == len(list((tmp_path / "p").glob("*.json")))
    assert len({file.name.lower() for file in (tmp_path / "p").iterdir()}) == len(NAMES) + 1
    assert [path.name for path in tmp_path.iterdir()] == ["p"]


def test_one_name_in_two_forms_of_unicode_is_one_person(tmp_path: Path) -> None:
    profiles = open_profiles(tmp_path)
    profiles.write("Ju\u0308rgen", vectors(1), 1.0)
    assert profiles.names() == ["J\u00fcrgen"] and profiles.read("J\u00fcrgen").clips == 1


@pytest.mark.parametrize("name", ["", "  ", "a\nb", "\udcff", "x" * 101])
def test_a_name_that_is_no_text_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="NAME"):
        open_profiles(tmp_path).write(name, vectors(1), 1.0)


def test_the_profile_of_another_model_is_refused_with_what_to_do(tmp_path: Path) -> None:
    open_profiles(tmp_path).write("Ana", vectors(1), 1.0)
    other = open_profiles(tmp_path, "bb", "tiny")
    for attempt in (lambda: other.read("Ana"), lambda: other.write("Ana", vectors(1), 1.0), other.read_all):
        with pytest.raises(UserError, match="Ana: was enrolled with another model, edge: use --model edge, or enrol"):
            attempt()
    other.write("Ben", vectors(1), 1.0)
    enrolled, others = other.read_all()
    assert list(enrolled) == ["Ben"] and others == ["Ana"]
    other.write("Ana", vectors(1), 1.0, replace=True)
    assert other.read("Ana").clips == 1


def test_an_unknown_name_is_answered_with_the_closest_one(tmp_path: Path) -> None:
    profiles = open_profiles(tmp_path)
    with pytest.raises(UserError, match=r"Ana: is not enrolled in .*`distilled-student enrol Ana FILES"):
        profiles.read("Ana")
    profiles.write("Ana", vectors(1), 1.0)
    for attempt in (profiles.read, profiles.forget):
        with pytest.raises(UserError, match="did you mean `Ana`"):
            attempt("Anna")
    profiles.forget("Ana")
    assert profiles.names() == []


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"count": 7},
        {"vectors": [[float("nan")] * 6]},
        {"vectors": [[2.0] * 6]},
        {"vectors": [[1.0], [1.0, 2.0]]},
        {"vectors": [[1.0, 0.0]]},
        {"vectors": [[10**400] * 6]},
        {"vectors": [["1.0"] + ["0.0"] * 5]},
        {"seconds": "long"},
        {"seconds": 10**400},
        {"seconds": math.inf},
        {"seconds": math.nan},
        {"count": True},
        {"name": 3},
        {"other": 1},
        None,
    ],
)
def test_a_damaged_profile_is_one_line_with_the_file_and_the_remedy(change: dict | None, tmp_path: Path) -> None:
    profiles = open_profiles(tmp_path)
    profiles.write("Ana", vectors(1), 1.0)
    (file,) = tmp_path.glob("*.json")
    content = json.loads(file.read_text())
    file.write_text("{" if change is None else json.dumps(content | change))
    for attempt in (lambda: profiles.read("Ana"), profiles.read_all, profiles.all):
        with pytest.raises(UserError, match=r"speaker-Ana.*; delete it and enrol the person again$") as error:
            attempt()
        assert "\n" not in str(error.value)
    profiles.forget("Ana")


@pytest.mark.parametrize("name", ["Bea", "../Ana", "Ana\n", "A\u001b[31mna", " Ana", "", "a" * 101])
def test_a_file_with_another_name_than_that_of_its_person_is_refused(name: str, tmp_path: Path) -> None:
    profiles = open_profiles(tmp_path)
    profiles.write("Ana", vectors(1), 1.0)
    (file,) = tmp_path.glob("*.json")
    file.write_text(json.dumps(json.loads(file.read_text()) | {"name": name}))
    for attempt in (profiles.all, profiles.read_all, lambda: profiles.read("Ana")):
        with pytest.raises(UserError, match=f"{file.name}: is not the profile of a person .*delete it") as error:
            attempt()
        assert str(error.value).isprintable()


def test_a_file_whose_name_was_decomposed_by_another_file_system_is_that_of_its_person(tmp_path: Path) -> None:
    profiles, name = open_profiles(tmp_path), "\u00c9mile"
    profiles.write(name, vectors(1), 1.0)
    (file,) = tmp_path.glob("*.json")
    copy = file.rename(file.with_name(unicodedata.normalize("NFD", file.name)))
    assert profiles.names() == [name] and profiles.read(name).clips == 1
    profiles.write(name, vectors(2), 1.0)
    assert list(tmp_path.glob("*.json")) == [copy], "the person has one file"
    profiles.forget(name)
    assert not list(tmp_path.glob("*.json"))


def test_two_files_of_one_person_are_refused(tmp_path: Path) -> None:
    profiles = open_profiles(tmp_path)
    profiles.write("Ana", vectors(1), 1.0)
    (file,) = tmp_path.glob("*.json")
    (tmp_path / "speaker-copy.json").write_text(file.read_text())
    with pytest.raises(UserError, match=f"speaker-copy.json: .*name: Ana belongs in the file {file.name}"):
        profiles.names()


def test_a_clip_of_one_sample_leaves_a_profile_that_can_be_read(tmp_path: Path) -> None:
    profiles = open_profiles(tmp_path)
    profiles.write("Ana", vectors(1), 1 / 16_000)
    assert profiles.read("Ana").seconds == 0.001


def test_a_folder_that_another_process_keeps_locked_is_an_error_after_some_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(named_files, "LOCK_SECONDS", 0.1)
    profiles = open_profiles(tmp_path)
    profiles.write("Ana", vectors(1), 1.0)
    with FileLock(tmp_path / ".lock"):
        for attempt in (lambda: profiles.write("Ana", vectors(1), 1.0), lambda: profiles.forget("Ana")):
            with pytest.raises(UserError, match=r"\.lock: another process has used the folder for 0\.1 s; end it"):
                attempt()
    profiles.forget("Ana")


def test_a_folder_that_may_not_be_written_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / ".lock").mkdir()
    with pytest.raises(UserError, match=f"{tmp_path}: cannot be written"):
        open_profiles(tmp_path).write("Ana", vectors(1), 1.0)


def test_the_folder_is_the_given_one_or_that_of_the_environment_or_one_of_the_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.delenv("DISTILLED_STUDENT_PROFILES", raising=False)
    assert profiles_folder().parts[-2:] == ("distilled-student", "profiles")
    monkeypatch.setenv("DISTILLED_STUDENT_PROFILES", str(tmp_path / "other"))
    assert profiles_folder() == tmp_path / "other"
    assert profiles_folder(tmp_path) == tmp_path


def test_a_profile_with_vectors_of_another_size_is_a_warning_while_a_service_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(enrolled, "SECONDS", 0.0)
    model = ds.load("tiny")
    rows = np.eye(2, model.embedding_size, dtype=np.float32)
    Profiles(tmp_path, model, "tiny").write("Ana", rows, 2.0)
    people = enrolled.Enrolled(model, tmp_path)
    before = people.speakers
    (file,) = tmp_path.glob("*.json")
    for change in ({"vectors": [[1.0, 0.0], [0.0, 1.0]]}, {"seconds": 10**400}):
        file.write_text(json.dumps(json.loads(file.read_text()) | change))
        people.refresh()
        assert people.speakers is before and f"{file}: is not the profile of a person" in caplog.text
        caplog.clear()
        with pytest.raises(UserError, match="is not the profile of a person"):
            enrolled.Enrolled(model, tmp_path)
