"""Measures all models in all their forms: size, memory, and speed in multiples of the first model's."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from safetensors.torch import save_model

from distilled_student.speed.graphs import write_graphs
from distilled_student.speed.measure import interleaved, peak_memory, ratio, threads
from distilled_student.speed.models import (
    BARE_TORCH,
    MODELS,
    SIZES,
    TORCH,
    AsUpstream,
    Variant,
    importer,
    loader,
    noise,
)
from distilled_student.student.cost import macs_per_second, parameters

log = logging.getLogger(__name__)

SECONDS = (1, 4)  # lengths of the audio
COMPARED = 4  # seconds of audio, on one thread: multiples of the reference's speed are taken here
TURN = 0.1  # seconds that a form runs before the next one's turn


def variants(name: str, folder: Path) -> list[Variant]:
    """Every form of a model; its graphs are written into the folder."""
    log.info("%s: exporting", name)
    bare = [Variant(name, BARE_TORCH)] if name in SIZES else []
    return [Variant(name, TORCH), *bare, *write_graphs(name, folder)]


def _build_and_run(variant: Variant) -> Callable[[], object]:
    """For `peak_memory`: builds or loads a model and runs it on one thread."""
    torch.set_num_threads(1)
    load, waveforms = loader(variant, 1), noise(COMPARED)
    return lambda: load()(waveforms)


def _costs(variant: Variant, folder: Path) -> dict[str, Any]:
    """Costs that do not depend on the machine's load: file and memory; in PyTorch also parameters and operations."""
    costs: dict[str, Any] = {"model": variant.model, "form": variant.form}
    file = variant.graph
    if file is None:
        model, file = importer(variant.model, variant.form)(), folder / "model.safetensors"
        save_model(model, str(file))
        costs |= {"parameters": parameters(model), "macs_per_second": macs_per_second(AsUpstream(model))}
    return costs | {"file_bytes": file.stat().st_size, "memory_bytes": peak_memory(_build_and_run, variant)}


def _times(measured: Sequence[Variant], count: int, rounds: int) -> dict[str, dict[str, Any]]:
    """Real-time factors on ``count`` threads and speed relative to the first variant, by a variant's name."""
    found: dict[str, dict[str, Any]] = {variant.name: {} for variant in measured}
    with threads(count):
        runs = {variant.name: loader(variant, count)() for variant in measured}
        for seconds in SECONDS:
            waveforms, what = noise(seconds), f"models, {seconds} s, {count} threads"
            calls = {name: partial(run, waveforms) for name, run in runs.items()}
            for name, times in (all_times := interleaved(calls, rounds, at_least=TURN, what=what)).items():
                speed = ratio(all_times[measured[0].name], times)
                found[name][f"{seconds} s"] = {"rtf": median(times) / seconds, "speed": speed._asdict()}
    return found


def compare_models(folder: Path, rounds: int, names: Sequence[str] = MODELS) -> tuple[dict[str, Any], list[Variant]]:
    """Every form of every model: parameters, MACs, file, peak memory, real-time factors, speed.

    Args:
        folder: For graphs, more than a gigabyte of them.
        names: Names of models. The first one in PyTorch is the reference for the speed of all others.

    Returns:
        ``rows``, one for each form of each model, and ``threads``, the numbers of threads; and the forms themselves.
    """
    counts = sorted({1, torch.get_num_threads()})
    measured = [variant for name in names for variant in variants(name, folder)]
    rows = {variant.name: {**_costs(variant, folder), "times": {}} for variant in measured}
    for count in counts:
        log.info("timing %d forms of models on %d threads", len(measured), count)
        for name, times in _times(measured, count, rounds).items():
            rows[name]["times"][str(count)] = times
    return {"rows": list(rows.values()), "threads": counts}, measured
