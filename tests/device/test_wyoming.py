"""The server of wake words: what clients get over TCP, compared with the same stream in Python, and bad clients."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

pytest.importorskip("wyoming", reason="the extra `wyoming` is not installed")
pytest.importorskip("onnxruntime")

from helpers.people import CALIBRATION
from helpers.spoken import spoken
from helpers.wyoming_clients import HOST, ask, chunks, converse, detections, free_port, with_server
from wyoming.audio import AudioChunk
from wyoming.client import AsyncTcpClient
from wyoming.event import Event
from wyoming.info import Describe, Info
from wyoming.wake import Detect

from distilled_student import onnx
from distilled_student.device import enrolled, wyoming_events, wyoming_server, wyoming_service
from distilled_student.device.own_words import OwnWords, add_word
from distilled_student.device.profiles import Profiles

VOICES = ("am_adam", "af_river")


def expected(samples: np.ndarray, **listen: object) -> list[tuple[str, int, str | None]]:
    """The hits of the same samples in Python: name, milliseconds and speaker."""
    hits = onnx.load("tiny").stream().listen(samples, **listen, is_last=True)
    return [(hit.label, round(1000 * hit.seconds), hit.speaker) for hit in hits]


def enrol(folder: Path, name: str, samples: np.ndarray) -> None:
    model = onnx.load("tiny")
    enrolment = model.enrol(samples)
    Profiles(folder, model, "tiny").write(name, enrolment.vector[None], enrolment.seconds)


def test_two_clients_at_once_get_the_hits_of_their_own_audio_for_chunks_of_any_size(tmp_path: Path) -> None:
    speech = [spoken(voice) for voice in VOICES]
    sizes = [1_001, 70_000]

    async def test(port: int) -> list[list[Event]]:
        jobs = zip(speech, sizes, strict=True)
        return await asyncio.gather(*(ask(port, chunks(samples.tobytes(), size)) for samples, size in jobs))

    for samples, answers in zip(speech, with_server(test, tmp_path), strict=True):
        assert detections(answers) == expected(samples) != []
        assert [event.type for event in answers] == ["detection"] * len(detections(answers))


def test_detections_name_the_enrolled_speaker_and_follow_the_profiles_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(enrolled, "SECONDS", 0.0)
    samples = spoken("am_adam")
    events = chunks(samples.tobytes(), 4_096)

    async def test(port: int) -> list[list[Event]]:
        nobody = await ask(port, events)
        enrol(tmp_path, "Ada", samples)
        one = await ask(port, events)
        next(tmp_path.glob("speaker-*.json")).write_text("damaged", encoding="utf-8")
        damaged = await ask(port, events)
        next(tmp_path.glob("speaker-*.json")).unlink()
        return [nobody, one, damaged, await ask(port, events)]

    nobody, one, damaged, forgotten = map(detections, with_server(test, tmp_path))
    enrolment = onnx.load("tiny").enrol(samples)
    assert one == expected(samples, speakers={"Ada": enrolment}) and "Ada" in {speaker for *_, speaker in one}
    assert damaged == one  # the profile that was read before
    assert nobody == forgotten == expected(samples)


def test_a_detection_whose_speaker_is_not_decided_at_the_end_of_a_recording_is_not_lost(tmp_path: Path) -> None:
    samples, model = spoken("am_adam"), onnx.load("tiny")
    opposite = -model.enrol(samples).vector  # it is not accepted, so hits wait as long as they may
    Profiles(tmp_path, model, "tiny").write("Eve", opposite[None], 2.0)
    people = {"Eve": onnx.Enrolment(opposite, 1, 2.0)}
    end = round(onnx.load("tiny").stream().listen(samples)[1].seconds * 16_000)
    events = chunks(samples[:end].tobytes(), 4_096)

    (first, *_), (second, *_) = expected(samples[:end])
    other = Detect([first]).event()  # while the second hit waits

    async def test(port: int) -> list[list[Event]]:
        recordings = events, [*events[:-1], *events], [*events[:-1], other, events[-1]]  # the second: no audio-stop
        return [await ask(port, recording) for recording in recordings]

    stopped, restarted, changed = with_server(test, tmp_path)
    assert first != second and detections(changed) == detections(stopped)[:1]
    assert len(onnx.load("tiny").stream().listen(samples[:end], people)) == 1, "the second hit waits"
    assert detections(stopped) == expected(samples[:end], speakers=people) and len(detections(stopped)) == 2
    assert detections(restarted) == 2 * detections(stopped)


def test_a_word_that_ends_with_its_recording_is_detected(tmp_path: Path) -> None:
    samples = spoken("am_adam", ["stop"])
    samples = samples[: 1 + np.flatnonzero(np.abs(samples.astype(int)) > 300)[-1]]  # no silence behind the word
    silence = np.zeros(8_000, np.int16)
    answers = with_server(lambda port: ask(port, chunks(samples.tobytes(), 2_048)), tmp_path)
    hits = onnx.load("tiny").stream().listen(np.concatenate([samples, silence]))
    assert detections(answers) == [(hit.label, round(1000 * hit.seconds), None) for hit in hits] != []
    assert onnx.load("tiny").stream().listen(samples) == []


def test_a_word_of_ones_own_is_detected_from_the_moment_it_is_added(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(enrolled, "SECONDS", 0.0)
    watch = onnx.Stream.watch
    monkeypatch.setattr(onnx.Stream, "watch", lambda stream, words: watch(stream, words, false_alarms=50))
    clips = []
    for voice in (*VOICES, "bf_emma"):
        clips.append(tmp_path / f"{voice}.wav")
        soundfile.write(clips[-1], spoken(voice, ["sheila"]), 16_000)
    words, samples = OwnWords(tmp_path / "people", onnx.load("tiny"), "tiny"), spoken("am_michael", ["sheila", "yes"])
    events = chunks(samples.tobytes(), 4_096)

    async def test(port: int) -> list[list[Event]]:
        async with AsyncTcpClient(HOST, port) as client:
            before = await converse(client, events)
            add_word(words, "sheila", clips, force=True)
            return [before, await converse(client, events), await ask(port, events, ["sheila"])]

    before, after, only = map(detections, with_server(test, tmp_path / "people"))
    stream = onnx.load("tiny").stream()
    assert before == expected(samples)
    stream.watch(words.templates()[0])
    assert after == [
        (hit.label, round(1000 * hit.seconds), hit.speaker) for hit in stream.listen(samples, is_last=True)
    ]
    assert {name for name, *_ in after} - {name for name, *_ in before} == {"sheila"} == {name for name, *_ in only}


def test_times_are_on_the_clock_of_the_chunks(tmp_path: Path) -> None:
    data, size = spoken("am_adam").tobytes(), 3_200  # 100 ms
    begin = 5_000_000
    pieces = [data[first : first + size] for first in range(0, len(data), size)]
    timed = [
        AudioChunk(16_000, 2, 1, piece, begin + 100 * number).event() for number, piece in enumerate(pieces)
    ]  # without audio-start: a satellite that connects again
    answers = with_server(lambda port: ask(port, timed), tmp_path)
    at = expected(np.frombuffer(data, np.int16))
    assert detections(answers) == [(name, begin + time, speaker) for name, time, speaker in at]


def test_only_the_words_of_detect_are_reported_and_not_held_off_by_others(tmp_path: Path) -> None:
    samples = spoken("am_adam", ["yes", "no", "stop"])
    events = chunks(samples.tobytes(), 4_096)

    async def test(port: int) -> list[list[Event]]:
        return [
            await ask(port, events, ["no", "left"]),
            await ask(port, events, ["down"]),
            await ask(port, [], ["hey"]),
        ]

    no, down, unknown = with_server(test, tmp_path)
    assert {name for name, *_ in detections(no)} == {"no"}
    assert [event.type for event in down] == ["not-detected"]
    assert "names: unknown: hey; known: yes, no" in unknown[0].data["text"]


@pytest.mark.parametrize(("rate", "width", "channels"), [(44_100, 2, 2), (48_000, 4, 1), (8_000, 2, 1), (16_000, 1, 2)])
def test_audio_of_other_formats_is_converted(tmp_path: Path, rate: int, width: int, channels: int) -> None:
    from scipy.signal import resample_poly

    samples = spoken("am_onyx", ["left"]) / 32_768
    common = np.gcd(rate, 16_000)
    other = resample_poly(samples, rate // common, 16_000 // common).clip(-1, 1)
    if width == 1:
        samples_8_bits = (other * 127 + 128).astype(np.uint8)
        other, stored = (samples_8_bits - 128.0) / 128, samples_8_bits
    else:
        stored = (other * (2 ** (8 * width - 1) - 1)).astype(f"<i{width}")
    data = np.repeat(stored, channels).tobytes()
    answers = with_server(lambda port: ask(port, chunks(data, 5_001, rate, width, channels)), tmp_path)
    at_16_khz = expected(resample_poly(other, 16_000 // common, rate // common))
    assert [name for name, *_ in detections(answers)] == [name for name, *_ in at_16_khz] != []
    times = zip(detections(answers), at_16_khz, strict=True)
    assert all(abs(found[1] - wanted[1]) <= 80 for found, wanted in times)  # a hop


def test_describe_is_answered_with_the_words_of_the_model(tmp_path: Path) -> None:
    async def test(port: int) -> list[Event]:
        async with AsyncTcpClient(HOST, port) as client:
            return await converse(client, [Describe().event()])

    (answer,) = with_server(test, tmp_path)
    (program,) = Info.from_event(answer).wake
    assert [word.name for word in program.models][:3] == ["yes", "no", "up"] and len(program.models) == 10
    assert all(word.installed and word.languages == ["en"] for word in program.models)


def event_bytes(**header: object) -> bytes:
    return json.dumps(header).encode() + b"\n"


FORMAT = {"rate": 16_000, "width": 2, "channels": 1}
BAD = {
    "no JSON": b"\x00\xff\xfe garbage\n",
    "a list": b"[1, 2]\n",
    "deep nesting": b"[" * 60_000 + b"\n",
    "an endless line": b"x" * 200_000,
    "an HTTP request": b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    "a number as type": event_bytes(type=5),
    "a large payload": event_bytes(type="audio-chunk", payload_length=10**12, data=FORMAT),
    "a negative payload": event_bytes(type="audio-chunk", payload_length=-1, data=FORMAT),
    "large data": event_bytes(type="detect", data_length=10**9),
    "data that is no object": event_bytes(type="detect", data=[1]),
    "half of a surrogate pair": event_bytes(type="detect", data={"names": ["\ud800"]}),
    "half of a surrogate pair in data": event_bytes(type="ping", data_length=18) + b'{"text": "\\udfff"}',
    "half of a surrogate pair in UTF-8": b'{"type": "ping", "data": {"text": "\xed\xa0\x80"}}\n',
    "names that are no texts": event_bytes(type="detect", data={"names": [1]}),
    "a rate of 0": event_bytes(type="audio-start", data=FORMAT | {"rate": 0}),
    "a rate of 1 Hz": event_bytes(type="audio-start", data=FORMAT | {"rate": 1}),
    "a width of 9": event_bytes(type="audio-start", data=FORMAT | {"width": 9}),
    "a million channels": event_bytes(type="audio-start", data=FORMAT | {"channels": 10**6}),
    "a chunk without a format": event_bytes(type="audio-chunk", payload_length=2) + b"\0\0",
    "a time that is no number": event_bytes(type="audio-start", data=FORMAT | {"timestamp": "now"}),
    "an infinite time": event_bytes(type="audio-start", data=FORMAT | {"timestamp": float("inf")}),
}


def test_bad_clients_get_an_error_and_harm_nobody(tmp_path: Path) -> None:
    samples = spoken("am_adam", ["yes", "no"])

    async def send(port: int, data: bytes) -> bytes:
        reader, writer = await asyncio.open_connection(HOST, port)
        writer.write(data)
        answer = await reader.read()  # until the server disconnects
        writer.close()
        return answer

    async def vanish(port: int) -> None:
        for data in (b"", event_bytes(type="audio-start", data=FORMAT), b'{"type": "audio-chunk", "payload_length": 9'):
            _, writer = await asyncio.open_connection(HOST, port)
            writer.write(data)
            writer.transport.abort()

    async def test(port: int) -> tuple[list[Event], list[bytes]]:
        silent = await asyncio.open_connection(HOST, port)  # sends nothing
        good = asyncio.create_task(ask(port, chunks(samples.tobytes(), 640)))
        answers = await asyncio.gather(*(send(port, data) for data in BAD.values()), vanish(port))
        found = await good
        silent[1].close()
        return found, answers[:-1]

    found, answers = with_server(test, tmp_path)
    assert detections(found) == expected(samples) != []
    for kind, answer in zip(BAD, answers, strict=True):
        assert b'"error"' in answer, kind


def test_a_client_that_sends_audio_behind_its_mistake_can_read_the_error(tmp_path: Path) -> None:
    audio = b"".join(
        event_bytes(type="audio-chunk", data=FORMAT, payload_length=32_000) + bytes(32_000) for _ in range(40)
    )

    async def test(port: int) -> bytes:
        reader, writer = await asyncio.open_connection(HOST, port)
        writer.write(event_bytes(type="detect", data={"names": ["hey"]}) + audio)
        await asyncio.sleep(0.3)  # the server answers
        writer.write(audio)
        await asyncio.sleep(0.1)
        answer = await reader.read()
        writer.close()
        return answer

    assert b"names: unknown: hey" in with_server(test, tmp_path)


def test_noise_silence_and_cut_samples_are_not_detected(tmp_path: Path) -> None:
    silence, noise = bytes(64_001), np.random.default_rng(0).integers(-30, 30, 32_000, np.int16).tobytes()

    async def test(port: int) -> list[list[Event]]:
        return [await ask(port, chunks(data, 999)) for data in (silence, noise, b"", b"\1")]

    for answers in with_server(test, tmp_path):
        assert [event.type for event in answers] == ["not-detected"]


def test_a_quiet_client_makes_room_for_a_new_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wyoming_server, "MAX_CLIENTS", 2)

    async def test(port: int) -> list[bytes]:
        clients = [await asyncio.open_connection(HOST, port) for _ in range(2)]
        await asyncio.sleep(0.1)
        reader, third = await asyncio.open_connection(HOST, port)
        refused = await reader.read()
        third.close()
        monkeypatch.setattr(wyoming_server, "QUIET_SECONDS", 0.0)
        reader, writer = await asyncio.open_connection(HOST, port)
        writer.write(event_bytes(type="ping"))
        answer = await reader.readline()
        dropped = await asyncio.wait_for(clients[0][0].read(), 5)
        return [refused, answer, dropped]

    refused, answer, dropped = with_server(test, tmp_path)
    assert b"2 clients are connected" in refused and b"pong" in answer and dropped == b""


@pytest.mark.parametrize(
    "uri", ["127.0.0.1:1", "tcp://", "tcp://a", "tcp://a:b", "unix:///tmp/x", "tcp://a:1/b", "tcp://[:1"]
)
def test_addresses_that_cannot_be_served_are_refused(uri: str) -> None:
    with pytest.raises(wyoming_server.UserError, match=r"--uri .*expected tcp://HOST:PORT"):
        wyoming_server.parse_uri(uri)


@pytest.mark.parametrize("share", [0.5, 1e-5])
def test_a_share_that_the_model_has_no_threshold_for_is_refused(tmp_path: Path, share: float) -> None:
    model = onnx.load("tiny")
    stream = model.stream()
    stream.model.calibration = CALIBRATION
    model.stream = lambda: stream
    with pytest.raises(wyoming_server.UserError, match=rf"--false-accepts {share:g}: must be from \S+% to \S+% \(0\.0"):
        wyoming_service.WakeService(model, "tiny", tmp_path, false_accepts=share)


def test_the_limits_are_those_of_the_documentation() -> None:
    text = (Path(__file__).parents[2] / "docs/home-assistant.md").read_text(encoding="utf-8")
    assert f"{wyoming_server.MAX_CLIENTS} clients" in text
    assert f"{wyoming_events.MAX_PAYLOAD // 2**20} MiB" in text


def test_the_command_serves_until_sigterm_and_says_that_its_port_is_taken(tmp_path: Path) -> None:
    port = free_port()
    code = "from distilled_student.cli import main; main()"
    words = ["wyoming", "--uri", f"tcp://{HOST}:{port}", "--model", "tiny", "--profiles", str(tmp_path)]
    command = [sys.executable, "-c", code, *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        assert server.stdout.readline() == f"listening on tcp://{HOST}:{port}\n"
        second = subprocess.run(command, capture_output=True, text=True)
        samples = spoken("am_adam", ["yes", "no"])
        answers = asyncio.run(ask(port, chunks(samples.tobytes(), 4_096)))
        server.send_signal(signal.SIGTERM)
        assert server.wait(30) == 0, server.stderr.read()
    assert detections(answers) == expected(samples)
    assert second.returncode == 2 and f"error: --uri tcp://{HOST}:{port}: cannot listen there" in second.stderr
