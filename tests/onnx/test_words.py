"""Words of one's own: their vectors, scores and thresholds, and how utterances and streams use them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.random_word_maps import network_shapes

from distilled_student import onnx
from distilled_student.corpora.shipped import read_index, read_voice
from distilled_student.onnx import Model, Spotted, Word, WordMaps, WordTracker
from distilled_student.onnx.detector import decide_words
from distilled_student.onnx.words import (
    FALSE_ALARMS,
    LARGEST,
    LENGTHS,
    SAME_WORD,
    STEP,
    WordClip,
    product,
    speech_bounds,
    template,
)

ENROLLED = ["af_heart", "am_adam", "bf_emma", "am_liam", "af_sky"]
FALSE_ACCEPTS, FOUND = 0.01, 0.75  # share of other words that is accepted; the least share of the word that is found
TESTED = ["af_bella", "af_nova", "am_michael", "am_puck", "bm_george", "bf_alice", "am_onyx", "af_sarah"]


def maps(features: int = 6, width: int = 3, segments: int = 4, size: int = 5) -> WordMaps:
    """Random maps, with thresholds that grow with the strictness and with the number of recordings."""
    rng = np.random.default_rng(0)
    others = rng.standard_normal((30, size))
    shapes = network_shapes(features, width, blocks=2, taps=3, segments=segments, size=size)
    return WordMaps(
        fingerprint="f",
        segments=segments,
        delay=2,
        rate=10.0,
        **{name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()},
        others=(others / np.linalg.norm(others, axis=1, keepdims=True)).astype(np.float32),
        rates=np.array([0.001, 0.01, 0.05], np.float32),
        clips=np.array([1, 3, 5], np.float32),
        thresholds=np.array([0.0, 0.2])[:, None, None] + np.array([[0.5, 0.6, 0.7], [0.3, 0.4, 0.5], [0.1, 0.2, 0.3]]),
        speech=rng.standard_normal((2, 60, width)).astype(np.float32),
        alarms=np.array([1, 10], np.float32),
        margins=np.array([0.1, -0.1], np.float32),
        agreements=np.array([[1.0, 0.6, 0.5], [1.0, 0.8, 0.7]]),
        slope=10.0,
    )


def plain_features(found: WordMaps, hidden: np.ndarray) -> np.ndarray:
    """The network by torch's convolutions, without a past: zeros are put before the first layer's result."""
    x = torch.from_numpy(hidden.astype(np.float32) @ found.front + found.front_bias).T[None]
    taps = found.depth.shape[1]
    x = torch.nn.functional.pad(x, (len(found.depth) * (taps - 1), 0))
    for block in range(len(found.depth)):
        depth, mix = found.depth[block].T[:, None], found.mix[block].T[:, :, None]
        arrays = [torch.from_numpy(array.copy()) for array in (depth, found.depth_bias[block], mix)]
        y = torch.nn.functional.conv1d(x, arrays[0], arrays[1], groups=x.shape[1]).clamp(min=0)
        y = torch.nn.functional.conv1d(y, arrays[2], torch.from_numpy(found.mix_bias[block].copy()))
        x = x[:, :, taps - 1 :] + y
    return x[0].T.numpy()


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.sqrt((vector**2).sum())


def plain_vector(found: WordMaps, hidden: np.ndarray, start: int, length: int) -> np.ndarray:
    """The vector of a window whose segments are ``length`` whole frames long, in plain steps."""
    encoded, means = plain_features(found, hidden), []
    for segment in range(found.segments):
        first = start + segment * length
        means.append(encoded[first : first + length].mean(axis=0))
    return unit(np.concatenate(means) @ found.mapping + found.mapping_bias)


@pytest.mark.parametrize("rows", [1, 4, 33])
def test_a_product_in_parts_is_the_whole_product(rows: int) -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((rows, 1536), np.float32), rng.standard_normal((1536, 97), np.float32)
    np.testing.assert_allclose(product(a, b), a.astype(float) @ b, rtol=1e-4, atol=1e-3)


def test_the_network_is_a_stack_of_causal_convolutions_and_goes_on_where_it_was() -> None:
    found, hidden = maps(), np.random.default_rng(1).standard_normal((30, 6)).astype(np.float32)
    whole, _ = found.encode(hidden)
    np.testing.assert_allclose(whole, plain_features(found, hidden), rtol=1e-5, atol=1e-5)
    past, parts = None, []
    for first, last in ((0, 1), (1, 3), (3, 20), (20, 30)):
        part, past = found.encode(hidden[first:last], past)
        parts.append(part)
    np.testing.assert_allclose(np.concatenate(parts), whole, rtol=1e-5, atol=1e-5)


def test_a_vector_holds_the_means_of_equal_segments_in_their_order() -> None:
    found, hidden = maps(), np.random.default_rng(1).standard_normal((30, 6)).astype(np.float32)
    got = found.vectors(found.encode(hidden)[0], np.array([2.0, 5.0]), np.array([14.0, 25.0]))
    np.testing.assert_allclose(got[0], plain_vector(found, hidden, 2, 3), atol=1e-5)
    np.testing.assert_allclose(got[1], plain_vector(found, hidden, 5, 5), atol=1e-5)
    backwards = found.vectors(found.encode(hidden)[0][::-1], np.array([16.0]), np.array([28.0]))
    assert abs(float(backwards[0] @ got[0])) < 0.99, "the same frames in the opposite order are another word"


def test_a_window_between_two_frames_takes_its_share_of_both() -> None:
    found, encoded = maps(segments=1), np.random.default_rng(1).standard_normal((4, 3)).astype(np.float32)
    mean = (0.75 * encoded[0] + encoded[1] + 0.5 * encoded[2]) / 2.25
    got = found.vectors(encoded, np.array([0.25]), np.array([2.5]))[0]
    np.testing.assert_allclose(got, unit(mean @ found.mapping + found.mapping_bias), atol=1e-5)


def test_a_score_is_the_cosine_minus_the_mean_one_to_the_ten_closest_other_words() -> None:
    found, rng = maps(), np.random.default_rng(2)
    vectors = rng.standard_normal((3, 5)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    word = vectors[0]
    for vector, got in zip(vectors, found.differences(vectors, word), strict=True):
        cosines = sorted(float(vector @ other) for other in found.others if other @ word < SAME_WORD)
        assert got == pytest.approx(float(vector @ word) - sum(cosines[-10:]) / 10, abs=1e-5)


def test_thresholds_are_exact_where_they_were_measured_and_those_of_the_nearest_outside() -> None:
    found, vector = maps(), np.zeros(5, np.float32)

    def threshold(clips: int, false_accepts: float, agreement: float = 0.0) -> float:
        return found.threshold(Word(vector, clips, 10.0, agreement), false_accepts)

    assert threshold(3, 0.01) == pytest.approx(0.4) and threshold(5, 0.001) == pytest.approx(0.7)
    assert threshold(50, 0.5) == pytest.approx(0.3) and threshold(5, 1e-9) == pytest.approx(0.7)
    assert 0.4 < threshold(4, 0.01) < 0.5 and 0.4 < threshold(3, 0.003) < 0.6
    assert threshold(3, 0.01, 0.8) == pytest.approx(0.6) and threshold(3, 0.01, 0.7) == pytest.approx(0.5)
    assert threshold(1, 0.01, 1.0) == pytest.approx(0.5), "one recording is of one speaker"


def test_the_threshold_of_a_stream_is_above_what_running_speech_reaches() -> None:
    found = maps()
    word, best = Word(found.others[0], 3, 12.0), []
    for strip in found.speech:
        encoded = np.repeat(strip, 2, axis=0)
        ends = list(range(math.ceil(12.0 * LENGTHS[0]), len(encoded) + 1, STEP))
        for first in range(0, len(ends), 5):  # the windows that end in a second of ten frames
            windows = [(end - 12.0 * share, end) for end in ends[first : first + 5] for share in LENGTHS]
            starts, stops = np.array([window for window in windows if window[0] >= 0 or window[1] < 11]).T
            vectors = found.vectors(encoded, np.maximum(starts, 0), stops)
            best.append(found.differences(vectors, word.vector).max())
    level = np.mean(sorted(best)[-LARGEST:])
    assert found.level(word) == pytest.approx(level, abs=1e-5)
    limits = [found.stream_threshold(word, alarms) for alarms in (0.1, 1, 10**0.5, 10)]
    assert limits == pytest.approx([level + 0.1, level + 0.1, level, level - 0.1], abs=1e-5)
    assert found.stream_threshold(word._replace(level=0.5), 1) == pytest.approx(0.6), "it is not computed again"
    assert found.level(word._replace(frames=200.0)) == 0


def test_a_score_is_a_half_at_the_threshold_and_never_outside_0_and_1() -> None:
    assert [maps().probability(value, 0.4) for value in (0.4, -np.inf, 9)] == pytest.approx([0.5, 0, 1])


def test_a_template_has_the_mean_vector_of_later_frames_and_the_mean_length() -> None:
    found, rng = maps(), np.random.default_rng(3)
    clips = [WordClip(rng.standard_normal((24, 6)), 2.0, 14.0), WordClip(rng.standard_normal((24, 6)), 4.0, 20.0)]
    word = found.word(clips)
    total = plain_vector(found, clips[0].hidden, 4, 3) + plain_vector(found, clips[1].hidden, 6, 4)
    np.testing.assert_allclose(word.vector, total / np.sqrt((total**2).sum()), atol=1e-5)
    assert (word.clips, word.frames) == (2, 14.0)
    assert word.agreement == pytest.approx(np.sqrt((total**2).sum()) / 2, abs=1e-5)
    np.testing.assert_allclose(template(np.eye(5, dtype=np.float32)[:2], [3, 5]).vector, [0.5**0.5] * 2 + [0] * 3)


def test_a_stream_has_the_best_score_of_the_windows_that_end_in_each_hop() -> None:
    found, rng = maps(), np.random.default_rng(4)
    hidden, word = rng.standard_normal((60, 6)).astype(np.float32), Word(found.others[0], 3, 12.0)
    tracker, (encoded, _) = WordTracker(found, {"a": word}), found.encode(hidden)
    for hop in range(15):
        got = tracker.step(hidden[4 * hop : 4 * hop + 4])["a"]
        best = -np.inf
        for end in (4 * hop + 4, 4 * hop + 4 - STEP):
            for length in (12.0 * share for share in LENGTHS):
                if end - length >= 0 or (length == 12.0 * LENGTHS[0] <= end):
                    vector = found.vectors(encoded, np.array([max(0, end - length)]), np.array([float(end)]))
                    best = max(best, float(found.differences(vector, word.vector)[0]))
        assert got == pytest.approx(found.probability(best, found.stream_threshold(word, FALSE_ALARMS)), abs=1e-5)
    tracker.reset()
    assert tracker.step(hidden[:4]) == {"a": pytest.approx(0, abs=1e-6)}, "shorter than the word"


def test_a_word_of_ones_own_that_reaches_its_threshold_comes_before_the_keywords_of_the_model() -> None:
    keyword, none = Spotted("stop", 0.99), Spotted(None, 0.3)
    assert decide_words(keyword, {"lamp": 0.9, "sofa": 0.6}) == Spotted("lamp", 0.9)
    assert decide_words(keyword, {"lamp": 0.5}) == Spotted("lamp", 0.5)
    assert decide_words(keyword, {"lamp": 0.49}) == keyword and decide_words(keyword, {}) == keyword
    assert decide_words(none, {"lamp": 0.5}) == Spotted("lamp", 0.5) and decide_words(none, {"lamp": 0.49}) == none


def test_speech_is_found_between_silence_and_noise() -> None:
    rng = np.random.default_rng(5)
    clip = 0.001 * rng.standard_normal(16_000)
    clip[4_800:9_600] += 0.3 * rng.standard_normal(4_800)
    assert speech_bounds(clip.astype(np.float32)) == (14.0, 31.0), "a hop of 20 ms is added at both ends"
    assert speech_bounds(np.full(100, 0.1, np.float32)) == (0.0, 1.0)
    assert speech_bounds(np.zeros(16_000, np.float32))[1] > 0


def test_maps_are_written_and_read_and_damaged_ones_are_refused(tmp_path: Path) -> None:
    found, file = maps(), tmp_path / "words.npz"
    found.write(file)
    again = WordMaps.read(file)
    np.testing.assert_allclose(again.mix, found.mix, rtol=1e-3)
    for read, written in ((again.front, found.front), (again.mapping, found.mapping)):
        assert (np.abs(read - written) <= np.abs(written).max(axis=0) / 250).all()
    np.testing.assert_allclose(again.others, found.others, atol=1 / 127)
    assert (again.fingerprint, again.segments, again.delay, again.slope) == ("f", 4, 2, 10.0)
    with pytest.raises(ValueError, match=r"none.npz: no such file"):
        WordMaps.read(tmp_path / "none.npz")
    replace(found, mix=found.mix * np.nan).write(file)
    with pytest.raises(ValueError, match="mix: expected finite numbers"):
        WordMaps.read(file)
    replace(found, depth_bias=found.depth_bias[:-1]).write(file)
    with pytest.raises(ValueError, match="depth_bias: expected"):
        WordMaps.read(file)
    file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(ValueError, match="not readable as the maps of words"):
        WordMaps.read(file)


@pytest.fixture(scope="module", params=["edge", "tiny"])
def model(request: pytest.FixtureRequest) -> Model:
    return onnx.load(request.param)


@pytest.fixture(scope="module")
def clips() -> dict[tuple[str, str], np.ndarray]:
    """(word, voice) -> the first clip ``(samples,)``, with 0.1 s more on both sides."""
    voices = {voice: read_voice(voice) for voice in [*ENROLLED, *TESTED]}
    return {
        (clip.text, clip.voice): voices[clip.voice][max(0, clip.start - 1_600) : clip.start + clip.samples + 1_600]
        for clip in read_index()
        if clip.voice in voices and clip.kind == "word" and clip.take == 1
    }


def test_five_recordings_of_other_voices_find_a_word_that_the_maps_were_not_fitted_to(
    model: Model, clips: dict[tuple[str, str], np.ndarray]
) -> None:
    word = {"happy": model.enrol_word([clips["happy", voice] for voice in ENROLLED])}
    found = [model.spot(clips["happy", voice], word, FALSE_ACCEPTS).label == "happy" for voice in TESTED]
    assert np.mean(found) >= FOUND
    others = ("yes", "stop", "zero", "dog", "sheila", "seven", "left", "house")
    wrong = [model.word_scores(clips[text, voice], word, FALSE_ACCEPTS)["happy"] for text in others for voice in TESTED]
    assert np.mean(np.array(wrong) >= 0.5) <= FALSE_ACCEPTS + 0.02
    keywords = [model.spot(clips["stop", voice], word) == model.spot(clips["stop", voice]) for voice in TESTED]
    assert np.mean(keywords) >= 0.9, "keywords of the model are found as before"


def test_a_stream_reports_a_word_of_ones_own_once_however_its_samples_arrive(
    model: Model, clips: dict[tuple[str, str], np.ndarray]
) -> None:
    pause = 0.0003 * np.random.default_rng(0).standard_normal(32_000).astype(np.float32)
    said = ["dog", "happy", "zero"]
    audio = np.concatenate([part for word in said for part in (pause, clips[word, "af_heart"])] + [pause])
    enrolled = {"happy": model.enrol_word([clips["happy", voice] for voice in ENROLLED])}

    def hits(sizes: Sequence[int]) -> list[tuple[float, str]]:
        stream, found, start = model.stream(), [], 0
        stream.watch(enrolled)
        for size in sizes:
            found += stream.listen(audio[start : start + size])
            start += size
        return [(hit.seconds, hit.label) for hit in found if hit.label == "happy"]

    whole = hits([len(audio)])
    assert len(whole) == 1
    ends, position = [], 0
    for word in said:
        position += len(pause) + len(clips[word, "af_heart"])
        ends.append(position / 16_000)
    assert ends[1] - 0.5 < whole[0][0] < ends[1] + 0.3
    assert hits([1_000] * (len(audio) // 1_000 + 1)) == whole


def test_maps_of_another_model_are_refused(tmp_path: Path) -> None:
    model = onnx.load("tiny")
    for file in (model.file, model.file.with_name(onnx.STREAM)):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(ValueError, match=r"words.npz: no such file; words of one's own need it"):
        onnx.load(tmp_path).enrol_word([np.ones(16_000, np.float32)])
    assert onnx.load(tmp_path).spot(np.zeros(16_000, np.float32), {}) == model.spot(np.zeros(16_000, np.float32))
    maps().write(tmp_path / onnx.WORDS)
    with pytest.raises(ValueError, match=r"words.npz: was made for another model than .*stream.onnx"):
        onnx.load(tmp_path).enrol_word([np.ones(16_000, np.float32)])
    replace(maps(), fingerprint=model.fingerprint).write(tmp_path / onnx.WORDS)
    with pytest.raises(ValueError, match=r"stream.onnx: has not the .*states that words.npz needs: export it again"):
        onnx.load(tmp_path).enrol_word([np.ones(16_000, np.float32)])
    with pytest.raises(ValueError, match="recordings: none given"):
        model.enrol_word([])


def test_a_word_of_another_model_is_refused_in_utterances_and_streams() -> None:
    edge, tiny = onnx.load("edge"), onnx.load("tiny")
    samples = read_voice("af_heart")[:16_000]
    word = edge.enrol_word([samples])
    for attempt in (lambda: tiny.spot(samples, {"lamp": word}), lambda: tiny.stream().watch({"lamp": word})):
        with pytest.raises(ValueError, match="lamp: is a word of another model: enrol it with this model"):
            attempt()
    with pytest.raises(ValueError, match="false_alarms: 0: expected a number above 0"):
        edge.stream().watch({"lamp": word}, 0)
    with pytest.raises(ValueError, match="false_accepts: 0: expected a number above 0 and up to 1"):
        edge.spot(samples, {"lamp": word}, 0)
