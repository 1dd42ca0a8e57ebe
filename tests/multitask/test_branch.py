"""Late branching: the last layer one for each task, in training, evaluation, resuming, on a device and in a stream."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import tone
from helpers.trees import tasks
from torch import Tensor

import distilled_student as ds
from distilled_student import Student, StudentConfig, build_student, onnx, save_student
from distilled_student.common.errors import UserError
from distilled_student.export.pack import COPIED, pack
from distilled_student.host import launch
from distilled_student.host.upstreams import StudentUpstream
from distilled_student.multitask.device_model import open_joint
from distilled_student.multitask.evaluate import evaluate
from distilled_student.multitask.expert import DownstreamExpert
from distilled_student.multitask.heads import LayerChoice
from distilled_student.multitask.packed import load_packed, start_heads
from distilled_student.onnx.speakers import unit_length
from distilled_student.streaming import Stream
from distilled_student.student.cost import macs_per_second

RUNNER = {"gradient_clipping": 1.0, "gradient_accumulate_steps": 1, "log_step": 2, "eval_step": 4, "save_step": 1}
RUNNER |= {"total_steps": 4, "max_keep": 9, "eval_dataloaders": ["dev"], "layer_decay": 0.5}
RATE = 1.0e-2


def test_a_branch_is_a_student_with_another_last_layer(student_variant: Student) -> None:
    student, wave = student_variant, torch.stack([tone(0.7, seed=1), tone(0.7, seed=2)])
    lengths, layers = torch.tensor([11_200, 8_000]), student.config.layers
    if student.config.shared:
        pytest.skip("its last layer is every layer")
    with torch.no_grad():
        before = student(wave, lengths)
        student.add_branches(2)
        branched = student(wave, lengths)
        assert len(branched.hidden_states) == layers + 3
        for name, hidden_state in enumerate(before.hidden_states):
            assert torch.equal(branched.hidden_states[name], hidden_state)
        for branch in branched.hidden_states[layers + 1 :]:
            assert torch.equal(branch, before.last_hidden_state), "it starts as a copy"
        for parameter in student.branches[1].parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        other = copy.deepcopy(student)
        other.branches = torch.nn.ModuleList()
        other.layers[-1].load_state_dict(student.branches[1].layer.state_dict())
        if student.config.norm_first:
            other.norm.load_state_dict(student.branches[1].norm.state_dict())
        branched, expected = student.eval()(wave, lengths), other.eval()(wave, lengths)
    torch.testing.assert_close(branched.hidden_states[layers + 2], expected.last_hidden_state)
    assert torch.equal(branched.last_hidden_state, before.last_hidden_state)
    if before.predictions is not None:
        assert torch.equal(branched.predictions, before.predictions)


@pytest.mark.parametrize(("choice", "expected"), [(None, [0, 1, 2, 3]), ("weighted", [1, 2]), (2, [4, 5]), (0, [0, 1])])
def test_all_layers_and_their_sum_leave_the_branches_out(choice: int | str | None, expected: list[int]) -> None:
    chosen = LayerChoice(2, choice, branches=1)(torch.arange(6.0).expand(1, 6))
    assert chosen.tolist() == [expected]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A joint training in which speaker verification has a branch, and keywords the student's own last layer."""
    groups = tasks(tmp_path_factory.mktemp("corpora"))
    groups["kws"]["layer"], groups["sv"]["branch"] = 2, True
    groups["sv"]["fill"] = False  # a graph that encodes once is exported in half the time
    return {
        "runner": RUNNER,
        "optimizer": {"name": "TorchOptim", "torch_optim_name": "Adam", "lr": RATE},
        "downstream_expert": {"tasks": groups, "layers": 3, "schedule": {"sv": 1, "kws": 1}},
    }


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small causal student with a final norm."""
    sizes = {"hidden_size": 16, "layers": 2, "heads": 2, "feed_forward": 32, "position_kernel": 8}
    sizes |= {"position_groups": 2, "targets": [1], "target_size": 16, "prediction_size": 8, "attention_context": 20}
    stem = {"frontend": "logmel", "mel_bins": 20, "conv_dim": [16, 16], "conv_kernel": [3, 3], "conv_stride": [1, 2]}
    stem |= {"conv_norm": "none", "norm_first": True, "causal": True, "dropout": 0.0}
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("student")
    save_student(build_student(StudentConfig(**sizes, **stem)), folder)
    return folder


def command(folder: Path, config: dict[str, Any], student: Path | str, *options: str) -> list[str]:
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    start = ["-m", "train", "-u", "distilled_student", "-k", str(student), "-d", "multitask", "--device", "cpu"]
    return [*start, "-c", str(folder / "config.yaml"), "-p", str(folder / "exp"), *options]


@pytest.fixture(scope="module")
def run(config: dict[str, Any], student: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    assert launch.main(command(folder, config, student, "-f", "-s", "concatenated")) == 0
    return folder / "exp"


def load(file: Path) -> dict[str, Any]:
    return torch.load(file, weights_only=True)


def of_last_layer(state: dict[str, Tensor], branch: bool) -> dict[str, Tensor]:
    """The weights of the student's own last layer or of the branch, and of the norm after it."""
    layer, norm = ("branches.0.layer.", "branches.0.norm.") if branch else ("layers.1.", "norm.")
    found = {}
    for name, value in state.items():
        for prefix, part in ((f"student.{layer}", "layer."), (f"student.{norm}", "norm.")):
            if name.startswith(prefix):
                found[part + name.removeprefix(prefix)] = value
    return found


