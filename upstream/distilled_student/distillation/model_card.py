"""The model card beside a student: what it is, where it comes from, what it costs."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from distilled_student.common.untrusted import markdown
from distilled_student.host.upstreams import StudentUpstream
from distilled_student.student.cost import macs_per_second, parameters
from distilled_student.student.network import Student

if TYPE_CHECKING:
    from distilled_student.distillation.config import DistillConfig


def _curve(curve: list[list[float]], rows: int = 12) -> str:
    """At most ``rows`` points of the loss curve as a Markdown table."""
    stride = max(1, -(-len(curve) // rows))
    kept = curve[::stride] + ([curve[-1]] if curve and curve[::stride][-1] != curve[-1] else [])
    return "\n".join(f"| {int(step)} | {loss:.4f} |" for step, loss in kept)


def write_card(
    folder: Path,
    student: Student,
    config: DistillConfig,
    curve: list[list[float]],
    audio_seconds: float,
    size: str,
    taken: Iterable[str],
) -> None:
    """Write ``README.md`` into the student folder."""
    kept = parameters(student) - (parameters(student.predictions) if student.predictions is not None else 0)
    macs = macs_per_second(StudentUpstream(student))
    rate = config.copied_learning_rate
    copied = f" ({rate:g} for what was taken from the teacher)" if rate is not None and taken else ""
    name = os.path.basename(os.path.normpath(config.teacher))
    text = f"""# Distilled speech student

{markdown(config.description) or "A student distilled with distilled-student."}

| | |
|---|---|
| teacher | {markdown(name)}, layers {", ".join(map(str, config.targets))} |
| initialised from the teacher | {markdown(", ".join(taken)) or "nothing (from scratch)"} |
| data | {size}, {audio_seconds / 3600:.2f} hours heard in {int(curve[-1][0])} steps |
| parameters | {kept / 1e6:.2f} M + {(parameters(student) - kept) / 1e6:.2f} M in the prediction layers |
| multiply-accumulates | {macs / 1e6:.0f} M per second of audio, prediction layers included |
| front end | {student.config.frontend}, a frame every {student.config.frame_shift / 16:g} ms |
| optimiser | AdamW, learning rate {config.learning_rate:g}{copied}, {config.warmup:.0%} warm-up, seed {config.seed} |

Loss per valid frame (sum over target layers of L1 and -log sigmoid(cosine)):

| step | loss |
|---|---|
{_curve(curve)}
"""
    (folder / "README.md").write_text(text, encoding="utf-8")
