"""Student folders and foreign checkpoints with any content: loaded, or refused in one line that names the file."""

from __future__ import annotations

import json
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from conftest import SMALL
from fuzz.mutations import MANY, at_most, damaged, ends_well, reset, rezipped
from helpers.references import FORMS, save_distiller, save_transformers, transformers_model
from helpers.references import SMALL as WIDE
from hypothesis import given
from hypothesis import strategies as st

from distilled_student import StudentConfig, UserError, build_student, load_student, save_student
from distilled_student.student.config import MAX_LAYERS, MAX_SIZE

BOUND = 128  # MiB; the student has 40 kB
LARGE = [10**6, 2**40, [10**6] * 7, [2**16] * 7, [1] * 1000]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("student")
    save_student(build_student(StudentConfig(conv_dim=[8] * 7, **SMALL)), path)
    load_student(path)
    return path


def rewritten(weights: dict[str, torch.Tensor]) -> st.SearchStrategy[bytes]:
    """Valid safetensors files in which one or two weights have another shape, type or value, or are missing."""
    names = st.sampled_from([*weights, "more"])
    tensors = [torch.zeros(0), torch.zeros(()), torch.full((8, 8), float("nan")), torch.zeros(3, dtype=torch.int64)]
    tensors += [torch.zeros(8, dtype=torch.float8_e5m2), torch.zeros(16, dtype=torch.bool), torch.zeros(2, 2).cfloat()]
    changes = st.dictionaries(names, st.sampled_from([None, *tensors]), min_size=1, max_size=2)

    def saved(changed: dict[str, torch.Tensor | None]) -> bytes:
        return safetensors.torch.save({k: v.clone() for k, v in {**weights, **changed}.items() if v is not None})

    return changes.map(saved)


def test_no_student_folder_causes_a_traceback_or_takes_more_memory_than_allowed(folder: Path) -> None:
    config, weights = folder / "config.json", folder / "model.safetensors"
    settings, stored = config.read_bytes(), weights.read_bytes()
    of_settings = st.one_of(
        damaged(settings), reset(json.loads(settings), LARGE).map(lambda value: json.dumps(value).encode())
    )
    of_weights = st.one_of(damaged(stored), rewritten(safetensors.torch.load(stored)))

    @MANY
    @given(st.one_of(of_settings.map(lambda new: (new, stored)), of_weights.map(lambda new: (settings, new))))
    def check(content: tuple[bytes, bytes]) -> None:
        config.write_bytes(content[0])
        weights.write_bytes(content[1])
        ends_well(lambda: load_student(folder), folder)

    with at_most(BOUND):
        check()
    config.write_bytes(settings)
    weights.write_bytes(stored)