def test_a_task_trains_its_branch_alone(run: Path, student: Path) -> None:
    before = of_last_layer({f"student.{k}": v for k, v in ds.load_student(student).state_dict().items()}, branch=False)
    first = load(run / "states-1.ckpt")["Upstream"]  # a step of speaker verification
    branch, own = of_last_layer(first, branch=True), of_last_layer(first, branch=False)
    assert before.keys() == branch.keys() == own.keys() and len(own) == 14
    for name, value in before.items():
        assert torch.equal(own[name], value), name
        moved = float((branch[name] - value).abs().max())
        assert 0.5 * RATE < moved < 1.01 * RATE, f"{name}: one step of Adam from the student's weights"
    second = of_last_layer(load(run / "states-2.ckpt")["Upstream"], branch=False)  # a step of keyword spotting
    assert not torch.equal(second["layer.linear1.weight"], before["layer.linear1.weight"])


def test_a_branched_run_is_evaluated_with_its_cost_and_opened_for_a_device(run: Path, student: Path) -> None:
    results = evaluate(run, device="cpu")
    plain = ds.load_student(student)
    layer = sum(p.numel() for p in plain.layers[1].parameters()) + sum(p.numel() for p in plain.norm.parameters())
    parameters = sum(p.numel() for p in plain.parameters())
    assert results["upstream"]["parameters"] == parameters + layer
    projections, frames = 16 * (4 * 16 + 2 * 32), 50  # attention's four, the feed-forward part's two
    attention = 2 * 16 * frames  # scores and their products with the values, of all pairs of frames
    branched = results["upstream"]["macs_per_second"]
    runner, model = launch.open_runner(run / "best-dev.ckpt", device="cpu"), open_joint(run)
    runner.upstream.model.student.branches = torch.nn.ModuleList()
    assert branched - macs_per_second(runner.upstream.model) == frames * (projections + attention)
    runner = launch.open_runner(run / "best-dev.ckpt", device="cpu")
    wave = tone(1.0)
    with torch.no_grad():
        features = runner.featurizer.model([wave], runner.upstream.model([wave]))
        expected = runner.expert.outputs("sv", features)
        torch.testing.assert_close(model(wave[None]).speaker_embedding, expected)
        states = model.student(wave[None]).hidden_states
        by_hand = runner.expert.tasks["sv"](states[3], torch.tensor([50]))
    torch.testing.assert_close(by_hand, expected)
    with pytest.raises(UserError, match="has branches for tasks, which are saved with their heads only"):
        save_student(model.student, run / "student")


def test_a_branched_run_resumes_exactly(run: Path, tmp_path: Path) -> None:
    shutil.copy(run / "states-2.ckpt", tmp_path)
    assert launch.main(["-m", "train", "-e", str(tmp_path), "--device", "cpu"]) == 0
    whole, resumed = load(run / "states-4.ckpt"), load(tmp_path / "states-4.ckpt")
    for part in ("Upstream", "Downstream"):
        for name, value in whole[part].items():
            assert name == "_extra_state" or torch.equal(value, resumed[part][name]), (part, name)


