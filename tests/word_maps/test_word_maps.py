"""The file that words of one's own need: a teacher's vectors, the network that learns them, thresholds."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from helpers.random_word_maps import random_maps
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from distilled_student import onnx
from distilled_student.corpora.keywords import UNKNOWN
from distilled_student.corpora.shipped import read_index, read_voice
from distilled_student.onnx import WordMaps
from distilled_student.word_maps import __main__ as command
from distilled_student.word_maps import network
from distilled_student.word_maps.clips import Clip, draw, find_words, strips
from distilled_student.word_maps.teacher_words import TeacherWords, discriminants, segment_means
from distilled_student.word_maps.thresholds import (
    ALARMS,
    RATES,
    RUNNING_OTHERS,
    draw_groups,
    fit_margins,
    other_words,
    trial_scores,
)

VOICES = [clip.voice for clip in read_index() if clip.text == "yes" and clip.take == 1][:7]
LEFT_OUT = {"yes", "no", "up", "down", "left", "right", "on", "off", "go"}  # of 29, to take less time


def write_words(root: Path, voices: list[str] = VOICES) -> Path:
    """``WORD/VOICE_1.wav`` of the embedded corpus; "zero" is an unknown word."""
    for voice in voices:
        samples = read_voice(voice)
        for clip in read_index():
            if clip.voice == voice and clip.kind == "word" and clip.take == 1 and clip.text not in LEFT_OUT:
                folder = root / (UNKNOWN if clip.text == "zero" else clip.text)
                folder.mkdir(parents=True, exist_ok=True)
                speech = samples[max(0, clip.start - 1_600) : clip.start + clip.samples + 1_600]
                speaker = voice.replace("_", "")  # the name ends at the first underscore
                name = f"{speaker}_{clip.text}" if folder.name == UNKNOWN else f"{speaker}_1"
                soundfile.write(folder / f"{name}.wav", speech, 16_000)
    return root


def random_words(features: int = 12, seed: int = 0) -> TeacherWords:
    rng = np.random.default_rng(seed)
    shapes = ((features,), (features, 5), (network.SEGMENTS * 5,), (network.SEGMENTS * 5, network.SIZE))
    return TeacherWords(*(torch.from_numpy(rng.normal(size=shape)).float() for shape in shapes))


def test_segments_are_the_means_of_equal_parts_of_a_window() -> None:
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(2, 20, 3))).float()
    starts, ends = torch.tensor([[2.0, 0.5], [4.0, 0.0]]), torch.tensor([[14.0, 2.5], [20.0, 4.0]])
    found = segment_means(x, starts, ends, segments=4)
    assert found.shape == (2, 2, 12)
    expected = x[0, 2:14].unflatten(0, (4, 3)).mean(dim=1).flatten()
    torch.testing.assert_close(found[0, 0], expected)
    torch.testing.assert_close(found[0, 1], torch.cat([x[0, 0], x[0, 1], x[0, 1], x[0, 2]]))
    torch.testing.assert_close(found[1, 0], x[1, 4:].unflatten(0, (4, 4)).mean(dim=1).flatten())


def test_discriminants_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    classes = np.repeat(np.arange(6), 50)  # equally many, where the weights of classes make no difference
    rows = rng.normal(size=(6, 8))[classes] + rng.normal(size=(300, 8)) * np.linspace(0.3, 2, 8)
    mean, directions, ratios = discriminants(rows, classes, 5, shrinkage=0.0)
    reference = LinearDiscriminantAnalysis(solver="eigen").fit(rows, classes)
    np.testing.assert_allclose(mean, rows.mean(axis=0), atol=1e-10)
    cosines = np.abs((directions / np.linalg.norm(directions, axis=0)).T @ reference.scalings_[:, :5])
    cosines = cosines / np.linalg.norm(reference.scalings_[:, :5], axis=0)
    np.testing.assert_allclose(np.diag(cosines), 1, atol=1e-6)
    assert (np.diff(ratios) < 0).all() and ratios[-1] > 1


def test_strips_hold_every_file_twice_and_the_second_time_at_another_speed(tmp_path: Path) -> None:
    lengths, levels = [16_000, 24_000, 40_000, 24_000], [0.1, 0.2, 0.4, 0.6]
    for number, (length, level) in enumerate(zip(lengths, levels, strict=True)):
        soundfile.write(tmp_path / f"{number}.wav", np.full(length, level), 16_000)
    *files, once = sorted(tmp_path.glob("*.wav"))
    found = list(strips(files, 8_000, once=[once]))
    assert {len(strip) for strip in found} == {8_000}
    counts = [np.sum(np.abs(np.concatenate(found) - level) < 0.02) for level in levels]
    for length, count in zip(lengths[:3], counts[:3], strict=True):
        assert 1.7 * length - 8_000 < count < 2.3 * length, "only what does not fill the last strip is left out"
        assert abs(count - 2 * length) > 100
    assert 0.8 * lengths[3] - 8_000 < counts[3] < 1.25 * lengths[3]
    again = list(strips(files, 8_000, once=[once]))
    assert all(np.array_equal(a, b) for a, b in zip(found, again, strict=True))
    assert not np.array_equal(found[0], next(strips(files, 8_000, seed=1)))


def test_the_maps_give_the_vectors_of_the_trained_network() -> None:
    torch.manual_seed(0)
    found, mean, scale = network.WordNetwork(12), torch.randn(12), torch.rand(12) + 0.5
    hidden = torch.randn(1, 30, 12)
    starts, ends = torch.tensor([[0.0, 4.25]]), torch.tensor([[20.0, 29.0]])
    with torch.no_grad():
        expected = found.vectors(found((hidden - mean) / scale), starts, ends)[0]
    maps = found.as_maps(mean, scale, "f")
    encoded, _ = maps.encode(hidden[0].numpy())
    np.testing.assert_allclose(maps.vectors(encoded, starts[0].numpy(), ends[0].numpy()), expected, atol=1e-5)
    assert maps.fingerprint == "f" and maps.segments == network.SEGMENTS


def test_the_loss_is_zero_for_the_teachers_own_vectors_given_later_and_the_order_of_others_matters() -> None:
    words, targets = random_words(), torch.randn(4, 200, 5)

    def loss(of: TeacherWords) -> float:
        def same(x: torch.Tensor) -> torch.Tensor:
            return x

        same.vectors = of.vectors  # type: ignore[attr-defined]
        later = targets.roll(network.DELAY, dims=1)
        return float(network.loss(same, later, targets, words, np.random.default_rng(0)))  # type: ignore[arg-type]

    assert loss(words) == pytest.approx(0, abs=1e-5)
    assert loss(replace(words, mapping=random_words(seed=1).mapping)) > 0.5


def test_training_brings_the_vectors_of_unseen_speech_nearer_to_the_teachers(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name, size in (("BATCH", 4), ("WINDOWS", 8)):
        monkeypatch.setattr(network, name, size)
    rng, words = np.random.default_rng(0), random_words(5)
    steps = np.cumsum(rng.normal(size=(24, 400, 5)), axis=1) / 8  # frames that change slowly, as those of speech
    mixing = rng.normal(size=(5, 10))
    delayed = np.roll(steps, network.DELAY, axis=1) @ mixing
    speech = network.Speech(delayed.astype(np.float16), steps.astype(np.float16))
    with caplog.at_level("INFO"):
        network.train(speech, words, "f", steps=100)
        first = network.train(speech, words, "f", steps=1)
    after, before = (float(record.getMessage().split()[-1]) for record in caplog.records)
    assert after < 0.6 * before
    maps, again = (network.train(speech, words, "f", steps=5) for _ in range(2))
    assert np.array_equal(maps.front, again.front) and np.array_equal(maps.mapping, again.mapping)
    assert not np.array_equal(maps.mapping, first.mapping), "these are the weights that were trained"


def test_words_are_found_by_language_and_the_most_frequent_ones_are_drawn_from(tmp_path: Path) -> None:
    for language, word, count in (("en", "yes", 70), ("en", "_silence_", 2), ("ar", "yes", 3), ("ar", UNKNOWN, 2)):
        (tmp_path / language / word).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            (tmp_path / language / word / f"s{number}_1.wav").touch()
    languages = [[tmp_path / "en"], [tmp_path / "ar"]]
    found = find_words(languages)
    counts = {word: sum(one.word == word for one in found) for word in {one.word for one in found}}
    assert counts == {"0:yes": 70, "1:yes": 3, UNKNOWN: 2}
    drawn = draw(found)
    assert sum(one.word == "0:yes" for one in drawn) == 60 and len(drawn) == 65
    assert drawn == draw(found) and {one.speaker for one in drawn if one.word == "1:yes"} == {"s0", "s1", "s2"}
    assert {one.word for one in find_words(languages, ["0:yes"])} == {"1:yes", UNKNOWN}


def test_other_words_are_the_mean_vectors_of_words_and_vectors_of_unknown_clips() -> None:
    maps, rng = random_maps(12), np.random.default_rng(0)
    clips = [Clip(word, str(i), rng.normal(size=(20, 12)), 2.0, 17.0) for i in range(4) for word in ("a", "b", UNKNOWN)]
    found = other_words(maps, clips, seed=0)
    assert found.shape == (2 + 4, 8)
    mean = np.mean([maps.clip_vector(clip.recording) for clip in clips if clip.word == "b"], axis=0)
    np.testing.assert_allclose(found[1], mean / np.linalg.norm(mean), atol=1e-6)


def random_clips(rng: np.random.Generator) -> list[Clip]:
    """Of four words and eight speakers, three each."""
    return [
        Clip(f"w{word}", f"s{speaker}", rng.normal(size=(20, 12)), 2.0, 17.0)
        for word in range(4)
        for speaker in range(8)
        for _ in range(3)
    ]


def test_a_template_is_never_compared_with_speakers_it_is_made_of_and_one_speakers_words_stay_among_themselves() -> (
    None
):
    maps, clips = random_maps(12), random_clips(np.random.default_rng(0))
    groups = list(draw_groups(clips, {"w0", "w1"}, seed=0, is_one_speaker=False))
    for group in groups:
        enrolled, tested = ({clip.speaker for clip in part} for part in (group.enrolled, group.tested))
        assert len(enrolled) == 5 and not enrolled & tested
    of_many = trial_scores(maps, clips, groups, seed=0)
    assert {len(scores) for scores in of_many.same.values()} == {2 * (8 - 5)}, "two words, one clip of a speaker"
    assert {len(scores) for scores in of_many.other.values()} == {2 * 3 * 8 * 3}
    of_one = trial_scores(maps, clips, list(draw_groups(clips, {"w0", "w1"}, seed=0, is_one_speaker=True)), seed=0)
    assert {len(scores) for scores in of_one.other.values()} == {2 * 8 * 3 * 3}, "this speaker's three other words"


def test_the_margin_of_a_stream_has_the_stated_number_of_alarms_above_the_levels_of_words() -> None:
    maps, rng = random_maps(12), np.random.default_rng(0)
    groups = list(draw_groups(random_clips(rng), {"w0", "w1"}, seed=0, is_one_speaker=False))
    strips = [rng.normal(size=(1000, 6)) for _ in range(20)]  # 400 s
    found = fit_margins(maps, groups, strips)
    words = [maps.word([clip.recording for clip in group.enrolled]) for group in groups]
    above = np.array([maps.largest_differences(word, strip) - maps.level(word) for word in words for strip in strips])
    for alarms, margin in zip(found["alarms"], found["margins"], strict=True):
        assert abs((above > margin).sum() - alarms / 3600 * above.size) <= 1
    assert (np.diff(found["margins"]) <= 0).all()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The words, and the file that the command makes from them."""
    root = tmp_path_factory.mktemp("words")
    words, file = write_words(root / "words"), root / "words.npz"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(network, "BATCH", 8)
        run([str(words), "--synthetic", str(words / "dog"), "--steps", "20", "-o", str(file)])
    return words, file


