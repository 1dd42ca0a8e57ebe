"""Metadata of .onnx files are changed without a library for ONNX, and nothing else of the file is."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from distilled_student import onnx as runtime
from distilled_student.common.shipped_models import MODELS

library = pytest.importorskip("onnx")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of a packed model, whose two files share their weights."""
    for name in (runtime.UTTERANCE, runtime.STREAM):
        shutil.copy(MODELS / "tiny" / name, tmp_path)
    return tmp_path


def test_keys_are_added_and_replaced_and_the_rest_of_the_file_stays(folder: Path) -> None:
    file = folder / runtime.STREAM
    before, size = library.load(file), file.stat().st_size
    for text in ("a" * 300, "ä"):
        runtime.write_metadata(file, {"detector_test": text, "keyword_threshold": "0.9"})
        after = library.load(file)
        found = {entry.key: entry.value for entry in after.metadata_props}
        assert len(found) == len(after.metadata_props)
        old = {entry.key: entry.value for entry in before.metadata_props}
        assert found == old | {"detector_test": text, "keyword_threshold": "0.9"}
        assert after.graph == before.graph and after.opset_import == before.opset_import
    assert file.stat().st_size < size + 100 and {path.name for path in folder.iterdir()} == {
        "stream.onnx",
        "utterance.onnx",
    }


def test_a_file_that_reads_its_weights_from_a_changed_one_stays_the_same_model(folder: Path) -> None:
    wave = np.random.default_rng(0).normal(0, 0.1, 16_000).astype(np.float32)
    runtime.write_metadata(folder / runtime.STREAM, {"detector": runtime.DetectorSettings(0.77).to_json()})
    assert runtime.load(folder).scores(wave) == runtime.load("tiny").scores(wave)
    assert runtime.load(folder).stream().model.detector_settings.threshold == 0.77


def test_a_mean_voice_of_another_size_than_the_embeddings_is_refused(folder: Path) -> None:
    file = folder / "stream.onnx"
    calibration = json.loads(runtime.read_metadata(file)["speaker_calibration"])
    runtime.write_metadata(file, {"speaker_calibration": json.dumps({**calibration, "mean_voice": [1.0]})})
    with pytest.raises(ValueError, match=r"stream\.onnx: speaker_calibration: mean_voice: 1 numbers, but embeddings"):
        runtime.Stream(file)


def test_metadata_are_read_as_the_library_reads_them(folder: Path) -> None:
    expected = {entry.key: entry.value for entry in library.load(folder / runtime.STREAM).metadata_props}
    assert runtime.read_metadata(folder / runtime.STREAM) == expected


@pytest.mark.parametrize("content", [b"no ONNX file", b"\x0a\xff\xff", b"\x0a\x05abc", b"\x07"])
def test_another_file_is_refused_and_left_as_it_is(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.onnx: not readable as an ONNX file"):
        runtime.write_metadata(tmp_path / "a.onnx", {"key": "value"})
    with pytest.raises(ValueError, match=r"a\.onnx: not readable as an ONNX file"):
        runtime.read_metadata(tmp_path / "a.onnx")
    assert (tmp_path / "a.onnx").read_bytes() == content
