"""Initialise a student with its teacher's front end and first layers (Kerpicci et al. 2023, sec. 2)."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from torch import Tensor

from distilled_student.student.network import Student

log = logging.getLogger(__name__)


def initialize(student: Student, weights: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """Copy the matching parts of a teacher's ``weights`` (under a student's names) into ``student`` and log them.

    A part is copied if all its shapes match: the front end (convolutions, projection, positions, first norm), then the
    transformer layers in order, up to the first one that does not match. Without the front end nothing is copied.

    Returns:
        The copied parts in order, such as ``front end`` and ``layer 1``, each with the names of its weights.
    """
    state = student.state_dict()
    front = [n for n in state if n.startswith(("frontend.", "projection", "positions."))]
    if not student.config.norm_first:
        front += ["norm.weight", "norm.bias"]
    parts = {"front end": front}
    for i in range(student.config.layers):
        parts[f"layer {i + 1}"] = [n for n in state if n.startswith(f"layers.{i}.")]
    copied: dict[str, list[str]] = {}
    for part, names in parts.items():
        if all(n in weights and weights[n].shape == state[n].shape for n in names):
            copied[part] = names
        elif part != "front end":
            break
    if "front end" not in copied:
        copied = {}  # the layers were trained on the frames of this front end
    student.load_state_dict({**state, **{n: weights[n] for names in copied.values() for n in names}})
    count = sum(state[n].numel() for names in copied.values() for n in names)
    if copied:
        log.info("student initialised from the teacher: %s (%.2f M parameters)", ", ".join(copied), count / 1e6)
    else:
        log.info("student starts from random weights: the teacher's shapes do not match")
    return copied
