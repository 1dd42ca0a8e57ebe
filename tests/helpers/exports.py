"""Exports that several test files read: each takes about ten seconds, so `conftest.made_once` makes it once."""

from __future__ import annotations

from pathlib import Path

import torch
from conftest import SMALL
from test_streaming import VARIANTS, joint

import distilled_student as ds
from distilled_student.export.stream import export_stream
from distilled_student.export.utterance import export_onnx
from distilled_student.multitask.device_model import JointModel

NAME = "model.onnx"  # of the exported file in its folder


def utterance_model() -> JointModel:
    """A model in the paper's shape, with a CNN on the waveform."""
    model = joint(ds.StudentConfig(**SMALL, conv_dim=[8] * 7)).eval()
    model.tasks["sv"].calibration[0] = torch.tensor([20.0, -9.0])
    return model


def export_utterances(folder: Path) -> None:
    export_onnx(utterance_model(), folder / NAME, checkpoint="best-dev.ckpt")


def stream_model() -> JointModel:
    return joint(VARIANTS["strided"]).eval()


def export_chunks(folder: Path) -> None:
    export_stream(stream_model(), folder / NAME)
    assert [found.name for found in folder.iterdir()] == [NAME], "no temporary file is left"
