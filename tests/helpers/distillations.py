"""The settings of a small distillation, on which tests of single features change what they need."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from conftest import SMALL

import distilled_student as ds
from distilled_student.distillation.config import DistillConfig
from distilled_student.distillation.data.config import DataConfig


def small_distillation(audio: Path, folder: Path, data: DataConfig | None = None, **changes: Any) -> DistillConfig:
    """Six steps with a teacher of two layers and random weights, which is written to ``folder``.

    Args:
        audio: Folder of the corpus.
        data: Instead of batches of six seconds, of pieces of two seconds, of ``audio``.
        changes: Further settings.
    """
    ds.save_student(ds.build_student(ds.StudentConfig(conv_dim=[8] * 7, **SMALL)), folder / "teacher")
    config = DistillConfig(
        teacher=str(folder / "teacher"),
        output=str(folder / "student"),
        data=data or DataConfig([str(audio)], batch_seconds=6, max_seconds=2, workers=0),
        targets=[1, 2],
        student={"conv_dim": [8] * 7, **{k: v for k, v in SMALL.items() if not k.startswith("target")}, "dropout": 0.1},
        initialize=False,
        steps=6,
        teacher_precision="fp32",
        log_every=2,
        save_every=3,
    )
    return replace(config, **changes)
