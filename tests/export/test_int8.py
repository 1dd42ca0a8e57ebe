"""int8: products that no CPU can saturate, in dynamic and static files; losses on development data decide."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from conftest import tone
from onnx import TensorProto, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic
from test_streaming import CAUSAL, joint

import distilled_student as ds
from distilled_student.export import int8
from distilled_student.export.graph import CALIBRATED, calibration_speech, write_onnx
from distilled_student.export.int8 import METHODS, check_products, prepare_matmuls, quantize, utterance_inputs
from distilled_student.export.utterance import trace_model
from distilled_student.multitask.device_model import Measured
from distilled_student.multitask.tasks.base import Item

WAVES = [tone(1.0 + 0.1 * seed, seed=seed) for seed in range(3)]
FORMS = ("7 bits", "unsigned")  # of weights
EMULATOR = "qemu-x86_64-static"
CPUS = ("Haswell", "Nehalem")  # without VNNI: with AVX2, and with SSE only


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A float32 graph, and the names of the matrix products to quantise."""
    folder = tmp_path_factory.mktemp("int8")
    model = joint(
        dataclasses.replace(CAUSAL, layers=1, targets=[1], hidden_size=64, conv_dim=[32, 64], feed_forward=128)
    )
    model.tasks["sv"].settings.fill = False  # utterances that are filled would be encoded a second time
    write_onnx(trace_model(model), folder / "float32.onnx", {})
    shutil.copy(folder / "float32.onnx", folder / "prepared.onnx")
    return folder / "prepared.onnx", prepare_matmuls(folder / "prepared.onnx")


@pytest.fixture(scope="module")
def written(prepared: tuple[Path, list[str]]) -> dict[str, Path]:
    """The quantised file of each form and method, and one with signed weights of eight bits as ``saturating``."""
    file, matmuls = prepared
    saturating = file.with_name("saturating.onnx")
    options = {"nodes_to_quantize": matmuls, "op_types_to_quantize": ["MatMul"], "per_channel": True}
    quantize_dynamic(file, saturating, weight_type=QuantType.QInt8, **options)
    files, calls = {"saturating": saturating}, list(utterance_inputs(file, WAVES))
    for form in FORMS:
        folder = file.parent / form
        folder.mkdir()
        shutil.copy(file, folder)
        for method in METHODS:
            files[f"{form}, {method}"] = quantize(folder / file.name, matmuls, method, calls, form == "unsigned")
    return files


