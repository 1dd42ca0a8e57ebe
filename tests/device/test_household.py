"""The calibration on a household: the offset of known distributions, its use, intervals and overlapping voices."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
from helpers.people import CALIBRATION

from distilled_student import UserError
from distilled_student.device import household, model_files
from distilled_student.device.household import Trial, fit_offset, rate, shifted
from distilled_student.onnx import Condition

Command = Callable[..., tuple[int, str, str]]


def trials(people: int, clips: int, mean: float, deviation: float) -> list[Trial]:
    rng, condition = np.random.default_rng(0), Condition(3, 3.0, 1.0)
    names = [f"person {number}" for number in range(people)]
    return [
        Trial(enrolled, speaker, float(rng.normal(mean, deviation)), condition)
        for enrolled in names
        for speaker in names
        if speaker != enrolled
        for _ in range(clips)
    ]


def test_the_offset_is_the_shift_of_the_one_per_cent_point() -> None:
    assert fit_offset(trials(12, 20, 0.25, 0.2), CALIBRATION).offset == pytest.approx(0.25, abs=0.02)
    found = fit_offset(trials(20, 20, 0.25, 0.1), CALIBRATION).offset  # 1 % points: 0.25 + 0.233 and 0.465
    assert found == pytest.approx(0.25 + 2.326 * 0.1 - 2.326 * 0.2, abs=0.02)


def test_a_small_offset_of_few_people_is_not_believed() -> None:
    offset, note, _ = fit_offset(trials(2, 5, 0.03, 0.2), CALIBRATION)
    assert offset == 0.0 and "was not applied: it is below its standard error, 0.160" in note  # 0.8 * 0.2 for one pair


@pytest.mark.parametrize("people", [2, 6, 20])
def test_thresholds_are_never_lowered_since_strangers_were_not_measured(people: int) -> None:
    offset, note, _ = fit_offset(trials(people, 20, -0.3, 0.2), CALIBRATION)
    assert offset == 0.0 and "was not applied: lower thresholds may accept more strangers" in note


def write_home(folder: Path, people: Path, **clips: list[str]) -> Path:
    """A household: a folder for each person with these clips, each a path without its suffix."""
    for name, files in clips.items():
        (folder / name).mkdir(parents=True)
        for number, file in enumerate(files):
            samples, rate_of_file = soundfile.read(people / f"{file}.wav")
            soundfile.write(folder / name / f"{number}.flac", samples, rate_of_file)
    return folder


def test_one_person_in_two_folders_leaves_nothing_behind_and_says_so(
    command: Command, people: Path, tmp_path: Path
) -> None:
    words = ["if_sara/yes", "if_sara/no", "if_sara/stop", "if_sara/left"]
    code, out, err = command("calibrate", write_home(tmp_path / "home", people, p0=words, p1=words))
    assert code == 1 and "of 4 clips of p1, 4 are accepted as p0, 4 are as much like p0 as p0's own clips" in out
    assert "thresholds not moved, nothing is stored" in out and "one person is in two folders" in err
    assert not list((tmp_path / "profiles").glob("calibration-*"))
    assert json.loads(command("calibrate", tmp_path / "home", "--json")[1])["file"] is None


@pytest.mark.parametrize(("accepted", "is_found"), [(2, True), (1, False)])
def test_one_person_with_other_words_in_a_second_folder_is_found_by_what_is_accepted(
    accepted: int, is_found: bool
) -> None:
    condition = Condition(3, 3.0, 1.0)  # 1 % of other people's cosines are 0.465 or more
    cosines = {("a", "a"): [0.9] * 4, ("b", "b"): [0.9] * 4, ("b", "a"): [0.3] * 4}
    cosines["a", "b"] = [0.5] * accepted + [0.3] * (4 - accepted)
    trials_ = [Trial(*pair, cosine, condition) for pair, values in cosines.items() for cosine in values]
    found = household.find_overlaps(trials_, CALIBRATION)
    assert found == ([("a", "b", 0, 2, 4)] if is_found else [])


def test_copies_of_a_clip_are_left_out_of_a_calibration(command: Command, people: Path, tmp_path: Path) -> None:
    ana = ["if_sara/yes", "if_sara/no", "if_sara/stop", "if_sara/yes"]
    max_ = ["am_onyx/yes", "am_onyx/no", "am_onyx/stop"]
    report = json.loads(command("calibrate", write_home(tmp_path / "home", people, ana=ana, max=max_), "--json")[1])
    assert report["clips"] == 6 and [found["file"] for found in report["left_out"]] == [
        str(tmp_path / "home" / "ana" / "3.flac")
    ]


def test_an_offset_that_refuses_most_of_the_peoples_own_clips_is_not_used() -> None:
    condition = Condition(3, 3.0, 1.0)
    own = [Trial(name, name, 0.5, condition) for name in ("a", "b", "c") for _ in range(4)]
    others = trials(3, 20, 0.45, 0.02)
    named = {f"person {number}": name for number, name in enumerate("abc")}
    all_of_them = own + [
        trial._replace(enrolled=named[trial.enrolled], speaker=named[trial.speaker]) for trial in others
    ]
    offset, note, is_usable = household._fit(all_of_them, [], CALIBRATION)
    assert (offset, is_usable) == (0.0, False) and "100% of the people's own clips are refused" in note


def test_a_calibration_says_that_strangers_were_not_measured(command: Command, people: Path) -> None:
    code, _, err = command("calibrate", people)
    assert code in (0, 1) and "note: people who are not in this folder were not measured" in err


def test_more_accepted_clips_than_stated_are_said_with_a_smaller_share() -> None:
    points = [
        household.Expected(share, rate(0, 9), rate(accepted, 120))
        for share, accepted in ((0.05, 17), (0.01, 3), (0.001, 0))
    ]
    (note,) = household.exceeded(points)  # 3 of 120 may be 1 % by its interval
    assert note.startswith(
        "at 5.0% false accepts 14.2% [9.0%, 21.5%] (17 of 120) of the other people's clips are accepted"
    )
    assert "use --false-accepts 0.01, which accepts 2.5%" in note
    (note,) = household.exceeded([household.Expected(0.05, rate(0, 9), rate(30, 120))])
    assert "and no smaller --false-accepts helps" in note


def test_a_shifted_calibration_takes_the_offset_from_every_cosine() -> None:
    moved, condition = shifted(CALIBRATION, 0.1), Condition(4, 4.0, 2.0)
    for cosine in (-0.2, 0.4, 0.9):
        assert moved.ratio(cosine, condition) == pytest.approx(CALIBRATION.ratio(cosine - 0.1, condition))
    for share in (0.05, 0.02, 0.001):
        assert moved.threshold(share, condition) == pytest.approx(CALIBRATION.threshold(share, condition) + 0.1)


def test_the_interval_of_a_share_is_wilsons() -> None:
    found = rate(2, 40)  # computed by hand: (0.05 + 0.048 ± 1.96 * sqrt(...)) / 1.096
    assert (found.share, round(found.low, 4), round(found.high, 4)) == (0.05, 0.0138, 0.1650)
    for trials_ in (3, 13, 30, 137):  # at the ends the interval has exactly 0 or 1, and z^2 / (n + z^2)
        assert (rate(0, trials_).low, rate(trials_, trials_).high) == (0.0, 1.0)
        assert rate(0, trials_).high == pytest.approx(1.959964**2 / (trials_ + 1.959964**2), abs=1e-6)
        assert rate(trials_, trials_).low == pytest.approx(trials_ / (trials_ + 1.959964**2), abs=1e-6)
    assert rate(0, 30).high == pytest.approx(0.1135, abs=1e-4)


def test_a_calibration_is_kept_used_and_forgotten(command: Command, people: Path, tmp_path: Path) -> None:
    emma = [people / "if_sara" / f"{word}.wav" for word in ("yes", "no", "stop")]
    assert command("enrol", "Emma", *emma)[0] == 0
    file_of_emma = people / "if_sara" / "go.wav"
    before = json.loads(command("verify", "Emma", file_of_emma, "--json")[1])
    code, out, _ = command("calibrate", people, "--json")
    report = json.loads(out)
    assert code in (0, 1) and (report["people"], report["clips"] + len(report["left_out"])) == (3, 18)
    assert [at["false_accepts"] for at in report["expected"]] == [0.05, 0.01, 0.001]
    assert all(at["misses"]["low"] <= at["misses"]["share"] <= at["misses"]["high"] for at in report["expected"])
    file = Path(report["file"])
    content = json.loads(file.read_text())
    assert file.parent == tmp_path / "profiles" and content["offset"] == pytest.approx(report["offset"])
    file.write_text(json.dumps(content | {"offset": 0.5}))
    after = json.loads(command("verify", "Emma", file_of_emma, "--json")[1])
    # 20 and 2 * log(3 clips) for each unit of the cosine
    assert before["ratio"] - after["ratio"] == pytest.approx(0.5 * (20 + 2 * np.log(3)), abs=1e-3)
    low = tmp_path / "stranger.wav"  # of 8 kHz, in a household that was calibrated at 16 kHz
    soundfile.write(low, soxr.resample(soundfile.read(people / "am_onyx" / "go.wav")[0], 16_000, 8_000), 8_000)
    code, out, _ = command("verify", "Emma", low)
    assert code == 1 and out.startswith("no: Emma, nothing above ")
    file.write_text("{}")
    assert "is not a calibration" in command("verify", "Emma", file_of_emma)[2]
    assert command("calibrate", "--forget")[:2] == (0, f"edge: the calibration {file} is forgotten\n")
    assert not file.exists()
    assert json.loads(command("verify", "Emma", file_of_emma, "--json")[1]) == before


def test_two_folders_of_one_voice_are_named_with_exit_code_1(command: Command, people: Path, tmp_path: Path) -> None:
    for name, voice, words in (
        ("Ana", "if_sara", ("yes", "no", "stop")),
        ("Eva", "if_sara", ("left", "right", "go")),
        ("Max", "am_onyx", ("yes", "no", "stop")),
    ):
        (tmp_path / "home" / name).mkdir(parents=True)
        for word in words:
            samples, rate_of_file = soundfile.read(people / voice / f"{word}.wav")
            soundfile.write(tmp_path / "home" / name / f"{word}.flac", samples, rate_of_file)
    code, out, _ = command("calibrate", tmp_path / "home")
    assert code == 1 and "of 3 clips of Eva, 3 are accepted as Ana, 3 are as much like Ana as Ana's own clips" in out
    assert "Max" not in out and "thresholds not moved, kept in" in out


def test_too_little_to_calibrate_on_is_said_with_what_was_found(command: Command, people: Path, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    assert "found no folders" in command("calibrate", tmp_path / "home")[2]
    (tmp_path / "home" / "Ana").symlink_to(people / "if_sara")
    code, _, err = command("calibrate", tmp_path / "home")
    assert code == 2 and "needs 2 people or more" in err and "found Ana 6 (0 clips with problems)" in err
    (tmp_path / "home" / "Ben").mkdir()
    assert "each; found Ben 0 (0 clips with problems)" in command("calibrate", tmp_path / "home")[2], "Ana has enough"


def test_a_calibration_of_another_model_is_not_used(command: Command, people: Path, tmp_path: Path) -> None:
    household.save_household(tmp_path / "profiles", household.Household("other", "edge", 0.9, 2, 10))
    model = model_files.open_model("tiny")
    before = model.calibration
    assert household.apply_household(model, tmp_path / "profiles") is None and model.calibration is before


def test_forgetting_a_calibration_says_what_was_forgotten_or_that_there_was_none(
    command: Command, people: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "profiles"
    assert command("calibrate", "--forget") == (0, f"edge: there is no calibration in {folder}\n", "")
    fingerprint = model_files.open_model("edge").fingerprint
    file = household.save_household(folder, household.Household(fingerprint, "edge", 0.1, 2, 10))
    assert command("calibrate", "--forget") == (0, f"edge: the calibration {file} is forgotten\n", "")
    assert json.loads(command("calibrate", "--forget", "--json")[1])["forgotten"] is False
    code, _, err = command("calibrate", people, "--forget")
    assert code == 2 and "cannot be used with --forget" in err


def test_a_calibration_whose_content_is_of_another_model_is_refused(tmp_path: Path) -> None:
    model = model_files.open_model("tiny")
    file = household.save_household(tmp_path, household.Household(model.fingerprint, "tiny", 0.1, 2, 10))
    file.write_text(file.read_text().replace(model.fingerprint, "another"))
    with pytest.raises(UserError, match=f"{file.name}: is not a calibration .fingerprint: of another model, tiny"):
        household.apply_household(model, tmp_path)
