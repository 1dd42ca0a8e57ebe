"""Stand-ins, made of soundfile and torchaudio.functional, for what s3prl uses of torchaudio before 2.9."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from types import ModuleType, SimpleNamespace
from typing import Any

import soundfile
import torch
import torchaudio
from torch import Tensor
from torchaudio.functional import gain, resample

from distilled_student.errors import UserError


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

    ``normalize`` and the last three do nothing here, as in torchaudio since 2.9.

    Raises:
        UserError: the file is missing or not readable as audio; names it.
    """
    source = uri if hasattr(uri, "read") else str(uri)
    try:
        data, rate = soundfile.read(source, num_frames, frame_offset, dtype="float32", always_2d=True)
    except (OSError, RuntimeError) as error:
        raise UserError(f"{uri}: not readable as audio ({error})") from None
    return torch.from_numpy(data.T.copy() if channels_first else data), rate


def save(uri: Any, src: Tensor, sample_rate: int, channels_first: bool = True, **options: Any) -> None:
    """``torchaudio.save`` of ``(channels, samples)``; the file's name chooses the format."""
    bits = options.get("bits_per_sample")
    data = (src.T if channels_first else src).cpu().numpy()
    soundfile.write(uri, data, sample_rate, subtype=f"PCM_{bits}" if bits else None, format=options.get("format"))


def info(uri: Any, *args: Any, **kwargs: Any) -> SimpleNamespace:
    """``torchaudio.info``: rate, frames and channels from the header. Raises UserError naming an unreadable file."""
    try:
        header = soundfile.info(uri if hasattr(uri, "read") else str(uri))
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


def apply_effects_tensor(
    tensor: Tensor, sample_rate: int, effects: Sequence[Sequence[str]], channels_first: bool = True
) -> tuple[Tensor, int]:
    """sox's ``channels 1``, ``rate HZ``, ``gain DB``, ``norm [DB]``, in the given order, on ``(channels, samples)``.

    As in sox, samples are clipped to [-1, 1] after a gain.

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
            case other:
                raise UserError(f"sox effect '{' '.join(other)}': torchaudio {torchaudio.__version__} dropped sox")
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


def mend() -> None:
    """Give torchaudio the names it lacks, and reading and writing where they need a torchcodec that does not load."""
    if not hasattr(torchaudio, "set_audio_backend"):
        torchaudio.set_audio_backend = lambda backend: None
    if not hasattr(torchaudio, "sox_effects"):
        effects = ModuleType("torchaudio.sox_effects", "Stand-in by distilled_student.hostaudio.")
        effects.apply_effects_tensor, effects.apply_effects_file = apply_effects_tensor, apply_effects_file
        sys.modules[effects.__name__] = torchaudio.sox_effects = effects
    if not hasattr(torchaudio, "info"):
        torchaudio.info = info
    if hasattr(torchaudio, "load_with_torchcodec"):
        try:
            importlib.import_module("torchcodec")
        except (ImportError, OSError, RuntimeError):  # not installed, or without its FFmpeg
            torchaudio.load, torchaudio.save = load, save
