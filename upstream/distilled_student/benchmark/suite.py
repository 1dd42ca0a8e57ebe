"""A suite: models, ways to train them, and the named runs MODEL/SETTING that both make (configs/benchmark/)."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from distilled_student.benchmark.superb_results import EXPERTS
from distilled_student.common.errors import UserError
from distilled_student.common.settings import find_config, read_yaml, typed

SHAPES = ("paper", "hubert-base", "shipped")
DOWNSTREAMS = ("multitask", *EXPERTS)
T = TypeVar("T")


@dataclass
class Model:
    """An upstream of the suite.

    Attributes:
        upstream: s3prl's name of it (``-u``).
        weights: ``-k``: a folder or a hub's name; ``ROOT/teachers/LAST-PART`` is taken where it exists.
        distill: The configuration that makes the student, instead of ``weights``.
        student: A named size, in place of the one that ``distill`` configures.
        untrained: The student of ``distill`` with random weights.
        shape: Size of ``weights``, or of the teacher of ``distill``, for an estimate of the cost: one of `SHAPES`;
            None: hardly any operations.
        select: ``-s``, what of the upstream the heads read; None: the setting's.
        settings: The settings it is trained in; empty: all.
        published: Its name in the published results.
        extra: Runs only with ``--all``.
        override: ``KEY=VALUE`` in the run's configuration.
    """

    upstream: str
    weights: str | None = None
    distill: str | None = None
    student: str | None = None
    untrained: bool = False
    shape: str | None = None
    select: str | None = None
    settings: list[str] = field(default_factory=list)
    published: str | None = None
    extra: bool = False
    override: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.weights and self.distill:
            raise ValueError("weights, distill: only one of them can be given")
        if self.untrained and not self.distill:
            raise ValueError("untrained: needs distill, whose student it is without the weights")
        if self.student and not self.distill:
            raise ValueError("student: needs distill, whose student it is")
        if self.shape is not None and self.shape not in SHAPES:
            raise ValueError(f"shape: '{self.shape}' is not one of {', '.join(SHAPES)}")


@dataclass
class Setting:
    """One way to train: an s3prl downstream (``-d``), its configuration (``-c``), with or without ``-f``.

    ``select`` is ``-s``; ``label`` is added to a model's name in the report; ``published`` names the setting in the
    published results; ``extra`` and ``override`` as a model's.
    """

    downstream: str
    config: str
    trainable: bool = False
    select: str = "hidden_states"
    label: str = ""
    published: str | None = None
    extra: bool = False
    override: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.downstream not in DOWNSTREAMS:
            raise ValueError(f"downstream: '{self.downstream}' is not one of {', '.join(DOWNSTREAMS)}")


@dataclass
class SuiteFile:
    """What a suite's file holds.

    Attributes:
        protocol: What its figures mean; stands above every report.
        results: ``paper``, ``superb`` or None: the published results that stand beside ours.
        seeds: Seeds 0, 1, ... of every run.
        distill: ``once`` (one student for all seeds) or ``seeds`` (one for each).
        models, settings: `Model` and `Setting` by name.
        tables: The report's tables: heading -> settings. Settings of different tasks share a model's line; those of the
            same task need a ``label``, which makes a line of its own.
    """

    title: str
    protocol: str
    models: dict[str, Any]
    settings: dict[str, Any]
    tables: dict[str, list[str]]
    results: str | None = None
    seeds: int = 1
    distill: str = "once"

    def __post_init__(self) -> None:
        if self.results not in (None, "paper", "superb"):
            raise ValueError(f"results: '{self.results}' is not paper or superb")
        if self.distill not in ("once", "seeds"):
            raise ValueError(f"distill: '{self.distill}' is not once or seeds")
        if self.seeds < 1:
            raise ValueError("seeds: needs 1 or more")
        for title, names in self.tables.items():
            for name in names:
                if name not in self.settings:
                    raise ValueError(f"tables.{title}: no such setting: {name}")


@dataclass
class Suite(SuiteFile):
    """A suite whose models and settings are typed too."""

    models: dict[str, Model]
    settings: dict[str, Setting]


@dataclass(frozen=True)
class Run:
    """One training and its evaluation; ``name`` is MODEL/SETTING."""

    model: str
    setting: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.model}/{self.setting}"

    def folder(self, output: Path) -> Path:
        """Of its checkpoints and results."""
        return output / "runs" / slug(self.model) / self.setting / f"seed-{self.seed}"


def slug(name: str) -> str:
    """A name as a folder's."""
    return name.replace(", ", "-").replace(" ", "-")


def _typed_group(schema: type[T], group: dict[str, Any], where: str) -> dict[str, T]:
    for name, values in group.items():
        if not isinstance(values, dict):
            raise UserError(f"{where}.{name}: expected a group of keys, found '{values}'")
    return {name: typed(schema, values, f"{where}.{name}") for name, values in group.items()}


def read_suite(name: str | Path) -> Suite:
    """A suite's file, or one that ships, by its name.

    Raises:
        UserError: no such suite, unknown key, wrong type or impossible value; one line naming file and key.
    """
    path = find_config(name, "benchmark")
    file = typed(SuiteFile, read_yaml(path), path)
    models = _typed_group(Model, file.models, f"{path}: models")
    settings = _typed_group(Setting, file.settings, f"{path}: settings")
    for model, values in models.items():
        for setting in values.settings:
            if setting not in settings:
                raise UserError(f"{path}: models.{model}.settings: no such setting: {setting}")
    return Suite(**(vars(file) | {"models": models, "settings": settings}))


def plan(suite: Suite, seeds: int, only: Sequence[str] = (), extra: bool = False) -> list[Run]:
    """The runs, seed by seed, so that every cell has a first figure early.

    Args:
        only: Patterns such as ``distilled-hubert/*``; a run needs to match one of them. Empty: all but the extra ones.
        extra: The extra ones too.

    Raises:
        UserError: a pattern that matches no run.
    """
    cells = [
        (f"{name}/{setting}", name, setting)
        for name, model in suite.models.items()
        for setting in model.settings or suite.settings
    ]
    for pattern in only:
        if not any(fnmatch.fnmatch(cell, pattern) for cell, _, _ in cells):
            raise UserError(f"--only {pattern}: no such run; there are {', '.join(cell for cell, _, _ in cells)}")
    if only:
        cells = [cell for cell in cells if any(fnmatch.fnmatch(cell[0], pattern) for pattern in only)]
    elif not extra:
        cells = [c for c in cells if not (suite.models[c[1]].extra or suite.settings[c[2]].extra)]
    return [Run(model, setting, seed) for seed in range(seeds) for _, model, setting in cells]
