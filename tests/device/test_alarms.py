"""False alarms per hour: the hits of a stream at every threshold, their rates with intervals, the misses of a mix."""

from __future__ import annotations

import json
import math
import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import soundfile
from scipy.stats import chi2

from distilled_student import cli, onnx
from distilled_student.common import progress
from distilled_student.common.errors import UserError
from distilled_student.common.shipped_models import MODELS
from distilled_student.corpora.shipped import read_index, read_voice
from distilled_student.device.alarm_report import table
from distilled_student.device.alarms import Alarms, Curve, Point, choose_threshold, measure, thresholds
from distilled_student.device.keyword_mix import Clip, Mix, Spoken, keyword_clips
from distilled_student.device.recordings import read_recording, recording_blocks
from distilled_student.device.traces import Trace, poisson_interval, record
from distilled_student.onnx import Detector, DetectorSettings, Stream

RATE = 16_000
WORDS = ("stop", "go", "left")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``speech.wav``, 15 s of sentences, and ``words/WORD/VOICE.wav``."""
    folder, clips = tmp_path_factory.mktemp("alarms"), read_index()
    for voice in ("am_adam", "bf_emma"):
        audio = read_voice(voice)
        cut = {clip.text: audio[clip.start : clip.start + clip.samples] for clip in clips if clip.voice == voice}
        for word in WORDS:
            file = folder / "words" / word / f"{voice}.wav"
            file.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(file, cut[word], RATE)
        sentences = [clip for clip in clips if clip.voice == voice and clip.kind == "sentence"]
        joined = np.concatenate([audio[clip.start : clip.start + clip.samples] for clip in sentences])
        soundfile.write(folder / f"{voice}.wav", joined[: 15 * RATE], RATE)
    return folder


@pytest.fixture(scope="module")
def stream() -> Stream:
    return onnx.load("tiny").stream()


@pytest.mark.parametrize("count", [1, 2, 5, 40, 3_000])
def test_the_interval_of_a_count_is_the_exact_one(count: int) -> None:
    low, high = poisson_interval(count)
    assert low == pytest.approx(chi2.ppf(0.025, 2 * count) / 2) and high == pytest.approx(
        chi2.ppf(0.975, 2 * count + 2) / 2
    )


def test_no_alarm_in_some_hours_is_at_most_3_by_the_hours() -> None:
    low, high = poisson_interval(0)
    assert low == 0 and high == pytest.approx(chi2.ppf(0.95, 2) / 2) == pytest.approx(3.0, abs=0.01)


def test_a_recorded_stream_has_the_hits_of_listening_with_the_same_threshold(stream: Stream, folder: Path) -> None:
    words, pause = (
        [read_recording(folder / f"words/{word}/am_adam.wav") for word in WORDS],
        np.zeros(16_000, np.float32),
    )
    speech = np.concatenate([part for word in words for part in (word, pause)])
    trace = record(stream, [speech[:7_000], speech[7_000:]])
    counts = []
    for threshold in (0.2, 0.6, 0.9, 0.99):
        stream.detector = Detector(stream.model.labels, DetectorSettings(threshold))
        stream.reset()
        expected = [(pytest.approx(hit.seconds), hit.label) for hit in stream.listen(speech)]
        assert trace.hits(threshold) == expected
        counts.append(len(expected))
    assert counts[0] >= 3


def test_words_of_ones_own_are_counted_apart_as_listening_reports_them(folder: Path) -> None:
    model = onnx.load("tiny")
    stream, files = model.stream(), [folder / f"words/go/{voice}.wav" for voice in ("am_adam", "bf_emma")]
    stream.watch({"my-go": model.enrol_word([read_recording(file) for file in files])})
    (folder / "own" / "my-go").mkdir(parents=True)
    for file in files:
        shutil.copy(file, folder / "own" / "my-go" / file.name)
    clips = keyword_clips(folder / "own", [*stream.model.labels, "my-go"], 2)
    clips += keyword_clips(folder / "words", ["stop"], 2)
    speech, audio = [folder / "am_adam.wav"], list(recording_blocks(folder / "am_adam.wav"))
    trace = record(stream, audio)
    for threshold, word_threshold in ((0.9, 0.5), (0.3, 0.2), (0.3, 0.05)):
        stream.detector = Detector(stream.model.labels, DetectorSettings(threshold, word_threshold=word_threshold))
        stream.reset()
        expected = [(pytest.approx(hit.seconds), hit.label) for block in audio for hit in stream.listen(block)]
        assert trace.hits(threshold, word_threshold) == expected
        only_words = trace.hits(math.inf, word_threshold)
        assert {label for _, label in only_words} <= {"my-go"} and "my-go" not in dict(trace.hits(threshold)).values()
    found = measure(stream, speech, clips, [60.0])
    assert (found.of_keywords.keywords, found.of_words.keywords) == (2, 2)
    assert found.of_words.points[0].misses["60"] <= 0.5 < found.of_words.points[-1].misses["60"]
    assert json.loads(json.dumps(found.to_json()))["own_words"]["table"].keys() == {"0.1", "0.5", "1"}


def test_the_threshold_of_little_audio_is_not_lower_than_the_default(folder: Path, tmp_path: Path) -> None:
    model, noise = tmp_path / "stream.onnx", tmp_path / "noise.wav"
    shutil.copy(MODELS / "tiny" / "stream.onnx", model)
    onnx.write_metadata(model, {"detector": DetectorSettings(0.9).to_json()})
    soundfile.write(noise, np.random.default_rng(0).normal(0, 1e-3, 5 * RATE), RATE)
    text = choose_threshold(model, noise, 0.5)
    assert "threshold of streams 0.9: 0 alarms in 0.00 h" in text and "too little audio for a threshold below" in text
    assert onnx.load(model).detector_settings == DetectorSettings(0.9)
    choose_threshold(model, noise, 3_600.0)  # five seconds are enough for one alarm a second
    assert onnx.load(model).detector_settings.threshold == pytest.approx(thresholds()[0])


@pytest.mark.parametrize("hops_after", [0, 1, 200])
def test_the_owner_of_a_recorded_stream_is_decided_as_in_listening(
    stream: Stream, folder: Path, hops_after: int
) -> None:
    pause = np.zeros(16_000, np.float32)
    words = [read_recording(folder / f"words/{word}/{voice}.wav") for voice in ("am_adam", "bf_emma") for word in WORDS]
    speech = np.concatenate([part for word in words for part in (word, pause)])
    owner = onnx.load("tiny").enrol([read_recording(folder / "am_adam.wav")[: 3 * RATE], *words[1:3]])
    stream.detector = Detector(stream.model.labels, DetectorSettings(0.2))
    stream.reset()
    last = stream.listen(speech)[-1]
    speech = speech[: round(RATE * (last.seconds + 0.08 * hops_after))]
    silence = np.zeros(RATE // 2, np.float32)  # follows the end of a recording
    trace, counts = record(stream, [speech, silence], owner, 0.05), []
    for threshold in (0.2, 0.6, 0.9):
        stream.detector = Detector(stream.model.labels, DetectorSettings(threshold))
        stream.reset()
        hits = stream.listen(speech, owner=owner, false_accepts=0.05, is_last=True)
        assert trace.hits(threshold) == [(pytest.approx(hit.seconds), hit.label) for hit in hits]
        counts.append(len(hits))
    assert 1 <= counts[0] < len(words)


def fake_trace(scores: list[float], **changes: object) -> Trace:
    count = len(scores)
    arrays = np.full(count, "yes"), np.array(scores), np.ones(count, bool), np.ones(count, bool)
    return Trace(
        **dict(zip(("labels", "scores", "is_loud", "is_owner"), arrays, strict=True))
        | {"hop": 0.1, "hold_off_hops": 5, "speaker_hops": 0, "cpu_seconds": 1.0, **changes}
    )


def test_hits_need_the_threshold_the_energy_gate_and_the_owner() -> None:
    scores = [0.0, 0.9, 0.9, 0.0, 0.0, 0.0, 0.0, 0.6, 0.0]
    assert fake_trace(scores).hits(0.5) == [(pytest.approx(0.2), "yes"), (pytest.approx(0.8), "yes")]
    assert fake_trace(scores).hits(0.7) == [(pytest.approx(0.2), "yes")]
    quiet = np.array([True, False, True, True, True, True, True, False, True])
    assert fake_trace(scores, is_loud=quiet).hits(0.5) == [(pytest.approx(0.3), "yes")]
    other = np.array([True, False, True, True, True, True, True, True, True])
    assert fake_trace(scores, is_owner=other).hits(0.5) == [(pytest.approx(0.8), "yes")], "decided once for a keyword"
    late = np.array([False, False, False, True, False, False, False, False, False])
    assert fake_trace(scores, is_owner=late, speaker_hops=2).hits(0.5) == [(pytest.approx(0.2), "yes")]
    assert fake_trace(scores, is_owner=late, speaker_hops=1).hits(0.5) == []
    at_end = np.array([False] * 8 + [True])
    assert fake_trace(scores, is_owner=at_end, speaker_hops=2).hits(0.5) == [(pytest.approx(0.8), "yes")]


def test_the_threshold_of_a_rate_is_the_smallest_from_which_on_it_is_kept() -> None:
    rates = {0.2: 9.0, 0.4: 0.4, 0.6: 0.8, 0.8: 0.3, 0.9: 0.05}
    points = [Point(threshold, 1, rate, (0.0, 1.0), {}) for threshold, rate in rates.items()]
    found = Curve(points, 0, {})
    assert {rate: point and point.threshold for rate in (0.01, 0.1, 0.5, 1.0) if [point := found.at(rate)]} == {
        0.01: None,
        0.1: 0.9,
        0.5: 0.8,
        1.0: 0.4,
    }
    assert thresholds() == sorted(thresholds()) and thresholds()[-1] == 1.0


def test_a_rate_that_the_audio_is_too_short_to_show_is_marked() -> None:
    curve = Curve([Point(0.5, 0, 0.0, (0.0, 0.7), {})], 0, {})
    lines = table(Alarms(5.0, curve, None, 9.0), None, 0.5).splitlines()
    titles = [line.partition("  ")[0] for line in lines[2:5]]
    assert titles == ["at most 0.1 (not shown)", "at most 0.5 (not shown)", "at most 1"]


def test_of_the_thresholds_that_keep_a_rate_the_one_with_the_fewest_misses_is_taken() -> None:
    misses = {0.2: 0.1, 0.4: 0.9, 0.6: 0.5, 0.8: 0.5, 0.9: 0.7}
    points = [Point(t, 1, 2.0 if t < 0.3 else 0.2, (0.0, 1.0), {"20": share}) for t, share in misses.items()]
    assert Curve(points, 10, {}).at(0.5).threshold == 0.6


def test_a_keyword_is_mixed_in_at_the_stated_level(folder: Path) -> None:
    clips = [Clip(word, folder / f"words/{word}/am_adam.wav") for word in WORDS]
    noise = np.random.default_rng(0).normal(0, 0.05, 30 * RATE).astype(np.float32)
    mix = Mix(clips, level=15.0)
    blocks = list(mix.blocks(iter(np.split(noise, 7_000 * np.arange(1, 60)))))
    for clip, block, spoken in zip(clips, blocks, mix.spoken, strict=False):
        samples = read_recording(clip.file)
        assert len(block) == 40_000 + len(samples) and spoken.label == clip.label
        of_noise = block[8_000 : len(block) - len(samples)]  # after the audio's level has changed
        windows = [samples[i : i + 8_000] for i in range(len(samples) - 8_000 + 1)] or [samples]
        loudest = max(float(np.mean(window.astype(float) ** 2)) for window in windows[::50])
        assert 10 * np.log10(loudest / np.mean(of_noise.astype(float) ** 2)) == pytest.approx(15.0, abs=0.2)
        assert np.corrcoef(block[-len(samples) :], samples)[0, 1] > 0.9
    ends = np.cumsum([len(block) for block in blocks[:-1]]) / RATE
    assert [spoken.end for spoken in mix.spoken] == pytest.approx(ends.tolist())


def test_a_keyword_without_a_hit_of_its_label_until_a_second_after_it_is_a_miss() -> None:
    mix = Mix([], 10.0, [Spoken("yes", 1.0, 1.5), Spoken("no", 4.0, 4.5), Spoken("yes", 7.0, 7.5)])
    assert mix.misses([(1.2, "yes"), (5.4, "no"), (8.4, "yes")]) == 0
    assert mix.misses([(0.9, "yes"), (4.3, "yes"), (8.6, "yes")]) == 3


def test_recordings_are_read_in_blocks_as_they_are_read_at_once(folder: Path, tmp_path: Path) -> None:
    samples = read_recording(folder / "am_adam.wav")
    soundfile.write(tmp_path / "a.flac", np.stack([samples, 0.5 * samples], axis=1), 44_100)
    for file in (folder / "am_adam.wav", tmp_path / "a.flac"):
        whole, blocks = read_recording(file), np.concatenate(list(recording_blocks(file)))
        assert len(whole) == len(blocks)
        np.testing.assert_allclose(blocks, whole, atol=1e-4)
    (tmp_path / "b.wav").write_bytes((folder / "am_adam.wav").read_bytes()[:90_000])
    with pytest.raises(UserError, match=r"b\.wav: not readable as audio \(truncated"):
        list(recording_blocks(tmp_path / "b.wav"))


def test_folders_that_are_not_keywords_are_named(folder: Path, tmp_path: Path) -> None:
    labels = ["_silence_", *WORDS, "yes"]
    assert [clip.label for clip in keyword_clips(folder / "words", labels, 1)] == list(WORDS)
    (tmp_path / "marvin").mkdir()
    with pytest.raises(UserError, match=r"expected folders named as keywords \(stop, go, left, yes\), found: marvin"):
        keyword_clips(tmp_path, labels, 1)


def test_a_folder_of_a_word_may_have_the_decomposed_form_of_its_name(folder: Path, tmp_path: Path) -> None:
    (tmp_path / unicodedata.normalize("NFD", "Öl")).mkdir()
    shutil.copy(next(folder.rglob("*.wav")), next(tmp_path.iterdir()) / "a.wav")
    assert [clip.label for clip in keyword_clips(tmp_path, [unicodedata.normalize("NFC", "Öl")], 1)] == [
        unicodedata.normalize("NFC", "Öl")
    ]


def test_audio_that_is_too_short_for_a_threshold_is_named(tmp_path: Path) -> None:
    shutil.copy(MODELS / "tiny" / "stream.onnx", tmp_path)
    soundfile.write(tmp_path / "short.wav", np.zeros(100, np.float32), 16_000)
    with pytest.raises(UserError, match=r"--alarms .*short\.wav: is shorter than 0\.08 s: give hours of audio"):
        choose_threshold(tmp_path / "stream.onnx", tmp_path / "short.wav", 0.5)


@pytest.mark.parametrize("kind", ["missing", "empty", "not audio", "truncated", "too short"])
def test_audio_that_cannot_be_used_is_named_before_a_graph_is_written(
    kind: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    audio, reason = (
        tmp_path / "speech",
        {"missing": "no such file or folder", "empty": "holds no audio files"}.get(kind),
    )
    if kind != "missing":
        audio.mkdir()
    if kind == "not audio":
        (audio / "b.wav").write_bytes(b"text")
    elif kind == "truncated":
        content = next(folder.rglob("*.wav")).read_bytes()
        (audio / "b.wav").write_bytes(content[: len(content) // 2])
    elif kind == "too short":
        soundfile.write(audio / "b.wav", np.zeros(100, np.float32), 16_000)
        reason = "is shorter than 0.08 s: give hours of audio"
    for command in (["export", "tiny", "--int8", "--streaming", "--alarms"], ["alarms", "tiny", "--audio"]):
        output = tmp_path / "out.onnx"
        assert run(*command, str(audio), "-o" if command[0] == "export" else "--output", str(output)) == 2
        error = capsys.readouterr().err
        assert f"{command[-1]} {audio}: {reason}" in error if reason else f"{audio / 'b.wav'}: " in error
        assert error.count("\n") == 1 and not output.exists()


def test_a_keyword_clip_that_cannot_be_read_is_named_before_the_audio_is_measured(tmp_path: Path) -> None:
    (tmp_path / "stop").mkdir()
    (tmp_path / "stop" / "a.wav").write_bytes(b"text")
    with pytest.raises(UserError, match=r"stop/a\.wav: "):
        keyword_clips(tmp_path, ["stop"], 1)


def test_more_alarms_at_lower_thresholds_and_more_misses_at_higher_ones(stream: Stream, folder: Path) -> None:
    stream.detector = Detector(stream.model.labels, DetectorSettings(0.5))
    clips = keyword_clips(folder / "words", stream.model.labels, 2)
    found = measure(stream, [folder / "am_adam.wav", folder / "bf_emma.wav"], clips, [60.0])
    curve = found.of_keywords
    assert found.hours == pytest.approx(30 / 3600, rel=0.01) and curve.keywords == 6 and found.speed > 1
    assert found.of_words is None
    misses = [point.misses["60"] for point in curve.points]
    assert misses == sorted(misses) and misses[0] <= 0.5 and misses[-1] >= 0.5
    for point in curve.points:
        assert point.per_hour == pytest.approx(point.alarms / found.hours)
        low, high = (bound / found.hours for bound in poisson_interval(point.alarms))
        assert point.interval == pytest.approx((low, high))


def run(*words: str) -> int:
    with pytest.raises(SystemExit) as left:
        cli.main(list(words))
    return left.value.code


def test_the_command_writes_a_report_and_the_chosen_threshold(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    model = tmp_path / "stream.onnx"
    shutil.copy(MODELS / "tiny" / "stream.onnx", model)
    arguments = ["--audio", str(folder / "am_adam.wav"), "--output", str(tmp_path / "out")]
    before = onnx.load(model).detector_settings
    assert run("alarms", str(model), *arguments, "--write", "--rate", "0.5", "--smoothing", "0.16") == 2
    assert "of audio are too little for a lower threshold than" in capsys.readouterr().err
    assert onnx.load(model).detector_settings == before
    assert run("alarms", str(model), *arguments, "--write", "--rate", "1000", "--smoothing", "0.16") == 0
    text = capsys.readouterr().out
    report = json.loads((tmp_path / "out" / "alarms.json").read_text())
    rows = [row for row in report["curve"] if row["per_hour"] <= 1000]
    chosen = min(row["threshold"] for row in rows)
    assert (
        f"{model}: threshold {chosen:.6g}" in text and "at most 0.1 (not shown)" in text and "0.1 per hour 30 h" in text
    )
    settings = onnx.load(model).detector_settings
    assert (settings.threshold, settings.smoothing) == (chosen, 0.16)
    assert (tmp_path / "out" / "alarms.png").read_bytes().startswith(b"\x89PNG")
    words = ["--keywords", str(folder / "words"), "--clips", "1", "--levels", "60"]
    assert run("alarms", str(model), *arguments, *words) == 0
    printed = capsys.readouterr()
    assert "\nkeywords at 60 dB: seconds of audio: 1 of 11, " in printed.err
    assert "misses at 60 dB" in printed.out and "3 keywords mixed into the audio" in printed.out
    assert (
        f"note: {folder / 'words'} has no clips of yes, no, up, down, right, on, off; misses are of the others"
        in printed.err
    )
    assert run("alarms", "tiny", *arguments, "--write") == 2
    assert "--write: tiny is part of the package; make a copy of it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--audio", "gone"], "--audio gone: no such file or folder"),
        (["--audio", ".", "--levels", "loud"], "--levels loud: expected numbers separated by commas"),
        (["--audio", ".", "--rate", "0"], "--rate 0: must be a positive number"),
        (["--audio", ".", "--rate", "inf"], "--rate inf: must be a positive number"),
        (["--audio", ".", "--levels", "20,nan"], "--levels 20,nan: expected numbers from -100 to 100 dB"),
        (["--audio", ".", "--levels", "1e9"], "--levels 1e9: expected numbers from -100 to 100 dB"),
        (["--audio", ".", "--gate", "nan"], "--gate nan: must be from -120 to 0 dB"),
        (["--audio", ".", "--gate", "3"], "--gate 3: must be from -120 to 0 dB"),
        (["--audio", ".", "--hold-off", "4000"], "--hold-off 4000: must be from 0 to 3600 seconds"),
        (["--audio", ".", "--keywords", "gone"], "--keywords gone: no such folder"),
        (["--audio", ".", "--owner", "Anna", "--write"], "--write --owner Anna: needs --keywords with clips of Anna"),
        (["--audio", ".", "--smoothing", "-1"], "--smoothing -1: must be from 0 to 3600 seconds"),
    ],
)
def test_wrong_options_are_one_line(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    soundfile.write("a.wav", np.zeros(16_000), RATE)
    assert run("alarms", "tiny", *words) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_the_table_says_at_which_rate_alarms_are_counted_by_keyword() -> None:
    points = [Point(threshold, alarms, alarms / 2, (0.0, 9.0), {}) for threshold, alarms in ((0.5, 5), (0.9, 2))]
    assert "alarms by keyword (at most 1): no 2" in table(
        Alarms(2.0, Curve(points, 0, {"no": 2}), None, 60.0), 0.5, 0.5
    )
    assert "alarms by keyword (threshold 1): no 5" in table(
        Alarms(2.0, Curve(points[:1], 0, {"no": 5}), None, 60.0), 0.5, 0.5
    )
