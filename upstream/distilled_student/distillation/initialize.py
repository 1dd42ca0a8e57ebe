"""A student takes its teacher's front end and first layers, where the shapes match (Kerpicci et al. 2023, sec. 2)."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from torch import Tensor

from distilled_student.student.network import Student

log = logging.getLogger(__name__)


def initialize(student: Student, weights: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """Copy what matches from a teacher's ``weights`` (under a student's names) and say so in the log.

    The front end (convolutions, projection, positions, first norm) is taken whole or not at all: half of one is none.
    So is each transformer layer, the first ones in order, up to the first that does not match.

    Returns:
        The parts that were taken, in order, such as ``front end`` and ``layer 1``, and the names of their weights.
    """
    state = student.state_dict()
    front = [n for n in state if n.startswith(("frontend.", "projection", "positions."))]
    if not student.config.norm_first:
        front += ["norm.weight", "norm.bias"]
    groups = {"front end": front}
    for i in range(student.config.layers):
        groups[f"layer {i + 1}"] = [n for n in state if n.startswith(f"layers.{i}.")]
    taken: dict[str, list[str]] = {}
    for part, names in groups.items():
        if all(n in weights and weights[n].shape == state[n].shape for n in names):
            taken[part] = names
        elif part != "front end":
            break
    if "front end" not in taken:
        taken = {}  # layers without the frames they were trained on are no start
    student.load_state_dict({**state, **{n: weights[n] for names in taken.values() for n in names}})
    count = sum(state[n].numel() for names in taken.values() for n in names)
    if taken:
        log.info("student initialised from the teacher: %s (%.2f M parameters)", ", ".join(taken), count / 1e6)
    else:
        log.info("student starts from scratch: the teacher's shapes do not match")
    return taken
