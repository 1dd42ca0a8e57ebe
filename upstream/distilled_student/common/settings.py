"""Typed configuration: a dataclass is the schema, YAML and ``key=value`` pairs fill it, errors name file and key."""

from __future__ import annotations

import copy
import functools
import os
from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar, get_args

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import ConfigKeyError, MissingMandatoryValue, OmegaConfBaseException, ValidationError

from distilled_student.common.errors import UserError, did_you_mean
from distilled_student.common.expected_values import check_containers, expected_value, type_hints, value_at
from distilled_student.common.shipped_configs import KINDS, READ_AS, shipped_configs
from distilled_student.common.unknown_keys import check_keys, check_override
from distilled_student.common.yaml_errors import yaml_reason

T = TypeVar("T")

# limits of a settings file; the largest one that ships has 3,600 characters
MAX_CHARACTERS, MAX_VALUES, MAX_NESTING = 2**17, 20_000, 32
MAX_UNQUOTED = 2_000  # characters of an unquoted value: Python cannot print a number of more than 4,300 digits


def cache_folder() -> Path:
    """Folder for files that can be computed again: ``distilled-student`` in ``$XDG_CACHE_HOME`` or ``~/.cache``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "distilled-student"


def find_config(name: str | Path, kind: str = "") -> Path:
    """Path of a YAML file, given by its path or by the name of a config that ships with the package.

    ``find_config("demo", kind="distill")`` and ``find_config("distill/demo", kind="distill")`` find
    ``configs/distill/demo.yaml``.

    Raises:
        UserError: there is no such file and no shipped config of that name and kind.
    """
    path = Path(name)
    if path.is_file():
        return path
    configs, word = shipped_configs(), str(name).removesuffix(".yaml")
    folders = [kind, *(folder for folder, read_as in READ_AS.items() if read_as == kind)]
    for folder in folders:
        full_name = word if folder and word.startswith(f"{folder}/") else f"{folder}/{word}".lstrip("/")
        if full_name.rpartition("/")[0] == folder and full_name in configs:
            return configs[full_name]
    if path.is_dir():
        raise UserError(f"{name}: is a folder; give a YAML file or the name of a config")
    if word in configs:
        raise UserError(f"{name}: is a config of another kind, for {KINDS[word.rpartition('/')[0]]}")
    similar = [full.removeprefix(f"{kind}/") for full in configs if full.rpartition("/")[0] in folders]
    known = [name for name in similar if "/" not in name]
    suggestion = did_you_mean(word.removeprefix(f"{kind}/"), similar)
    suggestion = suggestion or f"; the shipped {kind} configs are {', '.join(known)}"
    raise UserError(f"{name}: no such config file{suggestion}")


def flat(values: Any, key: str = "") -> dict[str, Any]:
    """Nested groups as one mapping with dotted keys."""
    if not isinstance(values, Mapping) or not values:
        return {key: values}
    return {k: v for name, value in values.items() for k, v in flat(value, f"{key}.{name}".lstrip(".")).items()}


def changes(before: Mapping[str, Any], now: Mapping[str, Any], at_most: int = 5) -> str:
    """The dotted keys whose values differ, ``KEY: was OLD, is NEW`` each, in one line; empty for equal settings."""
    old, new = flat(before), flat(now)
    missing = object()
    lines = [
        f"{key}: was {old.get(key, 'not set')}, is {new.get(key, 'not set')}"
        for key in {**old, **new}
        if old.get(key, missing) != new.get(key, missing)
    ]
    more = f"; and {len(lines) - at_most} more" if len(lines) > at_most else ""
    return "; ".join(lines[:at_most]) + more


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader; integers must fit into 64 bits, as torch and numpy require."""

    def integer(self, node: yaml.ScalarNode) -> int:
        value = self.construct_yaml_int(node)
        if not -(2**63) <= value < 2**63:
            raise yaml.constructor.ConstructorError(None, None, "a number of more than 64 bits", node.start_mark)
        return value


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.integer)


