"""How much is in a folder: file names alone, nothing is decoded, so that 280,000 files take seconds."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from distilled_student.common.audio import SUFFIXES
from distilled_student.common.errors import UserError

T = TypeVar("T")


def audio_files(folder: Path) -> list[str]:
    """Paths of all audio files under ``folder``, relative to it, links included."""
    found = []
    for place, _, names in os.walk(folder, followlinks=True):
        prefix = "" if place == str(folder) else f"{place[len(str(folder)) + 1 :]}/"
        found += [prefix + name for name in names if os.path.splitext(name)[1].lower() in SUFFIXES]
    return found


def speakers_and_utterances(folder: Path) -> dict[str, int]:
    """Of ``SPEAKER/.../*.wav``: LibriSpeech's and VoxCeleb's layout. A folder without audio is no speaker."""
    sizes = [len(audio_files(speaker)) for speaker in folder.iterdir() if speaker.is_dir()] if folder.is_dir() else []
    return {"utterances": sum(sizes), "speakers": sum(size > 0 for size in sizes)}


def pairs_in(trials: Path) -> list[list[str]]:
    """The two files of each trial of a list."""
    lines = trials.read_text(encoding="utf-8", errors="replace").splitlines()  # what is no list has other counts
    return [line.split()[1:3] for line in lines if line.strip()]


def _without_key(index: Callable[..., T], settings: Any, **more: Any) -> T:
    """An index of the joint task; of its errors what is wrong with the files, not the setting that names them."""
    try:
        return index(settings, key="prepare", **more)
    except UserError as error:
        raise UserError(str(error).partition(": ")[2]) from None


def speech_commands_training(folder: Path) -> dict[str, int]:
    """Files of Speech Commands, and the utterances of the two indices that are made from them."""
    from distilled_student.multitask.tasks import kws, kws_index  # need torch

    index, noises = _without_key(kws_index.class_index, kws.Settings(train_root=str(folder)), seed=0)
    words = [path for path in folder.iterdir() if path.is_dir() and path.name != kws_index.BACKGROUND]
    sets = Counter(kws_index.which_set(name, 10, 10) for word in words for name in audio_files(word))
    return {
        "words": sets.total(),
        "background noises": len(noises),
        "classic training utterances": len(index["training"]),
        "classic validation utterances": len(index["validation"]),
        "SUPERB training utterances": sets["training"] + len(noises),
        "SUPERB validation utterances": sets["validation"],
    }


def speech_commands_test(folder: Path) -> dict[str, int]:
    """Files in the twelve folders of the test archive."""
    from distilled_student.multitask.tasks import kws, kws_index

    clips = _without_key(kws_index.test_index, kws.Settings(test_root=str(folder)))
    return {"test utterances": len(clips)}
