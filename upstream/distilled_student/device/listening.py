"""Listens to a microphone or to a file: which keyword was said, and by whom."""

from __future__ import annotations

import queue
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from distilled_student.common.errors import UserError
from distilled_student.common.sample_rate import SAMPLE_RATE
from distilled_student.device.odds import with_needed

if TYPE_CHECKING:
    from distilled_student.onnx import Enrolment, Hit, Stream

BLOCK = 1_280  # samples of a block of the microphone


def _load_sounddevice() -> Any:
    try:
        import sounddevice
    except ImportError:
        raise UserError("the microphone needs sounddevice: pip install '.[microphone]', or give a file") from None
    except OSError as error:  # PortAudio is missing
        raise UserError(f"the microphone needs PortAudio ({error}): install it, such as libportaudio2") from None
    return sounddevice


def microphone_blocks(device: str | None = None) -> Iterator[NDArray[np.float32]]:
    """What a microphone records, without end: blocks ``(BLOCK,)`` at 16 kHz. Says on standard error when it begins.

    Args:
        device: Its number or a part of its name; None: the default one.

    Raises:
        UserError: sounddevice is not installed, or there is no such microphone.
    """
    sounddevice = _load_sounddevice()
    blocks: queue.Queue[NDArray[np.float32]] = queue.Queue()

    def receive(samples: NDArray[np.float32], frames: int, time: Any, status: Any) -> None:
        if status:  # samples were lost
            print(f"microphone: {status}", file=sys.stderr)
        blocks.put(samples[:, 0].copy())

    chosen = int(device) if device is not None and device.isdigit() else device
    try:
        stream = sounddevice.InputStream(SAMPLE_RATE, BLOCK, chosen, 1, "float32", callback=receive)
    except (sounddevice.PortAudioError, ValueError) as error:
        raise UserError(f"--device {device or 'default'}: not usable as a microphone ({error})") from None
    with stream:
        print("listening; Ctrl-C ends it", file=sys.stderr)
        while True:
            yield blocks.get()


def hits(
    stream: Stream,
    blocks: Iterable[NDArray[np.float32]],
    people: Mapping[str, Enrolment],
    owner: str | None,
    false_accepts: float,
) -> Iterator[Hit]:
    """The keywords in blocks ``(samples,)``, as they are recognised, and as their speakers are decided.

    Args:
        people: Enrolled people, of whom one is named at a hit; empty: nobody is named.
        owner: One of them: only their keywords are reported.
    """

    def found(block: NDArray[np.float32], is_last: bool = False) -> Iterator[Hit]:
        if owner is None:
            yield from stream.listen(block, people or None, None, false_accepts, is_last)
        else:
            of_owner = stream.listen(block, None, people[owner], false_accepts, is_last)
            yield from (hit._replace(speaker=owner) for hit in of_owner)

    for block in blocks:
        yield from found(block)
    yield from found(np.zeros(0, np.float32), is_last=True)


def notes(stream: Stream, people: Mapping[str, Enrolment], false_accepts: float) -> list[str]:
    """What the decisions about these people do not state or are uncertain of, a sentence each."""
    model, found = stream.model, {}
    for enrolment in people.values():
        found |= dict.fromkeys(model.who(enrolment.vector, model.window, people, false_accepts).notes)
    return list(found)


def on_one_line(hit: Hit, has_people: bool) -> str:
    """``3.52 s  stop  0.98  anna: 265 times as likely ...``; ``has_people``: whether it was asked who spoke."""
    who = ""
    if has_people:
        who = f"  {hit.speaker or 'nobody who is enrolled'}: {with_needed(hit.ratio, hit.needed_ratio)}"
    return f"{hit.seconds:7.2f} s  {hit.label}  {hit.score:.2f}{who}"
