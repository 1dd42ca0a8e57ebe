"""The targets for speed, size and accuracy, and which of them the results reach."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from distilled_student.speed.accuracy import is_usable
from distilled_student.speed.compare import COMPARED
from distilled_student.speed.models import INT8, ONNX, TORCH

SPEEDUPS = {  # how many times as fast as HuBERT base in PyTorch, on one thread
    ("paper", TORCH): 2.3,
    ("paper", INT8): 3.0,
    **{("edge", form): 15.0 for form in (TORCH, ONNX, INT8)},
    **{("tiny", form): 40.0 for form in (TORCH, ONNX, INT8)},
}
MILLION_PARAMETERS = {"edge": 6.0, "tiny": 1.0}
INT8_MEGABYTES = {"paper": 30.0, "edge": 7.0}  # of the file
STARTUP_SECONDS = {  # beyond the imports of the libraries underneath
    "import distilled_student": 0.3,
    "run_downstream.py, before it reads data": 1.5,
    "import distilled_student.onnx": 0.5,
}


@dataclass(frozen=True)
class Target:
    """A target, and the figure that was measured.

    Attributes:
        found: The figure. None: there is none that can be compared with the target.
        bound: The least value that reaches the target if ``at_least``, otherwise the greatest.
        row: Model and form, if the target is the speed of one line of the models' table.
    """

    what: str
    found: float | None
    bound: float
    at_least: bool = False
    row: tuple[str, str] | None = None

    @property
    def reached(self) -> bool | None:
        """None: the figures cannot be compared."""
        if self.found is None:
            return None
        return self.found >= self.bound if self.at_least else self.found <= self.bound


def _model_targets(rows: Sequence[Mapping[str, Any]]) -> Iterator[Target]:
    for row in rows:
        model, form = row["model"], row["form"]
        if (model, form) in SPEEDUPS:
            found = row["times"]["1"][f"{COMPARED} s"]["speed"]["median"]
            yield Target(f"{model}, {form}: times HuBERT base", found, SPEEDUPS[model, form], True, (model, form))
        if form == TORCH and model in MILLION_PARAMETERS:
            yield Target(f"{model}: million parameters", row["parameters"] / 1e6, MILLION_PARAMETERS[model])
        if form == INT8 and model in INT8_MEGABYTES:
            yield Target(f"{model}, {form}: MB", row["file_bytes"] / 1e6, INT8_MEGABYTES[model])


def _accuracy_targets(accuracy: Mapping[str, Mapping[str, Any]]) -> Iterator[Target]:
    """How much less accurate ``edge`` is than ``paper``; comparable only if both were trained long enough."""
    for corpus, models in accuracy.items():
        edge, paper = models.get("edge", {}), models.get("paper", {})
        comparable = is_usable(edge) and is_usable(paper)
        if "kws_accuracy" in edge and "kws_accuracy" in paper:
            lost = paper["kws_accuracy"] - edge["kws_accuracy"] if comparable else None
            yield Target(f"edge, {corpus}: points of KWS accuracy below paper", lost, 0.5)
        if "sv_eer" in edge and "sv_eer" in paper:
            lost = edge["sv_eer"] - paper["sv_eer"] if comparable else None
            yield Target(f"edge, {corpus}: points of EER above paper", lost, 1.0)


def _distillation_targets(figures: Mapping[str, Any]) -> Iterator[Target]:
    """The same bound for our fastest precision and for fp32 on both sides."""
    bound = 2.0 if figures["device"] == "cpu" else 3.0
    sides = {"ratio": (figures["ours"], figures["s3prl"])}
    if "ratio_fp32" in figures and "ours_fp32" in figures:
        sides["ratio_fp32"] = (figures["ours_fp32"], figures.get("s3prl_fp32", figures["s3prl"]))
    for key, (ours, s3prl) in sides.items():
        what = f"distillation in {ours['precision']}: times s3prl's recipe in {s3prl['precision']}"
        yield Target(what, figures[key]["median"], bound, at_least=True)


def _training_targets(figures: Mapping[str, Mapping[str, Any]]) -> Iterator[Target]:
    if "distillation" in figures:
        yield from _distillation_targets(figures["distillation"])
    if "joint" in figures:
        yield Target("joint training: share that the runner adds", figures["joint"]["overhead"]["median"], 0.1)
    for name, bound in STARTUP_SECONDS.items():
        if name in figures.get("startup", {}):
            found = figures["startup"][name]["beyond"]
            yield Target(f"{name}: seconds beyond the libraries underneath", found, bound)


def targets(results: Mapping[str, Any]) -> list[Target]:
    """The targets that the results have figures for."""
    figures = {name: part["figures"] for name, part in results["parts"].items()}
    rows = figures.get("models", {}).get("rows", [])
    return [*_model_targets(rows), *_accuracy_targets(results.get("accuracy", {})), *_training_targets(figures)]
