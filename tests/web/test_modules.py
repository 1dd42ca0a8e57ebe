"""The JavaScript modules of the page, run by node: the same results as in Python."""

from __future__ import annotations

import json
import shutil
import subprocess
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
import soxr
from helpers.random_word_maps import random_maps

from distilled_student.device.clip_checks import measure_sound, sound_problems
from distilled_student.device.household import shifted
from distilled_student.onnx import Calibration, Detector, DetectorSettings, Enrolment
from distilled_student.onnx.band import band_limit
from distilled_student.onnx.detector import UndecidedHits
from distilled_student.onnx.speakers import identify, unit_length
from distilled_student.onnx.words import WordTracker, template
from distilled_student.web import site

pytestmark = pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")


def run_module(name: str, code: str, values: Any) -> Any:
    """What ``code`` returns, with the ``module`` of the page and the ``values``."""
    program = (
        "const module = await import(process.argv[1]); let text = '';"
        "for await (const part of process.stdin) text += part; const values = JSON.parse(text);"
        f"console.log(JSON.stringify(await ((module, values) => {{ {code} }})(module, values)));"
    )
    command = ["node", "--input-type=module", "--eval", program, (site.PAGE / name).as_uri()]
    done = subprocess.run(command, input=json.dumps(values), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    "settings",
    [
        {"threshold": 0.45, "smoothing": 0.24, "hold_off": 1.0, "level": None},
        {"threshold": None, "smoothing": 0.0, "hold_off": 0.3, "level": -40.0},
        {"threshold": 0.3, "smoothing": 0.2, "hold_off": 0.0, "level": -33.0},  # 2.5 hops
    ],
)
def test_the_detector_has_the_hits_of_python(settings: dict[str, Any]) -> None:
    rng, labels = np.random.default_rng(0), ["_silence_", "yes", "no", "up"]
    slow = np.repeat(rng.dirichlet([0.3] * 4, 100), 6, axis=0)
    scores = 0.8 * slow + 0.2 * rng.dirichlet([1] * 4, len(slow))
    hops = (rng.normal(0, 1, (len(slow), 16)) * np.repeat(10 ** rng.uniform(-3, -1, 60), 10)[:, None]).astype("f4")
    detector = Detector(labels, DetectorSettings(**settings))
    expected = [detector.step(row, hop) for row, hop in zip(scores, hops, strict=True)]
    found = run_module(
        "detector.mjs",
        "const detector = new module.Detector(values.labels, values.settings);"
        "return values.scores.map((row, i) => detector.step(row, Float32Array.from(values.hops[i])).hit);",
        {"labels": labels, "settings": settings, "scores": scores.tolist(), "hops": hops.tolist()},
    )
    assert sum(hit is not None for hit in expected) > 5
    for hit, other in zip(expected, found, strict=True):
        assert (hit is None) == (other is None)
        if hit is not None:
            assert (other["seconds"], other["label"]) == (hit.seconds, hit.label)
            assert other["score"] == pytest.approx(hit.score, abs=1e-9)


def test_a_word_of_ones_own_is_reported_as_in_python() -> None:
    rng, labels = np.random.default_rng(4), ["_silence_", "yes", "no"]
    scores = np.repeat(rng.dirichlet([0.3] * 3, 60), 5, axis=0)
    own = [{"lamp": float(a), "door": float(b)} for a, b in np.repeat(rng.uniform(0, 0.9, (100, 2)), 3, axis=0)]
    settings = {"threshold": 0.6, "smoothing": 0.16, "hold_off": 0.3, "level": None, "word_threshold": 0.7}
    detector = Detector(labels, DetectorSettings(**settings))
    expected = [detector.step(row, np.ones(16), words) for row, words in zip(scores, own, strict=True)]
    found = run_module(
        "detector.mjs",
        "const detector = new module.Detector(values.labels, values.settings);"
        "const samples = new Float32Array(16).fill(1);"
        "return values.scores.map((row, i) => detector.step(row, samples, values.own[i]).hit);",
        {"labels": labels, "settings": settings, "scores": scores.tolist(), "own": own},
    )
    hits = [hit and (hit.seconds, hit.label, pytest.approx(hit.score, abs=1e-9)) for hit in expected]
    assert {"lamp", "door", "yes", "no"} <= {hit[1] for hit in hits if hit}
    assert [hit and (hit["seconds"], hit["label"], hit["score"]) for hit in found] == hits


