"""Typed configuration: a dataclass is the schema, YAML and ``key=value`` pairs fill it, errors name file and key."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from distilled_student.errors import UserError

T = TypeVar("T")


def cache_folder() -> Path:
    """For what can be made again: ``$XDG_CACHE_HOME`` or ``~/.cache``, then ``distilled-student``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "distilled-student"


def find_config(name: str | Path, kind: str = "") -> Path:
    """Path of a YAML file given as a path, or by the name of a config that ships with the package.

    ``find_config("demo", kind="distill")`` finds ``configs/distill/demo.yaml``.

    Raises:
        UserError: there is no such file and no shipped config of that name.
    """
    path = Path(name)
    if path.is_file():
        return path
    room = Path(str(resources.files("distilled_student.configs"))) / kind
    shipped = room / f"{path.name.removesuffix('.yaml')}.yaml"
    if path.name == str(name) and shipped.is_file():
        return shipped
    known = ", ".join(sorted(p.stem for p in room.glob("*.yaml")))
    raise UserError(f"{name}: no such config file, nor one of the shipped {kind} configs: {known}")


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file. Raises UserError naming the file when it cannot be read or is not a mapping."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path}: cannot be read as YAML: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a mapping of keys to values, found {type(content).__name__}")
    return content


def _check_groups(schema: Any, values: Mapping[str, Any], prefix: str = "") -> None:
    """Raise ValueError for a plain value where a group of keys belongs: OmegaConf's own message names no key."""
    groups = get_type_hints(schema)
    for key, value in values.items():
        if is_dataclass(groups.get(key)):
            if not isinstance(value, Mapping):
                raise ValueError(f"{prefix}{key}: expected a group of keys, found '{value}'")
            _check_groups(groups[key], value, f"{prefix}{key}.")


def typed(schema: type[T], values: Mapping[str, Any], where: str | Path, overrides: Sequence[str] = ()) -> T:
    """Fill the dataclass ``schema`` from ``values``, then from ``key=value`` ``overrides``.

    Nested dataclasses are nested mappings; a dataclass's own ``__post_init__`` checks impossible values and raises
    ``ValueError("key: reason")``.

    Raises:
        UserError: unknown key, wrong type, missing or impossible value; one line that names ``where`` and the key.
    """
    try:
        _check_groups(schema, values)
        config = OmegaConf.merge(OmegaConf.structured(schema), OmegaConf.create(dict(values)))
        for pair in overrides:
            if "=" not in pair:
                raise UserError(f"{pair}: overrides are written key=value")
            key, value = pair.split("=", 1)
            try:
                OmegaConf.update(config, key, yaml.safe_load(value), merge=True)
            except yaml.YAMLError:
                raise UserError(f"{pair}: the value is not YAML") from None
        return OmegaConf.to_object(config)
    except OmegaConfBaseException as error:
        key = f"key '{error.full_key}': " if error.full_key else ""
        reason = str(error.msg or error).splitlines()[0]
        raise UserError(f"{where}: {key}{reason}") from None
    except (ValueError, TypeError) as error:
        raise UserError(f"{where}: {error}") from None
