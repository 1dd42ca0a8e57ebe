"""Joint training on one folder of own recordings: ``downstream_expert.data``."""

from __future__ import annotations

import contextlib
import functools
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from conftest import SMALL_VOICES, packed_subset, tone

import distilled_student as ds
from distilled_student.common.errors import UserError
from distilled_student.corpora import embedded
from distilled_student.corpora.keywords import hash_percentage
from distilled_student.corpora.own_folder import read_own_folder
from distilled_student.export.pack import pack
from distilled_student.host import launch
from distilled_student.host.saved_runs import read_checkpoint
from distilled_student.multitask.evaluate import evaluate
from distilled_student.multitask.own_data import report, resolve_data
from distilled_student.multitask.settings import check_early
from distilled_student.multitask.tasks import kws, sv
from distilled_student.multitask.tasks.kws_own import loudest, own_class_index

WHERE = "own.yaml: downstream_expert"
PRINTED = "printed"  # file with the messages of `run`


@pytest.fixture(scope="module", autouse=True)
def small_embedded_corpus(small_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Eight of the voices of the embedded corpus instead of all."""
    packed = packed_subset(tmp_path_factory.mktemp("packed"), SMALL_VOICES)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embedded, "cached", lambda: small_corpus)
        patch.setattr(embedded, "plan_files", functools.partial(embedded.plan_files, packed))
        yield


def record(path: Path, seconds: float = 0.5, rate: int = 16_000, channels: int = 1, seed: int = 0) -> None:
    """A made recording with ``seconds`` of sound."""
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = tone(seconds, rate, seed).numpy()
    soundfile.write(path, np.stack([samples] * channels, axis=1), rate)


@pytest.fixture(scope="module")
def five(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five people, as a stranger records them: other formats, rates and channels, a text file, a single clip."""
    root = tmp_path_factory.mktemp("own") / "Meine Wörter"
    formats = [("wav", 44_100, 2), ("flac", 16_000, 1), ("mp3", 44_100, 1), ("ogg", 48_000, 2), ("WAV", 8_000, 1)]
    for number, (name, (suffix, rate, channels)) in enumerate(
        zip(["Ännä", "BEN", "cleo", "dora", "emil"], formats, strict=True)
    ):
        for word in ("LICHT AN", "größer", "stop"):
            for take in range(3 if number else 2):
                seed = 100 * number + len(word)
                record(root / word / f"{name}_{take}.{suffix}", 0.4 + 0.5 * take, rate, channels, seed)
    record(root / "stop/zoe_1.wav", seed=999)
    (root / "stop/notes.txt").write_text("said twice")
    (root / "stop/voice.m4a").write_bytes(b"no audio that is read")
    return root


def groups(data: Path, **expert: Any) -> dict[str, Any]:
    """``downstream_expert`` with both tasks."""
    return {"data": str(data), **expert, "tasks": {"kws": {"keywords": None}, "sv": {}}}


def resolved(data: Path, **expert: Any) -> dict[str, Any]:
    found = groups(data, **expert)
    resolve_data(found, WHERE)
    return found


def tasks_of(data: Path, **expert: Any) -> tuple[kws.Settings, sv.Settings]:
    found = resolved(data, **expert)["tasks"]
    return kws.Settings(**found["kws"]), sv.Settings(**found["sv"])


def test_both_tasks_hold_out_the_same_people_and_keywords_are_the_folders(five: Path) -> None:
    spotting, verification = tasks_of(five)
    assert spotting.keywords == ["LICHT AN", "größer", "stop"]
    assert spotting.dev_people == verification.dev_people and spotting.test_people == verification.test_people == []
    people = ["BEN", "cleo", "dora", "emil", "Ännä"]  # who say all words
    assert spotting.dev_people == sorted(sorted(people, key=hash_percentage)[:2])


def test_resolved_settings_stay_where_the_folder_is_gone(five: Path, tmp_path: Path) -> None:
    settings = resolved(five)
    moved = {**settings, "data": str(tmp_path / "elsewhere")}
    resolve_data(moved, WHERE)
    assert moved["tasks"]["kws"]["data"] == str(tmp_path / "elsewhere")
    assert moved["tasks"]["kws"]["keywords"] == settings["tasks"]["kws"]["keywords"]


def test_keywords_of_a_list_are_spelled_as_the_folders(five: Path) -> None:
    settings = groups(five)
    settings["tasks"]["kws"]["keywords"] = ["licht an", "GRÖßER"]
    resolve_data(settings, WHERE)
    assert settings["tasks"]["kws"]["keywords"] == ["LICHT AN", "größer"]


@pytest.mark.parametrize(
    ("expert", "task", "message"),
    [
        (
            {"data": None},
            {},
            "tasks.kws.keywords: null stands for all words of downstream_expert.data, which is not set",
        ),
        ({"data": 5}, {}, "data: expected a folder, found 5: write its name in quotes"),
        ({"data": "nowhere"}, {}, "data: nowhere: no such folder"),
        ({}, {"keywords": ["stopp"]}, "tasks.kws.keywords: 'stopp' has no recordings in .*; did you mean `stop`"),
        ({}, {"test_root": "data/test"}, "tasks.kws.test_root: cannot be used with downstream_expert.data: remove one"),
        ({}, {"dev_speakers": 3}, "tasks.kws.dev_speakers: cannot .*; who is held out: downstream_expert.dev_speakers"),
        ({"dev_speakers": 6}, {}, "dev_speakers: 6 for development and 0 for the test of 6 people leave nobody"),
        ({"dev_speakers": 5}, {}, "dev_speakers: .* of 6 people can be held out, not 5: the others have one recording"),
    ],
)
def test_a_wrong_setting_is_answered_with_its_key(five: Path, expert: Any, task: Any, message: str) -> None:
    settings = groups(five) | expert
    settings["tasks"]["kws"] |= task
    with pytest.raises(UserError, match=f"^{WHERE}.{message}"):
        resolve_data(settings, WHERE)


def test_the_early_checks_read_the_folder_and_complete_the_settings(five: Path) -> None:
    runner = {"eval_dataloaders": ["dev"]}
    config = {"downstream_expert": groups(five), "runner": runner, "optimizer": {"name": "TorchOptim"}}
    check_early(config, "hidden_states", "train", "own.yaml", True)
    assert config["downstream_expert"]["tasks"]["sv"]["dev_people"]
    with pytest.raises(
        UserError, match=r"own.yaml: downstream_expert.tasks.sv.test_people: nobody is held out for test"
    ):
        check_early(
            {**config, "runner": {"eval_dataloaders": ["dev", "test"]}}, "hidden_states", "train", "own.yaml", True
        )


def test_a_report_says_what_there_is_and_what_is_too_little(five: Path) -> None:
    settings, _ = tasks_of(five)
    folder = read_own_folder(five, "key")
    text = "\n".join(report(folder, settings.keywords, settings.dev_people, settings.test_people))
    assert "3 keywords (LICHT AN, größer, stop), 6 people (BEN, cleo, dora, emil, zoe, Ännä), 43 clips" in text
    clips = {name: sum(clip.speaker == name for clip in folder.clips) for name in folder.people}
    held_out = sum(clips[name] for name in settings.dev_people)
    assert (
        f"training: {', '.join(n for n in folder.people if n not in settings.dev_people)} ({43 - held_out} clips)"
        in text
    )
    assert f"dev: {', '.join(settings.dev_people)} ({held_out} clips); test: nobody" in text
    assert "voice.m4a: .m4a is not read: convert it" in text and "'zoe' has one clip" in text
    assert "1 of 16 words of a person have one take ('zoe' says 'stop')" in text


# The data of the tasks


def test_the_sets_of_the_keyword_task_are_those_of_a_plain_loop(five: Path) -> None:
    settings, _ = tasks_of(five)
    sets, noises = own_class_index(settings, 0, "key")
    for part, is_held_out in (("training", False), ("validation", True)):
        expected = {
            (path.name, 2 + settings.keywords.index(word))
            for word in settings.keywords
            for path in (five / word).iterdir()
            if path.suffix not in (".txt", ".m4a") and (path.name.split("_")[0] in settings.dev_people) == is_held_out
        }
        assert {(clip.path.name, clip.label) for clip in sets[part] if clip.label > 1} == expected
    keys = [clip.key for clips in sets.values() for clip in clips if clip.label]
    assert len(set(keys)) == len(keys)
    assert sets["testing"] == [] and "babble.wav" in {noise.name for noise in noises}


def test_embedded_words_that_are_keywords_are_not_unknown_words(five: Path) -> None:
    settings, _ = tasks_of(five)
    settings.unknown_percentage = None  # all
    sets, _ = own_class_index(settings, 0, "key")
    texts = {embedded.cached() / output.path: output.clip for output in embedded.plan_files()}
    for part, split in (("training", "train"), ("validation", "dev")):
        unknown = [texts[clip.path] for clip in sets[part] if clip.label == 1]
        assert unknown and {clip.split for clip in unknown} == {split}
        assert not any("stop" in clip.text.lower().strip(".").split() for clip in unknown)
        assert {clip.kind for clip in unknown} == ({"word", "sentence"} if part == "training" else {"word"})


def test_the_speakers_of_verification_are_people_and_embedded_training_voices(five: Path) -> None:
    _, settings = tasks_of(five)
    index = sv.Task(settings, 8, 0, "key").index
    people = {"BEN", "cleo", "dora", "emil", "zoe", "Ännä"}
    assert set(index.development) == set(settings.dev_people)
    own = [name for name in index.training_names if " in extra_roots[" not in name]
    assert set(own) == people - set(settings.dev_people)
    assert len(index.training_names) - len(own) == 6  # embedded voices of training and development


@pytest.mark.parametrize("number", [2, 3])
def test_one_person_who_is_held_out_is_verified_against_embedded_voices(tmp_path: Path, number: int) -> None:
    for name in "abc"[:number]:
        for take in range(2):
            record(tmp_path / name / "go" / f"{take}.wav", seed=ord(name))
    _, settings = tasks_of(tmp_path)
    index = sv.Task(settings, 8, 0, "key").index
    trials = index.development_trials(100, seed=0)
    names = set(trials.speaker_names)
    assert len(settings.dev_people) == 1 and settings.dev_people[0] in names and len(names) == 3
    assert set(trials.labels) == {0, 1} and not names & {name.split(" in extra")[0] for name in index.training_names}


def test_thirty_people_have_a_test_of_others_than_development(tmp_path: Path) -> None:
    for number in range(30):
        for take in range(2):
            record(tmp_path / "go" / f"p{number:02d}_{take}.wav", 0.2, seed=number)
    spotting, verification = tasks_of(tmp_path, dev_speakers=0.1)
    assert (len(spotting.dev_people), len(spotting.test_people)) == (3, 6)
    index = sv.Task(verification, 8, 0, "key").index
    assert set(index.test.speaker_names) == set(spotting.test_people)
    assert not set(index.test.speaker_names) & {*index.training_names, *index.development}
    sets, _ = own_class_index(spotting, 0, "key")
    assert {clip.speaker for clip in sets["testing"] if clip.label == 2} == set(spotting.test_people)


def test_a_word_is_cut_out_of_the_silence_around_it() -> None:
    waveform = torch.zeros(40_000)
    waveform[25_000:30_000] = tone(5_000 / 16_000)
    first = loudest(waveform, 16_000)
    energies = [float(waveform[i : i + 16_000].double().square().sum()) for i in range(0, 24_000, 500)]
    assert float(waveform[first : first + 16_000].double().square().sum()) >= 0.999 * max(energies)
    assert 18_500 <= first <= 20_500  # the word is in the middle
    assert loudest(waveform[:16_000], 16_000) == 0


def test_speakers_of_speech_commands_can_be_held_out_by_number(small_corpus: Path) -> None:
    root = small_corpus / "speech_commands/train"
    settings = kws.Settings(train_root=str(root), test_root=None, dev_speakers=2, test_speakers=1)
    sets = kws.class_index(settings, 0, "key")[0]
    speakers = {path.name.split("_nohash_")[0] for path in root.rglob("*_nohash_*.wav")}
    ranked = sorted(speakers, key=hash_percentage)
    found = {part: {clip.speaker for clip in clips if clip.speaker} for part, clips in sets.items()}
    assert found == {"validation": set(ranked[:2]), "testing": set(ranked[2:3]), "training": set(ranked[3:])}


# From recordings to a device


@pytest.fixture(scope="module")
def run(five: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two steps of the config ``own`` from the model ``tiny``; what they printed is in `PRINTED` next to it."""
    folder = tmp_path_factory.mktemp("run") / "own"
    with (folder.parent / PRINTED).open("w", encoding="utf-8") as printed, contextlib.redirect_stderr(printed):
        assert launch.main(command(five, folder)) == 0
    return folder


def command(data: Path, folder: Path) -> list[str]:
    values = {f"runner.{key}": 2 for key in ("total_steps", "eval_step", "save_step", "log_step")}
    values |= {"downstream_expert.data": data, "downstream_expert.tasks.kws.batch_size": 4}
    values |= {"downstream_expert.tasks.sv.batch_size": 6, "downstream_expert.tasks.sv.dev_trials": 100}
    options = "-m train -u distilled_student -k tiny -f -s concatenated -d multitask -c own --device cpu"
    overrides = ",,".join(f"config.{key}={value}" for key, value in values.items())
    return [*options.split(), "-p", str(folder), "-o", overrides]


def test_a_run_on_own_recordings_starts_from_the_heads_of_the_model_and_says_what_it_found(run: Path) -> None:
    printed = (run.parent / PRINTED).read_text(encoding="utf-8")
    assert "3 keywords (LICHT AN, größer, stop), 6 people" in printed and "too little: 'zoe' has one clip" in printed
    assert "14 of 16 tensors of the heads start from tiny" in printed


def test_a_checkpoint_holds_words_and_people_and_is_evaluated_without_the_names_of_the_folder(
    run: Path, five: Path
) -> None:
    saved = read_checkpoint(run / "states-2.ckpt")["Config"]["downstream_expert"]["tasks"]
    assert saved["kws"]["keywords"] == ["LICHT AN", "größer", "stop"]
    assert saved["kws"]["dev_people"] == saved["sv"]["dev_people"] == tasks_of(five)[0].dev_people
    with pytest.raises(UserError, match=r"has no README\.md: run `distilled-student evaluate .*own --split dev` first"):
        pack(run, run.parent / "packed", "best-dev.ckpt", window=1.0, max_loss=0.3)
    results = evaluate(run, split="dev", device="cpu")
    assert " -c own -p own --seed 1337 -o " in (run / "README.md").read_text(encoding="utf-8").replace("\\", "")
    assert results["kws"]["labels"] == ["_silence_", "_unknown_", "LICHT AN", "größer", "stop"]
    assert results["sv"]["speakers"] == 2 and 0 <= results["sv"]["eer"] <= 100
    with pytest.raises(
        UserError, match=r"test_people: .*: nobody is held out for test.*: evaluate dev \(--split dev\)"
    ):
        evaluate(run, device="cpu")


def test_the_same_command_resumes_and_refuses_a_folder_with_other_people(
    run: Path, five: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert launch.main(command(five, run)) == 0
    other = tmp_path / "other"
    for word in ("LICHT AN", "größer", "stop"):
        for name in "uvwxyz":
            for take in range(2):
                record(other / word / f"{name}_{take}.wav", seed=ord(name))
    capsys.readouterr()
    assert launch.main(command(other, run)) == 2
    assert "holds another run, with other settings (config.downstream_expert.data" in capsys.readouterr().err


def test_the_run_packs_and_its_folder_spots_streams_and_names_nobody(run: Path, five: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    from distilled_student import cli

    with pytest.raises(SystemExit) as left:
        cli.main(["pack", str(run), "-o", str(tmp_path / "packed")])
    assert left.value.code == 0
    model = ds.load(tmp_path / "packed")
    spotted = model.spot(tone(1.0).numpy())
    assert spotted.label in (None, "LICHT AN", "größer", "stop") and 0 <= spotted.score <= 1
    outputs = model.stream().feed(tone(2.0).numpy())
    assert outputs["keyword_scores"].shape[-1] == 5 and np.isfinite(outputs["speaker_embedding"]).all()
    text = (tmp_path / "packed/joint.json").read_text(encoding="utf-8")
    assert json.loads(text)["tasks"]["kws"]["keywords"] == ["LICHT AN", "größer", "stop"]
    assert "Ännä" not in text and "zoe" not in text and str(five) not in text and os.sep not in text