@pytest.mark.parametrize("hop", [0.06, 0.08, 0.096, 0.1, 0.16, 0.48, 0.6])
def test_a_hit_waits_for_the_decision_who_said_it_as_in_python(hop: float) -> None:
    rng, undecided = np.random.default_rng(0), UndecidedHits()
    hops_to_wait = Detector(["yes"], DetectorSettings(), hop).speaker_hops
    hits = [f"hit {i}" if rng.random() < 0.4 else None for i in range(60)]
    waits = [int(rng.choice([hops_to_wait, hops_to_wait, 0])) for _ in hits]  # 0: the people were forgotten
    expected = []
    for hit, wait in zip(hits, waits, strict=True):
        undecided.step(hit)
        expected.append(undecided.due(wait))
    assert [hit for due in expected for hit in due] == [hit for hit in hits if hit]
    found = run_module(
        "detector.mjs",
        "const detector = new module.Detector(['yes'], {hold_off: 1}, values.hop);"
        "const undecided = new module.UndecidedHits();"
        "return values.hits.map((hit, i) => {"
        "  undecided.step(hit); return undecided.due(values.waits[i] && detector.speakerHops); });",
        {"hop": hop, "hits": hits, "waits": waits},
    )
    assert found == expected


def test_the_end_of_a_recording_is_followed_by_half_a_second_of_silence() -> None:
    found = run_module(
        "stream.mjs",
        "class Tensor { constructor(type, data) { this.data = data; } }"
        "const fed = [], scores = { keyword_scores: { data: [1] } };"
        "const run = async ({ samples }) => { fed.push(...samples.data); return scores; };"
        "const model = { rate: 16000, hop: 1280, chunk: 320, window: 1, labels: ['_silence_'], state: [], outputs: [],"
        " padded_to: {}, repeated_to: {}, detector: { threshold: 0.5, smoothing: 0, hold_off: 0, level: null } };"
        "const listener = new module.Listener({ Tensor }, { run }, model, null);"
        "let hops = 0; const count = () => hops++;"
        "return (async () => {"
        " await listener.listen(new Float32Array(2000).fill(1), count); await listener.finish(count);"
        " const first = hops; await listener.finish(count); await listener.listen(new Float32Array(2000), count);"
        " const last = hops; listener.reset(); await listener.listen(new Float32Array(2000), count);"
        " return [first, last, hops, fed.filter((sample) => sample === 1).length]; })();",
        {},
    )
    # 2,000 + 8,000 samples have 7 hops; another end and later samples have none; a reset begins another recording
    assert found == [7, 7, 8, 2_000]


def test_scores_of_words_of_ones_own_are_those_of_python() -> None:
    rng, maps = np.random.default_rng(6), random_maps(12)
    lengths = {"lamp": [9.3, 11.0, 10.1], "door": [20.7], "sun": [4.2] * 6}
    words = {
        name: template(unit_length(maps.others[i] + 0.3 * rng.normal(size=(len(frames), 8))).astype("f4"), frames)
        for i, (name, frames) in enumerate(lengths.items())
    }
    words = {name: word._replace(level=0.2 - 0.1 * i) for i, (name, word) in enumerate(words.items())}
    hops = rng.normal(size=(30, 4, 12)).astype("f4")
    tracker = WordTracker(maps, words)
    expected = [tracker.step(hop) for hop in hops]
    numbers = np.concatenate([getattr(maps, name).ravel() for name in site.MAP_ARRAYS])
    listed = [{"name": name, **word._asdict(), "vector": word.vector.tolist()} for name, word in words.items()]
    found = run_module(
        "words.mjs",
        "const maps = new module.WordMaps(values.description, Float32Array.from(values.numbers));"
        "const tracker = new module.WordTracker(maps); tracker.watch(values.words);"
        "return values.hops.map((hop) => tracker.step(Float32Array.from(hop)));",
        {
            "description": site.describe_words(maps),
            "numbers": numbers.tolist(),
            "words": listed,
            "hops": hops.reshape(30, -1).tolist(),
        },
    )
    found, expected = ([[row[name] for name in words] for row in rows] for rows in (found, expected))
    assert (np.array(expected) > 0.5).any() and (np.array(expected[0]) < 1e-9).any()
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_calibration_of_a_household_moves_decisions_as_in_python() -> None:
    weights = {"bias": -2.0, "cosine": 9.0, "cosine*log_clips": 0.7, "cosine*log_seconds": -1.0, "log_seconds": 0.4}
    thresholds = {0.05: {"log_seconds": 0.1}, 0.01: {"bias": 0.4, "log_clips": -0.05}}
    calibration = Calibration(weights, thresholds, {"clips": (1.0, 4.0)})
    found = run_module(
        "speakers.mjs",
        "return module.shifted(values, 0.125);",
        json.loads(calibration.to_json()),
    )
    moved = shifted(calibration, 0.125)
    expected = json.loads(moved.to_json())
    assert found["seen"] == expected["seen"] and found["thresholds"] == expected["thresholds"]
    assert found["ratio"] == pytest.approx(expected["ratio"], abs=1e-12)


