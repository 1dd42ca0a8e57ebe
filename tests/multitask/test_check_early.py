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


@pytest.mark.parametrize(
    ("task", "values", "message"),
    [
        ("kws", {"train_root": "sc"}, "train_root: sc: has no folder of a keyword (yes, no); did you mean sc/train?"),
        ("kws", {"train_root": "sc/train/yes"}, "train_root: sc/train/yes: has no folder of a keyword (yes, no)"),
        ("kws", {"train_root": "sc/train/yes"}, "; did you mean {here}/sc/train?"),
        ("kws", {"train_root": "vox"}, "train_root: vox: has no folder of a keyword (yes, no): give a folder with one"),
        ("kws", {"keywords": ["yes", "bet"]}, "keywords: sc/train/bet: class 'bet' has no files; did you mean `bed`?"),
        ("kws", {"test_root": "sc"}, "test_root: sc/_silence_: class '_silence_' has no files; did you mean sc/test?"),
        ("kws", {"test_root": "sc/train"}, "test_root: sc/train/_silence_: class '_silence_' has no files; did you"),
        ("kws", {"test_root": "vox"}, "class '_silence_' has no files: without a test folder set FILE: downstream_exp"),
        ("kws", {"unknown_percentage": 0}, "unknown_percentage: 0 trains no '_unknown_', but the test folder, sc/test"),
        ("kws", {"silence_percentage": 0}, "silence_percentage: 0 trains no '_silence_', but the test folder, sc/test"),
        ("sv", {"root": "."}, "root: .: has neither dev/wav nor wav, the folder of the speakers; did you mean vox?"),
        ("sv", {"root": "sc"}, "root: sc: has neither dev/wav nor wav, the folder of the speakers"),
        (
            "sv",
            {"root": "vox/dev"},
            "root: vox/dev: has no veri_test.txt, the list of test trials; did you mean {here}",
        ),
        ("sv", {"root": "vox/dev/wav"}, "root: vox/dev/wav: has neither dev/wav nor wav, the folder of the speakers"),
        ("sv", {"root": "vox/dev/wav"}, "; did you mean {here}/vox?"),
        ("sv", {"trials": "gone.txt"}, "trials: vox/gone.txt: no such file; without test trials give null; if the"),
        ("sv", {"root": "flat", "trials": None}, "root: flat/wav: has no folder of a speaker; if the names of its"),
        ("sv", {"extra_roots": ["vox"]}, "extra_roots: vox: its folder dev/wav has the speakers, and each folder in"),
        (
            "sv",
            {"dev_speakers": 6},
            "leave no training speaker: set fewer; if vox/dev/wav is the wrong folder, correct",
        ),
    ],
)
def test_the_folder_that_is_wrong_is_named_and_the_right_one_is_suggested(
    config: dict[str, Any], task: str, values: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = copy.deepcopy(config)
    groups = config["downstream_expert"]["tasks"]
    here = Path(groups["sv"]["root"]).parent
    monkeypatch.chdir(here)
    Path("flat/wav").mkdir(parents=True, exist_ok=True)
    groups["sv"]["root"] = "vox"
    groups["kws"] |= {"train_root": "sc/train", "test_root": "sc/test"}
    check_early(config, "hidden_states", "train", "FILE")
    groups[task] |= values
    with pytest.raises(UserError) as error:
        check_early(config, "hidden_states", "train", "FILE")
    found = str(error.value)
    assert message.format(here=here) in found and found.startswith(f"FILE: downstream_expert.tasks.{task}.")


@pytest.mark.parametrize(
    ("task", "values", "message"),
    [
        ("kws", {"speaker_pattern": "(x)/y$"}, "kws.speaker_pattern: '(x)/y$' finds no speaker in "),
        ("sv", {"speaker_pattern": "^(x)/y$"}, "sv.speaker_pattern: '^(x)/y$' finds no speaker in id10"),
        ("kws", {"keywords": ["yes", "no", "bed", "cat"], "test_root": None}, "kws.unknown_percentage: {sc}: class"),
        (
            "kws",
            {"train_root": "{deep}", "test_root": None, "keywords": ["yes"]},
            "kws.train_root: {deep}/yes/who/1.wav",
        ),
        (
            "kws",
            {"train_root": "{quiet}", "test_root": None, "keywords": ["yes"]},
            "kws.silence_percentage: {quiet}/_b",
        ),
    ],
)
def test_names_that_do_not_fit_are_reported_before_torch_is_imported(
    config: dict[str, Any], task: str, values: dict[str, Any], message: str, tmp_path: Path
) -> None:
    config = copy.deepcopy(config)
    group = config["downstream_expert"]["tasks"][task]
    names = {"sc": group.get("train_root"), "deep": tmp_path / "deep", "quiet": tmp_path / "quiet"}
    for name in ("deep/yes/who/1.wav", "deep/no/who/1.wav", "deep/_background_noise_/1.wav", "quiet/yes/1.wav"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "quiet/no").mkdir()
    group |= {key: value.format(**names) if isinstance(value, str) else value for key, value in values.items()}
    with pytest.raises(UserError) as error:
        check_early(config, "hidden_states", "train", "FILE")
    assert str(error.value).startswith(f"FILE: downstream_expert.tasks.{message.format(**names)}")


@pytest.mark.parametrize(
    ("task", "values", "splits", "message"),
    [
        ("sv", {"dev_speakers": 0}, ["dev"], "sv.dev_speakers: 0 makes no trials for dev: set 2 or more, or dev_utter"),
        ("sv", {"trials": None}, ["dev", "test"], "sv.trials: null, but runner.eval_dataloaders has test: give a list"),
        ("kws", {"validation_percentage": 0}, ["dev"], "kws.validation_percentage: 0 puts no speaker into dev: set a"),
        ("kws", {"testing_percentage": 0, "test_root": None}, ["test"], "kws.testing_percentage: 0 puts no speaker in"),
    ],
)
def test_a_split_without_data_is_named_before_the_training(
    config: dict[str, Any], task: str, values: dict[str, Any], splits: list[str], message: str
) -> None:
    config = copy.deepcopy(config)
    config["downstream_expert"]["tasks"][task] |= values
    check_early(config, "hidden_states", "train", "FILE")  # training evaluates nothing
    config["runner"] = {"eval_dataloaders": splits}
    with pytest.raises(UserError) as error:
        check_early(config, "hidden_states", "train", "FILE")
    assert str(error.value).startswith(f"FILE: downstream_expert.tasks.{message}")


def test_without_silence_or_other_words_a_training_needs_no_test_folder(config: dict[str, Any]) -> None:
    config = copy.deepcopy(config)
    config["downstream_expert"]["tasks"]["kws"] |= {
        "silence_percentage": 0,
        "unknown_percentage": 0,
        "test_root": None,
    }
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
