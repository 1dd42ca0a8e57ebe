"""Reads a suite (configs/benchmark/): models, settings to train them, and the named runs MODEL/SETTING of both."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from distilled_student.common.base_configs import read_config_file
from distilled_student.common.errors import UserError, did_you_mean
from distilled_student.common.settings import find_config, typed

SHAPES = ("paper", "hubert-base", "shipped")
# ours, and the keys of superb_results.EXPERTS, whose module imports torch
DOWNSTREAMS = ("multitask", "speech_commands", "sv_voxceleb1")
RESULTS = "paper-results"  # the file next to the suites that holds published results
T = TypeVar("T")


@dataclass
class SuiteModel:
    """An upstream of the suite.

    Attributes:
        upstream: The model's upstream in s3prl (``-u``).
        weights: ``-k``: a folder or a name on a hub. If ``data/teachers/LAST-PART`` exists, it is used instead.
        distill: The configuration that distils the student, instead of ``weights``.
        student: A named size, instead of the student that ``distill`` configures.
        untrained: Start from the student of ``distill`` with random weights.
        shape: Size of ``weights``, or of the teacher of ``distill``, from which the cost of a run is estimated:
            ``paper``, ``hubert-base`` or ``shipped``. None: the upstream costs nothing (filterbanks).
        select: ``-s``, the features of the upstream that the heads use; None: as the setting says.
        settings: Names of the settings to train the model with; empty: all.
        published: The model's name in the published results; None: it has none.
        extra: Whether runs of this model need the option ``--all``.
        override: ``KEY=VALUE`` overrides of the configuration of this model's runs.
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
            raise ValueError("weights, distill: give only one of them")
        if self.untrained and not self.distill:
            raise ValueError("untrained: needs distill, which configures the student")
        if self.student and not self.distill:
            raise ValueError("student: needs distill, which configures the distillation")
        if self.shape is not None and self.shape not in SHAPES:
            raise ValueError(f"shape: '{self.shape}' is not one of {', '.join(SHAPES)}")


