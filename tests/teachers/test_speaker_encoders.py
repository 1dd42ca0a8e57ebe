"""Speaker encoders as teachers: GE2E, x-vectors of transformers, ONNX files. References: transformers, torch, numpy."""

from __future__ import annotations

import importlib.machinery
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import transformers
from conftest import tone
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers.audio_utils import mel_filter_bank, spectrogram, window_function

from distilled_student.common.errors import UserError
from distilled_student.distillation.targets import UtteranceTeacher
from distilled_student.teachers import ge2e
from distilled_student.teachers.early_checks import check_speaker_encoder
from distilled_student.teachers.open import open_speaker_encoder

SECONDS = (0.1, 1.0, 1.7, 2.4, 3.1, 4.02)  # one to four windows of GE2E, with and without an incomplete last one


def waves(scale: float = 1.0) -> list[Tensor]:
    return [scale * tone(seconds, seed=seed) for seed, seconds in enumerate(SECONDS)]


def embeddings(encoder: nn.Module, waveforms: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Of all waveforms in one padded batch whose padding is not zero, and of each one alone."""
    lengths = torch.tensor([len(wave) for wave in waveforms])
    padded = pad_sequence(waveforms, batch_first=True, padding_value=0.3)
    with torch.no_grad():
        return encoder(padded, lengths), torch.cat([encoder(wave[None]) for wave in waveforms])


# GE2E


def ge2e_file(folder: Path, width: int = 12) -> tuple[Path, nn.LSTM, nn.Linear]:
    """Random weights in a file as resemblyzer's, and the modules they are from."""
    torch.manual_seed(0)
    lstm, linear = nn.LSTM(40, width, 3, batch_first=True), nn.Linear(width, 8)
    weights = {f"lstm.{name}": value for name, value in lstm.state_dict().items()}
    weights |= {f"linear.{name}": value for name, value in linear.state_dict().items()}
    weights |= {"similarity_weight": torch.ones(1), "similarity_bias": torch.ones(1)}
    folder.mkdir(exist_ok=True)
    torch.save({"step": 1, "model_state": weights, "optimizer_state": {}}, folder / "pretrained.pt")
    return folder / "pretrained.pt", lstm, linear


def reference_ge2e(wave: np.ndarray, lstm: nn.LSTM, linear: nn.Linear) -> np.ndarray:
    """GE2E as resemblyzer computes it, with the spectrogram of transformers, which equals librosa's."""
    volume = np.sqrt(np.mean(wave.astype(np.float64) ** 2))
    wave = wave * max(1.0, 10 ** (-30 / 20) / volume)
    starts = [0]  # windows of 160 frames begin every 77 frames until one reaches the end
    while starts[-1] + 160 <= len(wave) // 160:
        starts.append(starts[-1] + 77)
    if len(starts) > 1 and (len(wave) - starts[-1] * 160) / 25_600 < 0.75:
        starts.pop()
    filters = mel_filter_bank(201, 40, 0.0, 8000.0, 16_000, norm="slaney", mel_scale="slaney")
    padded = np.pad(wave, (0, max(0, (starts[-1] + 160) * 160 - len(wave))))
    window = window_function(400, "hann")
    mel = spectrogram(padded, window, 400, 160, power=2.0, pad_mode="constant", mel_filters=filters).T
    parts = []
    with torch.no_grad():
        for start in starts:
            states, _ = lstm(torch.from_numpy(mel[start : start + 160]).float()[None])
            part = linear(states[0, -1]).relu().numpy()
            parts.append(part / np.linalg.norm(part))
    mean = np.mean(parts, axis=0)
    return mean / np.linalg.norm(mean)


@pytest.mark.parametrize("scale", [0.02, 3.0], ids=["quiet", "loud"])
def test_ge2e_equals_a_reference_alone_and_in_a_padded_batch(tmp_path: Path, scale: float) -> None:
    file, lstm, linear = ge2e_file(tmp_path)
    batch, alone = embeddings(open_speaker_encoder(file), waves(scale))
    expected = np.stack([reference_ge2e(wave.numpy(), lstm, linear) for wave in waves(scale)])
    np.testing.assert_allclose(batch, expected, atol=2e-6)
    np.testing.assert_allclose(alone, expected, atol=2e-6)


def test_ge2e_is_found_in_resemblyzer_without_importing_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ge2e_file(tmp_path / "resemblyzer")
    (tmp_path / "resemblyzer" / "__init__.py").write_text("raise ImportError('webrtcvad is missing')")
    monkeypatch.syspath_prepend(tmp_path)
    check_speaker_encoder("resemblyzer", "test.yaml: teacher")
    assert open_speaker_encoder("resemblyzer").embedding_size == 8


def test_a_missing_resemblyzer_is_an_error_that_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distilled_student.teachers.early_checks.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"y.yaml: teacher: resemblyzer: .* pip install --no-deps resemblyzer"):
        check_speaker_encoder("resemblyzer", "y.yaml: teacher")
    monkeypatch.setattr(ge2e, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install --no-deps resemblyzer"):
        open_speaker_encoder("resemblyzer")
    empty = importlib.machinery.ModuleSpec("resemblyzer", None, origin="/nowhere/__init__.py")
    monkeypatch.setattr(ge2e, "find_spec", lambda name: empty)
    with pytest.raises(UserError, match=r"/nowhere/pretrained.pt: missing"):
        open_speaker_encoder("resemblyzer")


def test_silence_has_a_finite_embedding(tmp_path: Path) -> None:
    assert torch.isfinite(open_speaker_encoder(ge2e_file(tmp_path)[0])(torch.zeros(1, 16_000))).all()


def test_the_operations_of_ge2e_are_those_of_its_overlapping_windows(tmp_path: Path) -> None:
    found = open_speaker_encoder(ge2e_file(tmp_path, width=12)[0])
    a_frame = 4 * 12 * (40 + 12) + 2 * 4 * 12 * (12 + 12)  # products of one step of three LSTM layers
    windows = 16_000 / 160 / 77  # in a second
    assert found.macs_per_second() == pytest.approx(windows * (160 * a_frame + 12 * 8), abs=1)
    assert found.parameter_count() == sum(p.numel() for module in ge2e_file(tmp_path)[1:] for p in module.parameters())


@pytest.mark.parametrize(
    "content",
    [{"model": {}}, {"model_state": {"lstm.weight_ih_l0": torch.zeros(4, 2), "linear.weight": torch.zeros(2, 2)}}, [1]],
)
def test_another_torch_file_is_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(UserError, match=r"teacher .*other.pt: cannot be loaded .*is not a"):
        open_speaker_encoder(tmp_path / "other.pt")


# x-vectors of transformers

TDNN = {"tdnn_dim": [12, 12, 16], "tdnn_kernel": [5, 3, 1], "tdnn_dilation": [1, 2, 1], "xvector_output_dim": 10}
SIZE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
SIZE |= {"conv_dim": [8] * 7, "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2, **TDNN}


def xvector(family: str) -> nn.Module:
    torch.manual_seed(0)
    names = {"wavlm": "WavLM", "wav2vec2": "Wav2Vec2", "unispeech-sat": "UniSpeechSat"}
    config = getattr(transformers, f"{names[family]}Config")(**SIZE)
    return getattr(transformers, f"{names[family]}ForXVector")(config).eval()


def saved(model: nn.Module, folder: Path, normalize: bool = False) -> Path:
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({"do_normalize": normalize}))
    return folder


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("family", ["wavlm", "wav2vec2", "unispeech-sat"])
def test_an_x_vector_is_the_embedding_of_transformers_alone_and_in_a_padded_batch(
    family: str, normalize: bool, tmp_path: Path
) -> None:
    model, long_enough = xvector(family), waves()[1:]
    extractor = transformers.Wav2Vec2FeatureExtractor(do_normalize=normalize)
    with torch.no_grad():
        inputs = [extractor(w.numpy(), sampling_rate=16_000, return_tensors="pt").input_values for w in long_enough]
        expected = torch.cat([model(values).embeddings for values in inputs])
    encoder = open_speaker_encoder(saved(model, tmp_path, normalize))
    batch, alone = embeddings(encoder, long_enough)
    torch.testing.assert_close(batch, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(alone, expected, atol=1e-5, rtol=0)
    assert encoder.embedding_size == 10 and encoder.macs_per_second() > 0


def test_an_utterance_too_short_for_the_x_vector_is_padded_with_silence(tmp_path: Path) -> None:
    assert torch.isfinite(open_speaker_encoder(saved(xvector("wavlm"), tmp_path))(torch.rand(1, 400))).all()


def test_an_encoder_without_an_x_vector_is_refused(tmp_path: Path) -> None:
    transformers.WavLMModel(transformers.WavLMConfig(**SIZE)).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"ForXVector.: weights are missing: .* 10 in all"):
        open_speaker_encoder(tmp_path)
    with pytest.raises(UserError, match=r"is not a speaker encoder: config.json names no ...ForXVector"):
        check_speaker_encoder(str(tmp_path), "y.yaml: teacher")


# ONNX


def onnx_file(
    file: Path, batch: str | int | None = "batch", lengths: bool = False, outputs: tuple[str, ...] = ("emb",)
) -> np.ndarray:
    """A graph: mean absolute value over (valid) samples times a vector, which is returned.

    ``batch``: the first dimension of the waveforms, None for waveforms ``(samples,)``.
    """
    vector = np.arange(1, 6, dtype=np.float32)
    initializers = [numpy_helper.from_array(vector, "vector"), numpy_helper.from_array(np.array([-1]), "last")]
    dims = ["samples"] if batch is None else [batch, "samples"]
    inputs = [helper.make_tensor_value_info("wave", TensorProto.FLOAT, dims)]
    nodes = [helper.make_node("Abs", ["wave"], ["absolute"])]
    if lengths:
        inputs.append(helper.make_tensor_value_info("count", TensorProto.INT64, [batch]))
        numbers = {"zero": np.array(0), "one": np.array(1), "axis": np.array([1])}
        initializers += [numpy_helper.from_array(value, name) for name, value in numbers.items()]
        nodes += [
            helper.make_node("Shape", ["wave"], ["size"], start=1, end=2),
            helper.make_node("Squeeze", ["size"], ["samples"]),
            helper.make_node("Range", ["zero", "samples", "one"], ["index"]),
            helper.make_node("Unsqueeze", ["count", "axis"], ["counts"]),
            helper.make_node("Less", ["index", "counts"], ["valid"]),
            helper.make_node("Cast", ["valid"], ["mask"], to=TensorProto.FLOAT),
            helper.make_node("Mul", ["absolute", "mask"], ["masked"]),
            helper.make_node("ReduceSum", ["masked", "last"], ["sum"], keepdims=1),
            helper.make_node("Cast", ["counts"], ["divisor"], to=TensorProto.FLOAT),
            helper.make_node("Div", ["sum", "divisor"], ["mean"]),
        ]
    else:
        nodes.append(helper.make_node("ReduceMean", ["absolute", "last"], ["mean"], keepdims=1))
    nodes += [helper.make_node("Mul", ["mean", "vector"], [name]) for name in outputs]
    made = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    graph = helper.make_graph(nodes, "encoder", inputs, made, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = 10
    onnx.save(model, str(file))
    return vector


@pytest.mark.parametrize(
    ("batch", "lengths"), [("batch", False), (1, False), (None, False), ("batch", True), (1, True)]
)
def test_an_onnx_file_gives_the_embeddings_alone_and_in_a_padded_batch(
    batch: str | int | None, lengths: bool, tmp_path: Path
) -> None:
    vector = onnx_file(tmp_path / "encoder.onnx", batch, lengths)
    encoder = open_speaker_encoder(tmp_path / "encoder.onnx")
    found, alone = embeddings(encoder, waves())
    expected = np.stack([np.abs(wave.numpy()).mean() * vector for wave in waves()])
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    np.testing.assert_allclose(alone, expected, rtol=1e-5)
    assert encoder.embedding_size == 5 and encoder.macs_per_second() is None


def test_the_embedding_is_found_among_several_outputs(tmp_path: Path) -> None:
    file = tmp_path / "encoder.onnx"
    for outputs in (("my_embedding", "speaker_embedding"), ("scores", "Embedding"), ("scores",)):
        onnx_file(file, outputs=outputs)
        assert open_speaker_encoder(file).output == outputs[-1]
    onnx_file(file, outputs=("a", "b"))
    with pytest.raises(UserError, match=r"which output is the embedding\? None of a, b is speaker_embedding"):
        open_speaker_encoder(file)


def test_a_damaged_onnx_file_and_one_with_other_inputs_are_refused(tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"no graph")
    with pytest.raises(UserError, match=r"bad.onnx: cannot be read as an ONNX model"):
        open_speaker_encoder(tmp_path / "bad.onnx")
    mel = helper.make_tensor_value_info("mel", TensorProto.FLOAT, ["batch", "frames", 80])
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, ["batch", "frames", 80])
    graph = helper.make_graph([helper.make_node("Identity", ["mel"], ["out"])], "g", [mel], [out])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = 10
    onnx.save(model, str(tmp_path / "mel.onnx"))
    with pytest.raises(UserError, match=r"is not a speaker encoder: needs the inputs waveforms .* has mel tensor"):
        open_speaker_encoder(tmp_path / "mel.onnx")


# all of them


def make_ge2e(folder: Path) -> Path:
    return ge2e_file(folder)[0]


def make_xvector(folder: Path) -> Path:
    return saved(xvector("wavlm"), folder)


def make_onnx(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    onnx_file(folder / "encoder.onnx")
    return folder / "encoder.onnx"


@pytest.mark.parametrize("make", [make_ge2e, make_xvector, make_onnx])
def test_targets_are_embeddings_with_a_root_mean_square_of_one(make: Callable[[Path], Path], tmp_path: Path) -> None:
    encoder = open_speaker_encoder(make(tmp_path))
    teacher = UtteranceTeacher(encoder).train()
    assert not any(module.training for module in teacher.modules())
    wave = tone(1.5)[None]
    found, lengths = teacher(wave)
    assert found.shape == (1, 1, 1, encoder.embedding_size) and lengths.tolist() == [1]
    with torch.no_grad():
        direction = encoder(wave)[0].double().numpy()
    np.testing.assert_allclose(found[0, 0, 0], direction / np.sqrt(np.mean(direction**2)), rtol=1e-5)


@pytest.mark.parametrize("make", [make_ge2e, make_xvector, make_onnx])
def test_the_hash_depends_on_the_weights_alone(make: Callable[[Path], Path], tmp_path: Path) -> None:
    first, same = (open_speaker_encoder(make(tmp_path / name)) for name in ("a", "b"))
    assert first.fingerprint() == same.fingerprint() and first.fingerprint()["values"] > 0
    assert UtteranceTeacher(first).fingerprint() == UtteranceTeacher(same).fingerprint()
    assert UtteranceTeacher(first, "bf16").fingerprint() != UtteranceTeacher(same).fingerprint()


@pytest.mark.parametrize("name", ["gone.onnx", "/gone/folder", "gone.pt"])
def test_a_missing_speaker_encoder_is_named(name: str) -> None:
    with pytest.raises(UserError, match=rf"y.yaml: teacher: {name}: no such file or folder"):
        check_speaker_encoder(name, "y.yaml: teacher")