def _check_size(text: str) -> None:
    """Raise YAMLError for a text so large or so deeply nested that reading it could exhaust time or memory.

    An alias counts as many values as it refers to, because a copy of the settings repeats them.
    """
    if len(text) > MAX_CHARACTERS:
        raise yaml.YAMLError(f"more than {MAX_CHARACTERS} characters")
    total, nested = 0, []  # values so far; anchor and first value of each mapping or list that is still open
    sizes: dict[str | None, int] = {}
    for event in yaml.parse(text, yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            if event.anchor in (anchor for anchor, _ in nested):
                raise yaml.YAMLError(f"alias *{event.anchor} stands for a value that contains it")
            total += sizes.get(event.anchor, 1)
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, first = nested.pop()
            sizes[anchor] = total - first
        elif isinstance(event, yaml.NodeEvent):
            total += 1
            if isinstance(event, yaml.CollectionStartEvent):
                nested.append((event.anchor, total - 1))
            elif "\0" in event.value:
                raise yaml.YAMLError("text with a NUL character, which no file name can contain")
            elif event.style is None and len(event.value) > MAX_UNQUOTED:
                raise yaml.YAMLError(f"a value without quotes of more than {MAX_UNQUOTED} characters")
        if total > MAX_VALUES or len(nested) > MAX_NESTING:
            raise yaml.YAMLError(f"more than {MAX_VALUES} values, or {MAX_NESTING} nesting levels")


@functools.lru_cache(maxsize=128)  # a benchmark reads the same files for each of its runs
def _parsed(text: str) -> Any:
    _check_size(text)
    return _Loader(text).get_single_data()


def parse_yaml(text: str) -> Any:
    """The value of a YAML text. Raises ValueError (one line) for text that is not YAML or exceeds a limit."""
    try:
        return copy.deepcopy(_parsed(text))  # the caller may change it
    except Exception as error:  # for a wrong date, number or tag PyYAML passes on any exception of Python
        raise ValueError(yaml_reason(error, text)) from None


class _LoaderOfLists(_Loader):
    """Reads yes, no, on and off as text, as YAML 1.2 does: on a command line they are words."""

    yaml_implicit_resolvers: ClassVar[dict[str, list[Any]]] = {
        first: [(tag, pattern) for tag, pattern in resolvers if first in "tTfF" or tag != "tag:yaml.org,2002:bool"]
        for first, resolvers in _Loader.yaml_implicit_resolvers.items()
    }


def parse_list(text: str) -> list[Any] | dict[str, Any] | None:
    """The value of a list ``[a, b]`` or a group ``{a: 1}`` of a command line; None for text that is neither."""
    if text[:1] + text[-1:] not in ("[]", "{}"):
        return None
    try:
        _check_size(text)
        return _LoaderOfLists(text).get_single_data()
    except Exception:  # as in `parse_yaml`; a regular expression can begin and end like a list
        return None


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file. Raises UserError naming a file that cannot be read or is not a mapping."""
    try:
        with path.open(encoding="utf-8") as file:
            content = parse_yaml(file.read(MAX_CHARACTERS + 1))
    except OSError as error:
        raise UserError(f"{path}: cannot be read as YAML: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: cannot be read as YAML: is not text in UTF-8") from None
    except ValueError as error:
        raise UserError(f"{path}: cannot be read as YAML: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a mapping of keys to values, found {type(content).__name__}")
    return content


def typed(schema: type[T], values: Mapping[str, Any], where: str | Path, overrides: Sequence[str] = ()) -> T:
    """Fill the dataclass ``schema`` from ``values``, then from ``key=value`` ``overrides``.

    Nested dataclasses are nested mappings. The ``__post_init__`` of a dataclass checks for impossible values and
    raises ``ValueError("key: reason")``.

    Raises:
        UserError: unknown key, wrong type, missing or impossible value; one line that names ``where`` and the key.
    """
    given, at = values, ""  # the values that are used now: those of the file, or an override's at its key
    try:
        check_keys(schema, values)
        for key, value in values.items():
            check_containers(schema, key, value)
            _check_groups_of_list(schema, key, value, where)
        config = OmegaConf.merge(_structured(schema), OmegaConf.create(dict(values)))
        for pair in overrides:
            if "=" not in pair:
                raise UserError(f"{pair}: overrides are written key=value")
            at, value = pair.split("=", 1)
            check_override(schema, at)
            try:
                given = parse_yaml(value)
            except ValueError as error:
                raise UserError(f"{pair}: the value is not YAML: {error}") from None
            check_containers(schema, at, given)
            _check_groups_of_list(schema, at, given, where)
            OmegaConf.update(config, at, given, merge=True)
        given, at = {}, ""
        return OmegaConf.to_object(config)
    except OmegaConfBaseException as error:
        raise UserError(f"{where}: {_omegaconf_reason(error, schema, given, at)}") from None
    except (ValueError, TypeError, ArithmeticError) as error:
        raise UserError(f"{where}: {error}") from None


# takes half of the time of `typed`; `merge` copies it
_structured = functools.cache(OmegaConf.structured)


def _check_groups_of_list(schema: Any, key: str, value: Any, where: str | Path) -> None:
    """Raise UserError for a wrong group in a list of groups. OmegaConf's own message would not name the group."""
    hint = type_hints(schema).get(key)
    kind = next(iter(get_args(hint)), None) if isinstance(value, list) else None
    for number, group in enumerate(value) if is_dataclass(kind) else ():
        if not isinstance(group, Mapping):
            raise UserError(f"{where}: {expected_value(schema, f'{key}[{number}]', group)}")
        if "${" not in str(group):  # a reference to a key outside of the group
            typed(kind, group, f"{where}: {key}[{number}]")


def _omegaconf_reason(error: OmegaConfBaseException, schema: Any, given: Any, at: str) -> str:
    """The key and what is wrong with its value. ``given``: the value at the key ``at``, or all values for no key."""
    full_key = str(error.full_key or at)
    if at.startswith(f"{full_key}."):
        return f"{full_key}: is a value, not a group of keys"
    key = full_key if full_key.startswith(at) else at
    if isinstance(error, MissingMandatoryValue):
        return f"{key or str(error).rpartition(' ')[2]}: missing"
    if isinstance(error, ConfigKeyError):
        return f"{key}: no such key"
    if isinstance(error, ValidationError) and key:
        try:
            return expected_value(schema, key, value_at(given, key.removeprefix(at)))
        except LookupError:  # the value comes from a reference ${...}, or it is a default
            pass
    reason = str(error.msg or error).splitlines()[0]
    return f"{key}: {reason}" if key else reason
