"""The command: fetch or find a corpus, arrange it, count it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from distilled_student.common.errors import UserError
from distilled_student.prepare import voxceleb
from distilled_student.prepare.catalog import Archive, Corpus, Part
from distilled_student.prepare.counts import audio_files, pairs_in
from distilled_student.prepare.download import fetch, left
from distilled_student.prepare.unpack import check_space, untar

log = logging.getLogger(__name__)


def prepare(
    corpus: Corpus,
    root: Path,
    parts: Sequence[str] = (),
    mirror: str | None = None,
    source: Path | None = None,
) -> None:
    """Make ``root / corpus.folder`` whole: a part that is there is counted, one that is not is made.

    Args:
        root: Folder of all corpora, ``data`` in the shipped configurations.
        parts: Folders of the corpus to make; none: all.
        mirror: A URL under which the published files are, in place of their own.
        source: Where the user has put a corpus that must be asked for; default: where it belongs.

    Raises:
        UserError: no such part, nothing to be reached, no room, a damaged file, or other counts than published.
    """
    chosen, home = _choose(corpus, parts), root / corpus.folder
    if source and not corpus.page:
        raise UserError(f"--source: {corpus.folder} is fetched; an archive that you have belongs into {home}")
    if source and not source.is_dir():
        raise UserError(f"--source {source}: no such folder")
    log.info("%s", corpus.about)
    try:
        if corpus.page:
            voxceleb.arrange(corpus, home, chosen, source or home, mirror)
        else:
            _download(home, [part for part in chosen if not (home / part.folder).is_dir()], mirror)
    except OSError as error:
        raise UserError(f"{home}: {error}") from None
    _check(home, chosen, corpus)


def _choose(corpus: Corpus, names: Sequence[str]) -> list[Part]:
    known = {part.folder.split("/")[0]: part for part in corpus.parts}
    for name in names:
        if name not in known:
            raise UserError(f"--parts {name}: not one of {', '.join(known)}")
    return [part for name, part in known.items() if not names or name in names]


def _download(home: Path, parts: Sequence[Part], mirror: str | None) -> None:
    """Fetch, unpack and, where the archive was fetched here, delete it."""
    fetched = max((left(archive, home) for part in parts for archive in part.archives), default=0)
    check_space(home, fetched + sum(part.unpacked for part in parts))
    for part in parts:
        (archive,) = part.archives
        path = fetch(archive, home, mirror)
        untar(path, home / part.folder, part.inside)
        if path.name != archive.name:
            path.unlink()


def _check(home: Path, parts: Sequence[Part], corpus: Corpus) -> None:
    """Report every count beside the published one. Raises UserError that names all that differ."""
    different = []

    def compare(where: Path, what: str, found: int, expected: int) -> None:
        log.info("%s: %s %s of %s", where, f"{found:,}", what, f"{expected:,}")
        if found != expected:
            different.append(f"{where}: {found:,} {what} where {expected:,} are published")

    for part in parts:
        found = part.measure(home / part.folder)
        for what, expected in part.expected.items():
            compare(home / part.folder, what, found[what], expected)
        if part.note:
            log.info("%s: %s", home / part.folder, part.note)
    there = {name for part in parts for name in audio_files(home / part.folder)}
    for archive, expected in _lists(corpus, parts):
        if (path := home / archive.name).is_file():
            pairs = pairs_in(path)
            compare(path, "trials", len(pairs), expected)
            if absent := {name for pair in pairs for name in pair} - there:
                different.append(f"{path}: {len(absent):,} of its files are missing, {min(absent)} among them")
    if different:
        raise UserError(f"{'; '.join(different)}; remove what is wrong and run the same command again")
    log.info("%s is ready", home)


def _lists(corpus: Corpus, parts: Sequence[Part]) -> tuple[tuple[Archive, int], ...]:
    """The trial lists whose files are in ``parts``: the first is of the last part, the further ones are of all."""
    if corpus.trials is None or corpus.parts[-1] not in parts:
        return ()
    return (corpus.trials, *(corpus.more_trials if len(parts) == len(corpus.parts) else ()))
