"""The YAML files that ship with the package: their names and the comment at the top of each."""

from __future__ import annotations

import re
from importlib import resources
from itertools import takewhile
from pathlib import Path

from distilled_student.common.errors import UserError, did_you_mean

# folder of configs/ -> what reads its files
KINDS = {
    "distill": "distilled-student distill NAME",
    "student": "a student's size: `student: NAME` in a config of distill",
    "multitask": "run_downstream.py -d multitask -c NAME",
    "ablations": "run_downstream.py -d multitask -c NAME; all: distilled-student benchmark ablations --data data --all",
    "superb": "run_downstream.py -d DOWNSTREAM -c NAME; baselines: published results",
    "benchmark": "distilled-student benchmark NAME; paper-results: published results",
    "": "run_downstream.py -d example",
}
READ_AS = {"ablations": "multitask"}  # folder -> the folder whose files have the same settings


def shipped_configs() -> dict[str, Path]:
    """Name -> file of every shipped config, by kind: ``distill/hubert-base``, ``multitask/default``, ``example``."""
    root = Path(str(resources.files("distilled_student.configs")))
    return {f"{kind}/{file.stem}".lstrip("/"): file for kind in KINDS for file in sorted((root / kind).glob("*.yaml"))}


def kind_of(name: str) -> str:
    """The kind of settings of a shipped config, by its full name: ``ablations/without-shift`` -> ``multitask``."""
    folder = name.rpartition("/")[0]
    return READ_AS.get(folder, folder)


def full_name_of(name: str) -> str:
    """The full name of a shipped config, such as ``distill/hubert-base``, by this name or by its last part.

    The kind may be left out where only one kind has a config of this name.

    Raises:
        UserError: no such config, or several kinds have one.
    """
    configs = shipped_configs()
    name = name.removesuffix(".yaml")
    if name in configs:
        return name
    matches = [full for full in configs if full.rpartition("/")[2] == name]
    if len(matches) > 1:
        raise UserError(f"{name}: {len(matches)} configs have this name; choose {' or '.join(matches)}")
    if not matches:
        short_names = [full.rpartition("/")[2] for full in configs]
        suggestion = did_you_mean(name, [*configs, *short_names]) or "; `distilled-student configs list` lists all"
        raise UserError(f"{name}: no such config{suggestion}")
    return matches[0]


def find_shipped(name: str) -> Path:
    """The file of a shipped config. Raises UserError as `full_name_of`."""
    return shipped_configs()[full_name_of(name)]


def first_sentence(file: Path) -> str:
    """The first sentence of the comment at the top of a config; empty if the file does not start with a comment."""
    lines = file.read_text(encoding="utf-8").splitlines()
    comment = " ".join(line.lstrip("# ") for line in takewhile(lambda line: line.startswith("#"), lines))
    return re.split(r"(?<=\.)(?<!et al\.) ", comment)[0]


def list_configs() -> str:
    """All shipped configs by kind, one line each: the name and the first sentence of its comment."""
    configs = shipped_configs()
    width = max(map(len, configs))
    lines: list[str] = []
    for kind, reader in KINDS.items():
        names = [name for name in configs if name.rpartition("/")[0] == kind]
        lines += ["", f"{kind or 'other'} ({reader})"]
        lines += [f"  {name:{width}}  {first_sentence(configs[name])}".rstrip() for name in names]
    return "\n".join(lines[1:])


def copy_config(name: str, target: Path) -> None:
    """Write a copy of a shipped config to ``target``.

    Raises:
        UserError: no such config, or ``target`` exists or cannot be written.
    """
    content = find_shipped(name).read_bytes()
    try:
        with target.open("xb") as file:
            file.write(content)
    except FileExistsError:
        raise UserError(f"{target}: exists already; choose another file name") from None
    except OSError as error:
        raise UserError(f"{target}: cannot be written ({error.strerror})") from None
