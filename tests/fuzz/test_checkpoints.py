"""Checkpoints with any content, of the runner and of distillation: read, or refused in one line that names the file."""

from __future__ import annotations

import io
import zipfile
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import soundfile
import torch
import yaml
from conftest import SMALL, tone
from fuzz.mutations import MANY, at_most, damaged, ends_well, reset, rezipped
from hypothesis import given
from hypothesis import strategies as st

from distilled_student import StudentConfig, UserError, build_student, save_student
from distilled_student.common.settings import find_config
from distilled_student.distillation.config import DistillConfig
from distilled_student.distillation.data.cuts import DataConfig
from distilled_student.distillation.trainer import Distillation
from distilled_student.host.command_line import parse
from distilled_student.host.plugin import register
from distilled_student.host.resolve import ResolvedArguments
from distilled_student.host.saved_runs import read_experiment

BOUND = 256  # MiB


def saved(content: Any) -> bytes:
    out = io.BytesIO()
    torch.save(content, out)
    return out.getvalue()


def experiment(folder: Path) -> dict[str, Any]:
    """The content of a checkpoint of s3prl's runner, with settings that its command line accepts."""
    config = yaml.safe_load(find_config("default", "multitask").read_text())
    arguments = {"mode": "train", "upstream": "distilled_student", "downstream": "multitask", "expdir": str(folder)}
    weights = {"weight": torch.zeros(4, 4)}
    return {
        "Args": arguments,
        "Config": config,
        "Downstream": weights,
        "Featurizer": weights,
        "Optimizer": {"state": {}, "param_groups": []},
        "Step": 3,
        "Epoch": 0,
    }


def with_namespace(content: Any) -> Any:
    """The checkpoint with ``Args`` as argparse's Namespace, as s3prl saves it."""
    if isinstance(content, dict) and isinstance(content.get("Args"), dict):
        names = {str(name): value for name, value in content["Args"].items()}
        return content | {"Args": Namespace(**names)}
    return content


ODD = [torch.zeros(2), torch.zeros(1).expand(10**6, 10**6), Namespace(), {"upstream": Namespace()}, (1, 2), b"bytes"]


@pytest.mark.parametrize("mode", ["evaluate", "train"])
def test_no_checkpoint_of_the_runner_causes_a_traceback(mode: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    register()
    from s3prl import run_downstream

    folder = tmp_path_factory.mktemp("run")
    path, valid = folder / "states-3.ckpt", experiment(folder)
    whole = saved(with_namespace(valid))
    foreign = reset(valid, ODD).map(with_namespace).map(saved)

    words = ["-m", mode, "-e", str(path), *(["-t", "test"] if mode == "evaluate" else [])]

    def read_arguments() -> Any:
        """Everything that happens before s3prl builds its runner."""
        resolved = ResolvedArguments(parse(words))
        run_downstream.argparse = SimpleNamespace(ArgumentParser=lambda: resolved)
        return run_downstream.get_downstream_args()

    @MANY
    @given(st.one_of(damaged(whole), rezipped(whole), foreign, foreign))
    def check(content: bytes) -> None:
        path.write_bytes(content)
        found = ends_well(read_arguments, "")
        # the message names the checkpoint, or the option -p for a wrong folder
        assert not isinstance(found, UserError) or str(path) in str(found) or str(found).startswith("-p ")

    path.write_bytes(whole)
    read_arguments()
    with at_most(BOUND):
        check()


@pytest.mark.parametrize("name", ["Downstream", "Featurizer", "Optimizer"])
@pytest.mark.parametrize("value", [None, [1], "text", {1: torch.zeros(1)}])
def test_a_checkpoint_without_weights_does_not_continue_with_random_weights(
    name: str, value: Any, tmp_path: Path
) -> None:
    path = tmp_path / "states-3.ckpt"
    path.write_bytes(saved(with_namespace(experiment(tmp_path) | {name: value})))
    found = ends_well(lambda: read_experiment(path, "train"), path)
    assert isinstance(found, UserError) == (name != "Optimizer" or not isinstance(value, dict))


def test_a_small_checkpoint_that_unpacks_to_gigabytes_is_refused(tmp_path: Path) -> None:
    content = with_namespace(experiment(tmp_path) | {"Downstream": {"a": torch.zeros(2**26)}})
    path = tmp_path / "states-3.ckpt"
    with (
        zipfile.ZipFile(io.BytesIO(saved(content))) as whole,
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as small,
    ):
        for member in whole.namelist():
            small.writestr(member, whole.read(member))
    del content
    with at_most(BOUND):
        assert "holds compressed parts" in str(ends_well(lambda: read_experiment(path, "train"), path))


@pytest.mark.parametrize("name", ["a b", "語", "a\nb", "\udcff"])
def test_a_checkpoint_with_any_name_is_read_or_refused_in_one_line(name: str, tmp_path: Path) -> None:
    path = tmp_path / name / f"states-3{name}.ckpt"
    path.parent.mkdir()
    path.write_bytes(saved(with_namespace(experiment(path.parent))))
    read = ends_well(lambda: read_experiment(path, "train"), tmp_path)
    assert not isinstance(read, UserError)
    path.write_bytes(b"damaged")
    assert isinstance(ends_well(lambda: read_experiment(path, "train"), tmp_path), UserError)


@pytest.fixture(scope="module")
def distillation(tmp_path_factory: pytest.TempPathFactory) -> Distillation:
    folder = tmp_path_factory.mktemp("distillation")
    soundfile.write(folder / "a.wav", tone(1.0).numpy(), 16_000)
    student = {"conv_dim": [8] * 7, **{k: v for k, v in SMALL.items() if k not in ("targets", "target_size")}}
    save_student(build_student(StudentConfig(conv_dim=[8] * 7, **SMALL)), folder / "teacher")
    data = DataConfig([str(folder)], workers=0)
    settings = DistillConfig(
        str(folder / "teacher"), str(folder / "out"), data, targets=[1, 2], student=student, precision="fp32"
    )
    run = Distillation(settings, "settings.yaml")
    run.save()
    return run


def test_no_checkpoint_of_a_distillation_causes_a_traceback(distillation: Distillation) -> None:
    (path,) = (distillation.output / "checkpoints").glob("step-*.pt")
    whole = path.read_bytes()
    content = torch.load(path, weights_only=True)
    foreign = reset(content, ODD).map(saved)

    @MANY
    @given(st.one_of(damaged(whole), rezipped(whole), foreign, foreign))
    def check(content: bytes) -> None:
        path.write_bytes(content)
        ends_well(distillation.resume, path)

    assert distillation.resume() is True
    with at_most(BOUND):
        check()
    path.write_bytes(whole)
    assert distillation.resume() is True


def test_a_tensor_that_declares_more_values_than_are_stored_is_refused(distillation: Distillation) -> None:
    (path,) = (distillation.output / "checkpoints").glob("step-*.pt")
    whole, content = path.read_bytes(), torch.load(path, weights_only=True)
    name = next(iter(content["student"]))
    content["student"][name] = torch.zeros(1).expand(10**6, 10**6)
    path.write_bytes(saved(content))
    with at_most(BOUND):
        assert isinstance(ends_well(distillation.resume, path), UserError)
    path.write_bytes(whole)
