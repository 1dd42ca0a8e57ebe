"""The models that are compared, in every form they run in: what they cost, and how fast they are beside HuBERT base."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import save_model
from torch import Tensor, nn

from distilled_student.audio import SAMPLE_RATE
from distilled_student.cost import macs_per_second, parameters
from distilled_student.sizes import named_size
from distilled_student.speed.measure import interleaved, open_session, peak_memory, ratio, threads

log = logging.getLogger(__name__)

TORCH, BARE, ONNX, INT8 = "PyTorch", "PyTorch, no predictions", "ONNX", "ONNX int8"
FORMS = (TORCH, BARE, ONNX, INT8)
REFERENCE, DISTILHUBERT = "hubert base", "distilhubert"
SIZES = ("paper", "slim", "edge", "tiny")
MODELS = (REFERENCE, DISTILHUBERT, *SIZES)
SECONDS = (1, 4)
COMPARED = 4  # seconds of audio, on one thread: where the multiples of the reference are taken
TURN = 0.1  # seconds


class Variant(NamedTuple):
    """A form of a model; ``graph``: its ONNX file, None where it runs in PyTorch."""

    model: str
    form: str
    graph: Path | None = None

    @property
    def name(self) -> str:
        """For people, and for keys."""
        return f"{self.model}, {self.form}"


class Alone(nn.Module):
    """A model on one utterance: ``(1, samples)`` in, every output that its caller could want out."""

    def __init__(self, model: nn.Module, call: Callable[[nn.Module, Tensor], Any]) -> None:
        super().__init__()
        self.model, self.call = model, call
        self.eval()

    def forward(self, waveforms: Tensor) -> Any:
        return self.call(self.model, waveforms)


class OneWaveform(nn.Module):
    """`Alone`, called as s3prl calls an upstream, which is what `cost` counts."""

    def __init__(self, model: Alone) -> None:
        super().__init__()
        self.model = model

    def forward(self, wavs: Sequence[Tensor]) -> Any:
        return self.model(wavs[0][None])


def _hubert() -> Callable[[], Alone]:
    from transformers import HubertConfig, HubertModel

    return lambda: Alone(HubertModel(HubertConfig()), lambda model, x: model(x).last_hidden_state)


def _distilhubert() -> Callable[[], Alone]:
    """DistilHuBERT as it was published (Chang et al. 2022): HuBERT's CNN, two layers, layers 4, 8 and 12 predicted."""
    from distilled_student.host import register

    register()
    from s3prl.upstream.distiller.model import DistillerConfig, DistillerModel

    def build() -> Alone:
        config = {"encoder_layers": 2, "n_tasks": 3, "task_emb_type": "expand-last", "pred_layer_id": [4, 8, 12]}
        model = DistillerModel(DistillerConfig(config))
        # one whole utterance: its own reads each length in Python, which no graph can hold
        model.cal_pad_mask = lambda mask, frames: mask.new_ones(mask.shape[0], frames)
        return Alone(model, lambda model, x: model(x, torch.ones_like(x))[2])

    return build


def _student(size: str, predictions: bool) -> Callable[[], Alone]:
    from distilled_student.student import Student

    config = named_size(size) if predictions else dataclasses.replace(named_size(size), targets=[])
    return lambda: Alone(Student(config), lambda model, x: model(x)[1:3])


def importer(variant: Variant) -> Callable[[], Alone]:
    """Imports what a model needs, and returns what builds it in PyTorch, with random weights, in eval mode."""
    torch.manual_seed(0)
    if variant.model in SIZES:
        return _student(variant.model, predictions=variant.form != BARE)
    return {REFERENCE: _hubert, DISTILHUBERT: _distilhubert}[variant.model]()


def feeds(session: Any, waveforms: Tensor) -> dict[str, Any]:
    """A session's inputs: all have waveforms, ours lengths beside."""
    both = {"waveforms": waveforms.numpy(), "lengths": np.full(len(waveforms), waveforms.shape[1])}
    return {given.name: both[given.name] for given in session.get_inputs()}


