"""Which files are audio, by the ends of their names. A module of its own, so that it can be asked without torch."""

from __future__ import annotations

import os
from pathlib import Path

SUFFIXES = {".wav", ".flac", ".ogg", ".opus", ".mp3", ".aiff", ".aif", ".au", ".w64", ".caf"}


def has_audio(folder: Path) -> bool:
    """Whether a folder, or one in it, has a file with the name of an audio file."""
    return any(os.path.splitext(name)[1].lower() in SUFFIXES for _, _, names in os.walk(folder) for name in names)
