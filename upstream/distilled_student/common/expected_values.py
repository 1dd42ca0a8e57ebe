"""What the type of a settings key expects, in plain English, for a value that has another type."""

from __future__ import annotations

import functools
import re
import types
from collections.abc import Mapping
from dataclasses import is_dataclass
from enum import Enum
from typing import Any, Union, get_args, get_origin, get_type_hints

WORDS: dict[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    type(None): "null",
    dict: "a group of keys",
    list: "a list",
}


def _words(hint: Any) -> str:
    """What a type is called in a message."""
    if get_origin(hint) in (Union, types.UnionType):
        *first, last = map(_words, get_args(hint))
        return f"{', '.join(first)} or {last}"
    if isinstance(hint, type) and issubclass(hint, Enum):
        return f"one of {', '.join(hint.__members__)}"
    kind = get_origin(hint) or hint
    if kind is list and (inner := get_args(hint)):
        return {str: "a list of texts", int: "a list of whole numbers", float: "a list of numbers"}.get(
            inner[0], "a list"
        )
    return WORDS.get(kind, "a group of keys" if is_dataclass(kind) else "another value")


def _parts(key: str) -> list[str]:
    """``data.paths[0]`` -> ``data``, ``paths``, ``0``."""
    return [part for part in re.split(r"[.\[\]]", key) if part]


@functools.cache  # it takes a millisecond, and settings are checked key by key
def type_hints(schema: type) -> Mapping[str, Any]:
    """Key -> type of a dataclass."""
    return types.MappingProxyType(get_type_hints(schema))


def _type_of(schema: Any, key: str) -> Any:
    """The type of a dotted key in a dataclass; None if the dataclass does not say it."""
    hint = schema
    for part in _parts(key):
        if is_dataclass(hint):
            hint = type_hints(hint).get(part)
        elif get_origin(hint) is list:
            hint = get_args(hint)[0]
        elif get_origin(hint) is dict:
            hint = get_args(hint)[1]
        else:
            return None
    return hint


def value_at(values: Any, key: str) -> Any:
    """The value of a dotted key in nested mappings and lists. Raises LookupError if there is none."""
    for part in _parts(key):
        if isinstance(values, Mapping):
            values = values[part]
        elif isinstance(values, list) and part.isdigit():
            values = values[int(part)]
        else:
            raise LookupError(key)
    return values


def expected_value(schema: Any, key: str, value: Any) -> str:
    """``KEY: expected a list of texts, found '/data': write [/data]``, for a value that ``schema`` does not accept."""
    hint, yaml_words = _type_of(schema, key), {None: "null", True: "true", False: "false"}
    is_word = value is None or isinstance(value, bool)
    message = f"{key}: expected {_words(hint)}, found {yaml_words[value] if is_word else repr(value)}"
    is_list = get_origin(hint) is list and not any(map(is_dataclass, get_args(hint)))
    if isinstance(value, str) and value[:1] in ("[", "{") and not value.endswith(("]", "}")):
        message += f": the closing {'}' if value[0] == '{' else ']'} is missing"
    elif value is None and ":" in (name := key.rpartition(".")[2]):  # YAML reads {a:1} as a key without a value
        message += f": put a space after the colon: {name.replace(':', ': ', 1)}"
    elif is_list and isinstance(value, str) and value.startswith("["):
        message += ": put each text in quotes, such as ['yes', 'no']"
    elif is_list and isinstance(value, str | int | float) and not isinstance(value, bool):
        message += f": write [{value}]"
    return message


def check_containers(schema: Any, key: str, value: Any) -> None:
    """Raise ValueError if ``value`` is a list, a group of keys or a plain value, but ``schema`` has another at ``key``.

    Groups are checked in depth. OmegaConf's own message would not name the key.
    """
    hint = _type_of(schema, key)
    options = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    kinds = {get_origin(option) or option for option in options}
    if value is None or kinds & {None, Any} or (isinstance(value, str) and "${" in value):
        return
    groups = {kind for kind in kinds if kind is dict or is_dataclass(kind)}
    if isinstance(value, Mapping):
        accepted = groups
    elif isinstance(value, list):
        accepted = kinds & {list}
    else:
        accepted = kinds - groups - {list, type(None)}
    if not accepted:
        raise ValueError(expected_value(schema, key, value))
    for name, inner in value.items() if isinstance(value, Mapping) and any(map(is_dataclass, groups)) else ():
        check_containers(schema, f"{key}.{name}", inner)
    holds_groups = get_origin(hint) is list and any(map(is_dataclass, get_args(hint)))
    for number, inner in enumerate(value) if isinstance(value, list) and holds_groups else ():
        check_containers(schema, f"{key}[{number}]", inner)
