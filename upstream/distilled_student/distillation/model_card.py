"""The model card (README.md) in a student folder: what the student is, how it was trained, what it costs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from distilled_student.common.arithmetic import ceil_div
from distilled_student.common.model_cards import licence_of
from distilled_student.common.untrusted import escape_markdown
from distilled_student.distillation.initialize import Initialization
from distilled_student.host.upstreams import StudentUpstream
from distilled_student.student.cost import macs_per_second, parameters
from distilled_student.student.network import Student
from distilled_student.teachers.early_checks import WORD_ENCODER, teacher_path

if TYPE_CHECKING:
    from distilled_student.distillation.code_cache import QuantizationError
    from distilled_student.distillation.config import DistillConfig
    from distilled_student.distillation.throughput import TeacherCost


def _curve_table(curve: list[list[float]], rows: int = 12) -> str:
    """About ``rows`` points ``[step, loss]`` of the loss curve, the last one included, as lines of a Markdown table."""
    stride = max(1, ceil_div(len(curve), rows))
    points = curve[::stride] + ([curve[-1]] if curve and curve[::stride][-1] != curve[-1] else [])
    return "\n".join(f"| {int(step)} | {loss:.4f} |" for step, loss in points)


def _loss_section(config: DistillConfig, curve: list[list[float]]) -> str:
    """The loss curve; empty for a student without updates."""
    if not curve:
        return ""
    return f"""
Loss ({_summed(config)} of L1 and -log sigmoid(cosine), means over frames, of embeddings over utterances):

| step | loss |
|---|---|
{_curve_table(curve)}
"""


def _start_row(config: DistillConfig, initialization: Initialization) -> str:
    """A row with the weights that the training started from."""
    if config.start_from:
        return f"| starts from | the student {escape_markdown(_name(config.start_from))} |"
    is_known = initialization.refused or initialization.copied
    described = initialization.describe() if is_known else "nothing (random weights)"
    return f"| initialised from the teacher | {escape_markdown(described)} |"


def _summed(config: DistillConfig) -> str:
    return "weighted sum over the targets of all teachers" if len(config.teachers) > 1 else "sum over target layers"


def _effects_row(config: DistillConfig) -> str:
    """A row with the effects on the student's input, empty if there are none."""
    effects = config.data.augment
    noise = f"noise at {effects.snr[0]:g} to {effects.snr[1]:g} dB"
    shares = {"reverberation": effects.reverb, noise: effects.noise, "band limits": effects.band, "gain": effects.gain}
    parts = [f"{effect} in {share:.0%}" for effect, share in shares.items() if share]
    return f"| student's input | {', '.join(parts)} of the utterances |\n" if parts else ""


def _name(teacher: str) -> str:
    return os.path.basename(os.path.normpath(teacher))


def _teacher_rows(config: DistillConfig, costs: Sequence[TeacherCost]) -> str:
    """For each teacher a row with its name and targets, and one with its cost if that was measured."""
    rows, teachers = [], config.all_teachers()
    for number, teacher in enumerate(teachers):
        label = f"teacher {number + 1}" if len(teachers) > 1 else "teacher"
        layers = "embedding" if teacher.embeds_utterances else f"layers {', '.join(map(str, teacher.targets))}"
        weight = f", weight {teacher.weight:g}" if len(teachers) > 1 else ""
        rows.append(f"| {label} | {escape_markdown(_name(teacher.teacher))}, {layers}{weight} |\n")
        if number < len(costs):
            cost = costs[number]
            macs = "" if cost.macs is None else f"{cost.macs / 1e6:.0f} M multiply-accumulates and "
            work = f"{macs}{cost.seconds:.2g} s of work per second of audio, in this run"
            which = label if len(teachers) > 1 else "the teacher"
            rows.append(f"| cost of {which} | {cost.parameters / 1e6:.2f} M parameters; {work} |\n")
    return "".join(rows)


