"""Parts of model cards: the names of corpora, and the licence of the model that another one is made from."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path, PurePath

# in a model card: the header of Hugging Face's cards, and the row of ours
STATED = (r"\A---\n(?:.*\n)*?license: *(\S[^\n]*)\n(?:.*\n)*?---", r"^\| licence \| (.+?) \|$")


def corpus_names(paths: Iterable[str]) -> str:
    """The last two parts of each path, which name a corpus (``speech_commands/train``), without duplicates."""
    return ", ".join(dict.fromkeys("/".join(PurePath(os.path.normpath(path)).parts[-2:]) for path in paths))


def stated_licence(folder: Path) -> str | None:
    """What the model card (README.md) in a folder says, or the first line of its LICENSE; None if neither says it."""
    try:
        if (folder / "README.md").is_file():
            text = (folder / "README.md").read_text(encoding="utf-8", errors="replace")[:20_000]
            for pattern in STATED:
                if found := re.search(pattern, text, re.MULTILINE):
                    return found[1].strip("\"' ")
        for name in ("LICENSE", "LICENSE.txt", "LICENCE"):
            if (folder / name).is_file():
                lines = (folder / name).read_text(encoding="utf-8", errors="replace")[:1000].split("\n")
                return next((line.strip() for line in lines if line.strip()), None)
    except OSError:
        pass
    return None


def licence_of(name: str, folder: Path | None) -> str:
    """A sentence for a model card about the licence of the model ``name``, whose files are in ``folder``."""
    stated = stated_licence(folder) if folder is not None and folder.is_dir() else None
    return f"{stated} ({name})" if stated else f"not stated by {name}: look it up where it was published"
