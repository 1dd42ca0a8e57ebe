"""Integer arithmetic that Python has no function for."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:  # torch takes seconds to import
    from torch import Tensor

Count = TypeVar("Count", int, "Tensor")


def ceil_div(dividend: Count, divisor: int) -> Count:
    """The quotient rounded up: ``ceil_div(7, 2)`` is 4. Exact for integers of any size and for tensors of integers.

    It divides no negative number, so that exported graphs do not depend on how a runtime rounds negative quotients.
    """
    return (dividend + divisor - 1) // divisor