def products(file: Path, wave: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Activations ``(rows, n)`` and weights ``(n, columns)`` in 8 bits of each matrix product, for one utterance."""
    model = onnx.load(file)
    arrays = {array.name: numpy_helper.to_array(array) for array in model.graph.initializer}
    quantized = {node.output[0]: node.input[0] for node in model.graph.node if node.op_type == "DequantizeLinear"}
    pairs = []
    for node in model.graph.node:
        if node.op_type == "MatMulInteger":
            pairs.append((node.input[0], node.input[1]))
        elif node.op_type == "MatMul" and node.input[1] in quantized:
            pairs.append((quantized[node.input[0]], quantized[node.input[1]]))
    names = sorted({name for name, _ in pairs})
    model.graph.output.extend(onnx.helper.make_tensor_value_info(name, TensorProto.UINT8, None) for name in names)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found = dict(
        zip(names, session.run(names, {"waveforms": wave[None], "lengths": np.array([len(wave)])}), strict=True)
    )
    return [(found[a].reshape(-1, arrays[b].shape[0]), arrays[b]) for a, b in pairs]


def multiply(activations: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """A matrix product as x86 CPUs without VNNI compute it.

    With signed weights the sums of two products saturate in 16 bits (vpmaddubsw); with unsigned weights both factors
    are extended to 16 bits, and the sums have 32 (vpmaddwd).
    """
    assert activations.dtype == np.uint8
    if activations.shape[1] % 2:
        activations, weights = np.pad(activations, ((0, 0), (0, 1))), np.pad(weights, ((0, 1), (0, 0)))
    a, w = activations.astype(np.int32), weights.astype(np.int32)
    sums = a[:, 0::2, None] * w[None, 0::2] + a[:, 1::2, None] * w[None, 1::2]
    return (sums.clip(-(2**15), 2**15 - 1) if weights.dtype == np.int8 else sums).sum(axis=1)


def extremes(weights: np.ndarray) -> np.ndarray:
    """Activations ``(2 * columns, n)`` with the largest and with the smallest sums for each column of the weights."""
    positive = weights.T.astype(int) > 0
    return np.where(np.concatenate([positive, ~positive]), 255, 0).astype(np.uint8)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("method", METHODS)
def test_no_product_of_a_written_file_saturates_on_any_cpu(written: dict[str, Path], form: str, method: str) -> None:
    found = products(written[f"{form}, {method}"], WAVES[0].numpy())
    assert len(found) > 10
    for activations, weights in found:
        assert weights.dtype == (np.uint8 if form == "unsigned" else np.int8)
        for rows in (activations[:20], extremes(weights)):
            exact = rows.astype(np.int64) @ weights.astype(np.int64)
            np.testing.assert_array_equal(multiply(rows, weights), exact)


def test_signed_weights_of_eight_bits_saturate_and_are_refused(written: dict[str, Path]) -> None:
    found = products(written["saturating"], WAVES[0].numpy())
    differ = [(multiply(rows, w) != rows.astype(np.int64) @ w.astype(np.int64)).any() for rows, w in found]
    assert any(differ), "the emulation must show what is avoided"
    with pytest.raises(ds.UserError, match=r"int8: .*_quantized: signed weights up to 12\d, more than 64") as error:
        check_products(written["saturating"])
    assert "\n" not in str(error.value)


class Clips:
    """Development data: clips of 1 s, 3 classes of 100, 40 and 1 of them, each sample the number of its clip."""

    labels = 100 * [0] + 40 * [1] + [2]

    def __len__(self) -> int:
        return len(self.labels)

    def label(self, index: int) -> int:
        return self.labels[index]

    def item(self, index: int) -> Item:
        return Item(torch.full((16_000 * (index % 20 + 1),), float(index)), self.label(index), str(index))


def test_activations_are_calibrated_on_a_fixed_number_of_utterances_of_all_classes() -> None:
    model = SimpleNamespace(tasks={"kws": SimpleNamespace(evaluation_data=lambda split: Clips())})
    speech = calibration_speech(model)
    numbers = [int(waveform[0]) for waveform in speech]
    assert np.bincount([Clips.labels[number] for number in numbers]).tolist() == [24, 23, 1]
    assert len(set(numbers)) == CALIBRATED == 48, "no clip is drawn twice"
    assert max(map(len, speech)) == 160_000, "10 s of longer ones"
    assert [int(waveform[0]) for waveform in calibration_speech(model)] == numbers


def test_development_data_decide_and_test_data_are_only_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    accuracy = {"float32": (90.0, 90.0), "dynamic": (89.5, 50.0), "static": (80.0, 90.0)}  # on dev, on test

    def measure(model: Any, graph: str, split: str, task: str) -> Measured:
        return Measured(accuracy[graph][split == "test"], f"{graph} (1 utterance)", None)

    monkeypatch.setattr(int8, "measure", measure)
    model = SimpleNamespace(task_of_output={"keyword_scores": "kws"})
    measured = {graph: int8.measure_splits(model, graph, ("dev", "test")) for graph in accuracy}
    lost = int8.points_lost(measured.pop("float32"), measured)
    assert lost == {"dynamic": {"kws": 0.5}, "static": {"kws": 10.0}}
    dev, test = (line.split() for line in capsys.readouterr().out.splitlines() if "kws" in line)
    assert dev == ["kws", "dev", "float32", "0.50", "10.00"] and test == ["kws", "test", "float32", "40.00", "0.00"]


@pytest.mark.parametrize(
    ("max_loss", "expected"), [(0.5, ("int8 static", "static, False")), (0.2, ("int8 dynamic", "dynamic, True"))]
)
def test_unsigned_weights_are_used_only_if_7_bits_lose_too_much(
    monkeypatch: pytest.MonkeyPatch, max_loss: float, expected: tuple[str, str]
) -> None:
    lost = {"float32": 0.0, "dynamic, False": 0.6, "static, False": 0.4, "dynamic, True": 0.1, "static, True": 0.3}
    evaluated: list[str] = []

    def measure(model: Any, graph: str, split: str, task: str) -> Measured:
        evaluated.append(graph)
        return Measured(90 - lost[graph], "accuracy", lost[graph] + 1)

    monkeypatch.setattr(int8, "measure", measure)
    monkeypatch.setattr(int8, "prepare_matmuls", lambda file: [])
    monkeypatch.setattr(int8, "quantize", lambda file, names, method, waves, unsigned: f"{method}, {unsigned}")
    task = SimpleNamespace(evaluation_data=lambda split: None, has_threshold=True)
    model = SimpleNamespace(task_of_output={"keyword_scores": "kws"}, tasks={"kws": task}, stored_thresholds={})
    best = int8.quantize_best(model, Path("float32"), [], max_loss, str, splits=("dev",))
    assert (best.precision, best.file) == expected
    assert best.thresholds == {"kws": lost[best.file] + 1} and best.lost == {"kws": pytest.approx(lost[best.file])}
    assert best.losses == f"; points lost on development data: kws {lost[best.file]:.2f}"
    assert len(evaluated) == len(set(evaluated)), "no graph is evaluated twice"
    with pytest.raises(ds.UserError, match=r"int8: loses 0\.10 points on development data, more than --max-loss 0\.05"):
        int8.quantize_best(model, Path("float32"), [], 0.05, str)


RUN = """
import sys, numpy as np, onnxruntime
wave, *files = sys.argv[1:]
options = onnxruntime.SessionOptions()
options.intra_op_num_threads, options.log_severity_level = 1, 3
wave = np.load(wave)
for file in files:
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    inputs = {"waveforms": wave[None], "lengths": np.array([len(wave)])}
    np.save(f"{file}.npy", session.run(["hidden_state"], inputs)[0])
"""


@pytest.mark.slow  # fifteen seconds for each CPU
@pytest.mark.skipif(shutil.which(EMULATOR) is None, reason=f"{EMULATOR} is not installed")
@pytest.mark.parametrize("cpu", CPUS)
def test_emulated_cpus_compute_what_this_one_computes(written: dict[str, Path], cpu: str, tmp_path: Path) -> None:
    np.save(tmp_path / "wave.npy", WAVES[0].numpy())
    (tmp_path / "run.py").write_text(RUN)
    results = {}
    for name, emulator in (("native", []), (cpu, [shutil.which(EMULATOR), "-cpu", cpu])):
        folder = tmp_path / name
        folder.mkdir()
        files = {form: shutil.copy(file, folder / f"{i}.onnx") for i, (form, file) in enumerate(written.items())}
        python = os.path.realpath(sys.executable)
        command = [*emulator, python, str(tmp_path / "run.py"), str(tmp_path / "wave.npy"), *map(str, files.values())]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        results[name] = {form: np.load(f"{file}.npy") for form, file in files.items()}
    differences = {
        form: np.abs(expected - results[cpu][form]).max() / np.abs(expected).max()
        for form, expected in results["native"].items()
    }
    saturating = differences.pop("saturating")
    # float32 sums in another order move a few activations across the border between two of their 256 values
    assert max(differences.values()) < 0.01, differences
    if cpu == "Haswell":
        assert saturating > 3 * max(differences.values()), "the emulated CPU must show what is avoided"


def test_the_table_of_losses_has_the_first_figure_without_its_interval(capsys: pytest.CaptureFixture) -> None:
    before = Measured(96.88, "accuracy 96.88 [94.00, 98.10] % (763 utterances)", None)
    after = Measured(96.5, "accuracy 96.50 [93.00, 98.00] % (763 utterances)", None)
    lost = int8.points_lost({("kws", "dev"): before}, {"dynamic": {("kws", "dev"): after}})
    assert lost["dynamic"]["kws"] == pytest.approx(0.38)
    printed = capsys.readouterr().out
    assert "accuracy 96.88 %" in printed and "94.00" not in printed
