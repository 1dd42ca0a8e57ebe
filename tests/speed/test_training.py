"""The comparisons of training and start-up, on tiny sizes. Measured times are not tested."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import tone

import distilled_student as ds
from distilled_student.host.upstreams import StudentUpstream
from distilled_student.speed import startup
from distilled_student.speed.distillation import compare_distillation, open_ours, padding, write_utterances
from distilled_student.speed.joint import WARMUP, TimedLoader, compare_joint
from distilled_student.speed.s3prl_recipe import OPTIMIZER, Recipe, Sizes, write_teacher
from distilled_student.student.cost import has_fast_bf16

TINY = Sizes(width=32, heads=4, feed_forward=48, conv=16, layers=3, student_layers=1, targets=(1, 3))


def test_distillation_is_compared_on_the_same_audio_and_sizes() -> None:
    found = compare_distillation(rounds=1, seconds=(0.4, 0.8, 0.6, 0.5), utterances=2, sizes=TINY)
    assert found["seconds"] == pytest.approx(2.3)
    assert found["s3prl"]["padding"] == pytest.approx(0.3 / 2.6)  # sorted: 0.8 with 0.6, 0.5 with 0.4
    in_fp32 = found["ours_fp32"] if has_fast_bf16() else found["ours"]
    for side in (found["s3prl"], in_fp32):
        assert side["precision"] == side["teacher_precision"] == "fp32"
    fastest = "bf16" if has_fast_bf16() else "fp32"
    assert found["ours"]["precision"] == found["ours"]["teacher_precision"] == fastest
    sides = [figures for figures in found.values() if isinstance(figures, dict) and "flops" in figures]
    operations = [side["flops"] / side["audio_seconds_per_second"] for side in sides]
    assert operations == pytest.approx([operations[0]] * len(sides)) and operations[0] > 0
    for name, side in (("ratio", found["ours"]), ("ratio_fp32", in_fp32)):
        times_as_fast = side["audio_seconds_per_second"] / found["s3prl"]["audio_seconds_per_second"]
        assert found[name]["median"] == pytest.approx(times_as_fast)  # one round


@pytest.mark.skipif(not has_fast_bf16(), reason="compares two precisions only where bf16 is fast")
def test_each_of_our_runs_computes_in_its_own_precision(tmp_path: Path) -> None:
    write_utterances(tmp_path / "audio", [1.0, 0.5])
    write_teacher(tmp_path / "teacher.pt", TINY)
    computed: dict[str, set[torch.dtype]] = {}
    runs = {name: open_ours(tmp_path, [1.0, 0.5], 2, TINY, name) for name in ("fp32", "bf16")}
    for name, ours in runs.items():
        for model in (ours.run.student, ours.run.teacher):
            dtypes = computed.setdefault(f"{name} {type(model).__name__}", set())
            for module in model.modules():
                module.register_forward_hook(
                    lambda _, inputs, output, dtypes=dtypes: dtypes.update(
                        tensor.dtype for tensor in [output] if isinstance(tensor, torch.Tensor)
                    )
                )
    for name in ("fp32", "bf16", "fp32"):  # one run must not change the other's precision
        runs[name].epoch()
    assert computed["fp32 Student"] == computed["fp32 Teacher"] == {torch.float32}
    assert torch.bfloat16 in computed["bf16 Student"] & computed["bf16 Teacher"]


def test_s3prls_recipe_reduces_its_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(OPTIMIZER, "lr", 1e-2)
    monkeypatch.setitem(OPTIMIZER, "warmup_proportion", 1e-5)  # two steps
    files = write_utterances(tmp_path / "audio", [1.0, 0.5])
    write_teacher(tmp_path / "teacher.pt", TINY)
    recipe = Recipe(tmp_path / "teacher.pt", TINY, files, 2, torch.device("cpu"))
    waves = [tone(1.0), tone(0.5, seed=1)]
    losses = [recipe.step(waves) for _ in range(15)]
    assert losses[-1] < 0.9 * losses[0]


def test_padding_is_the_share_of_a_batch_without_audio() -> None:
    assert padding([[4, 4], [2, 1]]) == pytest.approx(1 / 12)


def test_joint_training_is_compared_batch_by_batch(small_corpus: Path) -> None:
    found = compare_joint(steps=2, size="tiny", corpus=small_corpus)
    assert found["overhead"]["low"] <= found["overhead"]["median"] <= found["overhead"]["high"]
    assert min(found["runner"], found["bare"], found["loading"]) > 0


def test_a_timed_loader_gives_every_batch_to_both_loops() -> None:
    times: list[tuple[float, ...]] = []
    calls: list[tuple[str, int]] = []
    for batch in TimedLoader(range(WARMUP), lambda batch: calls.append(("bare", batch)), times):
        calls.append(("runner", batch))
    assert [name for name, _ in calls] == ["bare", "runner", "runner", "bare"] * 2
    assert [batch for _, batch in calls] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert len(times) == WARMUP


def test_an_upstream_computes_only_the_selected_features(small_cnn: ds.StudentConfig) -> None:
    upstream = StudentUpstream(ds.build_student(small_cnn)).eval()
    waves = [tone(0.5), tone(0.3)]
    with torch.no_grad():
        every = upstream(waves)
        predicted: list[bool] = []
        upstream.student.predictions.register_forward_hook(lambda *_: predicted.append(True))
        for name in ("hidden_states", "last_hidden_state", "concatenated", "predictions"):
            upstream.selected = name
            found = upstream(waves)
            assert list(found) == [name]
            pairs = zip(found[name], every[name], strict=True)
            assert all(torch.equal(one, other) for one, other in pairs)
            assert bool(predicted) == (name == "predictions")


def test_start_up_is_compared_with_its_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = {"slow": ("import time; time.sleep(0.3)", "pass")}
    monkeypatch.setattr(startup, "COMPARED", pairs)
    found = startup.compare_startup(rounds=1)["slow"]
    assert found["beyond"] == pytest.approx(found["seconds"] - found["reference"])
    assert found["seconds"] > 0.3
