"""Writes the ONNX files of the models: ours as `distilled-student export` does, the others by their libraries."""

from __future__ import annotations

import logging
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from distilled_student.common.audio import SAMPLE_RATE
from distilled_student.speed.models import BARE_INT8, INT8, ONNX, SIZES, Variant, importer, noise


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Suppress the libraries' warnings, which are about expected properties of the graphs."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


class _WaveformsOnly(nn.Module):
    """A model with waveforms as its only input, and without the outputs that are None."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model.eval()

    def forward(self, waveforms: Tensor) -> list[Tensor]:
        lengths = torch.full((1,), waveforms.shape[1])
        return [output for output in self.model(waveforms, lengths) if output is not None]


def _write_other(name: str, plain: Path, int8: Path) -> None:
    """Write a model that is not ours; in int8 only matrix products, since 8-bit convolutions have no fast kernel."""
    from onnxruntime.quantization import quantize_dynamic

    samples = torch.export.Dim("samples", min=SAMPLE_RATE // 4)
    options = {"input_names": ["waveforms"], "dynamic_shapes": {"waveforms": {1: samples}}, "external_data": False}
    model = _WaveformsOnly(importer(name)()).eval()
    torch.onnx.export(model, (noise(2),), plain, dynamo=True, verbose=False, **options)
    quantize_dynamic(plain, int8, op_types_to_quantize=["MatMul", "Gemm"])


def _write_own(name: str, plain: Path, int8: Path, bare: Path) -> None:
    """Write a student as `export.utterance` does; ``bare`` is the part of the int8 graph for the hidden state alone."""
    import onnx.utils

    from distilled_student.export.graph import INPUTS, write_onnx
    from distilled_student.export.int8 import prepare_matmuls, quantize
    from distilled_student.export.utterance import trace_model

    write_onnx(trace_model(importer(name)()), plain, {})
    prepared = Path(shutil.copy(plain, int8))
    quantize(prepared, prepare_matmuls(prepared), "dynamic", []).rename(int8)
    onnx.utils.extract_model(int8, bare, list(INPUTS), ["hidden_state"], check_model=False, infer_shapes=False)


def write_graphs(name: str, folder: Path) -> list[Variant]:
    """Write the ONNX files of a model into the folder; returns its forms that are graphs."""
    plain, int8, bare = (folder / f"{name}{suffix}.onnx" for suffix in ("", "-int8", "-int8-bare"))
    written = [Variant(name, ONNX, plain), Variant(name, INT8, int8)]
    with _without_warnings():
        if name not in SIZES:
            _write_other(name, plain, int8)
            return written
        _write_own(name, plain, int8, bare)
    return [*written, Variant(name, BARE_INT8, bare)]
