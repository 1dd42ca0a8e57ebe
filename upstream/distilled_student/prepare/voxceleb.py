"""VoxCeleb1, which users must request: finds the user's files, checks them and arranges them.

No file of the user is deleted. Speakers that are already in the folder of the corpus are moved to the right place in
it. Files in another folder are linked.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from distilled_student.common.audio_folders import AudioFolders, audio_files
from distilled_student.common.errors import UserError
from distilled_student.prepare.catalog import Archive, Corpus, Part
from distilled_student.prepare.counts import pairs_in
from distilled_student.prepare.download import fetch, verify
from distilled_student.prepare.unpack import temporary_folder, unzip

log = logging.getLogger(__name__)
SPEAKER = re.compile(r"id\d{5}")


def arrange(corpus: Corpus, target: Path, parts: Sequence[Part], source: Path, mirror: str | None) -> None:
    """Arrange ``dev/wav``, ``test/wav`` and the trial lists in ``target`` from files anywhere under ``source``.

    Raises:
        UserError: files are missing (the log says which ones to put where), or an archive is damaged.
    """
    target, source = target.resolve(), source.resolve()
    target.mkdir(parents=True, exist_ok=True)  # without it the list of what is missing would be an error of its own
    files, speakers = _search(source, target, parts)
    test_speakers, trials = _arrange_trial_lists(corpus, target, files, mirror), target / corpus.trials[0].name
    if not test_speakers and trials.is_file():
        raise UserError(f"{trials}: holds no trials of VoxCeleb1's speakers; remove it and run the same command again")
    missing = [] if test_speakers else [corpus.trials[0].name]
    if test_speakers:
        _arrange_speakers(speakers, target, test_speakers)
    for part in parts:
        folder = target / part.folder
        if part.count(folder) == part.expected:
            continue
        archives = _available_archives(part, files)
        if archives and test_speakers:
            pieces = [verify(files[archive.name], archive) for archive in archives]
            with temporary_folder(folder.parent, pieces[0]) as partial:
                unzip(pieces, partial)
                _arrange_speakers(_search(partial, target, parts)[1], target, test_speakers)
        elif not archives and not folder.is_dir() and (test_speakers or not speakers):
            missing += [archive.name for archive in part.archives if archive.name not in files]
    if missing:
        log.warning("put these files (or their unpacked folder) anywhere under %s:", source)
        for name in missing:
            log.warning("  %s", name)
        raise UserError(f"{source}: {len(missing)} files are missing; request the archives at {corpus.page}")


def _available_archives(part: Part, files: dict[str, Path]) -> tuple[Archive, ...]:
    """The archives of a part that are in ``files``: the joined file, or all pieces; empty if any piece is missing."""
    choices = ((part.joined,) if part.joined else (), part.archives)
    return next((some for some in choices if some and all(a.name in files for a in some)), ())


def _search(source: Path, target: Path, parts: Sequence[Part]) -> tuple[dict[str, Path], list[Path]]:
    """Files under ``source`` by name, and the folders of speakers that are not in their place in ``target`` yet.

    Does not list the folders of speakers.
    """
    files, speakers = {}, []
    arranged = {target / part.folder for part in parts}
    folders = AudioFolders()
    for folder, subfolders, names in folders.walk(source, enter=lambda name: not SPEAKER.fullmatch(name)):
        files |= {name: Path(folder, name) for name in names if name not in files}
        if Path(folder) not in arranged:
            speakers += [Path(folder, name) for name in subfolders if SPEAKER.fullmatch(name)]
    folders.check(str(source))
    return files, sorted(speakers)


def _arrange_trial_lists(corpus: Corpus, target: Path, files: dict[str, Path], mirror: str | None) -> set[str]:
    """Copy or download the trial lists. Returns the speakers of the first one, the test speakers; empty without it."""
    first, _ = corpus.trials
    target.mkdir(parents=True, exist_ok=True)
    for archive, _ in (corpus.trials, *corpus.more_trials):
        trial_list = target / archive.name
        if trial_list.is_file():
            continue
        if archive.name in files:
            shutil.copyfile(files[archive.name], trial_list)
            continue
        try:
            os.replace(fetch(archive, target, mirror), trial_list)
        except UserError as error:
            hint = "" if archive is first else "; continuing without it: it is only for a further evaluation"
            log.warning("%s%s", error, hint)
            break  # the other lists are on the same server
    if not (target / first.name).is_file():
        return set()
    return {name.split("/")[0] for pair in pairs_in(target / first.name) for name in pair}


def _arrange_speakers(speakers: Sequence[Path], target: Path, test_speakers: set[str]) -> None:
    """Move or link the folders of speakers to ``test/wav`` or ``dev/wav`` in ``target``."""
    for folder in speakers:
        destination = target / ("test" if folder.name in test_speakers else "dev") / "wav" / folder.name
        if destination.exists():
            continue
        destination.parent.mkdir(parents=True, exist_ok=True)
        is_linked = folder.resolve() != folder.parent.resolve() / folder.name
        if target.resolve() in folder.resolve().parents and not is_linked:
            os.replace(folder, destination)
        else:  # link files, not folders: not every program that walks through a corpus follows links to folders
            with temporary_folder(destination, folder) as partial:
                source, copy = folder.resolve(), partial / folder.name
                copy.mkdir()
                for file in audio_files(source, str(folder)):
                    link = copy / file.relative_to(source)
                    link.parent.mkdir(parents=True, exist_ok=True)
                    link.symlink_to(file)
                os.replace(copy, destination)
