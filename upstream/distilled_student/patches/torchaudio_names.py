"""Functions that torchaudio 2.9 removed and s3prl still uses, made with soundfile and torchaudio.functional."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Sequence
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import soundfile
import torch
import torchaudio
from torch import Tensor
from torchaudio.functional import gain, resample

from distilled_student.common import audio_reading
from distilled_student.common.errors import UserError
from distilled_student.common.sample_range import wrong_range

# a duration without a decimal point is in samples; s3prl does not use that
SILENCE = re.compile(r"silence 1 (\d*\.\d+) (\d*\.?\d+)% -1 (\d*\.\d+) (\d*\.?\d+)%")


def _checked(path: Any) -> str | bytes:
    """The name of a file as soundfile takes it. Raises UserError if the header has impossible values."""
    audio_reading.header(path)
    return audio_reading.soundfile_path(path)


def load(
    uri: Any,
    frame_offset: int = 0,
    num_frames: int = -1,
    normalize: bool = True,
    channels_first: bool = True,
    format: str | None = None,
    buffer_size: int = 4096,
    backend: str | None = None,
) -> tuple[Tensor, int]:
    """``torchaudio.load``: ``(channels, samples)`` float32 in [-1, 1], at the file's own rate, and that rate.

    ``normalize`` and the last three arguments have no effect, as in torchaudio since 2.9.

    Raises:
        UserError: the file is missing or not readable as audio; names it.
    """
    with audio_reading.open_to_decode(uri) as file:
        rate, first = file.samplerate, audio_reading.go_to(file, min(frame_offset, file.frames))
        frames = file.frames - first if num_frames < 0 else min(num_frames, file.frames - first)
        blocks = audio_reading.read_blocks(file, frames)
        data = np.concatenate([np.zeros((0, file.channels), np.float32), *blocks])
    if reason := wrong_range(torch.from_numpy(data)):
        raise UserError(f"{uri}: {reason}")
    return torch.from_numpy(data.T.copy() if channels_first else data), rate


def save(uri: Any, src: Tensor, sample_rate: int, channels_first: bool = True, **options: Any) -> None:
    """``torchaudio.save`` of ``(channels, samples)``; the name of the file decides the format."""
    bits = options.get("bits_per_sample")
    data = (src.T if channels_first else src).cpu().numpy()
    soundfile.write(uri, data, sample_rate, subtype=f"PCM_{bits}" if bits else None, format=options.get("format"))


def info(uri: Any, *args: Any, **kwargs: Any) -> SimpleNamespace:
    """``torchaudio.info``: rate, frames and channels from the header. Raises UserError naming an unreadable file."""
    try:
        header = soundfile.info(uri if hasattr(uri, "read") else _checked(uri))
    except (OSError, RuntimeError) as error:
        raise UserError(f"{uri}: not readable as audio ({error})") from None
    kind, _, bits = header.subtype.partition("_")
    return SimpleNamespace(
        sample_rate=header.samplerate,
        num_frames=header.frames,
        num_channels=header.channels,
        bits_per_sample=int(bits) if bits.isdigit() else 0,
        encoding={"PCM": "PCM_S"}.get(kind, kind),
    )


def _runs(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First index of every run of true values, and the index after its last."""
    edges = np.flatnonzero(np.diff(mask, prepend=False, append=False))
    return edges[::2], edges[1::2]


