"""Copies an int8 graph of a packed model to a file of its own; needs no torch."""

from __future__ import annotations

from pathlib import Path

from distilled_student.common.errors import UserError
from distilled_student.onnx import STREAM, UTTERANCE
from distilled_student.onnx.external_weights import with_all_weights


def copy_packed(folder: Path, output: Path, streaming: bool) -> None:
    """Copy the int8 graph of a packed model to ``output``. Raises UserError if the folder has none."""
    file = folder / (STREAM if streaming else UTTERANCE)
    if not file.is_file():
        raise UserError(f"{folder}: has no {file.name}: `distilled-student pack` writes it")
    try:
        content = with_all_weights(file)
    except ValueError as error:
        raise UserError(error) from None
    output.write_bytes(content)
    print(f"{output}: int8, {len(content) / 1e6:.1f} MB, a copy of {file.name} of {folder.name}")
