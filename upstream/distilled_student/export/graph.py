"""Exported models against PyTorch: nothing is written that computes something else."""

from __future__ import annotations

from torch import Tensor

from distilled_student.common.errors import UserError

TOLERANCE = 1e-4  # largest difference in float32


def compare(name: str, expected: Tensor, found: Tensor, where: str) -> float:
    """The largest difference of an output ``name`` from PyTorch's; ``where``: on what, for the message.

    Raises:
        UserError: another shape, more than `TOLERANCE`, or not a number.
    """
    difference = float((expected - found).abs().max()) if expected.shape == found.shape else float("inf")
    if not difference <= TOLERANCE:
        raise UserError(f"{name}: differs by {difference:.1e} from PyTorch {where}; nothing is written")
    return difference
