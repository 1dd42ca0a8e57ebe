"""Modules of s3prl with expressions replaced as they are imported. Nothing in s3prl's folder is written."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from importlib.abc import FileLoader, MetaPathFinder, SourceLoader
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

from distilled_student.errors import UserError

Mends = Mapping[str, Sequence[tuple[str, str]]]  # name of a module -> what is replaced by what


class _Loader(FileLoader, SourceLoader):
    """A module from its source, mended; its bytecode is not kept."""

    def __init__(self, name: str, path: str, mends: Sequence[tuple[str, str]]) -> None:
        super().__init__(name, path)
        self._mends = mends

    def get_data(self, path: str) -> bytes:
        source = super().get_data(path)
        for old, new in self._mends:
            if old.encode() not in source:
                raise UserError(f"{path}: has no {old!r}, which would be replaced: this s3prl is of another version")
            source = source.replace(old.encode(), new.encode())
        return source


class Mender(MetaPathFinder):
    """Goes before Python's own finders: finds what they find, but for the modules that it mends."""

    def __init__(self, mends: Mends) -> None:
        self._mends = mends

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path) if name in self._mends else None
        if spec is not None and spec.origin is not None:
            spec.loader = _Loader(name, spec.origin, self._mends[name])
        return spec


def mend(mends: Mends) -> None:
    """Mend these modules when they are imported, from now on."""
    sys.meta_path.insert(0, Mender(mends))
