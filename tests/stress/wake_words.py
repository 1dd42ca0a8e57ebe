"""Twenty clients of the Wyoming server for a minute: lost detections, memory and CPU. Prints a line of JSON.

python tests/stress/wake_words.py [--clients 20] [--seconds 60] [--model edge]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # the package of helpers

import numpy as np
from helpers.spoken import spoken
from helpers.wyoming_clients import HOST, detections, free_port
from wyoming.audio import AudioChunk, AudioStart, AudioStop
from wyoming.client import AsyncTcpClient
from wyoming.event import Event
from wyoming.wake import Detect

from distilled_student import onnx
from distilled_student.corpora.shipped import read_index

RATE = 16_000
SAMPLES = (320, 1_000, 1_280, 4_096)  # of a chunk; each client has one of these sizes


def recordings(clients: int, seconds: float) -> list[np.ndarray]:
    """Another voice for each client, repeated: ``(samples,)`` int16."""
    voices = sorted({clip.voice for clip in read_index()})
    return [np.resize(spoken(voices[number % len(voices)]), round(seconds * RATE)) for number in range(clients)]


def memory_and_cpu(process: int) -> tuple[float, float]:
    """Resident memory in MB, and CPU seconds, from /proc."""
    fields = Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return int(fields[21]) * 4096 / 1e6, (int(fields[11]) + int(fields[12])) / 100


async def speak(port: int, samples: np.ndarray, size: int) -> list[Event]:
    """Send a recording as a microphone does, in real time; what the server answered."""
    async with AsyncTcpClient(HOST, port) as client:
        answers: list[Event] = []

        async def receive() -> None:
            while (event := await client.read_event()) is not None and event.type != "pong":
                answers.append(event)

        receiving = asyncio.create_task(receive())
        await client.write_event(Detect().event())
        await client.write_event(AudioStart(RATE, 2, 1).event())
        start = time.monotonic()
        for first in range(0, len(samples), size):
            await asyncio.sleep(max(0.0, start + first / RATE - time.monotonic()))
            await client.write_event(AudioChunk(RATE, 2, 1, samples[first : first + size].tobytes()).event())
        await client.write_event(AudioStop().event())
        await client.write_event(Event("ping"))
        await receiving
        return answers


async def disturb(port: int, stop: asyncio.Event) -> int:
    """Clients that send garbage or nothing and vanish, until ``stop``; their number."""
    rng, count = random.Random(0), 0
    while not stop.is_set():
        try:
            _, writer = await asyncio.open_connection(HOST, port)
            writer.write(rng.randbytes(rng.randrange(3_000)) + b"\n" * rng.randrange(2))
            await asyncio.sleep(0.05)
            writer.transport.abort()
        except OSError:
            pass
        count += 1
    return count


async def measure(port: int, process: int, speech: list[np.ndarray]) -> dict[str, object]:
    stop, memory = asyncio.Event(), []
    disturbing = asyncio.create_task(disturb(port, stop))
    _, cpu = memory_and_cpu(process)
    start = time.monotonic()

    async def watch() -> None:
        while not stop.is_set():
            memory.append(memory_and_cpu(process)[0])
            await asyncio.sleep(1)

    watching = asyncio.create_task(watch())
    answers = await asyncio.gather(
        *(speak(port, samples, SAMPLES[number % len(SAMPLES)]) for number, samples in enumerate(speech))
    )
    took = time.monotonic() - start
    cpu = memory_and_cpu(process)[1] - cpu
    stop.set()
    await watching
    bad = await disturbing
    third = max(1, len(memory) // 3)
    return {
        "answers": answers,
        "seconds": round(took, 1),
        "bad_clients": bad,
        "memory_mb": {"second third": round(max(memory[third : 2 * third])), "last third": round(max(memory[-third:]))},
        "cpu_percent_per_client": round(100 * cpu / took / len(speech), 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--model", default="edge")
    options = parser.parse_args()
    speech, port = recordings(options.clients, options.seconds), free_port()
    expected = []
    for samples in speech:
        hits = onnx.load(options.model).stream().listen(samples, is_last=True)
        expected.append([(hit.label, round(1000 * hit.seconds), None) for hit in hits])
    with tempfile.TemporaryDirectory() as folder:
        words = ["wyoming", "--uri", f"tcp://{HOST}:{port}", "--model", options.model, "--profiles", folder]
        command = [sys.executable, "-c", "from distilled_student.cli import main; main()", *words]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
            server.stdout.readline()  # it listens
            found = asyncio.run(measure(port, server.pid, speech))
            server.terminate()
            exit_code = server.wait(30)
    pairs = list(zip(map(detections, found.pop("answers")), expected, strict=True))
    lost = sum(len(set(wanted) - set(got)) + len(set(got) - set(wanted)) for got, wanted in pairs)
    total, grown = sum(map(len, expected)), found["memory_mb"]["last third"] - found["memory_mb"]["second third"]
    print(json.dumps({"clients": options.clients, "detections": total, "lost": lost, **found}))
    sys.exit(lost > 0 or not total or grown > 5 or exit_code != 0)


if __name__ == "__main__":
    main()
