"""docs/settings.md is what docs/make_settings.py writes, and explains every key."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

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
