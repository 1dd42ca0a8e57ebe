"""Serves wake words over the Wyoming protocol, for Home Assistant and its satellites: who said what, and when."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import time
from contextlib import suppress
from urllib.parse import urlparse

from wyoming.error import Error
from wyoming.event import Event
from wyoming.ping import Ping, Pong
from wyoming.server import AsyncEventHandler, AsyncTcpServer
from wyoming.wake import Detection, NotDetected

from distilled_student.common.errors import UserError
from distilled_student.device.pcm import PcmFormat, PcmStream
from distilled_student.device.wyoming_events import (
    MAX_PAYLOAD,
    ProtocolError,
    audio_format,
    finite,
    read_event,
    timestamp,
    wanted_names,
)
from distilled_student.device.wyoming_service import WakeService
from distilled_student.onnx import Hit, Stream

MAX_CLIENTS = 64
QUIET_SECONDS = 10.0  # a client that sent nothing for so long makes room for a new one if there are too many
BLOCK_SECONDS = 1.0  # of audio that a client has processed before it is another one's turn
DISCARD_SECONDS = 2.0  # after an error, in which a client can stop sending and read it
LOCAL = ("127.0.0.1", "localhost", "::1")

log = logging.getLogger(__name__)


class WakeClient(AsyncEventHandler):
    """One client, with a stream of its own.

    Args:
        clients: All clients that are connected; this one adds itself.

    Attributes:
        latest: When its latest event arrived (`time.monotonic`).
    """

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        service: WakeService,
        clients: set[WakeClient],
    ) -> None:
        super().__init__(reader, writer)
        self._service, self._clients, self.latest = service, clients, time.monotonic()
        self._wanted: set[str] | None = None
        self._stream: Stream | None = None
        self._version = 0  # of the words of one's own that the stream reports
        self._begin(None, None)

    async def run(self) -> None:
        """Answer events until the client leaves; no error of a client reaches another one."""
        self._is_running = True
        try:
            make_room(self._clients)
            self._clients.add(self)
            _detect_vanished(self.writer)
            while self._is_running and (event := await read_event(self.reader)) is not None:
                self.latest = time.monotonic()
                if not await self.handle_event(event):
                    break
        except ProtocolError as error:
            log.warning("%s: %s", self._peer(), error)
            await self._send_last_words(str(error))
        except OSError as error:
            log.debug("%s: %s", self._peer(), error)
        except Exception:
            log.exception("%s: disconnected", self._peer())
        finally:
            self._clients.discard(self)
            self.writer.close()

    async def handle_event(self, event: Event) -> bool:
        """Answer one event; events of other kinds are ignored. Raises ProtocolError."""
        match event.type:
            case "describe":
                self._service.enrolled.refresh()
                await self.write_event(self._service.info().event())
            case "detect":
                self._service.enrolled.refresh()
                self._wanted = self._checked_names(wanted_names(event.data))
                if self._stream is not None:
                    self._service.set_words(self._stream, self._wanted)
            case "audio-start":
                await self._process_rest()
                self._begin(audio_format(event.data), timestamp(event.data))
            case "audio-chunk":
                await self._listen(event)
            case "audio-stop":
                await self._finish()
            case "ping":
                await self.write_event(Pong(text=Ping.from_event(event).text).event())
        return True

    def drop(self) -> None:
        """Disconnect without a word."""
        self._is_running = False
        self.writer.transport.abort()

    def _checked_names(self, names: set[str] | None) -> set[str] | None:
        if names is not None and (unknown := sorted(names - set(self._service.words()))):
            raise ProtocolError(
                f"names: unknown: {', '.join(unknown)[:200]}; known: {', '.join(self._service.words())}"
            )
        return names

    def _begin(self, form: PcmFormat | None, start: float | None) -> None:
        """Begin a new recording."""
        self._pcm = None if form is None else PcmStream(form)
        self._clock = start or 0.0  # milliseconds on the client's clock at the beginning of the recording
        self._seconds = 0.0  # of the recording, in earlier formats
        self._detected = False
        if self._stream is not None:
            self._stream.reset()

    async def _listen(self, event: Event) -> None:
        """Process a chunk block by block."""
        form, pcm = self._pcm.form if self._pcm else None, self._pcm
        if form is None or any(event.data.get(key, getattr(form, key)) != getattr(form, key) for key in form._fields):
            if pcm is not None:
                self._seconds += pcm.seconds
            pcm = self._pcm = PcmStream(audio_format(event.data))
        if (start := timestamp(event.data)) is not None:
            self._clock = start - 1000 * (self._seconds + pcm.seconds)
        payload = event.payload or b""
        size = round(BLOCK_SECONDS * pcm.form.rate) * pcm.form.frame
        for first in range(0, len(payload), size):
            await self._process(payload[first : first + size])

    async def _process(self, data: bytes, is_last: bool = False) -> None:
        self._service.enrolled.refresh()
        hits = await asyncio.get_running_loop().run_in_executor(self._service.threads, self._hits, data, is_last)
        for hit in hits:
            self._detected = True
            await self.write_event(self._detection(hit))

    def _hits(self, data: bytes, is_last: bool) -> list[Hit]:
        if self._stream is None:
            self._stream = Stream(self._service.model)
            self._service.set_words(self._stream, self._wanted)
            self._version = self._service.enrolled.version
        if self._version != self._service.enrolled.version:
            self._version = self._service.enrolled.version
            self._service.set_own_words(self._stream, self._wanted)
        samples = self._pcm.feed(data, is_last)
        hits = self._stream.listen(
            samples, self._service.speakers, false_accepts=self._service.false_accepts, is_last=is_last
        )
        # a hit that waited for its speaker may be of a word that is not wanted any more
        return [hit for hit in hits if self._wanted is None or hit.label in self._wanted]

    def _detection(self, hit: Hit) -> Event:
        """The event of a hit; ``score`` and ``ratio`` are additions that other clients ignore."""
        event = Detection(hit.label, round(self._clock + 1000 * hit.seconds), hit.speaker).event()
        event.data |= {"score": finite(hit.score), "ratio": finite(hit.ratio)}
        log.info("%s: %s by %s, score %.2f", self._peer(), hit.label, hit.speaker or "nobody enrolled", hit.score)
        return event

    async def _process_rest(self) -> None:
        """Detect what still waits of a recording: its last samples, and hits whose speaker is not decided."""
        if self._pcm is not None:
            await self._process(b"", is_last=True)

    async def _finish(self) -> None:
        """End the recording."""
        await self._process_rest()
        if not self._detected:
            await self.write_event(NotDetected().event())
        self._begin(None, None)

    async def _discard(self) -> None:
        """Read what the client goes on to send: closing before would discard the answer that it has not read yet."""
        left = MAX_PAYLOAD
        while left > 0 and (data := await self.reader.read(64 * 1024)):
            left -= len(data)

    async def _send_last_words(self, text: str) -> None:
        try:
            await asyncio.wait_for(self.write_event(Error(text, "bad-request").event()), 1)
            self.writer.write_eof()
            await asyncio.wait_for(self._discard(), DISCARD_SECONDS)
        except (OSError, asyncio.TimeoutError):
            log.debug("%s: left", self._peer())

    def _peer(self) -> str:
        return str(self.writer.get_extra_info("peername"))


def make_room(clients: set[WakeClient]) -> None:
    """Disconnect the client that has been quiet for longest. Raises ProtocolError: too many, and none is quiet."""
    if len(clients) < MAX_CLIENTS:
        return
    quietest = min(clients, key=lambda client: client.latest)
    if time.monotonic() - quietest.latest < QUIET_SECONDS:
        raise ProtocolError(f"{MAX_CLIENTS} clients are connected; try again later")
    quietest.drop()
    clients.discard(quietest)


def _detect_vanished(writer: asyncio.StreamWriter) -> None:
    """Let the system notice within minutes that the other machine is gone."""
    connection = writer.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, seconds in (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 20), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), seconds)


def parse_uri(uri: str) -> tuple[str, int]:
    """``tcp://HOST:PORT`` -> host and port. Raises UserError."""
    try:
        parts = urlparse(uri)
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if not host or port is None or parts.scheme != "tcp" or parts.path not in ("", "/"):
        raise UserError(f"--uri {uri}: expected tcp://HOST:PORT, such as tcp://127.0.0.1:10400")
    return host, port


async def serve(service: WakeService, host: str, port: int) -> None:
    """Serve until SIGTERM or Ctrl-C. Raises OSError: the address is not free."""
    server, clients = AsyncTcpServer(host, port), set()
    await server.start(lambda reader, writer: WakeClient(reader, writer, service, clients))
    stopped, loop = asyncio.Event(), asyncio.get_running_loop()
    with suppress(NotImplementedError):  # on Windows: Ctrl-C ends the program at once
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stopped.set)
    if host not in LOCAL:
        log.warning("%s: every machine that reaches this address can use this server", host)
    print(f"listening on tcp://{host}:{port}", flush=True)
    try:
        await stopped.wait()
    finally:
        await server.stop()


def run(service: WakeService, uri: str) -> None:
    """`serve` at ``tcp://HOST:PORT``. Raises UserError."""
    host, port = parse_uri(uri)
    try:
        asyncio.run(serve(service, host, port))
    except OSError as error:
        raise UserError(f"--uri {uri}: cannot listen there ({error.strerror or error})") from None
    finally:
        service.threads.shutdown(cancel_futures=True)
