"""Keyword spotting: the split and the classes of TensorFlow's index, lengths of clips, and wrong data."""

from __future__ import annotations

import hashlib
import math
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile
from helpers.trees import OTHERS, WORDS, speech_commands, write_tone

from distilled_student.common.errors import UserError
from distilled_student.common.settings import typed
from distilled_student.corpora import keywords
from distilled_student.multitask.tasks import kws, kws_index


def tensorflow_which_set(filename: str, validation_percentage: float, testing_percentage: float) -> str:
    """After the text of TensorFlow's speech_commands/input_data.py, independent of our implementation."""
    hash_name = re.sub(r"_nohash_.*$", "", Path(filename).name)
    number = int(hashlib.sha1(hash_name.encode()).hexdigest(), 16)
    percentage_hash = (number % (2**27)) * (100.0 / (2**27 - 1))
    if percentage_hash < validation_percentage:
        return "validation"
    if percentage_hash < validation_percentage + testing_percentage:
        return "testing"
    return "training"


def settings(root: Path, **more: object) -> kws.Settings:
    return kws.Settings(train_root=str(root / "train"), test_root=None, keywords=WORDS, **more)


def test_the_split_equals_tensorflows_for_many_names() -> None:
    for i in range(2000):
        name = f"{i:08x}_nohash_{i % 3}.wav"
        assert keywords.which_set(name, 10, 10) == tensorflow_which_set(name, 10, 10)


def test_unknown_and_silence_have_a_tenth_of_the_keyword_utterances_each_rounded_up(tmp_path: Path) -> None:
    root = speech_commands(tmp_path, speakers=60, takes=1, test=False)
    sets, _ = kws_index.class_index(settings(root), 0, "F")
    for part, clips in sets.items():
        inside = [i for i in range(60) if tensorflow_which_set(f"spk{i}_nohash_0.wav", 10, 10) == part]
        words = len(inside) * len(WORDS)
        labels = [clip.label for clip in clips]
        extra = math.ceil(words / 10)
        assert (labels.count(0), labels.count(1)) == (extra, min(extra, len(inside) * len(OTHERS)))
        assert len(labels) == words + labels.count(0) + labels.count(1)


def test_no_speaker_is_in_two_sets_and_the_unknown_words_are_seeded(tmp_path: Path) -> None:
    root = speech_commands(tmp_path, speakers=40, test=False)
    sets, _ = kws_index.class_index(settings(root), 0, "F")
    speakers = {
        part: {keywords.speaker_of(c.path.name) for c in clips if c.volume is None} for part, clips in sets.items()
    }
    assert not speakers["training"] & (speakers["validation"] | speakers["testing"])
    assert sets == kws_index.class_index(settings(root), 0, "F")[0]
    other = kws_index.class_index(settings(root), 1, "F")[0]
    assert sets["training"] != other["training"]
    # unknown words and silences of development are the same for every seed
    assert all(sets[part] == other[part] for part in ("validation", "testing"))


def test_development_silence_is_fixed_and_training_silence_is_random(tmp_path: Path) -> None:
    s = settings(speech_commands(tmp_path, speakers=30, test=False), validation_percentage=30)
    task = kws.Task(s, 4, 0, "F")
    dev, train = task.evaluation_data("dev"), task.training_data()
    silent = next(i for i, c in enumerate(dev.clips) if c.volume is not None)
    assert dev.item(silent).waveform.equal(dev.item(silent).waveform)
    silent = next(i for i, c in enumerate(train.clips) if c.volume is not None)
    one, two = (train.item(silent, np.random.default_rng(seed)).waveform for seed in (1, 2))
    assert not one.equal(two) and one.equal(train.item(silent, np.random.default_rng(1)).waveform)


def test_training_clips_have_one_second_padded_at_the_end_or_cut(tmp_path: Path) -> None:
    root = speech_commands(tmp_path, test=False)
    write_tone(root / "train/yes/spk3_nohash_9.wav", 300, 2.5)
    write_tone(root / "train/yes/spk3_nohash_8.wav", 300, 0.5)
    train = kws.Task(settings(root, validation_percentage=0, testing_percentage=0), 4, 0, "F").training_data()
    items = {c.key: train.item(i, np.random.default_rng(0)) for i, c in enumerate(train.clips)}
    assert {len(item.waveform) for item in items.values()} == {16_000}
    short = items["yes/spk3_nohash_8.wav"].waveform
    assert short[:8000].abs().max() > 0.1 and not short[8000:].any()


def test_unknown_files_of_the_test_archive_have_the_word_before_the_speaker() -> None:
    keys = ["_unknown_/bed_0c40e715_nohash_0.wav", "yes/0c40e715_nohash_1.wav", "no/ab_nohash_0.wav", "_silence_/1"]
    found = {key: pair for key, pair in kws._spoken(keys).items()}
    assert found == dict(zip(keys, [("bed", "0c40e715"), ("yes", "0c40e715"), ("no", "ab")], strict=False))


