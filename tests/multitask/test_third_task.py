"""A third task is one module and one entry under ``tasks:``; every command works with it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import yaml
from conftest import THREE_LAYERS, tone
from helpers.trees import tasks

import distilled_student as ds
from distilled_student.benchmark.estimate import Estimator
from distilled_student.benchmark.execute import Outcome
from distilled_student.benchmark.report import print_table, write_report
from distilled_student.benchmark.rows import make_row, run_tasks
from distilled_student.benchmark.run_suite import open_bench
from distilled_student.benchmark.suite import Run
from distilled_student.common.settings import find_config, read_yaml
from distilled_student.export.graph import Graph
from distilled_student.export.int8 import measure_splits, points_lost
from distilled_student.export.utterance import export_onnx
from distilled_student.host import launch
from distilled_student.multitask.device_model import Features, JointModel, measure, open_joint
from distilled_student.multitask.evaluate import evaluate
from distilled_student.multitask.heads import LayerChoice
from distilled_student.multitask.tasks import kws

LOUDNESS = '''
"""A third task: is it loud?"""
from dataclasses import dataclass

import torch
from distilled_student.multitask.tasks import BaseTask, Item, TaskSettings


@dataclass
class Settings(TaskSettings):
    items: int = 12


class Data:
    def __init__(self, items):
        self.items = items

    def __len__(self):
        return self.items

    def samples(self, index):
        return 3200

    def order(self, rng):
        return rng.permutation(self.items).tolist()

    def item(self, index, rng=None):
        volume, noise = 0.1 + 0.4 * (index % 2), torch.randn(3200, generator=torch.Generator().manual_seed(index))
        return Item(volume * noise, index % 2, str(index))


class Task(BaseTask):
    headline = "accuracy"

    def __init__(self, settings, features, seed, key):
        super().__init__(settings, features, 2)
        self.settings = settings

    def training_data(self):
        return Data(self.settings.items)

    def evaluation_data(self, split):
        return Data(self.settings.items)

    def loss(self, outputs, labels):
        return torch.nn.functional.cross_entropy(outputs, labels), {}

    def collect(self, outputs, labels, keys):
        return [int(a == b) for a, b in zip(outputs.argmax(1).tolist(), labels)]

    def metrics(self, split, collected):
        return {"accuracy": 100 * sum(collected) / len(collected)}, {}

    def device_output(self, outputs):
        return outputs.softmax(dim=1)

    @classmethod
    def interval(cls, runs):
        return 0.0, 100.0 * len(runs)
'''


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A joint run of three steps with three tasks: its configuration ``joint.yaml`` and its experiment ``exp``."""
    folder = tmp_path_factory.mktemp("third")
    (folder / "loudness.py").write_text(LOUDNESS)
    small = {"hidden_size": 16, "heads": 2, "feed_forward": 32, "position_kernel": 8, "position_groups": 2}
    torch.manual_seed(0)
    ds.save_student(ds.build_student(ds.StudentConfig(**THREE_LAYERS, **small)), folder / "student")
    config = read_yaml(find_config("default", kind="multitask"))
    config["runner"] |= {"total_steps": 3, "log_step": 3, "eval_step": 3, "save_step": 3}
    entries = {**tasks(folder), "loud": {"module": "loudness", "items": 8, "batch_size": 4}}
    schedule, score = dict.fromkeys(entries, 1), dict.fromkeys(entries, 1.0)
    config["downstream_expert"] |= {"num_workers": 0, "tasks": entries, "schedule": schedule, "score": score}
    (folder / "joint.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    command = ["-m", "train", "-f", "-u", "distilled_student", "-k", str(folder / "student"), "-d", "multitask"]
    command += ["-c", str(folder / "joint.yaml"), "-p", str(folder / "exp"), "--device", "cpu"]
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        assert launch.main(command) == 0
        yield folder


def test_a_third_task_is_trained_in_turn_with_the_others(folder: Path) -> None:
    lines = [json.loads(line) for line in (folder / "exp/log.jsonl").read_text().splitlines()]
    assert {"kws/loss", "sv/loss", "loud/loss"} < set(lines[0]), "one step of each"
    expert = launch.open_runner(folder / "exp/best-dev.ckpt", device="cpu").downstream.model
    assert [task for _, task, *_ in expert.get_dataloader("train")][:4] == ["kws", "sv", "loud", "kws"]
    dev = lines[-1]
    assert dev["score"] == pytest.approx(dev["kws"]["accuracy"] - dev["sv"]["eer"] + dev["loud"]["accuracy"])


def test_a_third_task_is_in_the_results_of_an_evaluation(folder: Path, capsys: pytest.CaptureFixture) -> None:
    results = evaluate(folder / "exp", device="cpu")
    assert results == json.loads((folder / "exp/results.json").read_text())
    assert {"kws", "sv", "loud"} < set(results) and set(results["loud"]) == {"accuracy"}
    assert set(results["head_parameters"]) == {"kws", "sv", "loud"}
    assert "loud: accuracy " in capsys.readouterr().out


def test_a_third_task_has_an_output_in_the_device_model_and_in_exported_files(folder: Path, tmp_path: Path) -> None:
    model, wave, lengths = open_joint(folder / "exp"), tone(1.0)[None], torch.tensor([16_000])
    names = ["hidden_state", "frames", "keyword_scores", "loud", "speaker_embedding"]
    output = model(wave, lengths)
    assert list(output.named()) == names and output.tasks["loud"].sum().item() == pytest.approx(1.0)
    results = evaluate(folder / "exp", device="cpu")
    assert measure(model, model, "test", "loud").score == results["loud"]["accuracy"]

    model.tasks["sv"].settings.fill = False  # a graph that encodes once is exported in half the time
    export_onnx(model, tmp_path / "model.onnx")
    assert [value.name for value in onnx.load(tmp_path / "model.onnx").graph.output] == names
    graph = Graph(tmp_path / "model.onnx")
    torch.testing.assert_close(graph(wave, lengths).tasks["loud"], output.tasks["loud"], atol=1e-4, rtol=0)
    measured = measure_splits(model, graph, ("dev", "test"))
    lost = points_lost(measured, {"dynamic": measured, "static": measured})
    nothing = {"kws": 0.0, "loud": 0.0, "sv": 0.0}
    assert lost == {"dynamic": nothing, "static": nothing}, "the same graph loses nothing"


def test_a_third_task_has_a_column_in_a_benchmark_report(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    setting = {"downstream": "multitask", "config": str(folder / "joint.yaml")}
    suite = {"title": "Suite", "protocol": "Protocol.", "tables": {"All": ["joint"]}, "settings": {"joint": setting}}
    (tmp_path / "suite.yaml").write_text(yaml.safe_dump({**suite, "models": {"fbank": {"upstream": "fbank"}}}))
    bench, run = open_bench(tmp_path / "suite.yaml", tmp_path, tmp_path), Run("fbank", "joint", 0)
    assert Estimator(bench).training(run).steps == 3

    results = evaluate(folder / "exp", device="cpu") | {"train_seconds": 1.0}
    results["upstream"]["rtf"] = 0.1
    with np.load(folder / "exp/scores-test.npz") as arrays:
        outcome = Outcome(run, results, dict(arrays))
    row = make_row(bench.suite, "fbank", "joint", [outcome], run_tasks(bench.settings(run)))
    assert row["loud_accuracy"] == results["loud"]["accuracy"] and row["intervals"]["loud_accuracy"] == [0, 100]
    assert (row["kws_accuracy"], row["sv_eer"]) == (results["kws"]["accuracy"], results["sv"]["eer"])
    write_report(tmp_path, bench.suite, [row])
    assert "| KWS accuracy % | SV EER % | loud accuracy |" in (tmp_path / "report.md").read_text()
    print_table(bench.suite, [row], "title")
    assert "title" in capsys.readouterr().out


def test_of_two_tasks_with_the_same_output_the_second_has_its_name_in_front(small_cnn: ds.StudentConfig) -> None:
    english, german = (kws.Settings(keywords=words) for words in (["yes"], ["ja", "nein"]))
    both = {"kws": kws.Task(english, 16, 0, "F"), "german": kws.Task(german, 16, 0, "F")}
    choices = {name: LayerChoice(1, None) for name in both}
    model = JointModel(ds.build_student(small_cnn).eval(), Features("last_hidden_state"), both, choices)
    output = model(tone(1.0)[None], torch.tensor([16_000]))
    assert model.task_of_output == {"german_keyword_scores": "german", "keyword_scores": "kws"}
    assert output.keyword_scores.shape == (1, 3) and output.tasks["german_keyword_scores"].shape == (1, 4)
    assert model.labels == ["_silence_", "_unknown_", "yes"]
    assert json.loads(model.metadata({})["labels"]) == model.labels