def test_a_stream_of_a_branched_run_equals_the_whole_utterance(run: Path) -> None:
    model, wave = open_joint(run), tone(0.96)
    stream, outputs = Stream(model), []
    for samples in wave.split(700):
        if (output := stream.feed(samples)) is not None:
            outputs.append(output)
    with torch.no_grad():
        whole = model.student(wave[None]).hidden_states
        expected = model(wave[None])
    for number, hidden_state in enumerate(whole):
        found = torch.cat([output.hidden_states[number] for output in outputs])
        torch.testing.assert_close(found, hidden_state[0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(outputs[-1].speaker_embedding, expected.speaker_embedding[0], atol=1e-4, rtol=1e-4)


def test_a_branched_run_is_packed_and_answers_as_before(run: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    evaluated, packed, wave = shutil.copytree(run, tmp_path / "run"), tmp_path / "packed", tone(0.96)
    for name in COPIED:
        (evaluated / name).write_text("{}")
    pack(evaluated, packed, "best-dev.ckpt", window=1.0, max_loss=100.0)
    assert not ds.load_student(packed).branches, "the student alone"
    with torch.no_grad():
        expected, found = (open_joint(folder)(wave[None]) for folder in (run, packed))
    assert found.tasks.keys() == expected.tasks.keys() == {"keyword_scores", "speaker_embedding"}
    for name, value in expected.tasks.items():
        torch.testing.assert_close(found.tasks[name], value, atol=5e-3, rtol=5e-3)  # weights in half precision
    model = onnx.load(packed)
    stream = model.stream()
    outputs = [output for part in wave.numpy().reshape(-1, 640) if (output := stream.feed(part)) is not None]
    for embedding in (model.embed(wave.numpy()), unit_length(outputs[-1]["speaker_embedding"])):
        assert embedding @ unit_length(expected.speaker_embedding[0].numpy()) > 0.98, "in int8"
    trained = load_packed(packed).student.branches[0].state_dict()
    for task, initial, expected_start in (("sv", True, True), ("sv", False, False), ("kws", True, False)):
        group = {"tasks": {task: {"branch": True}}, "schedule": {task: 1}, "layers": 3, "initial_heads": initial}
        upstream = StudentUpstream(ds.load_student(packed))
        DownstreamExpert.prepare_upstream(upstream, group, "", str(packed))
        equal = [torch.equal(value, trained[name]) for name, value in upstream.student.branches[0].state_dict().items()]
        assert all(equal) == expected_start, "a training starts from the branch of the same task, with initial_heads"
    joint = load_packed(packed)
    with pytest.raises(UserError, match=r"'sv' was trained behind a branch.*set tasks.sv.branch to true"):
        start_heads(str(packed), joint.tasks, joint.choices, [], "config.yaml: initial_heads")
    start_heads(str(packed), joint.tasks, joint.choices, ["sv"], "config.yaml: initial_heads")


@pytest.mark.parametrize(
    ("options", "changes", "message"),
    [
        (["-f"], {}, "layers: 3 needs -s concatenated or all, not -s"),
        (["-s", "concatenated"], {}, "tasks.sv.branch: needs -f"),
        (["-f", "-s", "concatenated"], {"layers": 1}, "tasks.sv.branch: needs -s concatenated and layers"),
        (["-f", "-s", "concatenated"], {"layers": 4}, "layers: 4, but -u distilled_student has 3 hidden states"),
        (["-f", "-s", "concatenated", "-u", "fbank"], {}, "tasks.sv.branch: needs -u distilled_student"),
    ],
)
def test_what_a_branch_needs_is_named(
    options: list[str],
    changes: dict[str, Any],
    message: str,
    config: dict[str, Any],
    student: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    config = copy.deepcopy(config)
    config["downstream_expert"] |= changes
    if "layers" in changes:
        config["downstream_expert"]["tasks"]["kws"]["layer"] = None
    assert launch.main(command(tmp_path, config, student, *options)) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "config.yaml: downstream_expert." in error and message in error


def test_a_task_has_a_branch_or_a_layer(config: dict[str, Any], student: Path, tmp_path: Path) -> None:
    config = copy.deepcopy(config)
    config["downstream_expert"]["tasks"]["sv"]["layer"] = 1
    with pytest.raises(UserError, match="branch: the task uses its branch, which excludes layer: 1"):
        launch.run(command(tmp_path, config, student, "-f", "-s", "concatenated"))
