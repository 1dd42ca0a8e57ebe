"""Names of s3prl's upstreams and downstreams, read from its files: importing s3prl takes seconds."""

from __future__ import annotations

import ast
import functools
import importlib.util
import re
import sys
from pathlib import Path

from distilled_student.common.errors import UserError

OURS = ("distilled_student", "teacher")


@functools.cache
def s3prl_folder() -> Path:
    """The folder of the installed package. Raises UserError where there is none."""
    spec = importlib.util.find_spec("s3prl")
    if spec is None or not spec.submodule_search_locations:
        raise UserError("s3prl is not installed: pip install 's3prl>=0.4.18,<0.5'")
    return Path(spec.submodule_search_locations[0])


def _public_names(file: Path) -> set[str]:
    """Functions that a ``hubconf.py`` defines or imports."""
    found: set[str] = set()
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.ImportFrom):
            found |= {alias.asname or alias.name for alias in node.names}
    return {name for name in found if name[0].islower()}


def upstream_names() -> list[str]:
    """What ``-u`` may be, and some functions of s3prl that are no upstreams.

    Where s3prl is imported, also what a program has added to ``s3prl.hub``.
    """
    names = {name for file in s3prl_folder().glob("upstream/*/hubconf.py") for name in _public_names(file)}
    added = set(vars(sys.modules["s3prl.hub"])) if "s3prl.hub" in sys.modules else set()
    return sorted(names | _public_names(s3prl_folder() / "hub.py") | set(OURS) | added)


def downstream_names() -> list[str]:
    """What ``-d`` may be; where s3prl is imported, also what a program has added to ``s3prl.downstream``."""
    package = sys.modules.get("s3prl.downstream")
    folders = [Path(folder) for folder in package.__path__] if package else [s3prl_folder() / "downstream"]
    names = {file.parent.name for folder in folders for file in folder.glob("*/expert.py")}
    added = {name.split(".")[2] for name in sys.modules if re.fullmatch(r"s3prl\.downstream\.\w+\.expert", name)}
    return sorted(names | {"multitask"} | added)
