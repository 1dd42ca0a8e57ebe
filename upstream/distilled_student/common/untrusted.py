"""Text that came with data, made harmless: names that lead out of their folder, and Markdown nobody meant."""

from __future__ import annotations

import re
from pathlib import PurePosixPath, PureWindowsPath
from urllib.parse import quote

from distilled_student.common.errors import one_line


def leads_outside(name: str) -> bool:
    """Whether a name in a list or an archive is absolute or has a ``..``, in the way of any system."""
    paths = PurePosixPath(name), PureWindowsPath(name)
    return any(path.is_absolute() or path.anchor or ".." in path.parts for path in paths)


def markdown(text: object) -> str:
    """Text as Markdown that shows just this text, on one line: in a paragraph, a heading, a list or a table's cell."""
    line = one_line(" ".join(str(text).split()))
    line = re.sub(r"([\\`*\[\]|~$])", r"\\\1", line)
    line = re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", line)  # within a word it means nothing
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"^(\d*)([#+=-]|(?<=\d)[.)](?=\s|$))", r"\1\\\2", line)  # else a heading, a list or a rule


def link(address: str) -> str:
    """An address as a Markdown link of itself, ``<https://...>``; other schemes than http stay text."""
    if not re.match(r"https?://", address):
        return markdown(address)
    return f"<{quote(address, safe=':/?#[]@!$&()*+,;=%~', errors='replace')}>"