def runner(variant: Variant, count: int) -> Callable[[], Callable[[Tensor], object]]:
    """Imports what a form of a model needs, and returns what makes it ready to run on ``count`` threads."""
    graph = variant.graph
    if graph is None:
        build = importer(variant)
        return lambda: torch.no_grad()(build())
    import onnxruntime  # noqa: F401

    def load() -> Callable[[Tensor], object]:
        session = open_session(graph, count)
        return lambda waveforms: session.run(None, feeds(session, waveforms))

    return load


def noise(seconds: float) -> Tensor:
    """``(1, samples)`` of white noise; no model's time depends on what it hears."""
    return 0.1 * torch.randn(1, int(seconds * SAMPLE_RATE), generator=torch.Generator().manual_seed(0))


def _running(variant: Variant) -> Callable[[], object]:
    """For `peak_memory`: a model made and run on one thread."""
    torch.set_num_threads(1)
    make, waveforms = runner(variant, 1), noise(COMPARED)
    return lambda: make()(waveforms)


def write_graphs(name: str, folder: Path) -> list[Variant]:
    """A model's ONNX file, and its int8 file, which has the weights of the matrix products in 8 bits."""
    from onnxruntime.quantization import quantize_dynamic

    plain, small = folder / f"{name}.onnx", folder / f"{name}-int8.onnx"
    time = torch.export.Dim("samples", min=SAMPLE_RATE // 4)
    options = {"input_names": ["waveforms"], "dynamic_shapes": {"waveforms": {1: time}}, "external_data": False}
    model = importer(Variant(name, TORCH))()
    torch.onnx.export(model, (noise(2),), plain, dynamo=True, verbose=False, **options)
    quantize_dynamic(plain, small, op_types_to_quantize=["MatMul", "Gemm"])
    return [Variant(name, ONNX, plain), Variant(name, INT8, small)]


def variants(name: str, folder: Path) -> list[Variant]:
    """Every form of a model; its graphs are written into the folder."""
    log.info("%s: exporting", name)
    bare = [Variant(name, BARE)] if name in SIZES else []
    return [Variant(name, TORCH), *bare, *write_graphs(name, folder)]


def _costs(variant: Variant, folder: Path) -> dict[str, Any]:
    """What does not depend on the machine's mood: file and memory; in PyTorch parameters and operations."""
    costs: dict[str, Any] = {"model": variant.model, "form": variant.form}
    file = variant.graph
    if file is None:
        model, file = importer(variant)(), folder / "model.safetensors"
        save_model(model, str(file))
        costs |= {"parameters": parameters(model), "macs_per_second": macs_per_second(OneWaveform(model))}
    return costs | {"file_bytes": file.stat().st_size, "memory_bytes": peak_memory(_running, variant)}


def _times(measured: Sequence[Variant], count: int, rounds: int) -> dict[str, dict[str, Any]]:
    """By a variant's name, on ``count`` threads: real-time factors, and speed beside the first's."""
    found: dict[str, dict[str, Any]] = {variant.name: {} for variant in measured}
    with threads(count):
        runs = {variant.name: runner(variant, count)() for variant in measured}
        for seconds in SECONDS:
            waveforms = noise(seconds)
            times = interleaved({name: partial(run, waveforms) for name, run in runs.items()}, rounds, at_least=TURN)
            for name, of in times.items():
                speed = ratio(times[measured[0].name], of)
                found[name][f"{seconds} s"] = {"rtf": median(of) / seconds, "speed": speed._asdict()}
    return found


def compare_models(folder: Path, rounds: int, names: Sequence[str] = MODELS) -> tuple[dict[str, Any], list[Variant]]:
    """Every form of every model: parameters, MACs, file, peak memory, real-time factors, speed.

    Args:
        folder: For graphs, more than a gigabyte of them.
        names: Of models. The first in PyTorch is the one whose multiples the others' speeds are.

    Returns:
        ``rows``, one for each form of each model, with ``threads``, the counts that they were measured with; the forms.
    """
    counts = sorted({1, torch.get_num_threads()})
    measured = [variant for name in names for variant in variants(name, folder)]
    rows = {variant.name: {**_costs(variant, folder), "times": {}} for variant in measured}
    for count in counts:
        log.info("timing %d forms of models on %d threads", len(measured), count)
        for name, times in _times(measured, count, rounds).items():
            rows[name]["times"][str(count)] = times
    return {"rows": list(rows.values()), "threads": counts}, measured
