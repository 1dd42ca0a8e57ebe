"""The speed benchmark: order of calls, comparisons, tables and targets. Measured times are not tested."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from distilled_student.common.errors import UserError
from distilled_student.speed.accuracy import is_usable, read_accuracy
from distilled_student.speed.history import append, ratios, read_history, slower, stamp
from distilled_student.speed.measure import interleaved, peak_memory, ratio, threads
from distilled_student.speed.measure_all import _models, measure_parts, write_tables
from distilled_student.speed.models import BARE_INT8, BARE_TORCH, DISTILHUBERT, INT8, ONNX, TORCH, importer
from distilled_student.speed.table import BEGIN, END, insert, render
from distilled_student.speed.targets import targets
from distilled_student.student.cost import parameters

MEGABYTE = 2**20


def test_every_round_calls_all_functions_and_starts_with_another_one() -> None:
    called: list[str] = []
    times = interleaved({name: lambda name=name: called.append(name) for name in "abc"}, rounds=3, warmup=1)
    assert "".join(called) == "cab" + "abc" + "bca" + "cab"
    assert {name: len(seconds) for name, seconds in times.items()} == {"a": 3, "b": 3, "c": 3}


def test_a_short_function_is_called_repeatedly_for_the_least_time() -> None:
    calls: list[int] = []
    (times,) = interleaved({"short": lambda: calls.append(0)}, rounds=2, warmup=0, at_least=0.01).values()
    assert len(calls) > 10
    assert sum(times) < 0.01  # seconds per call, not for all calls of a round


def test_ratios_are_taken_round_by_round() -> None:
    slowed_down = [1.0, 10.0, 3.0]
    assert ratio([2 * t for t in slowed_down], slowed_down) == (2.0, 2.0, 2.0)
    assert ratio([1.0, 2.0, 3.0, 4.0, 5.0], [1.0] * 5) == (3.0, 2.0, 4.0)


def test_the_number_of_threads_is_restored() -> None:
    before = torch.get_num_threads()
    with threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


def allocating(megabytes: int) -> Callable[[], object]:
    """For `peak_memory` in another process: memory that it holds or has freed before the call must not count."""
    held, _ = b"x" * (30 * MEGABYTE), len(b"x" * (300 * MEGABYTE))
    return lambda: len(b"y" * (megabytes * MEGABYTE)) + len(held)


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux' /proc")
def test_peak_memory_is_what_a_fresh_process_needs_beyond_its_imports() -> None:
    ours = b"z" * (200 * MEGABYTE)  # memory of this process must not count either
    peak = peak_memory(allocating, 50)
    assert peak is not None and 49 < peak / MEGABYTE < 60, len(ours)  # the kernel's count of pages is not exact


def entry(cpu: str, **ratios: float) -> dict[str, Any]:
    return {"revision": f"{cpu}-{ratios}", "machine": {"cpu": cpu, "cores": 2, "threads": 2}, "ratios": ratios}


def test_a_slower_figure_is_reported_against_the_last_entries_of_the_same_machine() -> None:
    history = [
        entry("here", a=9.0, b=2.0),
        *(entry("here", a=a, b=2.0) for a in (3.0, 9.0, 3.1)),
        entry("there", a=90.0),
    ]
    assert slower(entry("here", a=2.8, b=1.9, c=1.0), history) == []
    (line,) = slower(entry("here", a=2.7, b=3.0, c=1.0), history)
    assert line.startswith("a: 2.70 times as fast as its reference, before 3.10")
    assert slower(entry("elsewhere", a=0.1), history) == []


def test_an_entry_is_appended_to_the_history_and_read_again(tmp_path: Path) -> None:
    file = tmp_path / "docs" / "history.jsonl"
    first, second = {**stamp(), "ratios": {"a": 2.0}}, {**stamp(), "ratios": {"a": 1.0}}
    assert append(file, first) == []
    assert len(append(file, second)) == 1
    assert read_history(file) == [first, second]


def test_a_damaged_line_of_the_history_is_named(tmp_path: Path) -> None:
    file = tmp_path / "history.jsonl"
    append(file, entry("here", a=1.0))
    file.write_text(file.read_text() + "{}\n")
    with pytest.raises(UserError, match=r"history\.jsonl, line 2"):
        read_history(file)


def test_s3prls_distilhubert_has_the_papers_parameters_without_one_norm() -> None:
    paper, distilhubert = (parameters(importer(name)()) for name in ("paper", DISTILHUBERT))
    assert paper == 27_035_776
    assert distilhubert == paper - 2 * 512  # the norm before the projection
    assert parameters(importer("paper", BARE_TORCH)()) == 23_492_224


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The folder and the figures of the smallest student, with itself as the reference."""
    folder = tmp_path_factory.mktemp("speed")
    (folder / "profile-old.txt").touch()
    return folder, _models(folder, rounds=1, names=["tiny"])


