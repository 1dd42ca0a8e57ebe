"""Enrolment refuses clips that are too short, silent, clipped, noisy, copies, or unlike the others, and says why."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import soxr

import distilled_student as ds
from distilled_student.device.clip_checks import (
    Likeness,
    clipped_share,
    frame_levels,
    mark_unlike,
    measure_sound,
    signal_to_noise,
)
from distilled_student.device.enrolment import Clip, enrol, mark_other_people
from distilled_student.device.profiles import Profiles
from distilled_student.onnx.calibration import Calibration

Command = Callable[..., tuple[int, str, str]]
RNG = np.random.default_rng(0)


def samples_of(people: Path, word: str = "yes") -> np.ndarray:
    return soundfile.read(people / "af_river" / f"{word}.wav", dtype="float32")[0]


def clips(people: Path, voice: str, *words: str) -> list[Path]:
    return [people / voice / f"{word}.wav" for word in words]


def test_good_clips_are_enrolled_with_exit_code_0(command: Command, people: Path) -> None:
    code, out, err = command("enrol", "Bella", *clips(people, "af_river", "yes", "no"))
    assert code == 0 and out.count(": enrolled\n") == 2 and "note: 2 of at least 3 clips: " in err
    code, out, err = command("enrol", "Bella", *clips(people, "af_river", "stop"))
    assert code == 0 and out.count(": enrolled\n") == 1 and "Bella: 3 clips" in out and err == ""


def damaged(people: Path, kind: str) -> np.ndarray:
    speech = samples_of(people, "left")
    return {
        "too short": speech[7_000:8_600],
        "silent": 1e-4 * RNG.standard_normal(16_000),
        "clipped": np.clip(6 * speech / np.abs(speech).max(), -1, 1) * 0.5,
        "nothing above": soxr.resample(soxr.resample(speech, 16_000, 8_000), 8_000, 16_000),
        "noisy": speech + np.sqrt(np.square(speech).mean()) * RNG.standard_normal(len(speech)),
    }[kind]


@pytest.mark.parametrize("kind", ["too short", "silent", "clipped", "noisy", "nothing above"])
def test_a_bad_clip_is_refused_with_the_reason_and_the_others_are_enrolled(
    kind: str, command: Command, people: Path, tmp_path: Path
) -> None:
    bad = tmp_path / "bad.wav"
    soundfile.write(bad, damaged(people, kind), 16_000, subtype="FLOAT")
    code, out, _ = command("enrol", "Bella", bad, *clips(people, "af_river", "yes", "no"))
    assert code == 3 and f"bad.wav: refused; {kind}" in out and "Bella: 2 clips" in out
    code, out, _ = command("enrol", "Bella", bad)
    assert code == 1 and "no clip was enrolled" in out
    code, out, _ = command("enrol", "Bella", bad, "--force")
    assert code == 0 and "Bella: 3 clips" in out


def test_a_clip_of_another_person_is_refused(command: Command, people: Path) -> None:
    own, other = clips(people, "af_river", "yes", "no", "stop", "left"), people / "am_onyx" / "go.wav"
    code, out, _ = command("enrol", "Bella", *own, other)
    assert code == 3 and "go.wav: refused; unlike the others (cosine " in out and "Bella: 4 clips" in out
    several = clips(people, "am_onyx", "go", "yes", "no", "stop")  # compared with the enrolled clips, not each other
    code, out, _ = command("enrol", "Bella", *several)
    assert code == 1 and out.count("unlike the others") == 4


def test_of_two_clips_of_two_people_none_is_enrolled(command: Command, people: Path) -> None:
    code, out, _ = command("enrol", "Bella", people / "af_river" / "yes.wav", people / "am_onyx" / "no.wav")
    assert code == 1 and out.count("one of the two is of another person") == 2
    assert command("speakers")[1].startswith("nobody is enrolled")


@pytest.mark.parametrize("number", [2, 3])
def test_equally_many_clips_of_two_people_are_not_all_enrolled(number: int, command: Command, people: Path) -> None:
    words = ("yes", "no", "stop")[:number]
    code, out, _ = command("enrol", "Bella", *clips(people, "af_river", *words), *clips(people, "am_onyx", *words))
    assert code != 0 and out.count("of another person") >= number
    assert len({Path(line).parent.name for line in out.splitlines() if line.endswith(": enrolled")}) < 2


def test_clips_of_another_person_are_refused_one_at_a_time_however_many_there_are() -> None:
    def vector(*angles: float) -> np.ndarray:
        return np.array([[np.cos(angle), np.sin(angle)] for angle in angles], np.float32)

    terms = {"cosine": 10.0, "bias": -5.0}  # equal odds at a cosine of 0.5, 60 degrees
    calibration = Calibration(ratio_weights=terms, threshold_weights={})
    owner, other, sound = vector(0.0, 0.1, 0.2), vector(1.2), measure_sound(np.zeros(16_000, np.float32))

    def refuses(before: np.ndarray, new: np.ndarray) -> bool:
        clip = Clip("new.wav", sound, new[0], [])
        mark_other_people([clip], before, calibration)
        return bool(clip.problems)

    assert not refuses(owner, vector(0.9)) and refuses(owner, other)
    with_forced = np.concatenate([owner, np.repeat(other, 6, axis=0)])
    assert refuses(with_forced, other)  # they do not draw the voice to themselves


def test_the_clip_most_unlike_the_rest_is_left_out_before_the_others_are_compared_again() -> None:
    places = {"a": 0.0, "b": 1.0, "c": 1.5, "far": 9.0, "farther": 30.0}

    def marked(names: str, earlier: int = 0) -> dict[str, list[str]]:
        clips = [SimpleNamespace(file=name, vector=None, problems=[]) for name in names.split()]

        def likeness(clip: SimpleNamespace, others: list[SimpleNamespace]) -> Likeness:
            rest = [places[other.file] for other in others] + earlier * [0.0]
            return Likeness(-abs(places[clip.file] - sum(rest) / len(rest)))

        mark_unlike(clips, earlier, likeness, limit=-5.0, kind="person")
        return {clip.file: clip.problems for clip in clips if clip.problems}

    one = ["unlike the others: of another person, or badly recorded"]
    assert marked("a b c") == marked("a") == {}
    assert marked("a b c far farther") == {"far": one, "farther": one}
    both = "one of the two is of another person, or badly recorded"
    assert marked("a far") == {"a": [f"unlike far: {both}"], "far": [f"unlike a: {both}"]}
    assert marked("a far", earlier=2) == {"far": one}
    assert marked("far", earlier=1) == {"far": one}


def test_a_file_that_is_given_twice_is_refused_once(command: Command, people: Path) -> None:
    [yes, no] = clips(people, "af_river", "yes", "no")
    code, out, _ = command("enrol", "Bella", yes, yes, no)
    assert code == 3 and out.count("refused; a copy of ") == 1
    assert command("enrol", "Bella", yes, yes, "--force", "--replace")[0] == 0


def test_a_copy_of_a_clip_is_refused(command: Command, people: Path, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "copy.flac", samples_of(people), 16_000)
    code, out, _ = command("enrol", "Bella", *clips(people, "af_river", "yes", "no"), tmp_path / "copy.flac")
    assert code == 3 and "copy.flac: refused; a copy of " in out and "yes.wav" in out.splitlines()[2]
    code, out, _ = command("enrol", "Bella", *clips(people, "af_river", "no", "stop"))
    assert code == 3 and "no.wav: refused; enrolled already" in out and "Bella: 3 clips" in out


def test_a_file_that_cannot_be_read_enrols_nobody(command: Command, people: Path, tmp_path: Path) -> None:
    (tmp_path / "text.wav").write_text("no audio")
    code, out, err = command("enrol", "Bella", *clips(people, "af_river", "yes", "no"), tmp_path / "text.wav")
    assert code == 2 and out == "" and "text.wav: not readable as audio" in err and err.count("\n") == 1
    assert command("speakers")[1].startswith("nobody is enrolled")


def test_frame_levels_are_those_of_a_loop() -> None:
    samples = RNG.standard_normal(1_234).astype(np.float32)
    expected = [10 * np.log10(np.mean(samples[start : start + 400].astype(float) ** 2)) for start in range(0, 835, 160)]
    np.testing.assert_allclose(frame_levels(samples), expected, atol=1e-6)


@pytest.mark.parametrize("decibels", [0, 5, 10, 20])
def test_the_estimated_noise_of_bursts_is_the_true_one_within_3_db(decibels: int) -> None:
    bursts = RNG.standard_normal(32_000) * (np.arange(32_000) // 4_000 % 2)
    noise = RNG.standard_normal(32_000) * 10 ** (-decibels / 20)
    found = signal_to_noise(frame_levels((0.1 * (bursts + noise)).astype(np.float32)))
    assert found == pytest.approx(decibels, abs=3.5)


def test_the_clipped_share_counts_flat_tops_alone() -> None:
    wave = np.sin(2 * np.pi * np.arange(16_000) / 160.5).astype(np.float32)
    flat = np.clip(2 * wave, -1, 1)
    expected = np.mean(np.abs(wave[np.abs(2 * wave) > 0.1]) > 0.5)
    assert clipped_share(flat) == pytest.approx(expected, abs=0.02)
    assert clipped_share(0.1 * flat) == pytest.approx(clipped_share(flat), abs=0.01)
    assert clipped_share(RNG.standard_normal(16_000).astype(np.float32)) < 0.001
    assert clipped_share(np.zeros(100, np.float32)) == 0


def test_the_length_of_speech_is_without_the_pauses() -> None:
    samples = np.zeros(32_000, np.float32)
    samples[8_000:16_000] = 0.1 * RNG.standard_normal(8_000)
    sound = measure_sound(samples)
    assert (sound.seconds, sound.speech_seconds) == (2.0, pytest.approx(0.5, abs=0.05))


def test_clips_that_were_refused_leave_the_count_of_the_profile(command: Command, people: Path, tmp_path: Path) -> None:
    assert command("enrol", "Bella", *clips(people, "af_river", "yes", "no"))[0] == 0
    for options in ([], ["--replace"]):
        bad = tmp_path / "bad.wav"
        soundfile.write(bad, damaged(people, "silent"), 16_000, subtype="FLOAT")
        code, out, _ = command("enrol", "Bella", bad, *options)
        assert code == 1 and "Bella: no clip was enrolled; 2 clips, " in out and "in all from before" in out
        found = json.loads(command("enrol", "Bella", bad, "--json", *options)[1])
        assert found["count"] == 2 and found["seconds"] > 1


def test_a_clip_that_several_processes_enrol_at_once_counts_once(people: Path, tmp_path: Path) -> None:
    files = clips(people, "af_river", "yes", "no", "stop")

    def enrol_all(_: int) -> int:
        model = ds.load("tiny")
        return len(enrol(model, Profiles(tmp_path, model), "Bella", files).enrolled)

    with ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(enrol_all, range(4))) == [0, 0, 0, 3]
    assert Profiles(tmp_path).all()[0].count == 3


def test_names_that_differ_in_case_alone_are_two_people_with_a_note(command: Command, people: Path) -> None:
    assert "different people" not in command("enrol", "Bella", *clips(people, "af_river", "yes", "no"))[2]
    note = "note: bella and Bella are different people: their names differ in case alone\n"
    assert note in command("enrol", "bella", *clips(people, "af_river", "stop", "left"))[2]
