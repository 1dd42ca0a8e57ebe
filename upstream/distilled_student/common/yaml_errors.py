"""Why a text is not YAML, in plain English: the position in the text, and what to change there."""

from __future__ import annotations

import re

import yaml

TAB = "a tab in the indentation, where YAML allows only spaces: replace the tab by spaces"
# PyYAML's words -> ours
PROBLEMS = {
    r"character '\\t' that cannot start": TAB,
    r"character (?P<found>'.*') that cannot start": "a value cannot start with {found}: put it in quotes",
    r"mapping values are not allowed": "a colon where no key can be: check the indentation, or put the text in quotes",
    r"expected <block end>": "does not fit the lines above: check the indentation and the brackets",
    r"expected ',' or '(?P<found>.)'": "expected , or {found}: is a comma missing, or the bracket at the end?",
    r"could not find expected ':'": "expected a colon after the key: write `key: value`",
    r"expected the node content|expected <document start>": "expected a value: check the brackets and the indentation",
    r"unexpected end of stream": "a quotation mark is missing at the end of a text",
    r"undefined alias '?(?P<found>[^']*)'?": "no value above is marked with &{found}, which *{found} stands for",
    r"constructor for the tag '(?P<found>.*)'": "the tag {found} is not supported: remove it",
    r"unhashable|unacceptable key": "a key must be a single word or number, not a list or a group (unhashable)",
}


def yaml_reason(error: Exception, text: str) -> str:
    """One line about an error that PyYAML raised for ``text``: line and column if known, and what is wrong there."""
    if isinstance(error, yaml.reader.ReaderError):
        return f"position {error.position}: a character that YAML does not allow"
    problem = str(error.problem or error.context) if isinstance(error, yaml.MarkedYAMLError) else str(error)
    mark = (error.problem_mark or error.context_mark) if isinstance(error, yaml.MarkedYAMLError) else None
    where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
    if mark and re.match(r" *\t", "".join(text.split("\n")[mark.line : mark.line + 1])):
        return where + TAB
    for pattern, words in PROBLEMS.items():
        if found := re.search(pattern, problem):
            return where + words.format(**found.groupdict())
    return where + (" ".join(problem.split()) or type(error).__name__)