def _code_rows(config: DistillConfig, codes: Sequence[Sequence[QuantizationError]]) -> str:
    """A row for each layer whose targets were in codes."""
    rows, teachers = [], config.all_teachers()
    for number, (teacher, errors) in enumerate(zip(teachers, codes, strict=False)):
        label = f"teacher {number + 1}, " if len(teachers) > 1 else ""
        for layer, error in zip(teacher.targets, errors, strict=False):
            rows.append(f"| targets in codes, {label}layer {layer} | {config.cache_codes} bytes per frame: {error} |\n")
    return "".join(rows)


def _licences(config: DistillConfig) -> str:
    """A sentence about the licence of each teacher."""
    return "; ".join(_licence(teacher.teacher, _name(teacher.teacher)) for teacher in config.all_teachers())


def _licence(teacher: str, name: str) -> str:
    if teacher == "resemblyzer":
        return "Apache-2.0 (resemblyzer)"
    if teacher == WORD_ENCODER:
        return "Apache-2.0 (Google's speech embedding, from the package openwakeword)"
    if teacher in ("shipped", "teacher"):
        name = "the teacher that ships with distilled-student"
    return licence_of(name, teacher_path(teacher))


def write_card(
    folder: Path,
    student: Student,
    config: DistillConfig,
    curve: list[list[float]],
    audio_seconds: float,
    corpus: str,
    initialization: Initialization,
    held_out: tuple[float, float, float] | None = None,
    costs: Sequence[TeacherCost] = (),
    codes: Sequence[Sequence[QuantizationError]] = (),
) -> None:
    """Write ``README.md`` into the student folder.

    Args:
        curve: ``[step, loss per frame]`` of each log line.
        audio_seconds: Seconds of audio in all training batches.
        corpus: Names and size of the corpus that was used, in words.
        initialization: What was copied from the teacher.
        held_out: The step of the student's weights, their loss on held-out audio, and the seconds of that audio.
        costs: Of each teacher.
        codes: For each teacher the error of each layer's targets in codes; none if they are not in codes.
    """
    prediction = parameters(student.predictions) if student.predictions is not None else 0
    kept = parameters(student) - prediction
    macs = macs_per_second(StudentUpstream(student))
    rate = config.copied_learning_rate
    copied_rate = (
        f" ({rate:g} for the weights copied from the teacher)" if rate is not None and initialization.copied else ""
    )
    learning_rate = f"{config.learning_rate:g}{copied_rate}"
    teacher_rows = _teacher_rows(config, costs) + _code_rows(config, codes)
    training_rows = _effects_row(config)
    if held_out is not None:
        step, loss, seconds = held_out
        row = f"{loss:.4f} on {seconds / 3600:.2f} hours, the lowest: of step {int(step)}"
        training_rows += f"| held-out loss per frame | {row} |\n"
    data = "none: the student is initialised and not distilled"
    if curve:
        hours = audio_seconds / 3600
        data = f"{escape_markdown(corpus)}; trained on {hours:.2f} hours of audio in {int(curve[-1][0])} steps"
    text = f"""# Distilled speech student

{escape_markdown(config.description) or "A student distilled with distilled-student."}

What follows is measured or taken from the settings of this run.

| | |
|---|---|
{teacher_rows}{_start_row(config, initialization)}
| data | {data} |
{training_rows}| parameters | {kept / 1e6:.2f} M + {prediction / 1e6:.2f} M in the prediction layers |
| multiply-accumulates | {macs / 1e6:.0f} M per second of audio, prediction layers included |
| front end | {student.config.frontend}, one frame every {student.config.frame_shift / 16:g} ms |
| optimiser | AdamW, learning rate {learning_rate}, {config.warmup:.0%} warm-up, seed {config.seed} |
| licence | {escape_markdown(_licences(config))}; the licences of the data apply too |
{_loss_section(config, curve)}"""
    (folder / "README.md").write_text(text, encoding="utf-8")
