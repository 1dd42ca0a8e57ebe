"""A server of the Wyoming protocol in this process, and clients for it: the protocol's own."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from wyoming.audio import AudioChunk, AudioStart, AudioStop
from wyoming.client import AsyncTcpClient
from wyoming.event import Event
from wyoming.wake import Detect

from distilled_student import onnx
from distilled_student.device import wyoming_server, wyoming_service

HOST = "127.0.0.1"
RATE = 16_000


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return probe.getsockname()[1]


def with_server(
    test: Callable[[int], Awaitable[Any]], folder: Path, model: str = "tiny", seconds: float = 120, **settings: Any
) -> Any:
    """Run ``test`` with the port of a server, for at most some seconds; ``folder`` has the profiles."""

    async def main() -> Any:
        service = wyoming_service.WakeService(onnx.load(model), model, folder, **settings)
        port = free_port()
        server = asyncio.create_task(wyoming_server.serve(service, HOST, port))
        for _ in range(1_000):
            try:
                _, writer = await asyncio.open_connection(HOST, port)
                writer.close()
                break
            except OSError:
                await asyncio.sleep(0.01)
        try:
            return await asyncio.wait_for(test(port), seconds)
        finally:
            server.cancel()
            await asyncio.gather(server, return_exceptions=True)

    return asyncio.run(main())


def chunks(data: bytes, size: int, rate: int = RATE, width: int = 2, channels: int = 1) -> list[Event]:
    """The events of a recording whose chunks have ``size`` bytes, also in the middle of a sample, and no times."""
    form = {"rate": rate, "width": width, "channels": channels}
    pieces = [data[first : first + size] for first in range(0, len(data), size)]
    return [
        AudioStart(**form).event(),
        *(AudioChunk(**form, audio=piece).event() for piece in pieces),
        AudioStop().event(),
    ]


async def ask(port: int, events: Sequence[Event], names: Sequence[str] | None = None) -> list[Event]:
    """What the server answers to ``detect`` and these events, until it has answered a last ``ping``."""
    async with AsyncTcpClient(HOST, port) as client:
        await client.write_event(Detect(list(names) if names else None).event())
        return await converse(client, events)


async def converse(client: AsyncTcpClient, events: Sequence[Event]) -> list[Event]:
    """Send events and then ``ping``; the answers before that to ``ping``, or before the server disconnects."""

    async def send() -> None:
        try:
            for event in [*events, Event("ping", {"text": "last"})]:
                await client.write_event(event)
        except OSError:
            pass  # the server has disconnected

    sending, answers = asyncio.create_task(send()), []
    while (event := await client.read_event()) is not None and event.type != "pong":
        answers.append(event)
    await sending
    return answers


def detections(answers: Sequence[Event]) -> list[tuple[str, int, str | None]]:
    """Name, timestamp and speaker of each detection."""
    found = [event.data for event in answers if event.type == "detection"]
    return [(data["name"], data["timestamp"], data["speaker"]) for data in found]