def test_the_interval_of_the_accuracy_is_over_speakers_and_single_silences(tmp_path: Path) -> None:
    task = kws.Task(settings(speech_commands(tmp_path)), 4, 0, "F")
    right = {f"spk{speaker}": speaker % 3 > 0 for speaker in range(12)}  # all or none of the clips of a speaker
    said = [
        (2, 2 if good else 3, f"yes/{name}_nohash_{take}.wav") for name, good in right.items() for take in range(10)
    ]
    silence = [(0, 0, f"_silence_/noise_nohash_{number}.wav") for number in range(20)]
    results, arrays = task.metrics("test", said + silence)
    rng = np.random.default_rng(1)
    units = [(good, 10) for good in right.values()] + [(True, 1)] * len(silence)
    accuracies = []
    for _ in range(4_000):
        drawn = [units[number] for number in rng.integers(len(units), size=len(units))]
        accuracies.append(100 * sum(good * clips for good, clips in drawn) / sum(clips for _, clips in drawn))
    assert results["accuracy_interval"] == pytest.approx(np.quantile(accuracies, [0.025, 0.975]), abs=2.5)
    assert results["accuracy_interval"] == list(task.interval([arrays])) and results["speakers"] == 12
    other_clips = {name: array[::-1] for name, array in arrays.items()}
    assert task.interval([arrays, other_clips]) == pytest.approx(task.interval([arrays]), abs=1.0), "the same speakers"
    del other_clips["speakers"]
    assert task.interval([arrays, other_clips]) is None, "scores of an earlier version"
    assert task.metrics("test", said[:20] + silence)[0]["accuracy_interval"] is None, "two speakers are too few"


def test_the_header_gives_the_length_of_eight_kilohertz_and_stereo_files(tmp_path: Path) -> None:
    root = speech_commands(tmp_path)
    write_tone(root / "test/yes/low_nohash_0.wav", 300, 1.0, rate=8000, channels=2)
    task = kws.Task(
        kws.Settings(train_root=str(root / "train"), test_root=str(root / "test"), keywords=WORDS), 4, 0, ""
    )
    data = task.evaluation_data("test")
    for i in range(len(data)):
        assert len(data.item(i).waveform) == data.samples(i) == 16_000


def test_keywords_that_yaml_has_read_as_booleans_are_refused() -> None:
    for words in ([True, "up"], [True, False, True, False]):  # the second: [yes, no, on, off]
        with pytest.raises(UserError, match=r"FILE: keywords: .* put them in quotes"):
            typed(kws.Settings, {"keywords": words}, "FILE")


@pytest.mark.parametrize("bad", ["folder", "class", "test class", "noise", "dev", "unknown"])
def test_missing_data_give_one_line_with_their_name(tmp_path: Path, bad: str) -> None:
    root = speech_commands(tmp_path)
    s = kws.Settings(train_root=str(root / "train"), test_root=str(root / "test"), keywords=list(WORDS))
    match = {
        "folder": r"F\.train_root: .*gone: no such folder",
        "class": r"F\.keywords: .*stop: class 'stop' has no files",
        "test class": r"F\.test_root: .*class '_unknown_' has no files",
        "noise": r"_background_noise_: no files",
        "dev": r"F\.validation_percentage: .* no speaker into dev",
        "unknown": r"class '_unknown_' has no files",
    }[bad]
    if bad == "folder":
        s.train_root = str(root / "gone")
    elif bad == "class":
        s.keywords.append("stop")
    elif bad == "test class":
        for file in (root / "test/_unknown_").iterdir():
            file.unlink()
    elif bad == "noise":
        for file in (root / "train/_background_noise_").iterdir():
            file.unlink()
    elif bad == "dev":
        s.validation_percentage = 0
    else:
        s.keywords += OTHERS
    with pytest.raises(UserError, match=match) as error:
        task = kws.Task(s, 4, 0, "F")
        task.prepare_training()
        task.evaluation_data("dev")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["empty", "text", "nan", "no samples"])
def test_an_unreadable_file_is_named_when_it_is_read(tmp_path: Path, kind: str) -> None:
    root = speech_commands(tmp_path, speakers=4)
    bad = root / "train/yes/spk0_nohash_0.wav"
    if kind in ("empty", "text"):
        bad.write_bytes(b"" if kind == "empty" else b"not audio at all" * 9)
    else:
        wave = np.full(0 if kind == "no samples" else 16_000, np.nan, dtype=np.float32)
        soundfile.write(bad, wave, 16_000, subtype="FLOAT")
    train = kws.Task(settings(root, validation_percentage=0, testing_percentage=0), 4, 0, "F").training_data()
    index = next(i for i, clip in enumerate(train.clips) if clip.path == bad)
    with pytest.raises(UserError, match=r"spk0_nohash_0\.wav"):
        train.item(index, np.random.default_rng(0))


def test_a_keyword_without_clips_in_a_set_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = speech_commands(tmp_path, speakers=10, test=False)
    task = kws.Task(settings(root, validation_percentage=30), 4, 0, "F")
    task.evaluation_data("dev")
    assert "F: dev" not in caplog.text
    for path in (root / "train/yes").glob("*.wav"):
        if tensorflow_which_set(path.name, 30, 10) == "validation":
            path.unlink()
    kws.Task(settings(root, validation_percentage=30), 4, 0, "F").evaluation_data("dev")
    assert "F: dev: no clip of yes, which the scores leave out" in caplog.text
