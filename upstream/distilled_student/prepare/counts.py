"""Counts the files of a corpus by their names, without decoding: 280,000 files take seconds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from distilled_student.common.audio_folders import AudioFolders, audio_files, subfolders
from distilled_student.common.errors import UserError
from distilled_student.corpora.keywords import BACKGROUND, which_set

T = TypeVar("T")


def relative_audio_paths(folder: Path) -> list[str]:
    """Paths of all audio files under ``folder``, relative to it, sorted; none if there is no such folder."""
    files = audio_files(folder, str(folder)) if folder.is_dir() else []
    return [str(file)[len(str(folder)) + 1 :] for file in files]


def speakers_and_utterances(folder: Path) -> dict[str, int]:
    """Counts of a folder of ``SPEAKER/.../*.wav``, as in LibriSpeech, VoxCeleb. Folders without audio are ignored."""
    folders = AudioFolders()
    speakers = folders.subfolders(folder) if folder.is_dir() else []
    # links last, as in `speaker_files`
    sizes = [len(folders.files(s)) for s in sorted(speakers, key=lambda path: (path.is_symlink(), path))]
    folders.check(str(folder))
    return {"utterances": sum(sizes), "speakers": sum(size > 0 for size in sizes)}


def pairs_in(trials: Path) -> list[list[str]]:
    """The two file names of each trial in a list."""
    lines = trials.read_text(encoding="utf-8", errors="replace").splitlines()  # for another file, the count is wrong
    return [line.split()[1:3] for line in lines if line.strip()]


def _build_index(build: Callable[..., T], settings: Any, **options: Any) -> T:
    """An index of the joint task; its error messages without the settings key at their beginning."""
    try:
        return build(settings, key="prepare", **options)
    except UserError as error:
        raise UserError(str(error).partition(": ")[2]) from None


def speech_commands_training(folder: Path) -> dict[str, int]:
    """Counts of Speech Commands' training folder: files, and utterances of the classic index and of SUPERB's."""
    from distilled_student.multitask.tasks import kws, kws_index  # import torch

    index, noises = _build_index(kws_index.class_index, kws.Settings(train_root=str(folder)), seed=0)
    words = [path for path in subfolders(folder, str(folder)) if path.name != BACKGROUND]
    sets = Counter(which_set(name, 10, 10) for word in words for name in relative_audio_paths(word))
    return {
        "words": sets.total(),
        "background noises": len(noises),
        "classic training utterances": len(index["training"]),
        "classic validation utterances": len(index["validation"]),
        "SUPERB training utterances": sets["training"] + len(noises),
        "SUPERB validation utterances": sets["validation"],
    }


def speech_commands_test(folder: Path) -> dict[str, int]:
    """Count of the files in the twelve folders of the test archive."""
    from distilled_student.multitask.tasks import kws, kws_index

    clips = _build_index(kws_index.test_index, kws.Settings(test_root=str(folder)))
    return {"test utterances": len(clips)}
