"""Serves wake words over the Wyoming protocol, for Home Assistant and its satellites: who said what, and when."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlparse

from wyoming.error import Error
from wyoming.event import Event
from wyoming.info import Attribution, Info, WakeModel, WakeProgram
from wyoming.ping import Ping, Pong
from wyoming.server import AsyncEventHandler, AsyncTcpServer
from wyoming.wake import Detection, NotDetected

from distilled_student import __version__
from distilled_student.common.errors import UserError
from distilled_student.common.shipped_models import shipped_models
from distilled_student.device.enrolled import Enrolled
from distilled_student.device.pcm import PcmFormat, PcmStream
from distilled_student.device.wyoming_events import (
    ProtocolError,
    audio_format,
    finite,
    read_event,
    timestamp,
    wanted_names,
)
from distilled_student.onnx import Detector, DetectorSettings, Hit, Stream

if TYPE_CHECKING:
    from distilled_student.onnx import Model

MAX_CLIENTS = 64
QUIET_SECONDS = 10.0  # a client that sent nothing for so long makes room for a new one if there are too many
BLOCK_SECONDS = 1.0  # of audio that a client has processed before it is another one's turn
LOCAL = ("127.0.0.1", "localhost", "::1")

log = logging.getLogger(__name__)


class WakeService:
    """What all clients share: the model, the enrolled people, and the threads that compute.

    Args:
        model: A model with a stream.
        model_name: How ``info`` names it.
        profiles: See `profiles_folder`.
        false_accepts: See `Model.identify`.
        settings: Of the detectors; default: those of the model.

    Raises:
        UserError: a profile is damaged.
        ValueError: the model has no stream, no keywords, or no thresholds for so many false accepts.
    """

    def __init__(
        self,
        model: Model,
        model_name: str,
        profiles: Path | None = None,
        false_accepts: float = 0.01,
        settings: DetectorSettings | None = None,
    ) -> None:
        self.model, self.model_name, self.false_accepts = model.stream().model, model_name, false_accepts
        if "keyword_scores" not in self.model.output_shapes:
            raise ValueError(f"{self.model.file}: has no keyword_scores")
        self.settings = settings or self.model.detector_settings
        shares = self.model.calibration.shares if self.model.calibration else ()
        if shares and false_accepts > shares[-1]:
            raise ValueError(f"false_accepts {false_accepts:g}: the model has thresholds for at most {shares[-1]:g}")
        self.enrolled = Enrolled(self.model, profiles)
        self.threads = ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="stream")
        self.clients: set[WakeClient] = set()

    @property
    def speakers(self) -> dict:
        """The enrolled people; none for a model that does not tell speakers apart."""
        can_compare = "speaker_embedding" in self.model.output_shapes and self.model.calibration is not None
        return dict(self.enrolled.speakers) if can_compare else {}

    def words(self) -> list[str]:
        """The names of all words that can be detected."""
        return [label for label in self.model.labels if not label.startswith("_")]

    def detector(self, stream: Stream, wanted: set[str] | None) -> Detector:
        """A detector of the wanted words alone: the others do not hold it off."""
        labels = [label if wanted is None or label in wanted else f"_{label}" for label in self.model.labels]
        return Detector(labels, self.settings, stream.hop / self.model.rate)

    def info(self) -> Info:
        """What ``describe`` is answered with."""
        source = Attribution("distilled-student", "https://arxiv.org/abs/2210.16611")
        languages = ["en"] if self.model_name in shipped_models() else []
        words = [
            WakeModel(
                name=word,
                attribution=source,
                installed=True,
                description=word,
                version=__version__,
                languages=languages,
                phrase=word,
            )
            for word in self.words()
        ]
        description = "Spots keywords and says who of the enrolled people spoke"
        program = WakeProgram(
            name="distilled-student",
            attribution=source,
            installed=True,
            description=description,
            version=__version__,
            models=words,
        )
        return Info(wake=[program])

    def make_room(self) -> None:
        """Disconnect the client that has been quiet for longest. Raises ProtocolError: too many, and none is quiet."""
        if len(self.clients) < MAX_CLIENTS:
            return
        quietest = min(self.clients, key=lambda client: client.latest)
        if time.monotonic() - quietest.latest < QUIET_SECONDS:
            raise ProtocolError(f"{MAX_CLIENTS} clients are connected; try again later")
        quietest.drop()


class WakeClient(AsyncEventHandler):
    """One client, with a stream of its own.

    Attributes:
        latest: When its latest event arrived (`time.monotonic`).
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, service: WakeService) -> None:
        super().__init__(reader, writer)
        self._service, self.latest = service, time.monotonic()
        self._wanted: set[str] | None = None
        self._stream: Stream | None = None
        self._begin(None, None)

    async def run(self) -> None:
        """Answer events until the client leaves; no error of a client reaches another one."""
        self._is_running = True
        try:
            self._service.make_room()
            self._service.clients.add(self)
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
            self._service.clients.discard(self)
            self.writer.close()

    async def handle_event(self, event: Event) -> bool:
        """Answer one event; events of other kinds are ignored. Raises ProtocolError."""
        match event.type:
            case "describe":
                self._service.enrolled.refresh()
                await self.write_event(self._service.info().event())
            case "detect":
                self._wanted = self._checked_names(wanted_names(event.data))
                self._set_words()
            case "audio-start":
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
            self._set_words()
        samples = self._pcm.feed(data, is_last)
        return self._stream.listen(samples, self._service.speakers, false_accepts=self._service.false_accepts)

    def _set_words(self) -> None:
        if self._stream is not None:
            self._stream.detector = self._service.detector(self._stream, self._wanted)

    def _detection(self, hit: Hit) -> Event:
        """The event of a hit; ``score`` and ``ratio`` are additions that other clients ignore."""
        event = Detection(hit.label, round(self._clock + 1000 * hit.seconds), hit.speaker).event()
        event.data |= {"score": finite(hit.score), "ratio": finite(hit.ratio)}
        log.info("%s: %s by %s, score %.2f", self._peer(), hit.label, hit.speaker or "nobody enrolled", hit.score)
        return event

    async def _finish(self) -> None:
        """End the recording."""
        if self._pcm is not None:
            await self._process(b"", is_last=True)
        if not self._detected:
            await self.write_event(NotDetected().event())
        self._begin(None, None)

    async def _send_last_words(self, text: str) -> None:
        try:
            await asyncio.wait_for(self.write_event(Error(text, "bad-request").event()), 1)
        except (OSError, asyncio.TimeoutError):
            log.debug("%s: left", self._peer())

    def _peer(self) -> str:
        return str(self.writer.get_extra_info("peername"))


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
    server = AsyncTcpServer(host, port)
    await server.start(lambda reader, writer: WakeClient(reader, writer, service))
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
