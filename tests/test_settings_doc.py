"""docs/settings.md is what docs/make_settings.py writes, and explains every key."""

from __future__ import annotations

import dataclasses
import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

from distilled_student.common.settings import parse_yaml

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def make_settings() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_settings", ROOT / "docs/make_settings.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_document_is_up_to_date(make_settings: ModuleType) -> None:
    written = (ROOT / "docs/settings.md").read_text(encoding="utf-8")
    assert written == make_settings.document(), "docs/settings.md is stale: run python docs/make_settings.py"


def test_every_key_has_a_meaning(make_settings: ModuleType) -> None:
    rows = re.findall(r"^\| `(\w+)` \| ([^|]+) \| ([^|]+) \| ([^|]*)\|", make_settings.document(), re.MULTILINE)
    assert len(rows) > 100
    assert [key for key, _, _, meaning in rows if not meaning.strip()] == []


def test_yaml_reads_every_printed_default_as_the_default(make_settings: ModuleType) -> None:
    sections = [part for _, parts in make_settings.PARTS for part in parts if not isinstance(part, str)]
    checked = 0
    for field in (field for section in sections for field in dataclasses.fields(section.schema)):
        printed = make_settings.default_of(field).strip("`")
        if printed in ("required", "see below"):
            continue
        value = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        assert parse_yaml(printed) == value, f"{field.name}: {printed}"
        checked += 1
    assert checked > 100


def test_a_meaning_belongs_to_one_key_of_its_table(make_settings: ModuleType) -> None:
    tables = re.split(r"^#+ .*$", make_settings.document(), flags=re.MULTILINE)
    for table in tables:
        meanings = re.findall(r"^\| `\w+` \| [^|]+ \| [^|]+ \| ([^|]*)\|", table, re.MULTILINE)
        assert len(set(meanings)) == len(meanings), [text for text in meanings if meanings.count(text) > 1]
