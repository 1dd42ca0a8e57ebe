"""Which package imports which: the table in docs/architecture.md, held against the imports of every module."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = {
    "distilled_student": ROOT / "upstream/distilled_student",
    "distilled_student.multitask": ROOT / "downstream/multitask",
}
COPIED = ROOT / "upstream/distilled_student/onnx"  # alone, under any name: only its imports are relative


def documented() -> dict[str, set[str]]:
    """Package -> the packages that it may import, from the lowest to the highest."""
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([\w.]+)` \|[^|]*\| ([^|]*) \|$", text, re.MULTILINE)
    return {name: set(re.findall(r"`([\w.]+)`", allowed)) for name, allowed in rows}


TABLE = documented()


def modules() -> dict[str, Path]:
    """Dotted name below ``distilled_student`` -> file."""
    found = {}
    for prefix, folder in FOLDERS.items():
        inner = prefix.partition(".")[2]
        for file in folder.rglob("*.py"):
            parts = [*filter(None, [inner]), *file.relative_to(folder).with_suffix("").parts]
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


MODULES = modules()


def package_of(module: str) -> str | None:
    """The row of the table that a module belongs to: the longest one that its name begins with."""
    rows = [row for row in TABLE if module == row or module.startswith(f"{row}.")]
    return max(rows, key=len, default=None)


def imports(file: Path) -> set[str]:
    """Modules of this distribution that a file imports anywhere in it, except for type checkers."""
    tree, found = ast.parse(file.read_text(encoding="utf-8")), set()
    checked = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in checked:
            continue
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            if node.level:
                assert node.level == 1 and file.parent == COPIED, f"{file}: relative import"
                names = [f"distilled_student.onnx.{node.module}.{alias.name}" for alias in node.names]
            else:
                names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            if name.partition(".")[0] != "distilled_student":
                continue
            inner = name.partition(".")[2]
            while inner and inner not in MODULES:
                inner = inner.rpartition(".")[0]
            found.add(inner)
    return found


def test_the_table_lists_every_package_from_the_lowest_to_the_highest() -> None:
    seen: set[str] = set()
    for package, allowed in TABLE.items():
        assert allowed <= seen, f"{package} may import {allowed - seen}, which stand below it in the table"
        seen.add(package)
    assert {name for name in MODULES if name and package_of(name) is None} == set()


@pytest.mark.parametrize("module", sorted(filter(None, MODULES)))
def test_a_module_imports_what_its_package_may_import(module: str) -> None:
    package = package_of(module)
    for name in imports(MODULES[module]):
        other = package_of(name)
        assert not name or other == package or other in TABLE[package], f"{module} imports {name}"


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = {module: {name for name in imports(file) if name and name != module} for module, file in MODULES.items()}
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join([*path[path.index(module) :], module])
        if module not in done:
            for name in sorted(graph.get(module, ())):
                visit(name, (*path, module))
            done.add(module)

    for module in sorted(filter(None, graph)):
        visit(module, ())
