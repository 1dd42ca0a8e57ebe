"""s3prl's ``-o``: settings on the command line that replace others. Values are never run as code."""

from __future__ import annotations

import ast
import re
from argparse import Namespace
from collections.abc import Sequence
from typing import Any

from distilled_student.common.errors import UserError, did_you_mean
from distilled_student.common.settings import parse_list
from distilled_student.host.yaml_sections import WORDS

MODES = ("train", "evaluate", "inference")
WHOLE_NUMBERS = ("seed", "local_rank", "upstream_layer_selection")
FORM = "expected args.NAME=VALUE or config.KEY.KEY=VALUE, separated by ,, (two commas)"


def literal(text: str) -> Any:
    """A value of the command line.

    A Python literal, a list or a group as YAML writes them, YAML's null, true or false, or else the text itself.
    """
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        found = parse_list(text)
        return WORDS.get(text.lower(), text) if found is None else found


def set_key(group: dict[str, Any], path: Sequence[str], value: Any, where: str) -> None:
    """Set the value at the end of ``path``; missing groups are made. Raises UserError where a group is a value."""
    *keys, name = path
    for key in keys:
        group = group.setdefault(key, {})
        if not isinstance(group, dict):
            raise UserError(f"{where}: {key} is a value, not a group of keys")
    group[name] = value


def parse_overrides(string: str) -> list[tuple[list[str], Any]]:
    """``args.seed=1,,config.runner.log_step=5`` as paths and values.

    Raises:
        UserError: a part that is not ``args.NAME=VALUE`` or ``config.KEY...=VALUE``; two parts with a single comma.
    """
    pairs = []
    for option in filter(None, map(str.strip, string.split(",,"))):
        key, equals, text = (part.strip() for part in option.partition("="))
        path = key.split(".")
        if not equals or path[0] not in ("args", "config") or len(path) < 2 or not all(path):
            hint = did_you_mean(path[0], ("args", "config")) if path[0] not in ("args", "config") else ""
            raise UserError(f"-o {option}: {FORM}{hint}")
        value = literal(text)
        if value == text and re.search(r",\s*(args|config)\.[\w.]+\s*=", value):
            raise UserError(f"-o {option}: one comma between two settings: {FORM}")
        if path[0] == "args" and len(path) > 2:
            raise UserError(f"-o {option}: no such argument")
        if key == "args.mode" and value not in MODES:
            raise UserError(f"-o {option}: expected {' or '.join(MODES)}")
        pairs.append((path, value))
    return pairs


def _check_argument(name: str, value: Any, args: Namespace) -> None:
    """An ``args.NAME=VALUE``: a known name, and a value of the type that the command line would give it."""
    where = f"-o args.{name}={value}"
    if name not in vars(args):
        raise UserError(f"{where}: no such argument{did_you_mean(name, vars(args))}")
    now = getattr(args, name)
    if name == "device":
        from distilled_student.common.devices import pick_device  # imports torch

        pick_device(str(value), where)
    elif isinstance(now, bool) and not isinstance(value, bool) and name != "push_to_hf_hub":
        raise UserError(f"{where}: expected true or false")
    elif name in WHOLE_NUMBERS and (now is not None or value is not None):
        if isinstance(value, bool) or not isinstance(value, int):
            raise UserError(f"{where}: expected a whole number")
    elif not isinstance(value, str | bool | None):
        raise UserError(f"{where}: expected text")


def override(string: str, args: Namespace, config: dict[str, Any]) -> None:
    """Apply ``-o`` in place, such as ``config.optimizer.lr=1.0e-3,,args.seed=1``.

    For values see `literal`.

    Raises:
        UserError: see `parse_overrides`; a path through a plain value; an argument that does not exist or cannot have
            this value.
    """
    for (group, *path), value in parse_overrides(string):
        if group == "args":
            _check_argument(path[0], value, args)
        set_key(vars(args) if group == "args" else config, path, value, f"-o {'.'.join([group, *path])}")
