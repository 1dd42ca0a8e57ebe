"""Settings and folders of a joint training that are checked without importing torch."""

from __future__ import annotations

import copy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers.trees import tasks

from distilled_student.common.errors import UserError
from distilled_student.multitask.settings import check_early


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The sections of a YAML file whose folders exist."""
    return {"runner": {}, "downstream_expert": {"tasks": tasks(tmp_path_factory.mktemp("corpora"))}}


@pytest.mark.parametrize(
    ("task", "key", "value", "message"),
    [
        ("kws", "train_root", "gone", "kws.train_root: gone: no such folder"),
        ("kws", "test_root", "gone", "kws.test_root: gone: no such folder"),
        ("kws", "keywords", ["yes", "maybe"], "class 'maybe' has no files"),
        ("kws", "augment", {"noise_root": "gone"}, "kws.augment.noise_root: gone: no such folder"),
        ("sv", "root", "gone", "sv.root: gone: no such folder"),
        ("sv", "extra_roots", ["gone"], "sv.extra_roots: gone: no such folder"),
        ("sv", "trials", "gone.txt", "gone.txt: no such file; without test trials give null"),
        ("sv", "dev_speakers", 6, "sv.dev_speakers: 6 of 6 speakers leave no training speaker"),
    ],
)
def test_what_a_training_lacks_is_named(config: dict[str, Any], task: str, key: str, value: Any, message: str) -> None:
    check_early(config, "hidden_states", "train", "FILE")
    config = copy.deepcopy(config)
    config["downstream_expert"]["tasks"][task][key] = value
    with pytest.raises(UserError) as error:
        check_early(config, "hidden_states", "train", "FILE")
    assert message in str(error.value) and str(error.value).startswith(f"FILE: downstream_expert.tasks.{task}.")
    check_early(config, "hidden_states", "evaluate", "FILE")


def test_a_root_without_the_folders_of_voxceleb_is_named(config: dict[str, Any], tmp_path: Path) -> None:
    config = copy.deepcopy(config)
    values = config["downstream_expert"]["tasks"]["sv"]
    shutil.copy(Path(values["root"], "veri_test.txt"), tmp_path)
    values["root"] = str(tmp_path)
    with pytest.raises(UserError, match=r"sv\.root: .*: has neither dev/wav nor wav"):
        check_early(config, "hidden_states", "train", "FILE")


def test_the_checks_import_no_large_library(config: dict[str, Any]) -> None:
    program = f"""
import sys
from distilled_student.multitask.settings import check_early
check_early({config!r}, "hidden_states", "train", "FILE")
print(*{{"torch", "s3prl", "numpy", "soundfile"}} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
