"""What a folder of audio holds: every part of the package that walks through folders of audio does it here."""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePath

import soundfile

from distilled_student.common.errors import UserError, one_line

log = logging.getLogger(__name__)

# libsndfile's format -> usual suffixes, in addition to the name of the format; .mat is not one: it is mostly no audio
USUAL_SUFFIXES = {
    "AIFF": ("aif", "aifc"),
    "AU": ("snd",),
    "MP3": ("mp2", "mpga"),
    "NIST": ("sph",),
    "OGG": ("oga", "opus"),
    "RF64": ("bw64",),
    "SVX": ("iff", "8svx", "16svx"),
    "WAV": ("wave", "bwf"),
}
# libsndfile's formats whose files do not say their length, or not in a way that all programs agree on: a truncated file
# would count as a short one. XI has no sampling rate either.
WITHOUT_LENGTH = {
    "IRCAM": ("ircam", "sf"),
    "MAT5": ("mat5",),
    "PAF": ("paf",),
    "PVF": ("pvf",),
    "SD2": ("sd2",),
    "SDS": ("sds",),
    "XI": ("xi",),
}
WITHOUT_HEADER = ("gsm", "pcm", "raw", "vox")
COMPRESSED = ("3ga", "aac", "ac3", "alac", "amr", "ape", "awb", "dff", "dsf", "dts", "eac3", "m4a", "m4b", "m4p", "m4r")
COMPRESSED += ("mka", "mpc", "oma", "qcp", "ra", "ram", "shn", "spx", "tta", "weba", "wma", "wv")
VIDEO = ("3g2", "3gp", "asf", "avi", "m4v", "mkv", "mov", "mp4", "mpeg", "mpg", "rm", "webm", "wmv")
# folders of operating systems and storage devices, in lower case; names that begin with a dot are left out too
LEFT_OUT = frozenset(
    [
        *("__macosx", "@eadir", "@recycle", "#recycle", "#snapshot"),
        *("$recycle.bin", "lost+found", "system volume information"),
    ]
)


def _readable_suffixes(formats: Iterable[str]) -> frozenset[str]:
    readable = [name for name in formats if name != "RAW" and name not in WITHOUT_LENGTH]
    names = [name.lower() for name in readable]
    usual = [suffix for name in readable for suffix in USUAL_SUFFIXES.get(name, ())]
    return frozenset(f".{suffix}" for suffix in names + usual)


SUFFIXES = _readable_suffixes(soundfile.available_formats())
# what looks like audio but is not read; an old libsndfile does not read MP3, for example
FOREIGN_SUFFIXES = frozenset(f".{suffix}" for suffix in (*WITHOUT_HEADER, *COMPRESSED, *VIDEO))
FOREIGN_SUFFIXES |= frozenset(f".{suffix}" for suffixes in WITHOUT_LENGTH.values() for suffix in suffixes)
FOREIGN_SUFFIXES |= _readable_suffixes(USUAL_SUFFIXES) - SUFFIXES


def is_left_out(name: str) -> bool:
    """Whether a file or a folder of this name is hidden or belongs to an operating system or a storage device."""
    return name.startswith(".") or name.lower() in LEFT_OUT


def is_audio(name: str) -> bool:
    """Whether a path, relative to a folder or an archive, is an audio file that is read, by its name."""
    return PurePath(name).suffix.lower() in SUFFIXES and not any(map(is_left_out, PurePath(name).parts))


def is_foreign_audio(name: str) -> bool:
    """Whether a path, relative to a folder or an archive, looks like audio but is not read, by its name."""
    return PurePath(name).suffix.lower() in FOREIGN_SUFFIXES and not any(map(is_left_out, PurePath(name).parts))


def how_to_convert(name: str) -> str:
    """The remedy for a file that `is_foreign_audio`."""
    return f"{PurePath(name).suffix.lower()} is not read: convert it, as in {convert_command(name)}"


def convert_command(name: str) -> str:
    """A command that makes a WAV file of an audio file; of samples without a header, with 16 bits, mono, at 16 kHz."""
    path = PurePath(name)
    other = f"{path.stem}.wav" if path.suffix.lower() != ".wav" else f"{path.stem}-converted.wav"
    form = "-f s16le -ar 16000 -ac 1 " if path.suffix.lower() in (".pcm", ".raw") else ""
    return f"`ffmpeg {form}-i {path.name} {other}`"


def path_identity(path: str | Path, status: os.stat_result | None = None) -> tuple[int, int] | str:
    """What is the same for all paths of a file or folder. Some network file systems have no inode numbers.

    ``status``: of ``os.stat``, if it is known.
    """
    status = os.stat(path) if status is None else status
    return (status.st_dev, status.st_ino) if status.st_ino else os.path.realpath(path)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _is_file_or_broken_link(entry: os.DirEntry[str]) -> bool:
    """False for folders, and for pipes and devices, which would be waited for. Reading a broken link is an error."""
    try:
        return entry.is_file() or (entry.is_symlink() and not os.path.exists(entry.path))
    except OSError:  # a link to itself
        return True


