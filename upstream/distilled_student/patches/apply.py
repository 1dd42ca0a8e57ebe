"""Applies all patches: after this, s3prl can be imported and runs on today's torch, torchaudio and huggingface_hub."""

from __future__ import annotations

import functools
from argparse import Namespace

import torch

from distilled_student.common.known_warnings import suppress_known_warnings
from distilled_student.patches import finder, huggingface_names, torchaudio_names
from distilled_student.patches.tables import PATCHES, SHORTCUTS


@functools.cache
def apply_patches() -> None:
    """Apply everything in this package; calling it again does nothing.

    Raises:
        UserError: a patched module of s3prl is imported already, so its patch would have no effect.
    """
    finder.install(PATCHES, SHORTCUTS)
    suppress_known_warnings()
    torchaudio_names.add_missing_names()
    huggingface_names.add_missing_names()
    # s3prl stores its arguments in checkpoints; declared safe, so that torch's weights-only check stays on
    torch.serialization.add_safe_globals([Namespace])
