"""The documents against the code: every link, command, option, name and path in them exists."""

from __future__ import annotations

import argparse
import ast
import functools
import importlib
import importlib.util
import re
import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import typer

import distilled_student as ds
from distilled_student.cli import app
from distilled_student.common.base_configs import read_config_file
from distilled_student.common.settings import find_config, typed
from distilled_student.distillation.config import DistillConfig
from distilled_student.host.command_line import make_parser
from distilled_student.host.overrides import override
from distilled_student.host.s3prl_names import downstream_names, upstream_names
from distilled_student.multitask.expert import ExpertSettings
from distilled_student.multitask.tasks import task_module
from distilled_student.patches.tables import PATCHES, SHORTCUTS

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
DOCUMENTS = [README, *sorted(ROOT.glob("docs/*.md"))]
PAGES = [
    *DOCUMENTS,
    ROOT / "CHANGELOG.md",
    *sorted(ROOT.glob("configs/**/*.md")),
    *sorted(ROOT.glob("upstream/**/*.md")),
]
# what a path in a document may be relative to
BASES = [
    ROOT / folder
    for folder in (
        ".",
        "docs",
        "configs",
        "upstream",
        "upstream/distilled_student",
        "downstream",
        "downstream/multitask",
    )
]


def named(page: Path) -> str:
    return str(page.relative_to(ROOT))


class Code(NamedTuple):
    """A piece of code in a document; ``block`` tells a line of a code block from code inside a sentence."""

    page: str
    text: str
    block: bool


@functools.cache
def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def fences(page: Path) -> list[tuple[str, str]]:
    """Language and content of each fenced block."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", text_of(page), re.MULTILINE | re.DOTALL)


def prose(page: Path) -> str:
    """A document without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", text_of(page), flags=re.MULTILINE | re.DOTALL)


def codes(page: Path) -> Iterator[Code]:
    """Lines of indented code blocks, continued lines joined, and code inside sentences."""
    text = prose(page)
    joined = re.sub(r"\\\n\s*", "", text)
    for line in joined.splitlines():
        if line.startswith("    "):
            yield Code(named(page), line.strip(), True)
    without_blocks = "\n".join(line for line in text.splitlines() if not line.startswith("    "))
    for inline in re.findall(r"`([^`]+)`", without_blocks):
        yield Code(named(page), re.sub(r"\s*\n\s*", " ", inline), False)


CODES = [code for page in PAGES for code in codes(page)]


class Command(NamedTuple):
    page: str
    program: str
    words: list[str]
    block: bool


def commands(program: str) -> list[Command]:
    """Calls of a program in the documents, also through torchrun and the like."""
    found = []
    for code in CODES:
        text = re.sub(r"\$\(which ([\w.-]+)\)", r"\1", code.text)
        if code.block or text.startswith(program):
            try:
                words = shlex.split(text, comments=True)
            except ValueError:  # a sentence with an apostrophe
                continue
            while program in words:
                start = words.index(program) + 1
                end = words.index("&&", start) if "&&" in words[start:] else len(words)
                if end > start:
                    found.append(Command(code.page, program, words[start:end], code.block))
                words = words[end:]
    assert found, f"no document names {program}"
    return found


def ident(command: Any) -> str:
    return f"{command.page}: {' '.join(getattr(command, 'words', [str(command)]))}"[:100]


def is_placeholder(word: str) -> bool:
    """Whether a word stands for one that the reader chooses: upper case, or dots."""
    return word.isupper() or "..." in word


# Size


def test_the_readme_is_short() -> None:
    assert README.stat().st_size <= 10_240
    assert len(text_of(README).splitlines()) <= 150


# Links


