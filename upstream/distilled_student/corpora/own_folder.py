"""A folder of own recordings, ``WORD/SPEAKER_*.wav`` or ``SPEAKER/WORD/*.wav``: who says what in which file."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from distilled_student.common.errors import UserError, one_line
from distilled_student.corpora.held_out import by_hash, number_held_out
from distilled_student.corpora.keywords import BACKGROUND, UNKNOWN, is_no_word, normal_word, speaker_of
from distilled_student.corpora.speaker_names import identity

BY_WORD, BY_SPEAKER, BY_BOTH = "WORD/SPEAKER_*", "SPEAKER/WORD", "WORD/SPEAKER"
LAYOUTS = {BY_WORD: 2, BY_SPEAKER: 3, BY_BOTH: 3}  # -> the parts of a file's path
PARTS_OF_A_CORPUS = {"train", "training", "dev", "development", "valid", "validation", "test", "testing"}


class OwnClip(NamedTuple):
    """A recording of one word. ``word`` and ``speaker`` are spelled as in `OwnFolder.words` and `OwnFolder.people`."""

    path: Path
    word: str
    speaker: str


@dataclass(frozen=True)
class OwnFolder:
    """What a folder of own recordings holds.

    Attributes:
        layout: One of `LAYOUTS`.
        clips: All recordings of words, sorted by path.
        other: Recordings in ``_unknown_``, which are of no word to recognise.
        noises: Recordings in ``_background_noise_``.
        unused: One line for each kind of file that is not used.
    """

    root: Path
    layout: str
    clips: tuple[OwnClip, ...]
    other: tuple[OwnClip, ...]
    noises: tuple[Path, ...]
    unused: tuple[str, ...]

    @property
    def words(self) -> list[str]:
        return sorted({clip.word for clip in self.clips})

    @property
    def people(self) -> list[str]:
        return sorted({clip.speaker for clip in self.clips})

    def of(self, speaker: str) -> list[OwnClip]:
        """The recordings of a person."""
        return [clip for clip in self.clips if clip.speaker == speaker]


def read_own_folder(root: Path, key: str, layout: str | None = None, keywords: Sequence[str] = ()) -> OwnFolder:
    """Read the names of all files; no file is opened.

    Names that differ only in case or Unicode normal form are one word or one person; the first spelling is used.
    Without a ``layout``, files in folders of folders are ``SPEAKER/WORD/FILE``, unless only the outer folders are
    ``keywords``.

    Args:
        key: ``FILE: dotted.key`` of the setting that names ``root``, for messages.

    Raises:
        UserError: no such folder, no recordings in one of the layouts, folders of silence or noise among the words.
    """
    from distilled_student.common.audio_folders import AudioFolders  # imports soundfile: settings are checked without

    if not root.is_dir():
        raise UserError(f"{key}: {root}: no such folder")
    folders = AudioFolders()
    files = {file: file.relative_to(root).parts for file in folders.files(root)}
    if folders.unopened or (not files and folders.foreign):
        raise UserError(f"{key}: {folders.problems()}")
    noises = [file for file, parts in files.items() if normal_word(parts[0]) == BACKGROUND]
    others = [file for file, parts in files.items() if normal_word(parts[0]) == UNKNOWN and len(parts) > 1]
    spoken = {file: parts for file, parts in files.items() if file not in {*noises, *others}}
    loose = [file for file, parts in spoken.items() if len(parts) == 1]
    placed = {file: parts for file, parts in spoken.items() if len(parts) > 1}
    if not placed:
        found = f"{len(loose)} files such as {loose[0].name}, but no folders" if loose else "no recordings"
        raise UserError(f"{key}: {root}: has {found}: expected WORD/SPEAKER_*.wav or SPEAKER/WORD/*.wav")
    layout = layout or _layout(list(placed.values()), keywords)
    _check_parts(placed, root, layout, key)
    clips = _clips(placed, layout)
    people = {identity(clip.speaker): clip.speaker for clip in clips}
    speakers = _speakers_in_names([file.stem for file in others])
    unused = [f"not used: {folders.problems()}"] if folders.foreign else []
    if loose:
        unused.append(f"{len(loose)} files are in no folder and are not used, such as {one_line(loose[0].name)}")
    return OwnFolder(
        root,
        layout,
        tuple(clip for clip in clips if clip.word != UNKNOWN),
        tuple(
            [clip for clip in clips if clip.word == UNKNOWN]
            + [OwnClip(f, UNKNOWN, people.get(identity(s), s)) for f, s in zip(others, speakers, strict=True)]
        ),
        tuple(noises),
        tuple(unused),
    )


def _layout(paths: Sequence[tuple[str, ...]], keywords: Sequence[str]) -> str:
    """The layout of most of the files; a folder that is deeper than all layouts counts as one of folders of folders."""
    nested = [parts for parts in paths if len(parts) > 2]
    if 2 * len(nested) < len(paths):
        return BY_WORD
    wanted = set(map(normal_word, keywords))
    outer, inner = ({normal_word(parts[i]) for parts in nested} & wanted for i in (0, 1))
    return BY_BOTH if len(outer) > len(inner) else BY_SPEAKER


def _check_parts(files: dict[Path, tuple[str, ...]], root: Path, layout: str, key: str) -> None:
    """Refuse files that are not where the layout has them, and folders that cannot be words."""
    for file, parts in files.items():
        if len(parts) != LAYOUTS[layout]:
            expected = f"expected {layout}{'.wav' if layout == BY_WORD else '/*.wav'}, as most files are"
            raise UserError(f"{key}: {file}: {expected}: move it, or give another folder")
        word = parts[1 if layout == BY_SPEAKER else 0]
        if is_no_word(word):
            remedy = f"move noise and silence to {root / BACKGROUND}, or rename the folder"
            raise UserError(f"{key}: {file.parent}: is no word, but would be trained as one: {remedy}")
    first = {parts[0] for parts in files.values()}
    if layout == BY_SPEAKER and {name.lower() for name in first} <= PARTS_OF_A_CORPUS:
        raise UserError(f"{key}: {root}: holds the parts {', '.join(sorted(first))}: give {root / min(first)}")


def _clips(files: dict[Path, tuple[str, ...]], layout: str) -> list[OwnClip]:
    """The recordings, with one spelling of each word and person."""
    words = [parts[1 if layout == BY_SPEAKER else 0] for parts in files.values()]
    if layout == BY_WORD:
        speakers = _speakers_in_names([file.stem for file in files])
    else:
        speakers = [parts[0 if layout == BY_SPEAKER else 1] for parts in files.values()]
    spelled = _first_spellings(words, normal_word), _first_spellings(speakers, identity)
    return [
        OwnClip(file, spelled[0][normal_word(word)], spelled[1][identity(speaker)])
        for file, word, speaker in zip(files, words, speakers, strict=True)
    ]


def _first_spellings(names: Iterable[str], normal: Callable[[str], str]) -> dict[str, str]:
    """Normal form -> the first of the names that have it, without spaces around it."""
    found: dict[str, str] = {}
    for name in sorted({unicodedata.normalize("NFC", name) for name in names}):
        found.setdefault(normal(name), name.strip())
    return found


def _speakers_in_names(stems: Sequence[str]) -> list[str]:
    """The person whom each name of a file begins with: up to ``_``, or without a number at its end.

    Where all names begin with the same part, as ``speaker_1_2``, the person is the name up to the last ``_``.
    """
    if len(found := [_speaker_in_name(stem) for stem in stems]) and len(set(map(identity, found))) == 1:
        last = [stem.rpartition("_")[0] if stem.count("_") > 1 and "_nohash_" not in stem else "" for stem in stems]
        if all(last) and len(set(last)) > 1:
            return last
    return found


def _speaker_in_name(stem: str) -> str:
    if "_nohash_" in stem:
        return speaker_of(stem)
    if name := stem.partition("_")[0]:
        stem = name if "_" in stem else re.sub(r"[\s-]*\(?\d+\)?$", "", stem) or stem
    return stem.strip()


def split_people(
    folder: OwnFolder, keywords: Sequence[str], dev: int | float, test: int | float, key: str
) -> tuple[list[str], list[str]]:
    """The people who are held out: for development, and for the test.

    Candidates have two recordings or more; those who say the most keywords come first, in the order of the hash of
    their names. Nobody is held out without whom a keyword would have no training clip.

    Args:
        dev, test: Numbers of people, or shares of them below 1: see `number_held_out`.
        key: ``FILE: downstream_expert``, for messages.

    Raises:
        UserError: a single person, or fewer people than that can be held out.
    """
    people = folder.people
    if len(people) < 2:
        name = one_line(people[0])
        remedy = "record another person; if there are several, use SPEAKER/WORD/*.wav"
        if folder.layout != BY_WORD:
            remedy = f"record another person; if '{name}' is no person, give {folder.root / people[0]}"
        reason = f"one person, '{name}', but people are held out, so there must be two or more"
        raise UserError(f"{key}.data: {folder.root}: {reason}: {remedy}")
    wanted = number_held_out(dev, len(people)), number_held_out(test, len(people), is_test=True)
    if wanted[0] < 1:
        raise UserError(f"{key}.dev_speakers: 0: needs 1 or more, by whom the best checkpoint is chosen")
    if sum(wanted) >= len(people):
        reason = f"{wanted[0]} for development and {wanted[1]} for the test of {len(people)} people leave nobody"
        raise UserError(f"{key}.dev_speakers: {reason} to train on: set fewer (dev_speakers, test_speakers)")
    said = {name: Counter(clip.word for clip in folder.of(name) if clip.word in set(keywords)) for name in people}
    order = sorted(by_hash(people), key=lambda name: -len(said[name]))  # stable: of equals the order of the hash
    held_out: list[str] = []
    for name in order:
        left = [said[other] for other in people if other not in {name, *held_out}]
        has_all = all(any(word in words for words in left) for word in keywords)
        if len(held_out) < sum(wanted) and len(folder.of(name)) >= 2 and has_all:
            held_out.append(name)
    exact = isinstance(dev, int) or (isinstance(test, int) and test > 0)
    if not held_out or (exact and len(held_out) < sum(wanted)):
        reason = f"{len(held_out)} of {len(people)} people can be held out, not {sum(wanted)}"
        why = "the others have one recording, or are the only ones to say a word"
        raise UserError(f"{key}.dev_speakers: {reason}: {why}: record more, or set fewer")
    return sorted(held_out[: wanted[0]]), sorted(held_out[wanted[0] :])
