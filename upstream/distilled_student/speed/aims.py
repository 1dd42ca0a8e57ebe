"""What was to be reached, and whether it is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from distilled_student.speed.models import COMPARED, FORMS, INT8, TORCH

MULTIPLES = {  # of HuBERT base in PyTorch, on one thread
    ("paper", TORCH): 2.3,
    ("paper", INT8): 3.0,
    **{("edge", form): 15.0 for form in FORMS},
    **{("tiny", form): 40.0 for form in FORMS},
}
PARAMETERS = {"edge": 6e6, "tiny": 1e6}
BYTES = {"paper": 30e6, "edge": 7e6}  # in int8


@dataclass(frozen=True)
class Aim:
    """A bound, and what was found; ``least``: at least the bound, else at most. ``row``: model and form, if of one."""

    what: str
    found: float
    bound: float
    least: bool
    row: tuple[str, str] | None = None

    @property
    def met(self) -> bool:
        return self.found >= self.bound if self.least else self.found <= self.bound


def _of_models(rows: list[Mapping[str, Any]]) -> Iterator[Aim]:
    for row in rows:
        key = (row["model"], row["form"])
        if key in MULTIPLES:
            found = row["times"]["1"][f"{COMPARED} s"]["speed"]["median"]
            yield Aim(f"{', '.join(key)}: times as fast as HuBERT base", found, MULTIPLES[key], True, key)
        if row["form"] == TORCH and row["model"] in PARAMETERS:
            bound = PARAMETERS[row["model"]] / 1e6
            yield Aim(f"{row['model']}: million parameters", row["parameters"] / 1e6, bound, False)
        if row["form"] == INT8 and row["model"] in BYTES:
            yield Aim(f"{', '.join(key)}: MB", row["file_bytes"] / 1e6, BYTES[row["model"]] / 1e6, False)


def _of_accuracy(accuracy: Mapping[str, Mapping[str, Any]]) -> Iterator[Aim]:
    for corpus, of in accuracy.items():
        edge, paper = of.get("edge", {}), of.get("paper", {})
        if "kws_accuracy" in edge and "kws_accuracy" in paper:
            lost = paper["kws_accuracy"] - edge["kws_accuracy"]
            yield Aim(f"edge, {corpus}: points of KWS accuracy below paper", lost, 0.5, False)
        if "sv_eer" in edge and "sv_eer" in paper:
            yield Aim(f"edge, {corpus}: points of EER above paper", edge["sv_eer"] - paper["sv_eer"], 1.0, False)


def aims(results: Mapping[str, Any]) -> list[Aim]:
    """Those that the results say something about."""
    parts = results["parts"]
    return [*_of_models(parts.get("models", {}).get("rows", [])), *_of_accuracy(results.get("accuracy", {}))]
