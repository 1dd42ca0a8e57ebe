"""The models that are compared, and the forms that each of them runs in."""

from __future__ import annotations

import contextlib
import dataclasses
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from distilled_student.common.audio import SAMPLE_RATE
from distilled_student.speed.measure import open_session
from distilled_student.student.config import named_size

TORCH, ONNX, INT8 = "PyTorch", "ONNX", "ONNX int8"
BARE_TORCH, BARE_INT8 = "PyTorch, no predictions", "ONNX int8, no predictions"
BARE = (BARE_TORCH, BARE_INT8)  # without the prediction layers, which a device does not need
REFERENCE, DISTILHUBERT = "hubert base", "distilhubert"
SIZES = ("paper", "slim", "edge", "tiny")
MODELS = (REFERENCE, DISTILHUBERT, *SIZES)


class Variant(NamedTuple):
    """A form of a model; ``graph``: its ONNX file, None for PyTorch."""

    model: str
    form: str
    graph: Path | None = None

    @property
    def name(self) -> str:
        """Name for output and for keys."""
        return f"{self.model}, {self.form}"


class Outputs(NamedTuple):
    """Last hidden state ``(batch, frames, features)``, predictions ``(batch, targets, frames, features)`` or None."""

    hidden_state: Tensor | None
    predictions: Tensor | None = None

    def named(self) -> dict[str, Tensor]:
        """All outputs that are not None, by the names that they have in exported files."""
        return {name: value for name, value in self._asdict().items() if value is not None}


class ComparedModel(nn.Module):
    """A network of any library on waveforms ``(batch, samples)`` without padding."""

    def __init__(self, student: nn.Module, call: Callable[[nn.Module, Tensor, Tensor], Outputs]) -> None:
        super().__init__()
        self.student, self.call = student, call
        self.eval()

    def forward(self, waveforms: Tensor, lengths: Tensor) -> Outputs:
        return self.call(self.student, waveforms, lengths)


class AsUpstream(nn.Module):
    """A `ComparedModel` with the interface of an s3prl upstream, which `cost` needs to count operations."""

    def __init__(self, model: ComparedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, wavs: Sequence[Tensor]) -> Outputs:
        return self.model(torch.stack(list(wavs)), torch.tensor([len(wav) for wav in wavs]))


def _hubert() -> Callable[[], ComparedModel]:
    from transformers import HubertConfig, HubertModel

    return lambda: ComparedModel(HubertModel(HubertConfig()), lambda model, x, _: Outputs(model(x).last_hidden_state))


def _distilhubert() -> Callable[[], ComparedModel]:
    """DistilHuBERT as published (Chang et al. 2022): HuBERT's CNN, two layers, predictions of layers 4, 8 and 12."""
    from distilled_student.host.plugin import register

    register()
    from s3prl.upstream.distiller.model import DistillerConfig, DistillerModel

    def build() -> ComparedModel:
        config = {"encoder_layers": 2, "n_tasks": 3, "task_emb_type": "expand-last", "pred_layer_id": [4, 8, 12]}
        with contextlib.redirect_stdout(io.StringIO()):  # its constructor prints its settings
            model = DistillerModel(DistillerConfig(config))
        # nothing is padded; the original counts frames in Python, which cannot be exported
        model.cal_pad_mask = lambda mask, frames: mask.new_ones(mask.shape[0], frames)
        return ComparedModel(model, lambda model, x, _: Outputs(None, model(x, torch.ones_like(x))[2]))

    return build


def _student(size: str, predictions: bool) -> Callable[[], ComparedModel]:
    from distilled_student.student.network import Student, StudentOutput

    config = named_size(size) if predictions else dataclasses.replace(named_size(size), targets=[])

    def call(model: nn.Module, waveforms: Tensor, lengths: Tensor) -> Outputs:
        output: StudentOutput = model(waveforms, lengths)
        return Outputs(output.last_hidden_state, output.predictions)

    return lambda: ComparedModel(Student(config), call)


def importer(name: str, form: str = TORCH) -> Callable[[], ComparedModel]:
    """Import what a model needs; returns a function that builds it in PyTorch with random weights, in eval mode."""
    torch.manual_seed(0)
    if name in SIZES:
        return _student(name, predictions=form not in BARE)
    return {REFERENCE: _hubert, DISTILHUBERT: _distilhubert}[name]()


def noise(seconds: float) -> Tensor:
    """White noise ``(1, samples)``; no model's time depends on its input."""
    return 0.1 * torch.randn(1, int(seconds * SAMPLE_RATE), generator=torch.Generator().manual_seed(0))


def feeds(session: Any, waveforms: Tensor) -> dict[str, Any]:
    """A session's inputs; our graphs take lengths in addition to the waveforms."""
    available = {"waveforms": waveforms.numpy(), "lengths": np.full(len(waveforms), waveforms.shape[1])}
    return {needed.name: available[needed.name] for needed in session.get_inputs()}


def loader(variant: Variant, threads: int) -> Callable[[], Callable[[Tensor], object]]:
    """Import what a form of a model needs; returns a function that loads it.

    What is loaded is called with waveforms ``(1, samples)``. ``threads`` holds for graphs; torch uses the threads that
    are set for the process.
    """
    graph = variant.graph
    if graph is None:
        build = importer(variant.model, variant.form)

        def load_model() -> Callable[[Tensor], object]:
            model = build()
            return torch.no_grad()(lambda waveforms: model(waveforms, torch.tensor([waveforms.shape[1]])))

        return load_model
    import onnxruntime  # noqa: F401

    def load_graph() -> Callable[[Tensor], object]:
        session = open_session(graph, threads)
        return lambda waveforms: session.run(None, feeds(session, waveforms))

    return load_graph