@pytest.mark.parametrize(("is_stated", "has_mean_voice"), [(True, False), (True, True), (False, False)])
def test_speakers_are_those_of_python(is_stated: bool, has_mean_voice: bool) -> None:
    rng = np.random.default_rng(1)
    thresholds = {
        share: {"bias": 0.3 + 0.1 * NormalDist().inv_cdf(1 - share), "log_seconds": 0.1, "log_clips": -0.05}
        for share in (0.05, 0.01, 0.001)
    }
    weights = {"bias": -2.0, "cosine": 9.0, "cosine*log_clips": 0.7, "same_word": 0.4, "log_enrolled_seconds": -0.3}
    seen = {"clips": (1.0, 4.0), "enrolled_seconds": (1.0, 9.0), "seconds": (0.5, 2.0)}
    voice: tuple[float, ...] = ()
    if has_mean_voice:
        voice = tuple(unit_length(rng.normal(size=8)).tolist())
        seen |= {"typicality": (-0.4, 0.3), "enrolled_typicality": (-0.3, 0.5)}
        weights |= {"typicality": -2.0, "cosine*enrolled_typicality": -3.0}
        thresholds[0.01] |= {"typicality": 0.4, "enrolled_typicality": 0.3}
    calibration = Calibration(weights, thresholds if is_stated else {}, seen, voice)
    cases, expected = [], []
    for number in range(200):
        people = {
            f"person {i}": Enrolment(unit_length(rng.normal(size=8)).astype("f4"), int(rng.integers(1, 7)), seconds)
            for i, seconds in enumerate(rng.uniform(0.5, 12, 1 + number % 4))
        }
        anybody = people["person 0"].vector
        vector = unit_length(anybody + rng.uniform(0.1, 1) * rng.normal(size=8)).astype("f4")
        seconds, share = rng.uniform(0.2, 3), float(rng.choice([0.05, 0.02, 0.01, 0.004, 0.001]))
        limit = 3600.0 if number % 10 == 0 else None
        expected.append(identify(calibration, vector, seconds, people, share, band_limit=limit))
        listed = [
            {"name": name, "vector": person.vector.tolist(), "clips": person.clips, "seconds": person.seconds}
            for name, person in people.items()
        ]
        cases.append({"vector": vector.tolist(), "seconds": seconds, "people": listed, "share": share})
        cases[-1]["limit"] = limit
    found = run_module(
        "speakers.mjs",
        "const calibration = new module.Calibration(values.calibration); return values.cases.map("
        "({vector, seconds, people, share, limit}) =>"
        " module.identify(calibration, vector, seconds, people, share, limit));",
        {"calibration": json.loads(calibration.to_json()), "cases": cases},
    )
    assert [result["name"] for result in found] == [result.name for result in expected]
    assert len({result.name for result in expected}) > 2
    np.testing.assert_allclose([r["ratio"] for r in found], [r.ratio for r in expected], atol=1e-5)


def test_normal_quantiles_are_those_of_the_standard_library() -> None:
    shares = [1e-9, 1e-5, 0.001, 0.0025, 0.01, 0.05, 0.3, 0.5, 0.77, 0.999]
    found = run_module("speakers.mjs", "return values.map(module.quantile);", shares)
    np.testing.assert_allclose(found, [NormalDist().inv_cdf(share) for share in shares], atol=1e-9)


