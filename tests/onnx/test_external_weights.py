"""Weights that an .onnx file reads from another file are put into the file without a library for ONNX."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from distilled_student import onnx as runtime
from distilled_student.common.shipped_models import MODELS
from distilled_student.onnx.external_weights import with_all_weights

library = pytest.importorskip("onnx")


def test_a_file_with_the_weights_of_another_is_what_the_library_makes_of_it(tmp_path: Path) -> None:
    from onnx.external_data_helper import load_external_data_for_model

    for name in (runtime.UTTERANCE, runtime.STREAM):
        file = MODELS / "tiny" / name
        (tmp_path / name).write_bytes(with_all_weights(file))
        expected = library.load(file, load_external_data=False)
        load_external_data_for_model(expected, str(file.parent))
        found = library.load(tmp_path / name, load_external_data=False)
        for tensor in (*found.graph.initializer, *expected.graph.initializer):
            tensor.ClearField("data_location")  # some name the default, "in this file"
        assert found == expected


def test_a_missing_shorter_or_distant_file_of_weights_is_an_error_that_names_it(tmp_path: Path) -> None:
    file, weights = tmp_path / runtime.UTTERANCE, tmp_path / runtime.STREAM
    shutil.copy(MODELS / "tiny" / runtime.UTTERANCE, file)
    message = r"utterance\.onnx: needs stream\.onnx in its folder, which has its weights: keep both"
    for read in (with_all_weights, runtime.load):
        with pytest.raises(ValueError, match=message):
            read(file)
    weights.write_bytes(b"short")
    with pytest.raises(ValueError, match=r"utterance\.onnx: stream\.onnx is shorter than the weights in it"):
        with_all_weights(file)
    file.write_bytes(file.read_bytes().replace(b"stream.onnx", b"/etc/passwd"))
    with pytest.raises(ValueError, match=r"utterance\.onnx: its weights are in another folder: /etc/passwd"):
        with_all_weights(file)
    file.write_bytes(b"not a graph")
    with pytest.raises(ValueError, match=r"utterance\.onnx: not readable as an ONNX file"):
        with_all_weights(file)