def without_silence(wave: np.ndarray, rate: int, above: Sequence[float], below: Sequence[float]) -> np.ndarray:
    """sox's ``silence 1 SECONDS PERCENT% -1 SECONDS PERCENT%``: the samples of ``wave (samples,)`` that it keeps.

    A part starts where the level has been above the first threshold for the first duration. It ends where the level
    stays below the second threshold for the second duration; then the search for a start begins again. The level is the
    root mean square of the last 20 ms; samples before the start of a search count as zeros. Follows
    ``sox_silence_flow`` in silence.c of sox 14.4.2.
    """
    window, full = rate // 50, 2**31 - 1  # sox compares levels as 32-bit integers
    loud, quiet = (window * ((np.floor(percent / 100 * full) + 1) / (full + 1)) ** 2 for _, percent in (above, below))
    long, short = (round(seconds * rate) for seconds, _ in (above, below))
    summed = np.concatenate(([0.0], np.cumsum(wave.astype(np.float64) ** 2)))
    energy = summed[1:].copy()
    energy[window:] -= summed[1:-window]
    starts, ends = _runs(energy >= loud)
    pauses, pause_ends = _runs(energy < quiet)
    pauses = pauses[pause_ends - pauses >= short]
    kept, begin = [wave[:0]], 0
    while True:
        first = np.searchsorted(summed, summed[begin] + loud) - 1  # earlier, the window holds too few samples
        speech = np.maximum(starts, first)
        found = np.flatnonzero(ends - speech >= long)
        if not len(found):
            return np.concatenate(kept)  # sox, too, drops what has not been loud for long enough
        start = speech[found[0]]
        index = np.searchsorted(pauses, start + long)
        if index == len(pauses):
            return np.concatenate([*kept, wave[start:]])
        kept.append(wave[start : pauses[index]])
        begin = pauses[index] + short


def apply_effects_tensor(
    tensor: Tensor, sample_rate: int, effects: Sequence[Sequence[str]], channels_first: bool = True
) -> tuple[Tensor, int]:
    """The effects of sox that s3prl uses, in the given order, on ``(channels, samples)``.

    ``channels 1``, ``rate HZ``, ``gain DB``, ``norm [DB]``, and for one channel :func:`without_silence`. As in sox,
    samples are clipped to [-1, 1] after a gain.

    Raises:
        UserError: any other effect.
    """
    wave = tensor if channels_first else tensor.T
    for effect in effects:
        match [str(word) for word in effect]:
            case ["channels", count] if int(count) in (1, wave.size(0)):
                wave = wave.mean(dim=0, keepdim=True) if int(count) == 1 else wave
            case ["rate", rate]:
                wave, sample_rate = resample(wave, sample_rate, int(float(rate))), int(float(rate))
            case ["gain", decibels] if decibels.lstrip("-").replace(".", "", 1).isdigit():
                wave = gain(wave, float(decibels)).clamp(-1, 1)
            case ["norm", *decibels] if len(decibels) < 2:
                level = 10 ** (float(decibels[0]) / 20) if decibels else 1.0
                wave = wave * (level / wave.abs().max().clamp(min=1e-10)) if wave.numel() else wave
            case ["silence", *_] as words if wave.size(0) == 1 and (found := SILENCE.fullmatch(" ".join(words))):
                times = [float(text) for text in found.groups()]
                wave = torch.from_numpy(without_silence(wave[0].numpy(), sample_rate, times[:2], times[2:]))[None]
            case other:
                raise UserError(
                    f"sox effect '{' '.join(other)}': torchaudio {torchaudio.__version__} has no sox any more"
                )
    return (wave if channels_first else wave.T), sample_rate


def apply_effects_file(
    path: Any,
    effects: Sequence[Sequence[str]],
    normalize: bool = True,
    channels_first: bool = True,
    format: str | None = None,
) -> tuple[Tensor, int]:
    """:func:`apply_effects_tensor` on a file. Raises UserError for an unreadable file or another effect."""
    wave, rate = load(path)
    wave, rate = apply_effects_tensor(wave, rate, effects)
    return (wave if channels_first else wave.T), rate


def add_missing_names() -> None:
    """Give torchaudio the missing names; replace load and save where they need a torchcodec that does not load."""
    if not hasattr(torchaudio, "set_audio_backend"):
        torchaudio.set_audio_backend = lambda backend: None
    if not hasattr(torchaudio, "sox_effects"):
        effects = ModuleType("torchaudio.sox_effects", "Replacement by distilled_student.patches.torchaudio_names.")
        effects.apply_effects_tensor, effects.apply_effects_file = apply_effects_tensor, apply_effects_file
        sys.modules[effects.__name__] = torchaudio.sox_effects = effects
    if not hasattr(torchaudio, "info"):
        torchaudio.info = info
    if hasattr(torchaudio, "load_with_torchcodec"):
        try:
            importlib.import_module("torchcodec")
        except (ImportError, OSError, RuntimeError):  # not installed, or without its FFmpeg
            torchaudio.load, torchaudio.save = load, save
