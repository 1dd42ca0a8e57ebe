"""Reads a config that names another config as its ``base`` and holds only the settings that differ."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from distilled_student.common.errors import UserError
from distilled_student.common.settings import find_config, read_yaml
from distilled_student.common.shipped_configs import kind_of, shipped_configs

BASE = "base"  # the key, at the top of a file
# keys that only the files of some kinds have, by these kinds
OWN_KEYS = {
    ("distill",): ("teacher", "teachers"),
    ("multitask", "superb", ""): ("downstream_expert", "runner"),
    ("benchmark",): ("models", "tables"),
}
# distill: settings of which a file has either the first or the second ones; those of a file replace those of its base,
# and those on the command line those of the file
ALTERNATIVES = [({"teachers"}, {"teacher", "targets"}), ({"teacher", "targets"}, {"teachers"})]

LISTS = ("schedule",)  # groups whose keys are not settings but an ordered list


def read_config_file(path: Path, kind: str) -> dict[str, Any]:
    """The settings of a YAML file, merged into those of its base if it names one.

    ``base`` is the name of a shipped config of the same kind, or a file, relative to the folder of the file that names
    it. The base may have a base too. Groups are merged key by key; a value, a list or a group of `LISTS` replaces that
    of the base.

    Args:
        kind: Folder of ``configs/`` whose files have these settings, such as ``multitask``.

    Raises:
        UserError: a file cannot be read, or its base is missing, of another kind, or leads back to the file.
    """
    return _read(path, kind, [])


def merged_text(name: str) -> str:
    """A shipped config merged with its base, as YAML; ``name`` is its full name."""
    return yaml.safe_dump(read_config_file(shipped_configs()[name], kind_of(name)), sort_keys=False, width=120)


def _read(path: Path, kind: str, derived: Sequence[Path]) -> dict[str, Any]:
    """``derived``: the files that lead to ``path``, each the base of the one before."""
    values = read_yaml(path)
    if BASE not in values:
        return values
    name = values.pop(BASE)
    if not isinstance(name, str) or not name:
        raise UserError(f"{path}: {BASE}: expected the name of a config or a file, found {name!r}")
    base = _find_base(name, path, kind)
    chain = [*derived, path]
    if base.resolve() in [file.resolve() for file in chain]:
        names = " -> ".join(file.name for file in [*chain, base])
        raise UserError(f"{path}: {BASE}: {name}: a config cannot be a base of itself: {names}")
    inherited = _read(base, kind, chain)
    for kinds, keys in OWN_KEYS.items():
        if kind not in kinds and (found := [key for key in keys if key in inherited]):
            raise UserError(f"{path}: {BASE}: {name}: is a config of another kind: it has {found[0]}")
    if kind == "distill":
        inherited = without_alternatives(inherited, {key for key, value in values.items() if value})
    return merge(inherited, values)


def without_alternatives(values: Mapping[str, Any], given: Collection[str]) -> dict[str, Any]:
    """The settings of a distillation in ``values`` without those that the keys ``given`` replace (`ALTERNATIVES`)."""
    replaced = {key for keys, others in ALTERNATIVES if keys <= set(given) for key in others}
    return {key: value for key, value in values.items() if key not in replaced}


def _find_base(name: str, path: Path, kind: str) -> Path:
    file = path.parent / name
    if file.is_file():
        return file
    try:
        if Path(name).is_file():  # in the working directory, which says nothing about the file that names it
            raise UserError(f"{name}: no such config file; a file is relative to {path.parent}")
        return find_config(name, kind)
    except UserError as error:
        raise UserError(f"{path}: {BASE}: {error}") from None


def merge(base: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with the settings in ``values``, see `read_config_file`."""
    merged = dict(base)
    for key, value in values.items():
        inherited = merged.get(key)
        both_groups = isinstance(inherited, Mapping) and isinstance(value, Mapping) and key not in LISTS
        merged[key] = merge(inherited, value) if both_groups else value
    return merged
