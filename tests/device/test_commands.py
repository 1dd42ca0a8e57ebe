"""The commands that use a model, on clips of the embedded corpus: results, JSON and exit codes for scripts."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr

import distilled_student as ds
from distilled_student.device.clip_checks import measure_sound, not_comparable
from distilled_student.device.commands import parse_share
from distilled_student.device.odds import with_needed
from distilled_student.device.profiles import Profiles
from distilled_student.onnx import Model

Command = Callable[..., tuple[int, str, str]]
SHARES = "must be from 0.1% to 5% (0.001 to 0.05)"


def test_spot_prints_the_keyword_of_each_file_and_1_says_that_one_has_none(
    command: Command, people: Path, tmp_path: Path
) -> None:
    soundfile.write(tmp_path / "noise.wav", 0.01 * np.random.default_rng(0).standard_normal(16_000), 16_000)
    stop = people / "if_sara" / "stop.wav"
    code, out, _ = command("spot", stop)
    assert code == 0 and out.startswith(f"{stop}: stop  ")
    code, out, _ = command("spot", stop, tmp_path / "noise.wav", "--json")
    first, second = map(json.loads, out.splitlines())
    assert code == 1 and first["label"] == "stop" and second["label"] is None
    assert first["score"] == pytest.approx(ds.load("edge").spot(stop).score, abs=1e-4)


def test_embed_prints_or_writes_what_the_model_embeds(command: Command, people: Path, tmp_path: Path) -> None:
    files = [people / "if_sara" / "yes.wav", people / "am_onyx" / "yes.wav"]
    expected = np.stack([ds.load("tiny").embed(file) for file in files])
    code, out, _ = command("embed", *files, "--model", "tiny")
    found = [json.loads(line)["embedding"] for line in out.splitlines()]
    np.testing.assert_allclose(found, expected, atol=1e-4)
    code, out, _ = command("embed", *files, "--model", "tiny", "-o", tmp_path / "a.npy", "--json")
    assert code == 0 and json.loads(out) == {"file": str(tmp_path / "a.npy"), "embeddings": 2}
    np.testing.assert_allclose(np.load(tmp_path / "a.npy"), expected, atol=1e-4)


def test_similarity_is_the_cosine_of_two_embeddings(command: Command, people: Path) -> None:
    a, b = people / "if_sara" / "yes.wav", people / "if_sara" / "no.wav"
    model = ds.load("edge")
    code, out, _ = command("similarity", a, b, "--json")
    assert code == 0
    assert json.loads(out)["cosine"] == pytest.approx(float(model.embed(a) @ model.embed(b)), abs=1e-4)
    assert "times as likely of another person" in command("similarity", a, people / "am_onyx" / "no.wav")[1]


def enrol_two(command: Command, people: Path) -> None:
    for name, voice in (("Emma", "if_sara"), ("ميخائيل", "am_onyx")):
        words = ("yes", "no", "stop", "left")
        assert command("enrol", name, *(people / voice / f"{word}.wav" for word in words))[0] == 0


def test_verify_accepts_the_owner_and_refuses_others(command: Command, people: Path) -> None:
    enrol_two(command, people)
    assert command("verify", "Emma", people / "if_sara" / "go.wav")[0] == 0
    code, out, _ = command("verify", "Emma", people / "am_onyx" / "go.wav", "--json")
    assert code == 1 and json.loads(out)["accepted"] is False


def test_verify_and_identify_say_the_ratio_that_was_needed(command: Command, people: Path) -> None:
    enrol_two(command, people)
    for voice in ("if_sara", "am_onyx"):
        file = people / voice / "go.wav"
        found = json.loads(command("verify", "Emma", file, "--json")[1])
        seconds = soundfile.info(file).duration
        # `helpers.people.CALIBRATION` at 1 %, with four clips
        needed = 20 * 0.4653 - 10 + 2 * 0.4653 * math.log(4) + math.log(seconds)
        assert found["needed_ratio"] == pytest.approx(needed, abs=1e-6)
        assert found["accepted"] == (found["ratio"] >= needed)
        text = command("verify", "Emma", file)[1]
        said = f"{math.exp(needed):.2g}" if needed < 0 else f"{math.exp(needed):.1f}"
        assert f" person; needed: {said} times" in text
        named = json.loads(command("identify", file, "--json")[1])
        assert (named["ratio"] >= named["needed_ratio"]) == (named["name"] is not None)


@pytest.mark.parametrize(
    ("ratio", "needed", "words"),
    [
        (math.log(9.7), math.log(25), "9.7 times as likely of the same person; needed: 25 times"),
        (-math.log(3), math.log(25), "3.0 times as likely of another person; needed: 25 times as likely of the same"),
        (math.log(1.5), -math.log(9), "1.5 times as likely of the same person; needed: 0.11 times"),
        (-20.0, -20.0, "over a million times as likely of another person; needed: under 0.0001 times as likely of the"),
        (20.0, 20.0, "over a million times as likely of the same person; needed: over a million times"),
    ],
)
def test_a_ratio_and_the_needed_one_are_said_in_words(ratio: float, needed: float, words: str) -> None:
    assert with_needed(ratio, needed).startswith(words)


def test_verify_joins_several_files(command: Command, people: Path, tmp_path: Path) -> None:
    enrol_two(command, people)
    files = [people / "if_sara" / f"{word}.wav" for word in ("go", "right")]
    soundfile.write(tmp_path / "joined.wav", np.concatenate([soundfile.read(file)[0] for file in files]), 16_000)
    apart = json.loads(command("verify", "Emma", *files, "--json")[1])
    joined = json.loads(command("verify", "Emma", tmp_path / "joined.wav", "--json")[1])
    assert apart["cosine"] == pytest.approx(joined["cosine"], abs=1e-4)


def test_identify_names_each_speaker_or_nobody(command: Command, people: Path) -> None:
    enrol_two(command, people)
    files = [people / voice / "go.wav" for voice in ("if_sara", "am_onyx", "af_river")]
    code, out, _ = command("identify", *files, "--json")
    assert [json.loads(line)["name"] for line in out.splitlines()] == ["Emma", "ميخائيل", None] and code == 1
    assert command("identify", files[0])[0] == 0
    code, out, _ = command("identify", "--joined", files[0], people / "if_sara" / "right.wav")
    assert code == 0 and out.count("\n") == 1


def test_speakers_lists_and_forgets(command: Command, people: Path) -> None:
    enrol_two(command, people)
    code, out, _ = command("speakers", "--json")
    listed = [json.loads(line) for line in out.splitlines()]
    assert code == 0 and [(person["name"], person["count"]) for person in listed] == [("Emma", 4), ("ميخائيل", 4)]
    assert command("speakers", "forget", "Emma", "--json")[:2] == (0, '{"name": "Emma", "forgotten": true}\n')
    assert "Emma" not in command("speakers")[1]
    assert command("speakers", "forget", "Emma")[0] == 2


def test_a_profile_of_another_model_is_refused_by_every_command(command: Command, people: Path) -> None:
    enrol_two(command, people)
    file = people / "if_sara" / "go.wav"
    for words in (("verify", "Emma", file), ("identify", file), ("enrol", "Emma", file)):
        code, _, err = command(*words, "--model", "tiny")
        who = "Emma, ميخائيل: were" if words[0] == "identify" else "Emma: was"
        assert f"{who} enrolled with another model, edge: use --model edge" in err and err.count("\n") == 1
        assert code == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["spot", "none.wav"], "none.wav: no such file"),
        (["spot", "none.wav", "--model", "egde"], "--model egde: no such file or folder; edge, tiny ship"),
        (["identify", "none.wav"], "nobody is enrolled; `distilled-student enrol NAME FILES...`"),
        (["verify", "Ana", "none.wav"], "Ana: is not enrolled"),
        (["verify", "Ana", "a.wav", "--false-accepts", "many"], f"--false-accepts many: {SHARES}\n"),
        (["verify", "Ana", "a.wav", "--false-accepts", "20"], f"--false-accepts 20: {SHARES}\n"),
        (["verify", "Ana", "a.wav", "--false-accepts", "1"], f"--false-accepts 1: {SHARES}; did you mean 1%?"),
        (["verify", "Ana", "a.wav", "--false-accepts", "0.1"], f"--false-accepts 0.1: {SHARES}; did you mean 0.1%?"),
        (["identify", "a.wav", "--false-accepts", "0.01%"], f"--false-accepts 0.01%: {SHARES}\n"),
        (["enrol", __file__, "a.wav"], f"NAME: missing: {__file__} is a file"),
        (["verify", __file__, "a.wav"], f"NAME: missing: {__file__} is a file"),
        (["words", "add", __file__, "a.wav"], f"NAME: missing: {__file__} is a file"),
        (["words", "--profiles", __file__], "test_commands.py: is a file; give the folder of the profiles"),
        (["embed", "a.wav", "-o", "a.txt"], "expected a name that ends with .npy"),
        (["enrol", "", "a.wav"], "NAME: is empty"),
        (["calibrate"], "FOLDER: missing"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(words: list[str], message: str, command: Command) -> None:
    code, out, err = command(*words)
    assert code == 2 and out == "" and message in err and err.count("\n") == 1


def test_a_share_is_written_in_per_cent_or_as_a_number() -> None:
    assert parse_share("1%") == parse_share("0.01") == 0.01
    assert parse_share("0.1%") == pytest.approx(0.001)


def test_the_other_spelling_of_enrol_works_and_is_not_listed(command: Command, people: Path) -> None:
    files = [people / "if_sara" / f"{word}.wav" for word in ("yes", "no")]
    assert command("enroll", "Emma", *files)[0] == 0
    listed = command("--help")[1]
    assert re.search(r"\benrol\b", listed) and not re.search(r"\benroll\b", listed)
    assert "enrol," in command("zzz")[2] and "enroll" not in command("zzz")[2]


def test_a_file_that_cannot_be_read_is_said_and_the_others_follow_with_exit_code_2(
    command: Command, people: Path, tmp_path: Path
) -> None:
    enrol_two(command, people)
    good, bad, other = people / "if_sara" / "go.wav", tmp_path / "none.wav", people / "am_onyx" / "go.wav"
    for words in (["spot"], ["embed"], ["identify"]):
        code, out, err = command(*words, good, bad, other)
        assert code == 2 and out.count("\n") == 2 and err.count("none.wav: no such file") == 1, words
    code, _, err = command("embed", good, bad, "-o", tmp_path / "a.npy")
    assert code == 2 and "a.npy: not written: it would have 1 of 2 embeddings" in err
    assert not (tmp_path / "a.npy").exists()
    code, out, _ = command("embed", good, "-o", tmp_path / "a.npy")
    assert (code, out) == (0, f"{tmp_path / 'a.npy'}: 1 embedding\n")


RNG, TIME = np.random.default_rng(0), np.arange(16_000) / 16_000
WITHOUT_SPEECH = {
    "one sample": (np.full(1, 0.5), "too short: 0.01 s of speech"),
    "10 ms": (0.3 * RNG.standard_normal(160), "too short: 0.01 s of speech"),
    "silence": (np.zeros(16_000), "silent: its loudest part has -120 dB"),
    "hum": (0.1 * np.sin(2 * np.pi * 50 * TIME), "no speech: its level does not change"),
    "noise": (0.1 * RNG.standard_normal(16_000), "no speech: its level does not change"),
}


@pytest.mark.parametrize("kind", WITHOUT_SPEECH)
def test_a_recording_without_speech_is_of_nobody_whatever_its_embedding_is(
    kind: str, command: Command, people: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples, reason = WITHOUT_SPEECH[kind]
    enrol_two(command, people)
    file, voice = tmp_path / "a.wav", Profiles(tmp_path / "profiles").all()[0].matrix[0]
    soundfile.write(file, samples, 16_000, subtype="FLOAT")
    monkeypatch.setattr(Model, "embed", lambda model, samples: voice)
    code, out, _ = command("verify", "Emma", file)
    assert code == 1 and out.startswith(f"no: Emma, {reason}")
    found = json.loads(command("verify", "Emma", file, "--json")[1])
    assert found["accepted"] is False and found["notes"][-1].startswith(reason) and found["cosine"] > 0.8
    code, out, _ = command("identify", file)
    assert code == 1 and out.startswith(f"{file}: nobody, {reason}")
    found = json.loads(command("identify", file, "--json")[1])
    assert found["name"] is None and found["notes"][-1].startswith(reason)
    code, _, err = command("similarity", file, people / "if_sara" / "go.wav")
    assert code == 0 and f"note: {file}: {reason}" in err


def test_speech_in_noise_of_its_own_level_may_still_be_compared(people: Path) -> None:
    for voice in ("if_sara", "am_onyx", "af_river"):
        for word in ("yes", "no", "stop", "go"):
            speech = soundfile.read(people / voice / f"{word}.wav", dtype="float32")[0]
            loud = np.sort(np.square(speech))[-len(speech) // 2 :].mean()  # of the louder half: the word
            noisy = speech + np.sqrt(loud) * RNG.standard_normal(len(speech)).astype(np.float32)
            assert not_comparable(measure_sound(speech)) is None and not_comparable(measure_sound(noisy)) is None


@pytest.mark.parametrize("rate", [8_000, 11_025])
def test_a_recording_of_a_lower_sampling_rate_is_of_nobody(
    rate: int, command: Command, people: Path, tmp_path: Path
) -> None:
    enrol_two(command, people)
    speech = soundfile.read(people / "if_sara" / "go.wav", dtype="float32")[0]
    soundfile.write(tmp_path / "low.wav", soxr.resample(speech, 16_000, rate), rate)
    code, out, _ = command("verify", "Emma", tmp_path / "low.wav")
    limit = float(re.match(r"no: Emma, nothing above (\S+) kHz", out)[1])
    assert code == 1 and abs(1000 * limit - rate / 2) < 500
    assert command("verify", "Emma", people / "if_sara" / "go.wav")[0] == 0


def test_a_recording_with_as_many_samples_as_an_embedding_is_a_recording(
    command: Command, people: Path, tmp_path: Path
) -> None:
    enrol_two(command, people)
    model, file = ds.load("edge"), tmp_path / "a.wav"
    samples = soundfile.read(people / "am_onyx" / "go.wav", dtype="float32")[0][8_000 : 8_000 + model.embedding_size]
    soundfile.write(file, samples, 16_000, subtype="FLOAT")
    vector = model.embed(samples)
    other = model.embed(people / "am_onyx" / "yes.wav")
    found = json.loads(command("similarity", file, people / "am_onyx" / "yes.wav", "--json")[1])
    assert found["cosine"] == pytest.approx(float(vector @ other), abs=1e-3)


def test_nobody_comes_with_the_nearest_person(command: Command, people: Path) -> None:
    enrol_two(command, people)
    file = people / "af_river" / "go.wav"
    found = json.loads(command("identify", file, "--json")[1])
    cosines = {name: json.loads(command("verify", name, file, "--json")[1])["cosine"] for name in ("Emma", "ميخائيل")}
    assert found["name"] is None and found["nearest"] == max(cosines, key=cosines.__getitem__)
    assert f"nobody; the nearest is {found['nearest']}, cosine" in command("identify", file)[1]


def test_the_number_of_a_keyword_is_printed_only_if_there_is_one(
    command: Command, people: Path, tmp_path: Path
) -> None:
    soundfile.write(tmp_path / "noise.wav", 0.01 * RNG.standard_normal(16_000), 16_000)
    assert command("spot", tmp_path / "noise.wav") == (1, f"{tmp_path / 'noise.wav'}: no keyword\n", "")
    soundfile.write(tmp_path / "long.wav", 0.01 * RNG.standard_normal(56_000), 16_000)
    assert (
        "long.wav: 3.5 s: `spot` takes a recording for one word; `listen`" in command("spot", tmp_path / "long.wav")[2]
    )
    assert command("listen", tmp_path / "noise.wav") == (1, "", f"{tmp_path / 'noise.wav'}: no keyword\n")


def test_alarms_names_its_model_as_the_argument_that_it_is(command: Command, people: Path) -> None:
    code, _, err = command("alarms", "none.onnx", "--audio", people / "if_sara")
    assert code == 2 and err.startswith("error: none.onnx: no such file or folder")


def test_a_pipe_is_no_regular_file(command: Command, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for word in ("spot", "embed", "listen"):
        code, _, err = command(word, tmp_path / "pipe")
        assert code == 2 and "no regular file" in err and err.count("\n") == 1, word


def test_list_is_another_name_of_the_plain_command(command: Command, people: Path, tmp_path: Path) -> None:
    enrol_two(command, people)
    for words in ("speakers", "words"):
        for options in ([], ["--json"], ["--profiles", tmp_path / "other"]):
            assert command(words, "list", *options) == command(words, *options)


def test_listen_and_identify_name_all_people_of_another_model(command: Command, people: Path) -> None:
    enrol_two(command, people)
    expected = "Emma, ميخائيل: were enrolled with another model, edge: use --model edge"
    file = people / "if_sara" / "go.wav"
    assert f"error: {expected}" in command("identify", file, "--model", "tiny")[2]
    assert f"note: {expected}" in command("listen", file, "--model", "tiny")[2]