@pytest.mark.slow
def test_every_form_of_a_model_is_measured(measured: tuple[Path, dict[str, Any]]) -> None:
    rows = {row["form"]: row for row in measured[1]["rows"]}
    assert list(rows) == [TORCH, BARE_TORCH, ONNX, INT8, BARE_INT8]
    assert rows[BARE_TORCH]["parameters"] < rows[TORCH]["parameters"] < 1e6
    assert rows[BARE_TORCH]["macs_per_second"] < rows[TORCH]["macs_per_second"]
    assert rows[BARE_INT8]["file_bytes"] < rows[INT8]["file_bytes"] < rows[ONNX]["file_bytes"]
    for row in rows.values():
        for count in measured[1]["threads"]:
            assert all(row["times"][str(count)][seconds]["rtf"] > 0 for seconds in ("1 s", "4 s"))
    assert set(rows[TORCH]["times"]["1"]["4 s"]["speed"].values()) == {1.0}


@pytest.mark.slow
def test_a_profile_is_written_where_a_target_is_not_reached(measured: tuple[Path, dict[str, Any]]) -> None:
    folder, figures = measured
    found = targets({"parts": {"models": {"figures": figures}}})
    assert ("tiny", TORCH) in [target.row for target in found if not target.reached]  # not 40 times as fast as itself
    assert "aten::" in (folder / "profile-tiny-PyTorch.txt").read_text()
    assert not (folder / "profile-old.txt").exists()


