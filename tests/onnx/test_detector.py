"""The detector of streams: one hit for each keyword, the same ones however the samples arrive."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from distilled_student import onnx
from distilled_student.corpora.shipped import read_index, read_voice
from distilled_student.onnx import (
    Calibration,
    Detector,
    DetectorSettings,
    Enrolment,
    Hit,
    Stream,
    owner_said,
    stream_threshold,
)

LABELS = ["_silence_", "yes", "no"]
HOP = 0.1
OTHER_SAMPLES = np.zeros(1_600, np.float32)


def hits(scores: Sequence[tuple[float, float]], **settings: float) -> list[tuple[int, str]]:
    """The hops (from 1) and labels of the hits, from the probabilities of yes and no at each hop."""
    detector = Detector(LABELS, DetectorSettings(**{"threshold": 0.5, "smoothing": 0.0, **settings}), HOP)
    found = []
    for yes, no in scores:
        hit = detector.step(np.array([1 - yes - no, yes, no]), OTHER_SAMPLES)
        found += [] if hit is None else [(round(hit.seconds / HOP), hit.label)]
    return found


def test_a_keyword_is_one_hit_however_many_hops_it_lasts() -> None:
    assert hits([(0, 0), *[(0.9, 0)] * 40, (0, 0)], hold_off=1.0) == [(2, "yes")]
    assert hits([(0.4, 0.1)] * 9) == []
    assert hits([(0.5, 0.1)]) == [(1, "yes")], "a score that reaches the threshold is enough"


def test_a_keyword_is_reported_again_only_after_the_hold_off() -> None:
    word, pause = [(0.9, 0)] * 3, [(0, 0)]
    assert hits([*word, *pause * 2, *word], hold_off=1.0) == [(1, "yes")]
    assert hits([*word, *pause * 6, *word], hold_off=1.0) == [(1, "yes")]
    assert hits([*word, *pause * 7, *word], hold_off=1.0) == [(1, "yes"), (11, "yes")]
    assert hits([*word, *pause, *word], hold_off=0.0) == [(1, "yes"), (5, "yes")]
    flickers = [(0.9, 0), (0.1, 0)] * 4 + [(0.9, 0)] * 12
    assert hits(flickers, hold_off=1.0) == [(1, "yes")], "it flickers in the hold-off, and then lasts"


def test_another_keyword_is_reported_after_the_hold_off_if_it_still_lasts() -> None:
    yes, no = (0.9, 0.0), (0.0, 0.9)
    assert hits([yes, *[no] * 5], hold_off=1.0) == [(1, "yes")]
    assert hits([yes, *[no] * 12], hold_off=1.0) == [(1, "yes"), (11, "no")]
    assert hits([yes, no], hold_off=0.0) == [(1, "yes"), (2, "no")]


def test_scores_are_averaged_over_the_stated_time() -> None:
    generator = np.random.default_rng(0)
    scores = generator.dirichlet(np.ones(3), 50)
    detector = Detector(LABELS, DetectorSettings(0.5, smoothing=0.4), HOP)
    for i, row in enumerate(scores):
        np.testing.assert_allclose(detector.smooth(row), scores[max(0, i - 3) : i + 1].mean(axis=0))
    assert hits([(0, 0), (0, 0), (0.9, 0), (0, 0), (0, 0)], smoothing=0.3) == []
    assert hits([(0, 0), (0, 0), (0.9, 0), (0.9, 0), (0, 0)], smoothing=0.3) == [(4, "yes")]


def test_without_a_threshold_the_most_likely_class_decides() -> None:
    assert hits([(0.3, 0.2), (0.4, 0.3)], threshold=None) == [(2, "yes")]


def test_the_energy_gate_needs_a_loud_hop_in_the_last_second() -> None:
    def run(amplitudes: Sequence[float], level: float | None) -> list[int]:
        detector = Detector(LABELS, DetectorSettings(0.5, 0.0, 0.0, level), HOP)
        scores, found = np.array([0.1, 0.9, 0.0]), []
        for i, amplitude in enumerate(amplitudes):
            if detector.step(scores, np.full(1_600, amplitude, np.float32)) is not None:
                found.append(i)
        return found

    assert run([0.001] * 5, None) == [0]
    assert run([0.001] * 5, -50.0) == [], "0.001 is -60 dB"
    assert run([0.001, 0.001, 0.01, 0.001], -50.0) == [2]
    assert onnx.detector.level(np.full(10, 0.1)) == pytest.approx(-20.0, abs=1e-6)
    assert onnx.detector.level(np.zeros(10)) == pytest.approx(-120.0)


def test_word_and_owner_are_multiplied_as_probabilities_and_either_can_veto() -> None:
    for score, ratio, prior in ((0.9, 3.0, 0.5), (0.6, -1.0, 0.2), (1.0, 0.0, 0.5)):
        odds = math.exp(ratio) * prior / (1 - prior)
        assert owner_said(score, ratio, prior) == pytest.approx(score * odds / (1 + odds))
    assert owner_said(1.0, -1e6) == 0.0 and owner_said(0.0, 1e6) == 0.0 and owner_said(0.7, 1e6) == 0.7


def test_a_stream_asks_for_ten_times_the_odds_of_an_utterance() -> None:
    for threshold in (0.05, 0.5, 0.67, 0.99):
        found = stream_threshold(threshold)
        assert found / (1 - found) == pytest.approx(10 * threshold / (1 - threshold))
    assert stream_threshold(None) == stream_threshold(0.5) and stream_threshold(1.0) == pytest.approx(1.0)


def test_settings_travel_in_metadata_and_wrong_ones_are_named() -> None:
    settings = DetectorSettings(0.7, 0.16, 0.8, -45.0)
    assert DetectorSettings.from_metadata({"detector": settings.to_json(), "keyword_threshold": "0.2"}) == settings
    assert DetectorSettings.from_metadata({"keyword_threshold": "0.2"}) == DetectorSettings(0.2)
    assert DetectorSettings.from_metadata({}).threshold is None
    assert "word_threshold" not in json.loads(settings.to_json()), "earlier versions do not know it"
    of_words = DetectorSettings(0.7, word_threshold=0.8)
    assert DetectorSettings.from_metadata({"detector": of_words.to_json()}) == of_words
    for text, reason in (
        ("no JSON", "Expecting value"),
        (json.dumps({"speed": 1}), "speed"),
        (json.dumps({"smoothing": -1}), "smoothing: must be 0 to 3600 seconds, found -1"),
        (json.dumps({"smoothing": 1e300}), r"smoothing: must be 0 to 3600 seconds, found 1e\+300"),
        (json.dumps({"level": math.nan}), "level: must be a number, found nan"),
        (json.dumps({"level": "loud"}), "must be real number, not str"),
        (json.dumps({"word_threshold": None}), "must be real number, not NoneType"),
        ("[" * 100_000, "maximum recursion depth"),
        (json.dumps({"threshold": math.nan}), "threshold: must be a number"),
    ):
        with pytest.raises(ValueError, match=f"detector: damaged, or of a later version .*{reason}"):
            DetectorSettings.from_metadata({"detector": text})


@pytest.fixture(scope="module")
def speech() -> np.ndarray:
    """13 s of one voice: keywords, other words and pauses."""
    audio, clips = read_voice("am_adam"), [clip for clip in read_index() if clip.voice == "am_adam"]
    first = [clip for clip in clips if clip.kind == "word"][:12]
    return np.concatenate([audio[clip.start - 800 : clip.start + clip.samples + 4_000] for clip in first])[:210_000]


@pytest.fixture(scope="module")
def stream() -> Stream:
    """With the threshold of utterances, which finds more in a few seconds than that of streams."""
    found = onnx.load("tiny").stream()
    settings = replace(found.detector.settings, threshold=found.model.threshold)
    found.detector = Detector(found.model.labels, settings, found.hop / found.model.rate)
    return found


def listened(stream: Stream, samples: np.ndarray, size: int, **speakers: object) -> list[Hit]:
    stream.reset()
    chunks = np.split(samples, range(size, len(samples), size))
    return [hit for chunk in chunks for hit in stream.listen(chunk, **speakers)]


def test_the_hits_are_the_same_for_chunks_of_1_sample_to_10_seconds(stream: Stream, speech: np.ndarray) -> None:
    whole = listened(stream, speech, len(speech))
    assert len(whole) >= 3
    for size in (37, 320, 1_279, 1_280, 1_281, 16_000, 160_000):
        assert listened(stream, speech, size) == whole
    integers = (speech * 32_768).clip(-32_768, 32_767).astype(np.int16)
    assert listened(stream, integers, 777) == listened(stream, integers / 32_768, 12_345)
    begin = 3 * 16_000
    assert listened(stream, speech[:begin], 1) == [hit for hit in whole if hit.seconds <= 3.0] != []
    assert stream.listen(np.zeros(0, np.float32)) == []


def test_the_hits_are_those_of_a_plain_loop(stream: Stream, speech: np.ndarray) -> None:
    stream.reset()
    threshold, recent, expected = stream.model.threshold, [], []
    last_label, last_hit, was_above = None, -99.0, False
    for hop in range(len(speech) // 1_280):
        scores = stream.feed(speech[hop * 1_280 : (hop + 1) * 1_280])["keyword_scores"].astype(float)
        recent = [*recent, scores][-7:]  # 0.56 s
        mean = sum(recent) / len(recent)
        best = 2 + int(mean[2:].argmax())  # after silence and unknown
        label, seconds = stream.model.labels[best], 0.08 * (hop + 1)
        is_above = mean[best] >= threshold
        is_new = label != last_label or not was_above
        in_hold_off = seconds < last_hit + 1.0 - 1e-6
        if is_above and is_new and not in_hold_off:
            expected.append((pytest.approx(seconds), label, pytest.approx(mean[best])))
            last_label, last_hit = label, seconds
        was_above = is_above and (label == last_label)
    found = listened(stream, speech, 5_000)
    assert [hit[:3] for hit in found] == expected
    assert all(hit.speaker is None and hit.ratio is None for hit in found)


def test_each_hit_says_who_spoke_and_only_those_of_the_owner_are_reported(stream: Stream, speech: np.ndarray) -> None:
    model = onnx.load("tiny")
    stream.model.calibration = Calibration(
        {"bias": -7.0, "cosine": 20.0}, {0.001: {"bias": 0.9}, 0.05: {"bias": 0.7}}, {"seconds": (0.5, 5.0)}
    )
    owner, stranger = model.enrol(speech[:80_000]), model.enrol(read_voice("bf_emma")[:80_000])
    plain = listened(stream, speech, 4_000)
    named = listened(stream, speech, 4_000, speakers={"owner": owner, "stranger": stranger})
    assert [hit[:3] for hit in named] == [hit[:3] for hit in plain]
    assert "owner" in {hit.speaker for hit in named} and "stranger" not in {hit.speaker for hit in named}
    of_owner = listened(stream, speech, 999, owner=owner)
    accepted = [hit for hit in listened(stream, speech, 4_000, speakers={"owner": owner}) if hit.speaker == "owner"]
    assert [hit[:2] for hit in of_owner] == [hit[:2] for hit in accepted] != []
    for hit, word in zip(of_owner, accepted, strict=True):
        assert hit.score == pytest.approx(word.score / (1 + math.exp(-word.ratio))) and hit.score <= word.score
    assert listened(stream, speech, 4_000, owner=stranger) == []
    with pytest.raises(ValueError, match="speakers, owner: give one of them"):
        stream.listen(speech, speakers={"owner": owner}, owner=owner)
    for people in ({"owner": "anna.wav"}, {"speakers": {"owner": "anna.wav"}}):
        with pytest.raises(ValueError, match=r"owner: expected what `Model\.enrol` returned, found str"):
            stream.listen(speech[:1], **people)


CALIBRATION = Calibration({"bias": -7.0, "cosine": 20.0}, {0.001: {"bias": 0.825}, 0.05: {"bias": 0.5}})


@pytest.fixture(scope="module")
def people() -> dict[str, Enrolment]:
    """The voice of ``speech`` and another one."""
    model = onnx.load("tiny")
    audio = {"adam": read_voice("am_adam")[:80_000], "emma": read_voice("bf_emma")[:80_000]}
    return {name: model.enrol(samples) for name, samples in audio.items()}


def embeddings(stream: Stream, samples: np.ndarray) -> list[np.ndarray]:
    """The speaker embedding, of length 1, of the last second after each hop alone."""
    found = []
    for end in range(1_280, len(samples) + 1, 1_280):
        stream.reset()
        embedding = stream.feed(samples[max(0, end - 16_000) : end])["speaker_embedding"]
        found.append(embedding / np.linalg.norm(embedding))
    stream.reset()
    return found


def test_the_first_window_until_three_hops_after_a_hit_that_accepts_a_speaker_decides_who_said_it(
    stream: Stream, speech: np.ndarray, people: dict[str, Enrolment]
) -> None:
    stream.model.calibration = CALIBRATION
    voices, plain = embeddings(stream, speech), listened(stream, speech, 4_000)
    expected = []  # the hop after which each hit is reported, its speaker and ratio
    for hit in plain:
        for hop in range(round(hit.seconds / 0.08) - 1, round(hit.seconds / 0.08) + 3):
            cosines = {name: float(voices[hop] @ person.vector) for name, person in people.items()}
            best = max(cosines, key=cosines.__getitem__)
            if is_accepted := cosines[best] >= 0.825:  # a share of 0.001 for each of two
                break
        expected.append((hop, best if is_accepted else None, pytest.approx(20 * cosines[best] - 7, abs=1e-4)))
    late = [hop + 1 - round(hit.seconds / 0.08) for (hop, *_), hit in zip(expected, plain, strict=True)]
    assert {name for _, name, _ in expected} == {"adam", None} and {0, 3} <= set(late), "both cases occur"
    stream.reset()
    found = []
    for hop in range(len(speech) // 1_280):
        hits = stream.listen(speech[1_280 * hop :][:1_280], speakers=people, false_accepts=0.002)
        found += [(hop, hit) for hit in hits]
    assert [(hop, hit.speaker, hit.ratio) for hop, hit in found] == expected
    assert [hit[:3] for _, hit in found] == [hit[:3] for hit in plain], "who speaks changes no time and no score"
    for size in (777, 16_000, len(speech)):
        assert listened(stream, speech, size, speakers=people, false_accepts=0.002) == [hit for _, hit in found]


def test_a_hit_waits_for_its_speaker_for_the_stated_time_at_most() -> None:
    for hop, expected in ((0.06, 4), (0.08, 3), (0.096, 2), (0.16, 1), (0.24, 1), (0.48, 0)):
        assert Detector(LABELS, DetectorSettings(), hop).speaker_hops == expected


def test_without_enrolled_people_a_hit_is_reported_at_once(stream: Stream, speech: np.ndarray) -> None:
    for speakers in ({}, None):
        stream.reset()
        for hop in range(len(speech) // 1_280):
            for hit in stream.listen(speech[1_280 * hop :][:1_280], speakers=speakers):
                assert hit.seconds == pytest.approx(0.08 * (hop + 1)) and hit.speaker is None


def test_the_end_of_a_recording_counts_as_followed_by_half_a_second_of_silence(
    stream: Stream, speech: np.ndarray, people: dict[str, Enrolment], monkeypatch: pytest.MonkeyPatch
) -> None:
    stream.model.calibration = CALIBRATION
    whole, nothing, silence = listened(stream, speech, len(speech)), np.zeros(0, np.float32), np.zeros(8_000, "f4")
    late = 0
    for hit in whole:
        for hops_early in (0, 2, 4):
            end = round(16_000 * hit.seconds) - 1_280 * hops_early - 300
            cut = speech[max(0, end - 32_000) : end]
            for speakers in (None, people):
                expected = listened(stream, np.concatenate([cut, silence]), 100_000, speakers=speakers)
                with monkeypatch.context() as patched:  # and hits that still wait then
                    patched.setattr(onnx.model, "TAIL_SECONDS", 0.0)
                    expected += stream.listen(nothing, speakers=speakers, is_last=True)
                for size in (37, 1_280, 160_000):
                    before = listened(stream, cut, size, speakers=speakers)
                    assert before + stream.listen(nothing, speakers=speakers, is_last=True) == expected
            late += len(expected) > len(before)
    assert late >= 3, "hits at the end were missed without it"


def test_hits_that_wait_at_the_end_are_decided_by_the_latest_window(
    stream: Stream, speech: np.ndarray, people: dict[str, Enrolment], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx.model, "TAIL_SECONDS", 0.0)  # shorter than a hit waits
    stream.model.calibration = CALIBRATION
    stranger, nothing = {"emma": people["emma"]}, np.zeros(0, np.float32)
    whole, voices = listened(stream, speech, 4_000), embeddings(stream, speech)
    for hops_later in range(4):
        hop = round(whole[1].seconds / 0.08) - 1 + hops_later
        before = listened(stream, speech[: 1_280 * (hop + 1) + 600], 999, speakers=stranger)
        waiting = stream.listen(nothing, speakers=stranger, is_last=True)
        assert (len(before), len(waiting)) == ((1, 1) if hops_later < 3 else (2, 0))
        assert [hit[:3] for hit in before + waiting] == [hit[:3] for hit in whole[:2]]
        for hit in waiting:
            assert (hit.speaker, hit.ratio) == (
                None,
                pytest.approx(20 * voices[hop] @ stranger["emma"].vector - 7, abs=1e-5),
            )
        assert stream.listen(nothing, speakers=stranger, is_last=True) == [], "a hit is reported once"
    until_hit = speech[: round(16_000 * whole[1].seconds)]
    assert len(listened(stream, until_hit, 999, speakers=stranger)) == 1
    assert stream.listen(nothing, is_last=True) == [whole[1]], "the person was forgotten"
    assert len(listened(stream, until_hit, 999, speakers=stranger)) == 1
    stream.reset()
    assert stream.listen(nothing, is_last=True) == [], "a new stream has no hits of the one before"
