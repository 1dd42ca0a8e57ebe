"""Fast distillation: a teacher in half precision, no waiting for the device, and a log of the throughput."""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import SMALL
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import distilled_student as ds
from distilled_student.checkpoints.folder import load_student
from distilled_student.corpora.shipped import read_voice
from distilled_student.distillation.config import DistillConfig
from distilled_student.distillation.data.cuts import Batch, DataConfig, make_loader, read_cuts
from distilled_student.distillation.loss import distillation_loss
from distilled_student.distillation.targets import Teacher
from distilled_student.distillation.throughput import Workload, measure_workload
from distilled_student.distillation.train import distill
from distilled_student.distillation.trainer import Distillation
from distilled_student.student.cost import has_fast_bf16, peak_flops
from distilled_student.teachers.encoders import StudentEncoder
from distilled_student.teachers.open import open_teacher


@pytest.fixture
def config(tmp_path: Path, audio_folder: Path, small_cnn: ds.StudentConfig) -> DistillConfig:
    torch.manual_seed(1)
    ds.save_student(ds.build_student(small_cnn), tmp_path / "teacher")
    student = {**SMALL, "conv_dim": [8] * 7, "layers": 1}
    del student["targets"], student["target_size"]
    data = DataConfig([str(audio_folder)], batch_seconds=4, max_seconds=2, workers=0)
    return DistillConfig(
        str(tmp_path / "teacher"), str(tmp_path / "out"), data, targets=[1, 2], student=student, steps=2, log_every=2
    )


def _batch(config: DistillConfig) -> Batch:
    cuts, _ = read_cuts(config.data)
    return next(iter(make_loader(cuts, config.data, seed=0, epoch=0)))


def test_a_teacher_in_bfloat16_changes_the_loss_by_less_than_a_thousandth() -> None:
    lengths = torch.tensor([64_000, 48_000, 30_000])
    waves = torch.stack([torch.from_numpy(read_voice(name)[:64_000]) for name in ("af_alloy", "am_adam", "af_heart")])
    with torch.no_grad():
        output = load_student("edge")(waves, lengths)
    predictions = output.predictions[:, :2].requires_grad_()
    losses, gradients = [], []
    for precision in ("fp32", "bf16"):
        targets, frames = Teacher(open_teacher("shipped"), [1, 2], precision)(waves, lengths)
        parts = distillation_loss(predictions, targets, frames)
        losses.append(float(parts.total.detach() / parts.frames))
        gradients.append(torch.autograd.grad(parts.total, predictions)[0].flatten())
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)  # 9e-5 was measured
    assert torch.cosine_similarity(*gradients, dim=0) > 0.98


def test_the_teachers_precision_is_independent_of_the_students(config: DistillConfig) -> None:
    seen: dict[str, torch.dtype] = {}
    config.teacher_precision, config.precision = "bf16", "fp32"
    run = Distillation(config, "test.yaml")
    for name, student in (("teacher", run.teacher.encoder.student), ("student", run.student)):
        student.layers[0].register_forward_hook(lambda layer, x, out, name=name: seen.update({name: out[0].dtype}))
    run.step(_batch(config))
    assert seen == {"teacher": torch.bfloat16, "student": torch.float32}


def test_auto_precision_is_the_fastest_of_the_device_and_is_recorded(config: DistillConfig) -> None:
    expected = "bf16" if has_fast_bf16(torch.device("cpu")) else "fp32"
    assert Distillation(config, "test.yaml").config.teacher_precision == expected


class Reads(TorchDispatchMode):
    """Records every operation that reads a value from the device into Python, if it was computed from ``sources``.

    On a GPU each of them would wait for all queued operations. Values computed only from lengths are on the CPU.
    """

    WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "equal")

    def __init__(self, sources: Iterable[Tensor]) -> None:
        super().__init__()
        self.kept = list(sources)  # keeps them alive: the id of a deleted tensor may be used again
        self.on_device = {id(tensor) for tensor in self.kept}
        self.found: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if any(id(leaf) in self.on_device for leaf in tree_leaves((args, kwargs))):
            name = func.overloadpacket.__name__
            masks = [leaf for leaf in tree_leaves(args) if isinstance(leaf, Tensor) and leaf.dtype == torch.bool]
            if name in self.WAITING or (name in ("index", "index_put") and masks):  # needs to know how many are true
                self.found.append(name)
            made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
            self.kept += made
            self.on_device.update(map(id, made))
        return result


def test_reading_a_value_from_the_device_is_detected() -> None:
    x, lengths = torch.randn(3), torch.tensor([3])
    for read in (lambda: float((2 * x).sum()), lambda: x[x > 0]):
        with Reads([x]) as reads:
            assert lengths.max() == 3
            assert not reads.found
            read()
        assert reads.found


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_step_does_not_wait_for_the_device(config: DistillConfig, precision: str) -> None:
    config.precision = precision
    run, batch = Distillation(config, "test.yaml"), _batch(config)
    assert int(batch.lengths.min()) < batch.waveforms.shape[1]
    run.step(batch)  # the first step creates the optimiser's state
    with Reads([batch.waveforms, *run.student.parameters(), *run.teacher.parameters()]) as reads:
        meters = run.step(batch)
        assert not reads.found
        float(meters["loss"])
        assert reads.found


def test_the_workload_counts_training_of_the_student_and_the_teachers_forward_pass(small_cnn: ds.StudentConfig) -> None:
    student, teacher = ds.build_student(small_cnn), Teacher(StudentEncoder(ds.build_student(small_cnn)), [1])
    workload = measure_workload(student, [teacher], "fp32", torch.device("cpu"))
    assert 3 * workload.teacher < workload.student  # training costs 3 forward passes; the student has more layers
    assert workload.student_peak == workload.teacher_peak > 0
    workload = Workload(student=6e9, teacher=2e9, student_peak=1e9, teacher_peak=4e9)
    throughput = workload.throughput(student_seconds=10, teacher_seconds=5, elapsed=100)
    assert throughput == pytest.approx((0.1, 7e8, 0.625))


def test_the_measured_peak_is_that_of_the_fastest_product(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 0.0, 0.5, 0.5, 0.6, 0.7, 1.0, 1.5])  # products of 0.5, 0.1 and 0.3 seconds
    monkeypatch.setattr("distilled_student.student.cost.time.perf_counter", lambda: next(clock))
    assert peak_flops(torch.device("cpu"), torch.float32, seconds=0.9) == pytest.approx(2 * 1024**3 / 0.1)


def test_each_log_line_has_the_share_of_the_devices_peak(
    config: DistillConfig, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        distill(config, "test.yaml")
    assert re.search(r"step 2/2 .* \d+ s audio/s  [\d.]+ TFLOP/s \(\d+% of peak\)", caplog.text)


def test_compiled_layers_give_the_same_step(config: DistillConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    graphs_only = functools.partialmethod(torch.nn.Module.compile, backend="aot_eager")  # compiling takes a minute
    monkeypatch.setattr(torch.nn.Module, "compile", graphs_only)
    config.student["dropout"] = 0.0
    batch, losses = _batch(config), []
    for config.compile in (False, True):
        run = Distillation(config, "test.yaml")
        run.step(batch)
        losses.append(float(run.step(batch)["loss"]))  # after an update with the compiled gradients
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
