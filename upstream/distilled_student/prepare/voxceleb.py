"""VoxCeleb1, which has to be asked for: find what the user has put there, check it, bring it into its place.

Nothing of the user's is deleted. Speakers that lie in the corpus's own folder are moved to their place in it; from
another folder every file is linked.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from distilled_student.common.errors import UserError
from distilled_student.prepare.catalog import Archive, Corpus, Part
from distilled_student.prepare.counts import pairs_in
from distilled_student.prepare.download import fetch, verify
from distilled_student.prepare.unpack import beside, unzip

log = logging.getLogger(__name__)
SPEAKER = re.compile(r"id\d{5}")


def arrange(corpus: Corpus, home: Path, parts: Sequence[Part], source: Path, mirror: str | None) -> None:
    """Bring ``dev/wav``, ``test/wav`` and the trial lists into ``home`` from anywhere under ``source``.

    Raises:
        UserError: something is missing (the log then says which files to put where), or an archive is damaged.
    """
    home, source = home.resolve(), source.resolve()
    files, speakers = _search(source, home, parts)
    tested, trials = _trial_lists(corpus, home, files, mirror), home / corpus.trials[0].name
    if not tested and trials.is_file():
        raise UserError(f"{trials}: holds no trials of VoxCeleb1's speakers; remove it, and it will be fetched")
    missing = [] if tested else [corpus.trials[0].name]
    if tested:
        _place(speakers, home, tested)
    for part in parts:
        target = home / part.folder
        if part.measure(target) == part.expected:
            continue
        archives = _complete(part, files)
        if archives and tested:
            pieces = [verify(files[archive.name], archive) for archive in archives]
            with beside(target.parent, pieces[0]) as partial:
                unzip(pieces, partial)
                _place(_search(partial, home, parts)[1], home, tested)
        elif not archives and not target.is_dir() and (tested or not speakers):
            missing += [archive.name for archive in part.archives if archive.name not in files]
    if missing:
        log.warning("put these anywhere under %s (or the folder that the archives unpack to):", source)
        for name in missing:
            log.warning("  %s", name)
        raise UserError(f"{source}: {len(missing)} files are missing; ask for the archives at {corpus.page}")


def _complete(part: Part, files: dict[str, Path]) -> tuple[Archive, ...]:
    """The archives that a part is made from: one file, or all its pieces; empty where it is not there."""
    choices = ((part.joined,) if part.joined else (), part.archives)
    return next((some for some in choices if some and all(a.name in files for a in some)), ())


def _search(source: Path, home: Path, parts: Sequence[Part]) -> tuple[dict[str, Path], list[Path]]:
    """Files by name, and speakers' folders that are not in place yet. Speakers are not looked into."""
    files, speakers = {}, []
    placed = {home / part.folder for part in parts}
    for folder, subfolders, names in os.walk(source):
        files |= {name: Path(folder, name) for name in names if name not in files}
        if Path(folder) not in placed:
            speakers += [Path(folder, name) for name in subfolders if SPEAKER.fullmatch(name)]
        subfolders[:] = [n for n in subfolders if not n.startswith(".") and not SPEAKER.fullmatch(n)]
    return files, sorted(speakers)


def _trial_lists(corpus: Corpus, home: Path, files: dict[str, Path], mirror: str | None) -> set[str]:
    """Put the lists in place; the speakers of the first, those to test on, or none where it cannot be had."""
    first, _ = corpus.trials
    home.mkdir(parents=True, exist_ok=True)
    for archive, _ in (corpus.trials, *corpus.more_trials):
        target = home / archive.name
        if target.is_file():
            continue
        if archive.name in files:
            shutil.copyfile(files[archive.name], target)
            continue
        try:
            os.replace(fetch(archive, home, mirror), target)
        except UserError as error:
            log.warning("%s%s", error, "" if archive is first else "; left out, a further evaluation alone needs it")
            break  # the others are on the same server
    if not (home / first.name).is_file():
        return set()
    return {name.split("/")[0] for pair in pairs_in(home / first.name) for name in pair}


def _place(speakers: Sequence[Path], home: Path, tested: set[str]) -> None:
    for folder in speakers:
        target = home / ("test" if folder.name in tested else "dev") / "wav" / folder.name
        if target.exists():
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        if home.resolve() in folder.resolve().parents:
            os.replace(folder, target)
        else:  # files and not folders, since not every program that walks a corpus follows links to folders
            with beside(target, folder) as partial:
                copy = shutil.copytree(folder.resolve(), partial / folder.name, copy_function=os.symlink)
                os.replace(copy, target)