class AudioFolders:
    """Walks through folders of audio. Each folder is read once, however many paths, links and roots lead to it.

    Links are followed. Names that `is_left_out` are left out.

    Attributes:
        foreign: Files that look like audio but are not read.
        unopened: Folders that cannot be opened -> the reason.
        repeated: Number of times that a folder was not read again.
    """

    def __init__(self) -> None:
        self.foreign: list[Path] = []
        self.unopened: dict[str, str] = {}
        self.repeated = 0
        self._walked: set[tuple[int, int] | str] = set()

    def walked(self, folder: Path) -> bool:
        """Whether a folder has been read, by this path or by another one."""
        try:
            return path_identity(folder) in self._walked
        except OSError:
            return False

    def walk(
        self, root: str | Path, depth: int | None = None, enter: Callable[[str], bool] = lambda name: True
    ) -> Iterator[tuple[str, list[str], list[str]]]:
        """Like ``os.walk``: folder, names of its folders, names of its other entries, sorted.

        The folders themselves come before the links to folders: of two paths to a folder, the one without a link is
        walked.

        Args:
            depth: Levels of folders below ``root`` that are walked; None: all.
            enter: Whether a folder of this name is walked.
        """
        pending = deque([(str(root), 0)])
        parents = Path(root).resolve().parents
        ancestors = {path_identity(parent) for parent in parents if parent.exists()}  # a link to one of them is a loop
        while pending:
            folder, level = pending.popleft()
            try:
                identity = path_identity(folder)
                if level and identity in ancestors:
                    continue
                if identity in self._walked:
                    self.repeated += 1
                    continue
                with os.scandir(folder) as found:
                    entries = sorted((e for e in found if not is_left_out(e.name)), key=lambda entry: entry.name)
            except OSError as error:
                self.unopened[folder] = error.strerror or str(error)
                continue
            self._walked.add(identity)
            folders = [entry for entry in entries if _is_folder(entry)]
            yield folder, [entry.name for entry in folders], [e.name for e in entries if _is_file_or_broken_link(e)]
            if depth is None or level < depth:
                wanted = [entry for entry in folders if enter(entry.name)]
                pending.extendleft((e.path, level + 1) for e in reversed(wanted) if not e.is_symlink())
                pending.extend((e.path, level + 1) for e in wanted if e.is_symlink())

    def subfolders(self, root: str | Path) -> list[Path]:
        """The folders in ``root`` and the links to folders, sorted, without those that are left out."""
        return sorted(Path(folder, name) for folder, names, _ in self.walk(root, depth=0) for name in names)

    def files(self, root: str | Path, depth: int | None = None) -> list[Path]:
        """The audio files below ``root`` that are read, sorted; without those of folders that were already read."""
        return sorted(self._found(root, depth))

    def has_audio(self, root: str | Path) -> bool:
        """Whether ``root`` has an audio file; walks up to the first one."""
        return any(self._found(root, None))

    def _found(self, root: str | Path, depth: int | None) -> Iterator[Path]:
        for folder, _, names in self.walk(root, depth):
            parent = Path(folder)
            for name in names:
                if (suffix := os.path.splitext(name)[1].lower()) in SUFFIXES:
                    yield parent / name
                elif suffix in FOREIGN_SUFFIXES:
                    self.foreign.append(parent / name)

    def problems(self) -> str:
        """What could not be read so far, with the remedy, in one line; empty if there is nothing."""
        found = []
        if self.foreign:
            first = min(self.foreign)
            count = f" and {len(self.foreign) - 1} more" if len(self.foreign) > 1 else ""
            found.append(f"{first}{count}: {how_to_convert(first.name)}")
        if self.unopened:
            folder, reason = min(self.unopened.items())
            count = f" and {len(self.unopened) - 1} more" if len(self.unopened) > 1 else ""
            found.append(f"{folder}{count}: cannot be opened ({reason}): change its permissions or remove it")
        return one_line("; ".join(found))

    def check(self, key: str) -> None:
        """Log the files that are not read, in one line.

        Raises:
            UserError: a folder cannot be opened; names ``key`` and the folder.
        """
        if self.unopened:
            raise UserError(f"{key}: {self.problems()}")
        if self.foreign:
            log.warning("%s: not used: %s", key, self.problems())


def audio_files(root: str | Path, key: str, depth: int | None = None) -> list[Path]:
    """The audio files below ``root``, sorted, of `depth` levels of folders (None: all), see `AudioFolders`.

    Raises:
        UserError: a folder cannot be opened, or the only files that look like audio are not read; names ``key``.
    """
    folders = AudioFolders()
    files = folders.files(root, depth)
    if not files and folders.foreign:
        raise UserError(f"{key}: {folders.problems()}")
    folders.check(key)
    return files


def subfolders(root: str | Path, key: str) -> list[Path]:
    """The folders in ``root``, sorted, and links to folders; without those that are left out.

    Raises:
        UserError: ``root`` cannot be opened; names ``key``.
    """
    folders = AudioFolders()
    found = folders.subfolders(root)
    folders.check(key)
    return found
