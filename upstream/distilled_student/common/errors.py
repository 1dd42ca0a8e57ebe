"""The one error a user sees: a single line that names the file and the key, and exit code 2."""

import difflib
import re
from collections.abc import Iterable


def one_line(text: object) -> str:
    """Text on one line whatever is in it: line breaks and all else that cannot be seen as Python writes them.

    A file's name may hold any of them, and half a character of another encoding too, which no terminal prints.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text).strip())


class UserError(Exception):
    """Something the user gave cannot be used. The message is one line and names the file or the key at fault."""

    def __init__(self, message: object) -> None:
        # torch, PyYAML and others indent what follows a line break: there a space says as much
        super().__init__(one_line(re.sub(r"\s*\n[ \t]+", " ", str(message))))


def message_of(error: Exception) -> str:
    """The message on one line; of a `UserError` raised in a data worker, without torch's traceback around it."""
    return " ".join(str(error).rpartition(f"{UserError.__module__}.UserError: ")[2].split())


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: ``; did you mean `x`?`` for the closest known name, or nothing.

    Upper and lower case count as the same letter.
    """
    by_lower_case = {other.lower(): other for other in map(str, known)}
    close = difflib.get_close_matches(str(name).lower(), by_lower_case, n=1)
    return f"; did you mean `{by_lower_case[close[0]]}`?" if close else ""
