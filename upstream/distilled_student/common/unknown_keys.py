"""Finds keys that the dataclass of a settings file does not have, and suggests the closest one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, get_args

from distilled_student.common.errors import closest
from distilled_student.common.expected_values import type_hints


def _types(schema: Any) -> dict[str, Any]:
    """Key -> type of a dataclass."""
    hints = type_hints(schema)
    return {field.name: hints[field.name] for field in fields(schema)}


def _paths_of_keys(schema: Any, prefix: str = "") -> dict[str, str]:
    """Key -> its dotted path, for all keys of a dataclass and of those nested in it; the outermost of a name counts."""
    types = _types(schema)
    paths = {key: prefix + key for key in types}
    for key, kind in types.items():
        if is_dataclass(kind):
            paths = _paths_of_keys(kind, f"{prefix}{key}.") | paths
    return paths


def check_keys(schema: Any, values: Mapping[str, Any]) -> None:
    """Raise ValueError for a key in ``values`` that ``schema`` lacks, nested mappings included.

    The message suggests the closest key of the same group, else the closest one anywhere: ``path: no such key; did you
    mean `data.paths`?``.
    """
    _check_group(schema, schema, values, "")


def _check_group(schema: Any, group: Any, values: Mapping[str, Any], prefix: str) -> None:
    types = _types(group)
    for key, value in values.items():
        if key not in types:
            paths = _paths_of_keys(schema)
            neighbour, anywhere = closest(key, types), closest(key, paths)
            found = prefix + neighbour if neighbour else paths[anywhere] if anywhere else None
            suggestion = f"; did you mean `{found}`?" if found else ""
            raise ValueError(f"{prefix}{key}: no such key{suggestion}")
        if is_dataclass(types[key]) and isinstance(value, Mapping):
            _check_group(schema, types[key], value, f"{prefix}{key}.")
        if isinstance(value, list) and is_dataclass(item := next(iter(get_args(types[key])), None)):
            for number, inner in enumerate(value):
                if isinstance(inner, Mapping):
                    _check_group(schema, item, inner, f"{prefix}{key}[{number}].")


def check_override(schema: Any, key: str) -> None:
    """Raise ValueError for a dotted key, such as ``data.paths`` or ``targets[0]``, that ``schema`` lacks."""
    nested: Any = None
    for part in reversed([part for part in re.split(r"[.\[\]]", key) if part]):
        nested = {part: nested}
    check_keys(schema, nested or {})
