"""What was to be reached, and whether it is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from distilled_student.speed.compare import COMPARED
from distilled_student.speed.models import INT8, ONNX, TORCH

MULTIPLES = {  # of HuBERT base in PyTorch, on one thread
    ("paper", TORCH): 2.3,
    ("paper", INT8): 3.0,
    **{("edge", form): 15.0 for form in (TORCH, ONNX, INT8)},
    **{("tiny", form): 40.0 for form in (TORCH, ONNX, INT8)},
}
MILLIONS = {"edge": 6.0, "tiny": 1.0}  # of parameters
MEGABYTES = {"paper": 30.0, "edge": 7.0}  # of a file in int8
BEYOND = {"import distilled_student": 0.3, "run_downstream.py --help": 1.5, "import distilled_student.onnx": 0.5}


@dataclass(frozen=True)
class Aim:
    """A bound, and what was found.

    Attributes:
        least: The bound is the least that is wanted, else the most.
        row: Model and form, where it is of one form's speed.
    """

    what: str
    found: float
    bound: float
    least: bool = False
    row: tuple[str, str] | None = None

    @property
    def met(self) -> bool:
        return self.found >= self.bound if self.least else self.found <= self.bound


def _models(rows: Sequence[Mapping[str, Any]]) -> Iterator[Aim]:
    for row in rows:
        model, form = row["model"], row["form"]
        if (model, form) in MULTIPLES:
            found = row["times"]["1"][f"{COMPARED} s"]["speed"]["median"]
            yield Aim(f"{model}, {form}: times HuBERT base", found, MULTIPLES[model, form], True, (model, form))
        if form == TORCH and model in MILLIONS:
            yield Aim(f"{model}: million parameters", row["parameters"] / 1e6, MILLIONS[model])
        if form == INT8 and model in MEGABYTES:
            yield Aim(f"{model}, {form}: MB", row["file_bytes"] / 1e6, MEGABYTES[model])


def _accuracy(accuracy: Mapping[str, Mapping[str, Any]]) -> Iterator[Aim]:
    for corpus, of in accuracy.items():
        edge, paper = of.get("edge", {}), of.get("paper", {})
        both = edge.keys() & paper.keys()
        if "kws_accuracy" in both:
            lost = paper["kws_accuracy"] - edge["kws_accuracy"]
            yield Aim(f"edge, {corpus}: points of KWS accuracy below paper", lost, 0.5)
        if "sv_eer" in both:
            yield Aim(f"edge, {corpus}: points of EER above paper", edge["sv_eer"] - paper["sv_eer"], 1.0)


def _training(figures: Mapping[str, Mapping[str, Any]]) -> Iterator[Aim]:
    if "distillation" in figures:
        of, least = figures["distillation"], 2.0 if figures["distillation"]["device"] == "cpu" else 3.0
        yield Aim("distillation: times s3prl's recipe", of["ratio"]["median"], least, True)
    if "joint" in figures:
        yield Aim("joint training: share that s3prl's runner adds", figures["joint"]["overhead"]["median"], 0.1)
    for name, bound in BEYOND.items():
        if name in figures.get("startup", {}):
            yield Aim(f"{name}: seconds beyond what it needs", figures["startup"][name]["beyond"], bound)


def aims(results: Mapping[str, Any]) -> list[Aim]:
    """Those that the results say something about."""
    figures = {name: part["figures"] for name, part in results["parts"].items()}
    rows = figures.get("models", {}).get("rows", [])
    return [*_models(rows), *_accuracy(results.get("accuracy", {})), *_training(figures)]
