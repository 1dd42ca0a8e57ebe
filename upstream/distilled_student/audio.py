"""Audio files in, 16 kHz mono float32 out: soundfile reads, torchaudio resamples."""

from __future__ import annotations

from pathlib import Path

import soundfile
import torch
from torch import Tensor

from distilled_student.errors import UserError

SAMPLE_RATE = 16_000
SUFFIXES = {".wav", ".flac", ".ogg", ".opus", ".mp3", ".aiff", ".aif", ".au", ".w64", ".caf"}


def seconds(path: str | Path) -> float:
    """Duration from the header alone. Raises UserError naming the file when it is not readable audio."""
    try:
        info = soundfile.info(str(path))
        return info.frames / info.samplerate
    except (OSError, RuntimeError, ZeroDivisionError) as error:
        raise UserError(f"{path}: not readable as audio ({error})") from None


def load(path: str | Path, start: float = 0.0, duration: float | None = None) -> Tensor:
    """Read ``duration`` seconds from ``start`` (the whole file by default).

    Any rate and channel count: channels are averaged, other rates resampled to 16 kHz.

    Returns:
        ``(samples,)`` float32 at 16 kHz.

    Raises:
        UserError: missing, truncated, empty, not audio, or with NaN or infinite samples; names the file.
    """
    try:
        with soundfile.SoundFile(str(path)) as file:
            rate = file.samplerate
            file.seek(int(start * rate))
            frames = -1 if duration is None else int(duration * rate)
            data = torch.from_numpy(file.read(frames, dtype="float32", always_2d=True))
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(f"{path}: not readable as audio ({error})") from None
    waveform = data.mean(dim=1)
    if waveform.numel() == 0:
        raise UserError(f"{path}: holds no audio")
    if not torch.isfinite(waveform).all():
        raise UserError(f"{path}: holds NaN or infinite samples")
    if rate != SAMPLE_RATE:
        from torchaudio.functional import resample

        waveform = resample(waveform, rate, SAMPLE_RATE)
    return waveform
