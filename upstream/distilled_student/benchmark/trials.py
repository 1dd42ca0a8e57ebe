"""Which runs of a suite are trials and no results: those with fewer steps, or on less data, than their protocol."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from distilled_student.benchmark.commands import Bench
from distilled_student.benchmark.suite import Run
from distilled_student.prepare.catalog import CORPORA, Part
from distilled_student.prepare.counts import relative_audio_paths

# the number of test utterances (KWS) and of test trials (SV) of a complete evaluation
KWS_TEST = CORPORA["speech_commands"].parts[1].expected["test utterances"]
SV_TRIALS = 37_611  # of the cleaned list veri_test2.txt; the original one has 37,720


def trial_reasons(bench: Bench, run: Run) -> list[str]:
    """Why a run is a trial, in words; empty for a run with all steps and, where results are published, all data."""
    return [*_steps(bench, run), *smaller_corpora(bench, run), *smaller_corpora(bench, run, distillation=True)]


def _steps(bench: Bench, run: Run) -> list[str]:
    """Trainings that ``--steps`` or an override stops early."""
    full, reasons = replace(bench, steps=None, distil=[], joint=[]), []
    steps, configured = (int(b.configuration(run)["runner"]["total_steps"]) for b in (bench, full))
    if steps < configured:
        reasons.append(f"{steps:,} of {configured:,} training steps")
    if bench.suite.models[run.model].distill:
        steps, configured = bench.distillation(run)[0].steps, full.distillation(run)[0].steps
        if steps < configured:
            reasons.append(f"{steps:,} of {configured:,} distillation steps")
    return reasons


def smaller_corpora(bench: Bench, run: Run, distillation: bool = False) -> list[str]:
    """The corpora of a run, or of its distillation, that have fewer files than published.

    None for a suite without published results. Missing corpora are not among them: see `Bench.missing`.
    """
    if bench.suite.results is None:
        return []
    used = [Path(path) for path in bench.data_paths(run, distillation)]
    reasons = []
    for corpus in CORPORA.values():
        for part in corpus.parts:
            folder, name = bench.data / corpus.folder / part.folder, f"{corpus.folder}/{part.folder}"
            if not any(folder.is_relative_to(path) or path.is_relative_to(folder) for path in used):
                continue
            found, published = _count(folder), _published_files(part)
            if 0 < found < published:
                reasons.append(f"{name}: {found:,} of {published:,} files")
    return reasons


@functools.lru_cache(maxsize=64)
def _count(folder: Path) -> int:
    return len(relative_audio_paths(folder))


def _published_files(part: Part) -> int:
    """The number of audio files in a part of a corpus, without background noise."""
    return next(part.expected[key] for key in ("utterances", "words", "test utterances") if key in part.expected)


def smaller_tests(results: dict[str, Any]) -> list[str]:
    """Which evaluations in a run's results had fewer utterances or trials than the published ones."""
    found = [
        (results.get("kws", {}).get("utterances"), KWS_TEST, "test utterances of keywords"),
        (results.get("sv", {}).get("trials"), SV_TRIALS, "trials of speakers"),
    ]
    return [f"{count:,} of {full:,} {what}" for count, full, what in found if count is not None and count < full]


def title_of(title: str, rows: Sequence[dict[str, Any]]) -> str:
    """A heading, which says so if a figure below it is of a trial."""
    return f"{title} (trial, no results)" if any(row.get("trial") for row in rows) else title
