"""Replaces expressions in the source of modules while they are imported. Nothing in their folders is written."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.abc import FileLoader, MetaPathFinder, SourceLoader
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

from distilled_student.common.errors import UserError


@dataclass(frozen=True)
class Patch:
    """One replacement in the source of a module.

    Attributes:
        reason: Why the original does not work or is unsafe.
        old: Source text that is replaced. new: What replaces it.
        places: How often ``old`` must occur in the module; another number means another version of s3prl.
    """

    reason: str
    old: str
    new: str
    places: int = 1


Table = Mapping[str, Sequence[Patch]]  # dotted name of a module -> its patches, applied in this order


class PatchedLoader(FileLoader, SourceLoader):
    """Loads a module from its patched source; the bytecode is not cached."""

    def __init__(self, name: str, path: str, patches: Sequence[Patch]) -> None:
        super().__init__(name, path)
        self._patches = patches

    def get_data(self, path: str) -> bytes:
        source = super().get_data(path)
        for patch in self._patches:
            found = source.count(patch.old.encode())
            if found != patch.places:
                raise UserError(
                    f"{path}: {patch.old!r} occurs {found} times, expected {patch.places}: "
                    "this version of s3prl is not supported: pip install 's3prl>=0.4.18,<0.5'"
                )
            source = source.replace(patch.old.encode(), patch.new.encode())
        return source


class PatchFinder(MetaPathFinder):
    """Finds what Python's own finder finds, with a `PatchedLoader` for the modules in the table."""

    def __init__(self, table: Table) -> None:
        self._table = table

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path) if name in self._table else None
        if spec is not None and spec.origin is not None:
            spec.loader = PatchedLoader(name, spec.origin, self._table[name])
        return spec


def install(table: Table, shortcuts: Table) -> None:
    """Patch these modules whenever they are imported from now on.

    Args:
        table: Patches that must have an effect.
        shortcuts: Patches of other modules, which save time only.

    Raises:
        UserError: a module of ``table`` is imported already, so a patch would have no effect.
    """
    for name in table:
        if name in sys.modules:
            raise UserError(f"{name} is imported already: call distilled_student.register() before importing s3prl")
    sys.meta_path.insert(0, PatchFinder({**table, **shortcuts}))
