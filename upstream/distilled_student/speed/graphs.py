"""ONNX files of the models that are compared: ours as they are exported, the others as their libraries allow."""

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
def _quietly() -> Iterator[None]:
    """Without what the libraries tell about graphs that are as they should be."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


class _Only(nn.Module):
    """A model with waveforms alone as input, and without the outputs that it does not have."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model.eval()

    def forward(self, waveforms: Tensor) -> list[Tensor]:
        lengths = torch.full((1,), waveforms.shape[1])
        return [output for output in self.model(waveforms, lengths) if output is not None]


def _write_other(name: str, plain: Path, int8: Path) -> None:
    """Weights of matrix products in 8 bits; there is no fast kernel for convolutions of 8 bits."""
    from onnxruntime.quantization import quantize_dynamic

    samples = torch.export.Dim("samples", min=SAMPLE_RATE // 4)
    options = {"input_names": ["waveforms"], "dynamic_shapes": {"waveforms": {1: samples}}, "external_data": False}
    torch.onnx.export(_Only(importer(name)()).eval(), (noise(2),), plain, dynamo=True, verbose=False, **options)
    quantize_dynamic(plain, int8, op_types_to_quantize=["MatMul", "Gemm"])


def _write_own(name: str, plain: Path, int8: Path, bare: Path) -> None:
    """As `export.utterance` does it; ``bare`` is the part of the int8 graph that gives the hidden state."""
    import onnx.utils

    from distilled_student.export.int8 import prepare, quantize
    from distilled_student.export.utterance import INPUTS, trace, write

    write(trace(importer(name)()), plain, {})
    prepared = Path(shutil.copy(plain, int8))
    quantize(prepared, prepare(prepared), "dynamic", []).rename(int8)
    onnx.utils.extract_model(int8, bare, list(INPUTS), ["hidden_state"], check_model=False, infer_shapes=False)


def write_graphs(name: str, folder: Path) -> list[Variant]:
    """The forms of a model that are graphs, written into the folder."""
    plain, int8, bare = (folder / f"{name}{suffix}.onnx" for suffix in ("", "-int8", "-int8-bare"))
    written = [Variant(name, ONNX, plain), Variant(name, INT8, int8)]
    with _quietly():
        if name not in SIZES:
            _write_other(name, plain, int8)
            return written
        _write_own(name, plain, int8, bare)
    return [*written, Variant(name, BARE_INT8, bare)]