def anchors(page: Path) -> set[str]:
    """Headings as GitHub names them in links."""
    titles = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    plain = [re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", title).lower() for title in titles]
    return {re.sub(r"[^\w\- ]", "", title).strip().replace(" ", "-") for title in plain}


def links(page: Path) -> list[str]:
    found = re.findall(r"\]\(([^)\s]+)\)", prose(page))
    return [target for target in found if not re.match(r"https?:", target)]


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_relative_link_leads_to_a_file_and_a_heading_of_it(page: Path) -> None:
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.is_relative_to(ROOT) and target.exists(), f"{link}: no such file"
        if anchor:
            assert anchor in anchors(target), f"{link}: no such heading"


def test_every_document_is_linked_from_the_readme_or_from_a_document_that_is() -> None:
    reached, waiting = set(), [README]
    while waiting:
        page = waiting.pop()
        reached.add(page)
        targets = {(page.parent / link.partition("#")[0]).resolve() for link in links(page)}
        waiting += [target for target in targets if target in DOCUMENTS and target not in reached]
    assert set(DOCUMENTS) - reached == set()


# Commands

PROGRAM = typer.main.get_command(app)


@pytest.mark.parametrize("command", commands("distilled-student"), ids=ident)
def test_every_call_of_distilled_student_is_one_that_it_understands(command: Command) -> None:
    group, [name, *words] = PROGRAM, command.words
    if is_placeholder(name):
        return
    while not name.startswith("-"):  # without a subcommand there are options alone
        assert name in group.commands, f"no subcommand {name}"
        group = group.commands[name]
        if not words or not hasattr(group, "commands"):
            break
        name, *words = words
    known = {option for parameter in group.params for option in parameter.opts}
    if name != "s3prl-main":
        for word in [name, *words]:
            assert not re.match(r"--?[a-z]", word) or word.partition("=")[0] in known, f"no option {word}"
    if not command.block or "..." in words or hasattr(group, "commands"):
        return
    with group.make_context(name, words) as context:
        values = context.params
    folder = {"distill": "config", "benchmark": "suite"}.get(name)
    if folder is not None:
        path = find_config(values[folder], name)
        if name == "distill":
            typed(DistillConfig, read_config_file(path, "distill"), path, values["overrides"] or [])


def check_name(option: str, name: str, known: Sequence[str]) -> None:
    assert is_placeholder(name) or name in known, f"-{option} {name}: no such name"


@pytest.mark.parametrize("command", commands("run_downstream.py"), ids=ident)
def test_every_call_of_run_downstream_is_one_that_it_understands(command: Command) -> None:
    if command.words == ["--version"]:  # it prints and ends
        return
    needed = [] if command.block or "-m" in command.words else ["-m", "train"]
    arguments = make_parser().parse_args(needed + command.words)
    if arguments.upstream:
        check_name("u", arguments.upstream, upstream_names())
    if arguments.downstream:
        check_name("d", arguments.downstream, downstream_names())
    if is_placeholder(arguments.config or ""):
        return
    if arguments.downstream == "multitask":
        path = find_config(arguments.config or "default", "multitask")
        check_joint_settings(path, arguments)
    elif arguments.config:
        find_config(arguments.config, "superb")


def check_joint_settings(path: Path, arguments: argparse.Namespace) -> None:
    """A shipped config of the joint task with what ``-o`` changes in it."""
    config = read_config_file(path, "multitask")
    if arguments.override:
        override(arguments.override, arguments, config)
    settings = typed(ExpertSettings, config["downstream_expert"], path)
    for name, values in settings.tasks.items():
        typed(task_module(name, None, str(path)).Settings, values, f"{path}: {name}")


@pytest.mark.parametrize("page", DOCUMENTS, ids=named)
def test_upstreams_and_downstreams_named_in_sentences_exist(page: Path) -> None:
    for option, name in re.findall(r"`[^`\n]*?-([ud]) ([\w-]+)[^`\n]*`", prose(page)):
        check_name(option, name, upstream_names() if option == "u" else downstream_names())


def test_every_make_target_that_a_document_names_exists() -> None:
    targets = set(re.findall(r"^([\w-]+):", text_of(ROOT / "Makefile"), re.MULTILINE))
    found = {name for code in CODES for name in re.findall(r"(?:^|&& )make ([\w-]+)", code.text)}
    assert found and found <= targets, found - targets


def extras() -> set[str]:
    tree = ast.parse(text_of(ROOT / "setup.py"))
    values = next(
        word.value for node in ast.walk(tree) if isinstance(node, ast.Call) for word in node.keywords
        if word.arg == "extras_require"
    )  # fmt: skip
    return {key.value for key in values.keys}


def test_every_extra_is_named_as_it_installs_from_a_clone() -> None:
    text = "\n".join(map(text_of, PAGES))
    found = set(re.findall(r"'\.\[([\w,]+)\]'", text))
    assert found and found <= extras(), found - extras()
    assert "distilled-student[" not in text


# Paths and names


def paths(page: Path) -> set[str]:
    """Paths of this repository that a document names in code."""
    found = set()
    for code in codes(page):
        for word in re.findall(r"[\w./*-]+/[\w.*-]+", code.text):
            top = word.partition("/")[0]
            if top in ("tests", "upstream", "downstream", "configs", "docs") or (
                re.search(r"\.(py|md|yaml)$", word) and top not in ("exp", "data", "s3prl", "")
            ):
                found.add(word)
    return found


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_path_of_the_repository_that_a_document_names_exists(page: Path) -> None:
    for path in paths(page):
        assert any(list(base.glob(path)) for base in BASES), f"{path}: no such file"


@pytest.mark.parametrize("page", DOCUMENTS, ids=named)
def test_python_in_the_documents_imports_what_exists(page: Path) -> None:
    for language, content in fences(page):
        if language != "python":
            continue
        for node in ast.walk(ast.parse(content)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("distilled_student"):
                module = importlib.import_module(str(node.module))
                for name in node.names:
                    assert hasattr(module, name.name), f"{node.module} has no {name.name}"
            elif isinstance(node, ast.Import):
                for name in node.names:
                    if name.name.startswith("distilled_student"):
                        importlib.import_module(name.name)
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "ds":
                assert node.attr in ds.__all__, f"distilled_student has no {node.attr}"


# Tables and figures


def rows(page: Path) -> list[str]:
    """Rows of tables, spaces evened out, without rules and without rows that hold no words."""
    lines = [line for line in prose(page).splitlines() if line.startswith("|")]
    cells = ["|".join(cell.strip() for cell in line.strip("|").split("|")) for line in lines]
    return [row for row in cells if re.search(r"\w", row)]


def test_no_row_of_a_table_stands_twice_in_the_documents() -> None:
    # the settings are made from the dataclasses, of which several have the same keys
    counts = Counter(row for page in DOCUMENTS if page.name != "settings.md" for row in rows(page))
    assert [row for row, count in counts.items() if count > 1] == []


def test_the_number_of_patches_is_the_one_in_the_architecture_document() -> None:
    patches = {**PATCHES, **SHORTCUTS}
    count, modules = sum(map(len, patches.values())), len(patches)
    assert f"{count} expressions in {modules} modules" in text_of(ROOT / "docs/architecture.md").replace("\n", " ")


def cells_of(page: Path, first: str) -> list[list[str]]:
    """The table whose header has a cell ``first``: header and rows."""
    table: list[list[str]] = []
    for line in prose(page).splitlines():
        if line.startswith("|"):
            table.append([cell.strip() for cell in line.strip().strip("|").split("|")])
        elif table and first in table[0]:
            return [row for row in table if not set("".join(row)) <= set("-: ")]
        else:
            table = []
    raise AssertionError(f"{named(page)}: no table with {first}")


def test_the_sizes_in_the_readme_cost_what_the_speed_document_measured() -> None:
    header, *lines = cells_of(ROOT / "docs/speed.md", "RTF 4 s, 1 thr.")
    measured: dict[tuple[str, str], dict[str, str]] = {}
    model = ""
    for line in lines:
        model = line[0] or model
        measured[model, line[1]] = dict(zip(header, line, strict=True))
    header, *lines = cells_of(README, "RTF int8")
    for line in lines:
        row = dict(zip(header, line, strict=True))
        name = row["size"].strip("`").lower()
        torch, int8 = measured[name, "PyTorch"], measured[name, "ONNX int8"]
        found = [row["parameters M"], row["M MAC per s"], row["RTF float32"], row["RTF int8"]]
        assert found == [torch["M par."], torch["MMAC/s"], torch["RTF 4 s, 1 thr."], int8["RTF 4 s, 1 thr."]]


# Words

# metaphors and old words that many readers have to look up; each has a plain equivalent
UNCLEAR = re.compile(
    r"\b(amiss|anew|parted|as ever|told|hears?|heard|taught|untaught|go(?:es)? on from|not to be had|affairs?"
    r"|for want of|in the place of|of the one that|mends?|mended|mending|passed over)\b",
    re.IGNORECASE,
)
SPOKEN = ROOT / "upstream/distilled_student/demo/make_corpus.py"  # has the sentences that the demo's voices say
FOLDERS = ("configs", "docs", "downstream", "tests", "upstream")


def test_code_documents_and_configs_have_no_unclear_words() -> None:
    files = {path for folder in FOLDERS for path in (ROOT / folder).rglob("*")} | set(ROOT.glob("*"))
    files = {path for path in files if path.suffix in (".py", ".md", ".yaml")} - {Path(__file__), SPOKEN}
    found = []
    for path in sorted(files):
        for number, line in enumerate(text_of(path).splitlines(), 1):
            words = [word for word in UNCLEAR.findall(line) if not word.isupper()]  # HEAR is a benchmark
            found += [f"{named(path)}:{number}: {word}" for word in words]
    assert not found, "\n".join(found)
