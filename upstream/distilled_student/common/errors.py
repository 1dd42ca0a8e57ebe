"""The error that a user sees: one line that names the file and the key at fault; the exit code is 2."""

import difflib
import re
from collections.abc import Iterable


def one_line(text: object) -> str:
    """Text on one line: line breaks and other characters that cannot be printed become Python's escapes.

    A file name may contain any of them, and bytes of another encoding too, which no terminal can print.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text).strip())


class UserError(Exception):
    """Something the user gave cannot be used. The message is one line and names the file or the key at fault."""

    def __init__(self, message: object) -> None:
        # messages of torch, PyYAML and others continue on indented lines: join them with a space
        super().__init__(one_line(re.sub(r"\s*\n[ \t]+", " ", str(message))))


def message_of(error: Exception) -> str:
    """The message on one line. For a `UserError` from a data worker, without torch's traceback around it."""
    return " ".join(str(error).rpartition(f"{UserError.__module__}.UserError: ")[2].split())


def closest(name: object, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The known name that is most like ``name``; None if no likeness is at least ``cutoff``. Case does not matter."""
    by_lower_case = {other.lower(): other for other in map(str, known)}
    close = difflib.get_close_matches(str(name).lower(), by_lower_case, n=1, cutoff=cutoff)
    return by_lower_case[close[0]] if close else None


def closest_option(name: str, known: Iterable[str]) -> str | None:
    """The known ``--option`` that is most like ``name``. The dashes, which all have, do not count."""
    by_word = {option.lstrip("-"): option for option in known}
    found = closest(name.lstrip("-"), by_word, cutoff=0.7)  # options are short: at 0.6 `steps` is like `past_exp`
    return by_word[found] if found else None


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: ``; did you mean `x`?`` for the closest known name, or nothing."""
    found = closest(name, known)
    return f"; did you mean `{found}`?" if found else ""


def short_reason(error: Exception, length: int = 200) -> str:
    """Type and message of another library's error, on one line of at most ``length`` characters."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:length]