ROW = {
    "model": "paper",
    "form": TORCH,
    "parameters": 27_035_776,
    "macs_per_second": 3_600_000_000,
    "file_bytes": 108_000_000,
    "memory_bytes": None,
    "times": {"1": {s: {"rtf": 0.05, "speed": {"median": 2.25, "low": 2.2, "high": 2.4}} for s in ("1 s", "4 s")}},
}
REPORT = {
    "rows": [
        {"model": "paper", "kws_accuracy": 97.06, "kws_accuracy_deviation": 0.5, "sv_eer": 6.0},
        {"model": "edge", "kws_accuracy": 96.6, "sv_eer": 7.5},
    ]
}


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A results.json with one row of one part."""
    file = tmp_path / "results.json"
    file.write_text(json.dumps({"parts": {"models": {"when": stamp(), "figures": {"rows": [ROW], "threads": [1]}}}}))
    return file


def test_the_tables_show_the_results_with_accuracies_and_targets(results: Path) -> None:
    (results.parent / "sizes.json").write_text(json.dumps(REPORT))
    write_tables(results, [f"real={results.parent / 'sizes.json'}"])
    text = (results.parent / "table.md").read_text()
    row = next(line for line in text.splitlines() if line.startswith("| paper | PyTorch |"))
    assert row.split(" | ")[2:] == [
        "27.04",
        "3600",
        "0.0500",
        "0.0500",
        "2.25 (2.20 to 2.40)",
        "2.3: **not reached**",
        "-",
        "108.0",
        "97.1 ± 0.5",
        "6.0 |",
    ]
    assert "| edge, real: points of KWS accuracy below paper | 0.46 | at most 0.5 | reached |" in text
    assert "| edge, real: points of EER above paper | 1.50 | at most 1 | **not reached** |" in text
    write_tables(results)  # the file keeps the accuracies
    assert (results.parent / "table.md").read_text() == text


UNUSABLE = {"kws_accuracy": 20.7, "sv_eer": 31.5}


@pytest.mark.parametrize(
    ("paper", "edge"),
    [
        (UNUSABLE, {"kws_accuracy": 43.3, "sv_eer": 31.5}),
        (UNUSABLE, {"kws_accuracy": 97.0, "sv_eer": 5.0}),
        ({"kws_accuracy": 97.0, "sv_eer": 5.0}, {"kws_accuracy": 96.4, "sv_eer": 31.5}),
    ],
)
def test_no_accuracy_and_no_target_is_shown_of_models_that_were_not_trained_long_enough(
    results: Path, paper: dict[str, float], edge: dict[str, float]
) -> None:
    rows = [{"model": "paper", **paper}, {"model": "edge", **edge}, {"model": "teacher", **UNUSABLE}]
    (results.parent / "sizes.json").write_text(json.dumps({"rows": rows}))
    write_tables(results, [f"real={results.parent / 'sizes.json'}"])
    text = (results.parent / "table.md").read_text()
    for what, bound in (("points of KWS accuracy below paper", "0.5"), ("points of EER above paper", "1")):
        assert f"| edge, real: {what} | - | at most {bound} | not comparable |" in text
    for scores in (paper, edge):
        if not is_usable(scores):
            assert all(f"{score:.1f}" not in text for score in (scores["kws_accuracy"], 31.5))
    unusable = [row["model"] for row in rows if not is_usable(row)]
    assert f"not trained long enough to be used (real: {', '.join(unusable)})" in text


def test_a_model_can_be_used_only_if_every_task_was_trained_long_enough() -> None:
    assert is_usable({"kws_accuracy": 90.0, "sv_eer": 10.0})
    assert is_usable({"kws_accuracy": 97.0}) and is_usable({"sv_eer": 4.0})
    assert not is_usable({"kws_accuracy": 89.9, "sv_eer": 4.0})
    assert not is_usable({"kws_accuracy": 97.0, "sv_eer": 10.1})
    assert not is_usable({})


def test_the_other_parts_have_a_line_for_each_group_of_figures_targets_and_ratios(results: Path) -> None:
    figures = {
        "distillation": {
            "device": "cpu",
            "s3prl": {"padding": 0.25, "precision": "fp32", "teacher_precision": "fp32"},
            "ours_fp32": {"padding": 0.0625, "precision": "fp32", "teacher_precision": "fp32"},
            "ours": {"padding": 0.0625, "precision": "bf16", "teacher_precision": "bf16"},
            "ratio": {"median": 2.5, "low": 2.4, "high": 2.75},
            "ratio_fp32": {"median": 1.5, "low": 1.4, "high": 1.75},
        },
        "joint": {"model": "edge", "overhead": {"median": 0.25, "low": 0.2, "high": 0.3}},
        "startup": {"import distilled_student": {"seconds": 2.5, "reference": 2.0, "beyond": 0.5}},
        "streaming": {"tiny": {"20": {"ONNX": {"median_ms": 0.5}}}},
    }
    content = json.loads(results.read_text())
    content["parts"] |= {name: {"when": stamp(), "figures": of} for name, of in figures.items()}
    text = render(content)
    for line in (
        "device cpu",
        "|  | precision | teacher precision | padding | times as fast as |",
        "| s3prl | fp32 | fp32 | 0.25 | - |",
        "| ours, fp32 | fp32 | fp32 | 0.0625 | 1.50 (1.40 to 1.75), s3prl in fp32 |",
        "| ours | bf16 | bf16 | 0.0625 | 2.50 (2.40 to 2.75), s3prl in fp32 |",
        "| tiny, 20, ONNX | 0.5 |",
        "| distillation in bf16: times s3prl's recipe in fp32 | 2.50 | at least 2 | reached |",
        "| distillation in fp32: times s3prl's recipe in fp32 | 1.50 | at least 2 | **not reached** |",
        "| joint training: share that the runner adds | 0.25 | at most 0.1 | **not reached** |",
        "| import distilled_student: seconds beyond the libraries underneath | 0.50 | at most 0.3 | **not reached** |",
    ):
        assert line in text.splitlines()
    found = ratios({**figures, "models": {"rows": [ROW]}})
    assert found == {
        "paper, PyTorch, threads: 1": 2.25,
        "distillation": 2.5,
        "distillation, fp32": 1.5,
        "joint training": 0.8,
        "import distilled_student": 0.8,
    }


def test_distillation_on_a_gpu_names_the_precision_that_each_side_is_compared_with(results: Path) -> None:
    figures = {
        "device": "cuda",
        "s3prl": {"precision": "fp16", "teacher_precision": "fp32"},
        "s3prl_fp32": {"precision": "fp32", "teacher_precision": "fp32"},
        "ours_fp32": {"precision": "fp32", "teacher_precision": "fp32"},
        "ours": {"precision": "bf16", "teacher_precision": "bf16"},
        "ratio": {"median": 3.5, "low": 3.4, "high": 3.75},
        "ratio_fp32": {"median": 1.5, "low": 1.4, "high": 1.75},
    }
    text = render({"parts": {"distillation": {"when": stamp(), "figures": figures}}})
    for line in (
        "| ours, fp32 | fp32 | fp32 | 1.50 (1.40 to 1.75), s3prl in fp32 |",
        "| ours | bf16 | bf16 | 3.50 (3.40 to 3.75), s3prl in fp16 |",
        "| distillation in bf16: times s3prl's recipe in fp16 | 3.50 | at least 3 | reached |",
        "| distillation in fp32: times s3prl's recipe in fp32 | 1.50 | at least 3 | **not reached** |",
    ):
        assert line in text.splitlines()


def test_results_of_earlier_versions_have_one_comparison_of_distillation(results: Path) -> None:
    figures = {
        "device": "cpu",
        "s3prl": {"precision": "fp32", "teacher_precision": "fp32"},
        "ours": {"precision": "bf16", "teacher_precision": "bf16"},
        "ratio": {"median": 2.5, "low": 2.4, "high": 2.75},
    }
    text = render({"parts": {"distillation": {"when": stamp(), "figures": figures}}})
    assert "| ours | bf16 | bf16 | 2.50 (2.40 to 2.75), s3prl in fp32 |" in text.splitlines()
    assert ratios({"distillation": figures}) == {"distillation": 2.5}


def test_the_tables_replace_what_is_between_the_marks_of_a_document(results: Path) -> None:
    document = results.parent / "README.md"
    document.write_text(f"before\n{BEGIN}old\n{END}after\n")
    write_tables(results, into=[document])
    assert document.read_text() == f"before\n{BEGIN}{(results.parent / 'table.md').read_text()}{END}after\n"
    document.write_text("no marks")
    with pytest.raises(UserError, match=r"README\.md: lacks the lines"):
        insert(document, "text")


def test_unusable_arguments_are_reported_before_anything_is_measured(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--only model: no such part: choose from models"):
        measure_parts(tmp_path, only=["model"])
    with pytest.raises(UserError, match="--accuracy file: expected CORPUS=FILE"):
        measure_parts(tmp_path, accuracy=["file"])
    (tmp_path / "results.json").write_text("{}")
    with pytest.raises(UserError, match=r"results\.json: is not the results\.json of a benchmark"):
        read_accuracy([f"real={tmp_path / 'results.json'}"])
    with pytest.raises(UserError, match=r"results\.json: is not the results\.json of distilled-student speed"):
        write_tables(tmp_path / "results.json")