@dataclass
class Setting:
    """One way to train.

    Attributes:
        downstream: s3prl's downstream (``-d``).
        config: The downstream's configuration (``-c``).
        trainable: Fine-tune the upstream (``-f``).
        select: ``-s``, the features of the upstream that the heads use.
        label: Added to the model's name in the report.
        published: The setting's name in the published results; None: it has none.
        extra: Whether runs of this setting need the option ``--all``.
        override: ``KEY=VALUE`` overrides of the configuration of this setting's runs, applied after the model's.
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
    """Content of a suite's file.

    Attributes:
        title: Heading of the report.
        protocol: What the figures mean; printed at the top of every report.
        results: ``paper`` or ``superb``: the published results that the report compares with. None: no comparison.
        seeds: Number of seeds, from 0, of every run.
        distill: ``once`` (one student for all seeds) or ``seeds`` (one student for each seed).
        split: Data of the figures: ``test``, or ``dev`` where they choose settings; ``dev`` needs ``multitask`` in all
            settings.
        reference: The run MODEL/SETTING that the others are compared with: the report has the difference of each figure
            from that of this run with the same seed. None: no differences.
        models: A group of keys for each model, by the model's name; they have a table of their own.
        settings: A group of keys for each setting, a way to train, by its name; they have a table of their own.
        tables: The report's tables: the names of the settings in a table, by its heading. Settings of different tasks
            share the line of a model. Settings of the same task need a ``label``, which gives each of them a line of
            its own.
    """

    title: str
    protocol: str
    models: dict[str, Any]
    settings: dict[str, Any]
    tables: dict[str, list[str]]
    results: str | None = None
    seeds: int = 1
    distill: str = "once"
    split: str = "test"
    reference: str | None = None

    def __post_init__(self) -> None:
        if self.results not in (None, "paper", "superb"):
            raise ValueError(f"results: '{self.results}' is not paper or superb")
        if self.distill not in ("once", "seeds"):
            raise ValueError(f"distill: '{self.distill}' is not once or seeds")
        if self.split not in ("test", "dev"):
            raise ValueError(f"split: '{self.split}' is not test or dev")
        if self.split == "dev" and self.results is not None:
            raise ValueError("split: dev cannot be used with results: published figures are those of test data")
        if self.seeds < 1:
            raise ValueError("seeds: must be 1 or more")
        if self.reference is not None:
            model, _, setting = self.reference.rpartition("/")
            if model not in self.models or setting not in self.settings:
                raise ValueError(f"reference: no such run MODEL/SETTING: {self.reference}")
        for title, names in self.tables.items():
            for name in names:
                if name not in self.settings:
                    raise ValueError(f"tables.{title}: no such setting: {name}; there are {', '.join(self.settings)}")


@dataclass
class Suite(SuiteFile):
    """A suite with typed models and settings."""

    models: dict[str, SuiteModel]
    settings: dict[str, Setting]


@dataclass(frozen=True)
class Run:
    """One training and its evaluation."""

    model: str
    setting: str
    seed: int

    @property
    def name(self) -> str:
        """MODEL/SETTING."""
        return f"{self.model}/{self.setting}"

    def folder(self, output: Path) -> Path:
        """Folder of its checkpoints and results."""
        return output / "runs" / slug(self.model) / self.setting / f"seed-{self.seed}"


def slug(name: str) -> str:
    """A name without spaces and commas, for a folder."""
    return name.replace(", ", "-").replace(" ", "-")


def _typed_group(schema: type[T], group: dict[str, Any], where: str) -> dict[str, T]:
    for name, values in group.items():
        if not isinstance(values, dict):
            raise UserError(f"{where}.{name}: expected a group of keys, found '{values}'")
    return {name: typed(schema, values, f"{where}.{name}") for name, values in group.items()}


def read_suite(name: str | Path) -> Suite:
    """Read a suite's file, or a shipped suite by its name.

    Raises:
        UserError: no such suite, unknown key, wrong type or impossible value; one line that names file and key.
    """
    try:
        path = find_config(name, "benchmark")
    except UserError:
        if Path(name).exists() or "/" in str(name):  # a folder, or a config of another kind
            raise
        known = [file.stem for file in find_config("paper", "benchmark").parent.glob("*.yaml") if file.stem != RESULTS]
        hint = did_you_mean(name, known) or f"; the suites are {', '.join(sorted(known))}, or give a YAML file"
        raise UserError(f"benchmark {name}: no such suite{hint}") from None
    file = typed(SuiteFile, read_config_file(path, "benchmark"), path)
    models = _typed_group(SuiteModel, file.models, f"{path}: models")
    settings = _typed_group(Setting, file.settings, f"{path}: settings")
    for name, setting in settings.items():
        if file.split == "dev" and setting.downstream != "multitask":
            raise UserError(f"{path}: split: dev needs multitask in all settings, and {name} has {setting.downstream}")
    known = ", ".join(settings)
    for model, values in models.items():
        for setting in values.settings:
            if setting not in settings:
                raise UserError(f"{path}: models.{model}.settings: no such setting: {setting}; there are {known}")
    return Suite(**(vars(file) | {"models": models, "settings": settings}))


def plan(suite: Suite, seeds: int, only: Sequence[str] = (), extra: bool = False) -> list[Run]:
    """The runs, all cells of one seed before the next seed, so that every cell has a first figure early.

    Args:
        only: Patterns such as ``distilled-hubert/*``; a run must match one of them. Empty: all runs that are not extra.
        extra: Include the extra runs.

    Raises:
        UserError: a pattern matches no run.
    """
    cells = [
        (f"{name}/{setting}", name, setting)
        for name, model in suite.models.items()
        for setting in model.settings or suite.settings
    ]
    for pattern in only:
        if not any(fnmatch.fnmatch(cell, pattern) for cell, _, _ in cells):
            raise UserError(f"--only {pattern}: no such run: there are {', '.join(cell for cell, _, _ in cells)}")
    if only:
        cells = [cell for cell in cells if any(fnmatch.fnmatch(cell[0], pattern) for pattern in only)]
    elif not extra:
        cells = [c for c in cells if not (suite.models[c[1]].extra or suite.settings[c[2]].extra)]
    return [Run(model, setting, seed) for seed in range(seeds) for _, model, setting in cells]
