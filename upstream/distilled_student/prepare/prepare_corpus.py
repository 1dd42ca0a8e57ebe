"""The command ``prepare``: download or find a corpus, arrange it and count its files."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from distilled_student.common.errors import UserError
from distilled_student.prepare import voxceleb
from distilled_student.prepare.catalog import Archive, Corpus, Part
from distilled_student.prepare.counts import pairs_in, relative_audio_paths
from distilled_student.prepare.download import bytes_to_fetch, fetch
from distilled_student.prepare.unpack import check_space, untar

log = logging.getLogger(__name__)


def prepare(
    corpus: Corpus,
    root: Path,
    parts: Sequence[str] = (),
    mirror: str | None = None,
    source: Path | None = None,
) -> None:
    """Complete ``root / corpus.folder``: create the missing parts and compare all counts with the published ones.

    Args:
        root: Folder of all corpora, ``data`` in the shipped configurations.
        parts: Names of the parts to prepare; none: all.
        mirror: Base URL of another server that has the published files.
        source: Where the user has put a corpus that must be requested; default: the folder of the corpus.

    Raises:
        UserError: no such part, no server can be reached, too little disk space, a damaged file, or wrong counts.
    """
    chosen, target = _choose(corpus, parts), root / corpus.folder
    if source and not corpus.page:
        raise UserError(f"--source: {corpus.folder} is downloaded; put an archive that you already have into {target}")
    if source and not source.is_dir():
        raise UserError(f"--source {source}: no such folder")
    log.info("%s", corpus.about)
    try:
        if corpus.page:
            voxceleb.arrange(corpus, target, chosen, source or target, mirror)
        else:
            _download(target, [part for part in chosen if not (target / part.folder).is_dir()], mirror)
    except OSError as error:
        raise UserError(f"{target}: {error}") from None
    _compare_counts(target, chosen, corpus)


def _choose(corpus: Corpus, names: Sequence[str]) -> list[Part]:
    """The named parts of a corpus; all of them for no names."""
    known = {part.folder.split("/")[0]: part for part in corpus.parts}
    for name in names:
        if name not in known:
            raise UserError(f"--parts {name}: not one of {', '.join(known)}")
    return [part for name, part in known.items() if not names or name in names]


def _download(target: Path, parts: Sequence[Part], mirror: str | None) -> None:
    """Download and unpack each part, then delete its archive, unless that is the user's own."""
    # archives are deleted one after the other: there must be space for the largest one
    largest = max((bytes_to_fetch(archive, target) for part in parts for archive in part.archives), default=0)
    check_space(target, largest + sum(part.unpacked for part in parts))
    for part in parts:
        (archive,) = part.archives
        path = fetch(archive, target, mirror)
        untar(path, target / part.folder, part.inside)
        is_users_own = path.name == archive.name
        if not is_users_own:
            path.unlink()


def _compare_counts(target: Path, parts: Sequence[Part], corpus: Corpus) -> None:
    """Log every count next to the published one. Raises UserError with all differences."""
    differences = []

    def compare(where: Path, what: str, found: int, expected: int) -> None:
        log.info("%s: %s %s of %s", where, f"{found:,}", what, f"{expected:,}")
        if found != expected:
            differences.append(f"{where}: {found:,} {what}, but {expected:,} are published")

    for part in parts:
        found = part.count(target / part.folder)
        for what, expected in part.expected.items():
            compare(target / part.folder, what, found[what], expected)
        if part.note:
            log.info("%s: %s", target / part.folder, part.note)
    present = {name for part in parts for name in relative_audio_paths(target / part.folder)}
    for archive, expected in _trial_lists(corpus, parts):
        if (path := target / archive.name).is_file():
            pairs = pairs_in(path)
            compare(path, "trials", len(pairs), expected)
            if missing := {name for pair in pairs for name in pair} - present:
                differences.append(f"{path}: {len(missing):,} of its files are missing, such as {min(missing)}")
    if differences:
        raise UserError(f"{'; '.join(differences)}; remove the wrong files and run the same command again")
    log.info("%s is ready", target)


def _trial_lists(corpus: Corpus, parts: Sequence[Part]) -> tuple[tuple[Archive, int], ...]:
    """The trial lists whose files are in ``parts``: ``trials`` needs the last part, ``more_trials`` need all parts."""
    if corpus.trials is None or corpus.parts[-1] not in parts:
        return ()
    return (corpus.trials, *(corpus.more_trials if len(parts) == len(corpus.parts) else ()))