def run(arguments: list[str]) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sys, "argv", ["word_maps", "tiny", "--teacher", "shipped", "--layer", "2", *arguments])
        command.main()


def test_the_command_makes_a_file_that_finds_a_word_it_has_not_seen(made: tuple[Path, Path], tmp_path: Path) -> None:
    model, (_, file) = onnx.load("tiny"), made
    maps = WordMaps.read(file)
    assert maps.fingerprint == model.fingerprint
    assert maps.others.shape == (20 + len(VOICES) + RUNNING_OTHERS, network.SIZE)
    assert maps.rates == pytest.approx(RATES) and (np.diff(maps.thresholds, axis=1) < 0).all()
    assert maps.alarms == pytest.approx(ALARMS) and (np.diff(maps.margins) <= 0).all()
    for part in (model.file, model.file.with_name(onnx.STREAM)):
        (tmp_path / part.name).write_bytes(part.read_bytes())
    (tmp_path / onnx.WORDS).write_bytes(file.read_bytes())
    own = onnx.load(tmp_path)
    samples = read_voice("bm_george")
    takes = {
        (clip.text, clip.take): samples[clip.start - 1_600 : clip.start + clip.samples + 1_600]
        for clip in read_index()
        if clip.voice == "bm_george" and clip.kind == "word"
    }
    word = {"happy": own.enrol_word([takes["happy", 1]])}
    said = own.word_scores(takes["happy", 1], word)["happy"]
    others = [own.word_scores(takes[text, 1], word)["happy"] for text in ("yes", "stop", "dog", "left", "house", "up")]
    assert said >= 0.5 and said > max(others)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--layer", "7"], "--layer: shipped has the layers 0 to 2, not 7"),
        (["--without", "0:dog"], "19 words"),
        (["--noise", "nowhere"], "nowhere"),
        (["--audio", "nowhere"], "--audio: nowhere"),
        (["--synthetic", "nowhere"], "--synthetic: nowhere"),
    ],
)
def test_what_cannot_be_used_is_said_in_one_line(
    arguments: list[str], message: str, made: tuple[Path, Path], tmp_path: Path
) -> None:
    words, _ = made
    with pytest.raises(SystemExit) as stopped:
        run([str(words), *arguments, "-o", str(tmp_path / "unused.npz")])
    assert message in str(stopped.value) and "\n" not in str(stopped.value)
    assert not list(tmp_path.iterdir())


def test_too_little_speech_is_refused_before_the_training(tmp_path: Path) -> None:
    words = write_words(tmp_path, VOICES[:1])
    with pytest.raises(SystemExit) as stopped:
        run([str(words), "-o", str(tmp_path / "words.npz")])
    assert "--audio: too little: needs 80 seconds of speech, better hours" in str(stopped.value)
