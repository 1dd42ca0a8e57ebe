"""Initialise a student with its teacher's front end and first layers (Kerpicci et al. 2023, sec. 2)."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from distilled_student.student.network import Student
from distilled_student.teachers.encoders import Encoder
from distilled_student.teachers.parts import difference, loses_future, parts_of_student

log = logging.getLogger(__name__)

# The parts of a student in order, with the beginnings of the names of their weights; the layers follow.
PARTS = {
    "front end": r"frontend\.",
    "projection norm": r"projection_norm\.",
    "projection": r"projection\.",
    "positions": r"positions\.",
    "first norm": r"norm\.",
}
REQUIRED = ("front end", "projection")  # the later parts were trained on their output


@dataclass
class Initialization:
    """What a student took from its teacher.

    Attributes:
        copied: The parts that were taken, such as ``front end`` and ``layer 1``, each with the names of its weights.
        refused: The parts that were not, each with the reason.
        made_causal: Whether these parts depend on later audio in the teacher, but not in the student.
    """

    copied: dict[str, list[str]] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    made_causal: bool = False

    @property
    def names(self) -> set[str]:
        """The names of all weights that were taken."""
        return {name for names in self.copied.values() for name in names}

    def describe(self) -> str:
        """What was taken, what was not and why, on one line."""
        by_reason: dict[str, list[str]] = {}
        for part, reason in self.refused.items():
            by_reason.setdefault(reason, []).append(part)
        left = "; ".join(f"{', '.join(parts)} ({reason})" for reason, parts in by_reason.items())
        taken = ", ".join(self.copied) + (" (made causal)" if self.made_causal else "") if self.copied else "nothing"
        return taken + (f"; not taken: {left}" if left else "")


def initialize(student: Student, teacher: Encoder) -> Initialization:
    """Copy the parts of ``teacher`` that ``student`` has too into it, and log what was taken, what not, and why.

    A part is taken if it is of the same kind (`teachers.parts`), has no weights that the student lacks, and all shapes
    match. The parts are front end, projection and its norm, positions, the norm before the first layer, and the layers
    in order, up to the first one that cannot be taken. Without front end and projection nothing is taken. A causal
    student takes parts of a teacher that is not causal too.
    """
    state, weights = student.state_dict(), teacher.weights()
    theirs, own = teacher.parts(), parts_of_student(student.config)
    patterns = dict(PARTS) if not student.config.norm_first else {k: v for k, v in PARTS.items() if k != "first norm"}
    patterns |= {f"layer {i + 1}": rf"layers\.{i}\." for i in range(len(student.layers))}
    result, missing = Initialization(), ""
    for part, pattern in patterns.items():
        names = [name for name in state if re.match(pattern, name)]
        kind = "layers" if part.startswith("layer ") else part
        if missing:
            reason: str | None = f"without {missing}"
        elif theirs is None:
            reason = "the teacher's network is not known"
        else:
            reason = difference(theirs[kind], own[kind]) or _why_weights_differ(pattern, names, state, weights)
        if reason is None:
            if names:
                result.copied[part] = names
                result.made_causal |= loses_future(theirs[kind], own[kind])
            continue
        result.refused[part] = reason
        if part in REQUIRED or kind == "layers":
            missing = missing or part
    if missing in REQUIRED:
        result.copied = {}
    student.load_state_dict({**state, **{name: weights[name] for name in result.names}})
    count = sum(state[name].numel() for name in result.names)
    log.info("student initialised from the teacher: %s (%.2f M parameters)", result.describe(), count / 1e6)
    return result


def _why_weights_differ(
    pattern: str, names: list[str], state: Mapping[str, Tensor], weights: Mapping[str, Tensor]
) -> str | None:
    """Why the weights of a part, ``names``, cannot be those of the teacher; None if they can."""
    for name in names:
        if name not in weights:
            return f"the teacher has no {name}"
        if weights[name].shape != state[name].shape:
            return f"{name}: teacher {tuple(weights[name].shape)}, student {tuple(state[name].shape)}"
    further = [name for name in weights if name not in state and re.match(rf"(?:encoder\.)?{pattern}", name)]
    return f"the student has no {further[0]}" if further else None