def test_no_foreign_checkpoint_causes_a_traceback(tmp_path_factory: pytest.TempPathFactory) -> None:
    path = save_distiller(tmp_path_factory.mktemp("foreign") / "d.ckpt", WIDE, FORMS["group-post"])
    valid = path.read_bytes()
    load_student(path)

    @MANY
    @given(st.one_of(damaged(valid), rezipped(valid)))
    def check(content: bytes) -> None:
        path.write_bytes(content)
        with at_most(BOUND):
            ends_well(lambda: load_student(path), path)

    check()


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_size": 60_000, "heads": 2, "feed_forward": 60_000},
        {"layers": 200},
        {"layers": 10**9, "shared": True},
        {"conv_dim": [50_000] * 7},
        {"conv_kernel": [10**9] + [3] * 6},
        {"conv_stride": [2**16] * 7},
        {"target_size": 2**40},
        {"targets": list(range(1, 10_000))},
        {"position_kernel": 2**16, "position_groups": 1},
        {"hidden_size": 10**400},
    ],
)
def test_settings_that_require_gigabytes_are_refused_before_memory_is_allocated(
    changes: dict[str, Any], folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    (tmp_path / "config.json").write_text(json.dumps(json.loads((folder / "config.json").read_text()) | changes))
    with at_most(BOUND):
        assert isinstance(ends_well(lambda: load_student(tmp_path), tmp_path), UserError)


@pytest.mark.parametrize(
    "changes",
    [
        {"n_tasks": 10**10},
        {"n_tasks": "many"},
        {"extractor_conv_feature_layers": "[(512,3,2)] * 999999999"},
        {"extractor_conv_feature_layers": "[(512,3,2)" + " " * 100_000 + "x"},
        {"encoder_layers": 10**10},
    ],
)
def test_settings_of_a_foreign_checkpoint_cannot_cost_much_time_or_memory(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    path = save_distiller(tmp_path / "d.ckpt", WIDE, FORMS["group-post"])
    loaded = torch.load(path, weights_only=True)
    loaded["Config"]["distiller"].pop("pred_layer_id", None)
    loaded["Config"]["distiller"] |= changes
    torch.save(loaded, path)
    start = time.monotonic()
    with at_most(BOUND):
        assert isinstance(ends_well(lambda: load_student(path), path), UserError)
    assert time.monotonic() - start < 5


def test_sizes_beyond_the_limits_are_refused_and_the_limits_are_named() -> None:
    with pytest.raises(ValueError, match=f"layers: must be at most {MAX_LAYERS}"):
        StudentConfig(layers=MAX_LAYERS + 1)
    with pytest.raises(ValueError, match=f"feed_forward: must be at most {MAX_SIZE}"):
        StudentConfig(feed_forward=MAX_SIZE + 1)


def test_a_tensor_that_declares_more_values_than_are_stored_is_refused(tmp_path: Path) -> None:
    folder = save_transformers(transformers_model("hubert", **WIDE), tmp_path / "hubert")
    state = safetensors.torch.load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    name = "encoder.layers.0.feed_forward.intermediate_dense.weight"
    torch.save({**state, name: torch.zeros(1).expand(20_000, 20_000)}, folder / "pytorch_model.bin")
    with at_most(BOUND), pytest.raises(UserError, match=r"the file does not store all values"):
        load_student(folder)


@pytest.mark.parametrize("name", ["../outside.safetensors", "/tmp/outside.safetensors"])
def test_a_shard_outside_the_folder_is_refused(name: str, tmp_path: Path) -> None:
    folder = save_transformers(transformers_model("hubert", **WIDE), tmp_path / "hubert")
    (folder / "model.safetensors").rename(tmp_path / "outside.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"norm.weight": name}}))
    with pytest.raises(UserError, match=r"index\.json: weight_map: .*: is outside the folder"):
        load_student(folder)


@pytest.mark.parametrize("name", ["a b", "語", "a\nb", "\udcff"])
def test_a_student_folder_with_any_name_is_written_and_read_or_refused_in_one_line(name: str, tmp_path: Path) -> None:
    student = build_student(StudentConfig(conv_dim=[8] * 7, **SMALL))
    save_student(student, tmp_path / name)
    read = ends_well(lambda: load_student(tmp_path / name), tmp_path)
    assert isinstance(read, UserError) == (name == "\udcff")  # safetensors supports names in UTF-8 only
    (tmp_path / name / "model.safetensors").write_bytes(b"damaged")
    assert isinstance(ends_well(lambda: load_student(tmp_path / name), tmp_path), UserError)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
def test_json_of_a_hundred_thousand_nested_lists_is_refused(name: str, tmp_path: Path) -> None:
    folder = save_transformers(transformers_model("hubert", **WIDE), tmp_path / "hubert")
    (folder / "model.safetensors").unlink()
    (folder / name).write_text("[" * 100_000)
    assert isinstance(ends_well(lambda: load_student(folder), folder / name), UserError)


@pytest.mark.parametrize("name", ["d.ckpt", "d.pt"])
def test_a_small_file_that_unpacks_to_gigabytes_is_refused(name: str, tmp_path: Path) -> None:
    torch.save({"Config": {"distiller": {}}, "Distiller": {"a": torch.zeros(2**26)}}, tmp_path / "whole")
    with (
        zipfile.ZipFile(tmp_path / "whole") as whole,
        zipfile.ZipFile(tmp_path / name, "w", zipfile.ZIP_DEFLATED) as small,
    ):
        for member in whole.namelist():
            small.writestr(member, whole.read(member))
    with at_most(BOUND):
        assert isinstance(ends_well(lambda: load_student(tmp_path / name), tmp_path / name), UserError)
