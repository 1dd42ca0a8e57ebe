"""How many speakers are held out, and which: a number or a share of them, in the order of the hash of their names."""

from __future__ import annotations

from collections.abc import Iterable

from distilled_student.corpora.keywords import hash_percentage

ENOUGH_FOR_TWO, ENOUGH_FOR_A_TEST = 5, 10  # speakers from which on a share is two or more, and is one for a test too


def check_number(name: str, value: int | float, least: int = 0) -> None:
    """Raise ValueError for what is neither a whole number of at least ``least`` nor a share between 0 and 1."""
    is_share = isinstance(value, float) and 0 < value < 1
    is_number = not isinstance(value, bool) and value >= least and (isinstance(value, int) or value == 0)
    if not (is_share or is_number):
        raise ValueError(f"{name}: needs a whole number of at least {least}, or a share such as 0.2, not {value}")


def number_held_out(value: int | float, speakers: int, is_test: bool = False) -> int:
    """How many of ``speakers`` a number or a share stands for.

    A share is rounded to the nearest number. It is one speaker at least, and two of five or more speakers, because
    trials need two. For a test it is nobody of fewer than ten speakers: development needs them first.
    """
    if isinstance(value, int) or value == 0:
        return int(value)
    if is_test and speakers < ENOUGH_FOR_A_TEST:
        return 0
    return max(int(value * speakers + 0.5), 2 if speakers >= ENOUGH_FOR_TWO else 1)


def by_hash(names: Iterable[str]) -> list[str]:
    """Names in the order of `hash_percentage`: it depends on no seed, and hardly changes when names are added."""
    return sorted(names, key=lambda name: (hash_percentage(name), name))