@pytest.mark.parametrize("rate", [8_000, 16_000, 22_050, 44_100, 48_000, 96_000])
@pytest.mark.parametrize("hertz", [100, 1_000, 3_000, 6_000])
def test_the_resampler_keeps_tones_and_their_time(rate: int, hertz: int) -> None:
    if hertz >= 0.8 * rate / 2:
        pytest.skip("above what this rate can hold")
    found = resampled(np.sin(2 * np.pi * hertz * np.arange(rate // 2) / rate), rate)
    expected = np.sin(2 * np.pi * hertz * np.arange(len(found)) / 16_000)
    inner = slice(200, -200)
    assert 8_000 - 100 < len(found) <= 8_000
    assert np.abs(found[inner] - expected[inner]).max() < 2e-3


@pytest.mark.parametrize("hertz", [8_600, 10_000, 15_000, 20_000])
def test_the_resampler_removes_what_the_model_rate_cannot_hold(hertz: int) -> None:
    found = resampled(np.sin(2 * np.pi * hertz * np.arange(24_000) / 48_000), 48_000)
    assert np.abs(found[200:-200]).max() < 3e-3  # -50 dB


def resampled(samples: np.ndarray, rate: int) -> np.ndarray:
    """At 16 kHz, in blocks of 128 samples as in the audio thread."""
    code = (
        "const resampler = new module.Resampler(values.rate, 16000), found = [];"
        "for (let i = 0; i < values.samples.length; i += 128)"
        "  found.push(...resampler.process(Float32Array.from(values.samples.slice(i, i + 128))));"
        "return found;"
    )
    return np.array(run_module("resampler.mjs", code, {"rate": rate, "samples": samples.tolist()}))


def test_the_loudest_part_of_a_clip_is_found() -> None:
    samples = np.random.default_rng(2).normal(0, 0.01, 500)
    samples[300:340] += 0.5
    found = run_module("clips.mjs", "return [...module.loudestPart(Float32Array.from(values), 60)];", samples.tolist())
    energies = np.convolve(samples**2, np.ones(60), "valid")
    np.testing.assert_allclose(found, samples[energies.argmax() :][:60], atol=1e-6)


@pytest.mark.parametrize("rate", [8_000, 9_000, 11_025, 12_000, 14_000, 16_000])
def test_the_end_of_a_spectrum_is_that_of_python(rate: int) -> None:
    noise = 0.1 * np.random.default_rng(rate).standard_normal((3, 16_000))
    noise[1] *= np.linspace(0, 1, 16_000)
    clips = [soxr.resample(soxr.resample(clip, 16_000, rate), rate, 16_000).astype(np.float32) for clip in noise]
    clips += [np.round(32768 * level * clips[0]).astype(np.float32) / 32768 for level in (0.3, 0.01, 0.001)]
    clips.append(clips[0][:300])  # shorter than a frame
    expected = [band_limit(clip) for clip in clips]
    found = run_module(
        "band.mjs",
        "return values.map((clip) => module.bandLimit(Float32Array.from(clip)));",
        [c.tolist() for c in clips],
    )
    assert found == expected and (rate == 16_000) == (expected[0] is None)


@pytest.mark.parametrize("kind", ["speech", "silent", "short", "clipped", "noisy", "narrow"])
def test_clips_have_the_problems_of_the_command_line(kind: str) -> None:
    rng = np.random.default_rng(3)
    speech = np.zeros(32_000)
    speech[8_000:20_000] = 0.3 * np.sin(np.arange(12_000) / 9) * np.hanning(12_000)
    samples = speech + rng.normal(0, 1e-4, len(speech))
    if kind == "silent":
        samples = 1e-4 * samples
    elif kind == "short":
        samples[9_000:] = rng.normal(0, 1e-5, 23_000)
    elif kind == "clipped":
        samples = np.clip(8 * samples, -0.9, 0.9)
    elif kind == "noisy":
        samples += rng.normal(0, 0.15, len(samples))
    elif kind == "narrow":
        samples[8_000:20_000] += 0.1 * rng.standard_normal(12_000)
        samples = soxr.resample(soxr.resample(samples, 16_000, 8_000), 8_000, 16_000)
    samples = samples.astype(np.float32)
    expected = measure_sound(samples)
    found = run_module("clips.mjs", "return module.checkClip(Float32Array.from(values), 16000);", samples.tolist())
    sound = found["sound"]
    assert sound["level"] == pytest.approx(expected.level, abs=1e-3)
    assert sound["speechSeconds"] == pytest.approx(expected.speech_seconds, abs=1e-9)
    assert sound["snr"] == pytest.approx(expected.snr, abs=1e-3)
    assert sound["bandLimit"] == expected.band_limit
    assert sound["clipped"] == pytest.approx(expected.clipped, abs=1e-6)
    assert len(found["problems"]) == len(sound_problems(expected))
    assert (kind == "speech") == (not found["problems"])
