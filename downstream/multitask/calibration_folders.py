"""Speech to calibrate speaker scores on, from folders of recordings instead of the development data of a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from distilled_student.common.audio_folders import audio_files
from distilled_student.common.errors import UserError, one_line
from distilled_student.common.progress import note
from distilled_student.common.sample_rate import SAMPLE_RATE
from distilled_student.corpora.keywords import normal_word, speaker_of
from distilled_student.corpora.speaker_names import identity
from distilled_student.multitask.speaker_calibration import Piece, Recording, make_pieces

OPTION = "--calibrate"
TAKE = "_nohash_"  # in the names of Speech Commands, WORD/SPEAKER_nohash_TAKE.wav


def folder_recordings(folder: Path) -> list[Recording]:
    """The recordings in ``FOLDER/SPEAKER``, or, as in Speech Commands, ``FOLDER/WORD/SPEAKER_nohash_TAKE.wav``.

    Raises:
        UserError: the folder cannot be read, or a file is in no folder of a person.
    """
    where, found = f"{OPTION} {folder}", []
    for path in audio_files(folder, where):
        parts = path.relative_to(folder).parts
        if TAKE in path.name:
            found.append(Recording(path, identity(speaker_of(path.name)), normal_word(path.parent.name)))
        elif len(parts) > 1:
            found.append(Recording(path, identity(parts[0])))
        else:
            raise UserError(f"{where}: {path.name} is of nobody: put the recordings of each person into a folder")
    return found


def folder_pieces(folders: Sequence[Path], trained: Callable[[Sequence[str]], list[str]]) -> list[Piece]:
    """The pieces of all folders. Each folder is a kind of speech, of which people are compared, and weighs the same.

    Args:
        trained: Names of people -> those of them who were trained on.

    Raises:
        UserError: a folder has fewer than two people with two recordings each, or people who were trained on.
    """
    pieces: list[Piece] = []
    for number, folder in enumerate(folders):
        found = make_pieces(f"{number} {folder.name}", folder_recordings(folder))
        people = sorted({piece.speaker for piece in found})
        if len(people) < 2:
            needed = "two people or more with two recordings or more each are needed"
            raise UserError(f"{OPTION} {folder}: {needed}: give a folder with a folder for each person")
        if known := trained(people):
            reason = f"{len(known)} of {len(people)} people were trained on, such as '{one_line(known[0])}'"
            raise UserError(f"{OPTION} {folder}: {reason}: their scores are too good: take people who were not")
        seconds = sum(piece.samples for piece in found) / SAMPLE_RATE
        note(f"{OPTION} {folder}: {len(people)} people, {len(found)} pieces of speech, {seconds:.0f} s")
        pieces += found
    return pieces
