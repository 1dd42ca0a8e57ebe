"""Reads published results with their sources: SUPERB's table and the paper's tables, from configs/."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from distilled_student.common.errors import UserError
from distilled_student.common.settings import find_config, read_yaml, typed

SETTINGS = ("single kws", "single sv", "joint", "joint frozen")
T = TypeVar("T")


@dataclass(frozen=True)
class Source:
    """Publication that a number comes from."""

    title: str
    url: str


@dataclass(frozen=True)
class Baseline:
    """One upstream under SUPERB's protocol.

    Attributes:
        ks: Keyword spotting accuracy in %.
        asv: Speaker verification EER in %.
        parameters: Of the upstream, in millions.
        sources: By the letters that the table uses for them.
    """

    upstream: str
    ks: float
    asv: float
    parameters: float
    sources: dict[str, Source]


@dataclass(frozen=True)
class PaperResult:
    """One cell of the paper's tables.

    Attributes:
        parameters: With prediction layers and heads, in millions.
        setting: One of `SETTINGS`.
        kws_accuracy, sv_eer: In %; None if the setting does not train that task.
    """

    model: str
    parameters: float
    setting: str
    kws_accuracy: float | None
    sv_eer: float | None
    source: Source


@dataclass
class _BaselineRow:
    upstream: str
    ks: float
    asv: float
    parameters: float
    sources: list[str]

    def __post_init__(self) -> None:
        _require_percent(ks=self.ks, asv=self.asv)
        _require(self.parameters >= 0, f"parameters: {self.parameters} is negative")
        _require(bool(self.sources), "sources: needs at least one")


@dataclass
class _PaperRow:
    model: str
    parameters: float
    setting: str
    kws_accuracy: float | None = None
    sv_eer: float | None = None

    def __post_init__(self) -> None:
        _require(self.setting in SETTINGS, f"setting: '{self.setting}' is not one of {', '.join(SETTINGS)}")
        _require(self.parameters > 0, f"parameters: {self.parameters} is not positive")
        has_kws, has_sv = self.setting != "single sv", self.setting != "single kws"
        _require((self.kws_accuracy is not None) == has_kws, f"kws_accuracy: does not fit the setting '{self.setting}'")
        _require((self.sv_eer is not None) == has_sv, f"sv_eer: does not fit the setting '{self.setting}'")
        _require_percent(kws_accuracy=self.kws_accuracy, sv_eer=self.sv_eer)


def _require(ok: bool, message: str) -> None:
    if not ok:
        raise ValueError(message)


def _require_percent(**values: float | None) -> None:
    for key, value in values.items():
        _require(value is None or 0 <= value <= 100, f"{key}: {value} is not a percentage")


def _read(path: Path, **kinds: type) -> dict[str, Any]:
    """The file's mapping. It must have exactly the keys of ``kinds``, with values of these types."""
    values = read_yaml(path)
    for key in values.keys() ^ kinds.keys():
        raise UserError(f"{path}: {key}: {'unknown key' if key in values else 'is missing'}")
    for key, kind in kinds.items():
        if not isinstance(values[key], kind):
            raise UserError(f"{path}: {key}: expected a {kind.__name__}, found '{values[key]}'")
    return values


def _entry(schema: type[T], values: Any, where: str) -> T:
    if not isinstance(values, dict):
        raise UserError(f"{where}: expected a group of keys, found '{values}'")
    return typed(schema, values, where)


@functools.cache  # rows of a report read it
def read_baselines(path: Path | None = None) -> list[Baseline]:
    """The rows of SUPERB's table in the file's order. Default file: ``configs/superb/baselines.yaml``.

    Raises:
        UserError: unknown key, wrong type, impossible value, or a source that the file does not define.
    """
    path = path or find_config("baselines", kind="superb")
    values = _read(path, sources=dict, baselines=list)
    sources = {key: _entry(Source, value, f"{path}: sources.{key}") for key, value in values["sources"].items()}
    baselines = []
    for index, value in enumerate(values["baselines"]):
        where = f"{path}: baselines[{index}]"
        row = _entry(_BaselineRow, value, where)
        for key in row.sources:
            if key not in sources:
                raise UserError(f"{where}: sources: '{key}' is not one of {', '.join(sources)}")
        cited = {key: sources[key] for key in row.sources}
        baselines.append(Baseline(row.upstream, row.ks, row.asv, row.parameters, cited))
    return baselines


@functools.cache  # rows of a report read it
def read_paper_results(path: Path | None = None) -> list[PaperResult]:
    """The cells of the paper's tables in the file's order. Default file: ``configs/benchmark/paper-results.yaml``.

    Raises:
        UserError: unknown key, wrong type or impossible value.
    """
    path = path or find_config("paper-results", kind="benchmark")
    values = _read(path, source=dict, results=list)
    source = _entry(Source, values["source"], f"{path}: source")
    rows = [_entry(_PaperRow, value, f"{path}: results[{i}]") for i, value in enumerate(values["results"])]
    return [PaperResult(**vars(row), source=source) for row in rows]
