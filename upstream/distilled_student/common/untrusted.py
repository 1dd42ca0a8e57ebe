"""Text that comes with data: names that lead out of their folder, and characters that Markdown would interpret."""

from __future__ import annotations

import re
from pathlib import PurePosixPath, PureWindowsPath
from urllib.parse import quote

from distilled_student.common.errors import one_line


def leads_outside(name: str) -> bool:
    """Whether a name in a list or an archive is absolute or contains ``..``, by the rules of POSIX or Windows."""
    paths = PurePosixPath(name), PureWindowsPath(name)
    return any(path.is_absolute() or path.anchor or ".." in path.parts for path in paths)


def escape_markdown(text: object) -> str:
    """Markdown that shows exactly this text, on one line: in a paragraph, a heading, a list or a table cell."""
    line = one_line(" ".join(str(text).split()))
    line = re.sub(r"([\\`*\[\]|~$])", r"\\\1", line)
    line = re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", line)  # within a word it has no meaning
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"^(\d*)([#+=-]|(?<=\d)[.)](?=\s|$))", r"\1\\\2", line)  # otherwise a heading, a list or a rule


def markdown_link(address: str) -> str:
    """An http(s) address as a Markdown link that shows the address, ``<https://...>``; others stay text."""
    if not re.match(r"https?://", address):
        return escape_markdown(address)
    return f"<{quote(address, safe=':/?#[]@!$&()*+,;=%~', errors='replace')}>"
