"""Integer arithmetic that Python has no function for."""

from __future__ import annotations


def ceil_div(dividend: int, divisor: int) -> int:
    """The quotient rounded up: ``ceil_div(7, 2)`` is 4. Exact for integers of any size."""
    return -(-dividend // divisor)
