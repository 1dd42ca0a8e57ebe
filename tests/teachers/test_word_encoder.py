"""The encoder of words from `openwakeword`, with small random graphs of its shapes. Reference: torch, in a loop."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from conftest import tone
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from distilled_student.common.errors import UserError
from distilled_student.distillation.targets import Teacher
from distilled_student.student.cost import parameters
from distilled_student.teachers import word_encoder
from distilled_student.teachers.early_checks import check_teacher
from distilled_student.teachers.open import open_teacher
from distilled_student.teachers.word_encoder import find_weights_of_openwakeword

FRAMES, BANDS, FEATURES = 76, 32, 96


def graph(nodes: list, name: str, shape: list, weights: dict[str, np.ndarray]) -> onnx.ModelProto:
    given = helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
    found = helper.make_tensor_value_info("found", TensorProto.FLOAT, [None] * 4)
    constants = [numpy_helper.from_array(value, key) for key, value in weights.items()]
    opsets = [helper.make_opsetid("", 17)]
    return helper.make_model(
        helper.make_graph(nodes, "small", [given], [found], constants), opset_imports=opsets, ir_version=9
    )


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Tensor, Tensor]:
    """A package `openwakeword` that cannot be imported. Returns the weights of its two graphs."""
    random = np.random.default_rng(0)
    bands = (random.standard_normal((BANDS, 1, 640)) / 2000).astype(np.float32)
    features = random.standard_normal((FEATURES, 1, FRAMES, BANDS)).astype(np.float32)
    folder = tmp_path / "openwakeword/resources/models"
    folder.mkdir(parents=True)
    (tmp_path / "openwakeword/__init__.py").write_text("raise ImportError('tflite is missing')")
    axis = np.array([1], dtype=np.int64)
    mel = [
        helper.make_node("Unsqueeze", ["input", "axis"], ["channel"]),
        helper.make_node("Conv", ["channel", "bands"], ["frames"], strides=[160]),
        helper.make_node("Transpose", ["frames"], ["turned"], perm=[0, 2, 1]),
        helper.make_node("Unsqueeze", ["turned", "axis"], ["found"]),
    ]
    embedding = [
        helper.make_node("Transpose", ["input_1"], ["image"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["image", "features"], ["found"]),
    ]
    onnx.save(graph(mel, "input", [None, None], {"bands": bands, "axis": axis}), folder / "melspectrogram.onnx")
    onnx.save(
        graph(embedding, "input_1", [None, FRAMES, BANDS, 1], {"features": features}), folder / "embedding_model.onnx"
    )
    monkeypatch.syspath_prepend(tmp_path)
    return torch.from_numpy(bands), torch.from_numpy(features)


def reference(wave: Tensor, bands: Tensor, features: Tensor) -> Tensor:
    """Each window in turn: its 76 mel frames, with quiet noise where they begin before the utterance."""
    count = (len(wave) - 640) // 160 + 1
    mel = [torch.einsum("s,bs->b", wave[160 * t : 160 * t + 640] * 32767, bands[:, 0]) / 10 + 2 for t in range(count)]
    noise = torch.einsum("tb,ftb->f", torch.ones(FRAMES, BANDS), features[:, 0])
    found = []
    for last in range(16, count + 1, 16):
        window = [mel[t].clamp(min=1) if t >= 0 else torch.ones(BANDS) for t in range(last - FRAMES, last)]
        found.append((torch.einsum("tb,ftb->f", torch.stack(window), features[:, 0]) - noise) / 10)
    return torch.stack(found)


def test_each_window_equals_a_reference_alone_and_in_a_padded_batch(installed: tuple[Tensor, Tensor]) -> None:
    waves = [tone(seconds, seed=seed) for seed, seconds in enumerate((0.3, 1.0, 2.03))]
    encoder = open_teacher("openwakeword")
    lengths = torch.tensor([len(wave) for wave in waves])
    batch = encoder(pad_sequence(waves, batch_first=True, padding_value=0.3), lengths)
    for row, wave in enumerate(waves):
        expected = reference(wave, *installed)
        assert int(batch.lengths[row]) == len(expected)
        torch.testing.assert_close(batch.hidden_states[1][row, : len(expected)], expected, atol=2e-3, rtol=1e-4)
        torch.testing.assert_close(encoder(wave[None]).hidden_states[1][0], expected, atol=2e-3, rtol=1e-4)


def test_digital_silence_is_quiet_noise_and_a_very_short_utterance_has_a_frame(
    installed: tuple[Tensor, Tensor],
) -> None:
    encoder = open_teacher("openwakeword")
    assert encoder(torch.full((1, 16_000), -0.01)).hidden_states[1].isfinite().all()
    assert encoder(tone(0.02)[None]).hidden_states[1].shape == (1, 1, FEATURES)


def test_its_weights_count_as_parameters_and_decide_its_fingerprint(
    installed: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    encoder = open_teacher("openwakeword")
    assert parameters(encoder) == sum(weights.numel() for weights in installed)
    before = Teacher(encoder, [1]).fingerprint()
    assert Teacher(open_teacher("openwakeword"), [1]).fingerprint() == before
    file = tmp_path / "openwakeword/resources/models/embedding_model.onnx"
    model = onnx.load(file)
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(2 * installed[1].numpy(), "features"))
    onnx.save(model, file)
    assert Teacher(open_teacher("openwakeword"), [1]).fingerprint() != before


def test_a_missing_package_or_another_version_is_an_error_that_says_what_to_install(
    installed: tuple[Tensor, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install = r"pip install --no-deps openwakeword==0.4.0"
    (tmp_path / "openwakeword/resources/models/embedding_model.onnx").unlink()
    with pytest.raises(UserError, match=rf"embedding_model.onnx: missing: .*{install}"):
        open_teacher("openwakeword")
    monkeypatch.setattr("distilled_student.teachers.early_checks.find_spec", lambda name: None)
    with pytest.raises(UserError, match=rf"y.yaml: teacher: openwakeword: .*{install}"):
        check_teacher("openwakeword", "y.yaml: teacher", [])
    monkeypatch.setattr(word_encoder, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=install):
        find_weights_of_openwakeword()


def test_a_damaged_file_is_named(installed: tuple[Tensor, Tensor], tmp_path: Path) -> None:
    file = tmp_path / "openwakeword/resources/models/melspectrogram.onnx"
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(UserError, match=r"melspectrogram.onnx: cannot be read as an ONNX model"):
        open_teacher("openwakeword")


def with_another_graph(kind: str, shipped: onnx.ModelProto) -> onnx.ModelProto:
    """A valid ONNX model that is not the one that is expected in its file."""
    if kind == "two inputs":
        shipped.graph.input.append(helper.make_tensor_value_info("more", TensorProto.FLOAT, [1]))
    elif kind == "two outputs":
        shipped.graph.output.append(helper.make_tensor_value_info("image", TensorProto.FLOAT, [None] * 4))
    elif kind == "integers":
        shipped.graph.input[0].type.tensor_type.elem_type = TensorProto.INT64
    elif kind == "fewer features":
        values = numpy_helper.to_array(shipped.graph.initializer[0])[:8]
        shipped.graph.initializer[0].CopyFrom(numpy_helper.from_array(values, "features"))
    elif kind == "not finite":
        values = np.full_like(numpy_helper.to_array(shipped.graph.initializer[0]), np.nan)
        shipped.graph.initializer[0].CopyFrom(numpy_helper.from_array(values, "features"))
    return shipped


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("two inputs", "expected one input and one output, found inputs input_1, more; outputs found"),
        ("two outputs", "expected one input and one output, found inputs input_1; outputs found, image"),
        ("integers", "cannot be read as an ONNX model"),
        ("fewer features", r"for an input of shape \(2, 76, 32, 1\) expected finite float32 \(2, 1, 1, 96\), found"),
        ("not finite", "with other values"),
    ],
)
def test_another_graph_is_named_when_it_is_opened(
    kind: str, reason: str, installed: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    file = tmp_path / "openwakeword/resources/models/embedding_model.onnx"
    onnx.save(with_another_graph(kind, onnx.load(file)), file)
    with pytest.raises(UserError, match=rf"embedding_model.onnx: .*{reason}") as error:
        open_teacher("openwakeword")
    assert "\n" not in str(error.value)


def test_graphs_in_each_others_files_are_named(installed: tuple[Tensor, Tensor], tmp_path: Path) -> None:
    folder = tmp_path / "openwakeword/resources/models"
    (folder / "melspectrogram.onnx").write_bytes((folder / "embedding_model.onnx").read_bytes())
    reason = r"for an input of shape \(2, 3040\) expected finite float32 \(2, 1, 16, bands\), the graph cannot run"
    with pytest.raises(UserError, match=rf"melspectrogram.onnx: {reason} .*pip install"):
        open_teacher("openwakeword")


def test_it_is_a_teacher_of_one_layer(installed: tuple[Tensor, Tensor]) -> None:
    assert check_teacher("openwakeword", "y.yaml: teacher", []) == 1
    assert isinstance(encoder := open_teacher("openwakeword"), nn.Module) and encoder.frame_shift == 2560
