"""The patches of s3prl: each matches exactly the code that it replaces, and a late registration is an error."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from helpers.forks import Forks

from distilled_student import UserError, register
from distilled_student.patches.finder import Patch, PatchedLoader
from distilled_student.patches.tables import PATCHES, SHORTCUTS

ALL = {**PATCHES, **SHORTCUTS}


@pytest.mark.parametrize("name", ALL)
def test_every_patch_has_a_reason_and_matches_the_installed_s3prl_in_the_stated_number_of_places(name: str) -> None:
    register()  # find_spec imports the parent packages of a module, and these need the patches
    source = Path(importlib.util.find_spec(name).origin).read_text(encoding="utf-8")
    for patch in ALL[name]:
        assert patch.reason and source.count(patch.old) == patch.places
        source = source.replace(patch.old, patch.new)
    compile(source, name, "exec")


@pytest.mark.parametrize("places", [1, 3])
def test_a_patch_that_matches_another_number_of_places_is_an_error(tmp_path: Path, places: int) -> None:
    (tmp_path / "m.py").write_text("x = 1\nx = 1\n")
    loader = PatchedLoader("m", str(tmp_path / "m.py"), [Patch("reason", "x = 1", "x = 2", places)])
    with pytest.raises(UserError, match=rf"m\.py: 'x = 1' occurs 2 times, expected {places}: .*s3prl>=0.4.18,<0.5"):
        loader.get_data(str(tmp_path / "m.py"))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], list[str]]]:
    """Runs code in a process that has imported torch, and neither s3prl nor transformers: the lines of its output."""
    file = tmp_path_factory.mktemp("run") / "out"
    with Forks("import torch, torchaudio\ndef main(arguments):\n    exec(arguments[0], {})\n") as forks:

        def run(code: str) -> list[str]:
            file.unlink(missing_ok=True)
            forks.wait(forks.start(code, folder=file.parent, out=file, err=file))
            return file.read_text().splitlines()

        yield run


@pytest.mark.parametrize("module", ["s3prl.downstream.speech_commands.dataset", "s3prl.run_downstream"])
def test_registering_after_a_patched_module_was_imported_is_an_error_that_names_the_module(
    module: str, run: Callable[[str], list[str]]
) -> None:
    lines = run(
        "import distilled_student as ds\n"
        "from distilled_student.patches import huggingface_names, torchaudio_names\n"
        "torchaudio_names.add_missing_names(); huggingface_names.add_missing_names()\n"
        f"import {module}\n"
        "try:\n    ds.register()\nexcept ds.UserError as error:\n    print(error)"
    )
    assert lines[-1].startswith(f"{module} is imported already: call distilled_student.register()")


def test_a_second_registration_changes_nothing_and_transformers_is_imported_where_it_is_used_only(
    run: Callable[[str], list[str]],
) -> None:
    lines = run(
        "import sys, distilled_student as ds\n"
        "ds.register(); import s3prl.hub; ds.register(); print(s3prl.hub.teacher)\n"
        "print('transformers' in sys.modules)\n"
        "try:\n    s3prl.hub.hf_hubert_custom('gone')\nexcept Exception as error:\n    print(type(error).__name__)\n"
        "print('transformers' in sys.modules)"
    )
    function, before, error, after = lines[-4:]
    assert "function" in function, lines
    assert (before, after) == ("False", "True") and error not in ("NameError", "ImportError")
