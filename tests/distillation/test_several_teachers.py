"""A distillation from several teachers: the loss, the gradients, the cache, the files of a run and its settings."""

from __future__ import annotations

import json
import logging
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from conftest import SMALL
from torch import nn

import distilled_student as ds
from distilled_student.common.errors import UserError
from distilled_student.common.files import read_torch
from distilled_student.common.settings import find_config, read_yaml, typed
from distilled_student.distillation.config import DistillConfig, TeacherConfig, read_config
from distilled_student.distillation.data.config import DataConfig
from distilled_student.distillation.data.cuts import Batch, make_loader, read_cuts
from distilled_student.distillation.early_checks import check_settings
from distilled_student.distillation.held_out import HeldOut
from distilled_student.distillation.train import distill
from distilled_student.distillation.trainer import Distillation

STUDENT = {"conv_dim": [8] * 7, "dropout": 0.0}
STUDENT |= {key: value for key, value in SMALL.items() if not key.startswith("target")}


def save_teachers(folder: Path) -> list[TeacherConfig]:
    """Two encoders of different widths and a speaker encoder, with random weights."""
    torch.manual_seed(1)
    ds.save_student(ds.build_student(ds.StudentConfig(conv_dim=[8] * 7, **SMALL)), folder / "content")
    wide = ds.StudentConfig(conv_dim=[8] * 7, **(SMALL | {"hidden_size": 24, "layers": 3}))
    ds.save_student(ds.build_student(wide), folder / "wide")
    lstm, linear = nn.LSTM(40, 12, 3), nn.Linear(12, 10)
    weights = {f"lstm.{name}": value for name, value in lstm.state_dict().items()}
    weights |= {f"linear.{name}": value for name, value in linear.state_dict().items()}
    torch.save({"model_state": weights}, folder / "speaker.pt")
    return [
        TeacherConfig(str(folder / "content"), [1, 2]),
        TeacherConfig(str(folder / "speaker.pt"), "utterance", 0.5),
        TeacherConfig(str(folder / "wide"), [3], 2.0),
    ]


@pytest.fixture
def config(audio_folder: Path, tmp_path: Path) -> DistillConfig:
    data = DataConfig([str(audio_folder)], batch_seconds=6, max_seconds=2, workers=0)
    return DistillConfig(
        output=str(tmp_path / "student"),
        data=data,
        teachers=save_teachers(tmp_path),
        student=STUDENT | {"dropout": 0.1},
        initialize=False,
        steps=4,
        log_every=2,
        save_every=2,
        teacher_precision="fp32",
    )


def first_batch(config: DistillConfig) -> Batch:
    return next(iter(make_loader(read_cuts(config.data)[0], config.data, seed=0, epoch=0)))


def frame_loss(prediction: np.ndarray, target: np.ndarray) -> tuple[float, float]:
    """L1 and cosine parts of the loss (Kerpicci et al. 2023, eq. 1) of one frame."""
    similarity = prediction @ target / np.linalg.norm(prediction) / np.linalg.norm(target)
    return float(np.abs(prediction - target).mean()), float(np.log1p(np.exp(-similarity)))


def plain_losses(run: Distillation, batch: Batch) -> list[list[np.ndarray]]:
    """For each teacher and target the losses ``(frames, 2)`` of an utterance at a time, in a plain loop."""
    content, speaker, wide = (source.teacher.encoder for source in run.sources)
    utterance, layers = run.heads
    found: list[list[list[tuple[float, float]]]] = [[[], []], [[]], [[]]]
    run.model.eval()
    for row, samples in enumerate(batch.lengths.tolist()):
        wave = batch.waveforms[row : row + 1, :samples]
        with torch.no_grad():
            output = run.student(wave)
            for number, layer in enumerate((1, 2)):
                targets = content(wave).hidden_states[layer][0].double().numpy()
                found[0][number] += map(frame_loss, output.predictions[0, number].double().numpy(), targets)
            targets = wide(wave).hidden_states[3][0].double().numpy()
            outer, inner = layers.predictions.outputs[0], layers.predictions.hidden
            predictions = outer(nn.functional.gelu(inner(output.last_hidden_state)))[0].double().numpy()
            found[2][0] += map(frame_loss, predictions, targets)
            embedding = speaker(wave)[0].double().numpy()
        states = np.stack([state[0].double().numpy() for state in output.hidden_states])
        weights = np.exp(utterance.weights.detach().double().numpy())
        x = np.tensordot(weights / weights.sum(), states, 1)
        pooled = np.concatenate([x.mean(axis=0), np.sqrt(x.var(axis=0) + 1e-5)])
        matrix, bias = (value.detach().double().numpy() for value in utterance.linear.parameters())
        found[1][0].append(frame_loss(matrix @ pooled + bias, embedding / np.sqrt(np.mean(embedding**2))))
    run.model.train()
    return [[np.array(target) for target in teacher] for teacher in found]


@pytest.mark.parametrize("reduction", ["frame", "mean", "sum"])
def test_the_loss_is_the_weighted_sum_of_every_teachers_loss(config: DistillConfig, reduction: str) -> None:
    config.student, config.reduction = STUDENT, reduction
    run, batch = Distillation(config, "test.yaml"), first_batch(config)
    with torch.no_grad():  # other weights than the equal ones of the start
        run.heads[0].weights += torch.tensor([0.5, -0.3, 0.1])
    assert int(batch.lengths.min()) < batch.waveforms.shape[1]
    expected = plain_losses(run, batch)
    parts = run.loss_parts(batch, run.model)
    for part, targets in zip(parts, expected, strict=True):
        assert int(part.frames) == len(targets[0])
        np.testing.assert_allclose(part.l1.detach(), [target[:, 0].sum() for target in targets], rtol=1e-4)
        np.testing.assert_allclose(part.cosine.detach(), [target[:, 1].sum() for target in targets], rtol=1e-4)
    scale = {"frame": lambda t: 1 / len(t[0]), "mean": lambda t: 1 / len(t[0]) / len(t), "sum": lambda t: 1}[reduction]
    sums = [sum(target.sum() for target in targets) for targets in expected]
    scales = [scale(targets) for targets in expected]
    weighted = [weight * scale * total for weight, scale, total in zip((1, 0.5, 2), scales, sums, strict=True)]
    per_frame = [1 / part.frames for part in parts]
    assert float(run._weighted_loss(parts, per_frame).detach()) == pytest.approx(sum(weighted), rel=1e-4)
    means = [total / len(targets[0]) for total, targets in zip(sums, expected, strict=True)]
    meters = run.step(batch)
    assert float(meters["loss"]) == pytest.approx(means[0] + 0.5 * means[1] + 2 * means[2], rel=1e-4)
    assert meters["l1"].shape == meters["cosine"].shape == (4,)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_every_teachers_loss_reaches_the_student_and_its_own_head_alone(config: DistillConfig, number: int) -> None:
    run = Distillation(config, "test.yaml")
    run.loss_parts(first_batch(config), run.model)[number].total.backward()
    for parameter in run.student.frontend.parameters():
        assert float(parameter.grad.abs().sum()) > 0
    heads = [run.student.predictions, *run.heads]
    for other, head in enumerate(heads):
        gradients = [parameter.grad is not None for parameter in head.parameters()]
        assert all(gradients) if other == number else not any(gradients)


def test_a_step_trains_the_heads_and_not_the_teachers(config: DistillConfig) -> None:
    run = Distillation(config, "test.yaml")
    before = [[value.clone() for value in module.state_dict().values()] for module in run.heads]
    teachers = [source.teacher.fingerprint() for source in run.sources]
    run.step(first_batch(config))
    for module, values in zip(run.heads, before, strict=True):
        assert all(not torch.equal(new, old) for new, old in zip(module.state_dict().values(), values, strict=True))
    assert [source.teacher.fingerprint() for source in run.sources] == teachers


def interrupt_after(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    step = Distillation.step

    def stopped(run: Distillation, batch: Batch) -> dict[str, torch.Tensor]:
        if run.state.step == steps:
            raise KeyboardInterrupt
        return step(run, batch)

    monkeypatch.setattr(Distillation, "step", stopped)


@pytest.mark.parametrize("cached", [False, True])
def test_an_interrupted_run_ends_with_the_same_student_and_heads(
    config: DistillConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cached: bool
) -> None:
    config.cache = str(tmp_path / "cache") if cached else None
    whole = distill(config, "test.yaml")
    config = replace(config, output=str(tmp_path / "again"))
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        interrupt_after(patched, 3)
        distill(config, "test.yaml")
    again = distill(config, "test.yaml")
    assert (again / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    first, second = (read_torch(folder / "checkpoints/step-00000004.pt") for folder in (whole, again))
    assert first["heads"].keys() == second["heads"].keys() and len(first["heads"]) > 4
    assert all(torch.equal(value, second["heads"][name]) for name, value in first["heads"].items())
    assert "heads" not in "".join(ds.load_student(again).state_dict())


def test_cached_targets_give_the_same_loss_and_are_kept_apart(config: DistillConfig, tmp_path: Path) -> None:
    config.student = STUDENT
    batch = first_batch(config)
    live = _run(config)
    expected = [float(part.total.detach()) for part in live.loss_parts(batch, live.model)]
    cached = _run(replace(config, cache=str(tmp_path / "cache")))
    for _ in range(2):  # written, then read
        batch = next(iter(make_loader(read_cuts(config.data)[0], config.data, 0, 0, find_targets=cached.find_targets)))
        found = [float(part.total.detach()) for part in cached.loss_parts(batch, cached.model)]
        assert found == pytest.approx(expected, rel=1e-3)
    assert all(len(targets) == 3 and None not in map(type, targets) for targets in batch.targets)
    assert batch.uncached_seconds() == 0
    folders = {source.cache.folder for source in cached.sources}
    assert len(folders) == 3 and all(any(folder.rglob("*.safetensors")) for folder in folders)


def _run(config: DistillConfig) -> Distillation:
    return Distillation(config, "test.yaml")


def test_the_held_out_loss_is_the_weighted_sum_of_the_means(config: DistillConfig, audio_folder: Path) -> None:
    config.student, config.data.held_out = STUDENT, [str(audio_folder)]
    run = _run(config)
    found = HeldOut(config.data, "data").measure(run)
    totals: list[list[float]] = [[], [], []]
    for file in audio_folder.glob("*.wav"):
        wave = torch.from_numpy(soundfile.read(file, dtype="float32")[0])[None]
        for total, targets in zip(
            totals, plain_losses(run, Batch(wave, torch.tensor([wave.shape[1]]), [], {}, [])), strict=True
        ):
            total += list(sum(target.sum(axis=1) for target in targets))
    means = [np.mean(total) for total in totals]
    assert found.loss == pytest.approx(means[0] + 0.5 * means[1] + 2 * means[2], rel=1e-4)
    assert len(found.l1) == len(found.cosine) == 4


def test_log_card_and_provenance_name_every_teacher(config: DistillConfig, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        folder = distill(config, "test.yaml")
    target = r"L1 [\d.]+ cos [\d.]+"
    assert re.search(
        rf"step 4/4  loss [\d.]+  content [\d.]+ \(layer 1 {target}  layer 2 {target}\)  "
        rf"speaker.pt [\d.]+ \(utterance {target}\)  wide [\d.]+ \(layer 3 {target}\)  \|g\|",
        caplog.text,
    )
    card = (folder / "README.md").read_text()
    assert "| teacher 1 | content, layers 1, 2, weight 1 |" in card
    assert "| teacher 2 | speaker.pt, embedding, weight 0.5 |" in card
    assert "| teacher 3 | wide, layers 3, weight 2 |" in card
    cost = r"\| cost of teacher \d \| [\d.]+ M parameters; \d+ M multiply-accumulates and [\d.e-]+ s of work per second"
    assert len(re.findall(cost, card)) == 3
    models = json.loads((folder / "provenance.json").read_text())["models"]
    assert [models[name]["name"] for name in ("teacher", "teacher 2", "teacher 3")] == [
        teacher.teacher for teacher in config.teachers
    ]
    assert len({models[name]["sha256"] for name in ("teacher", "teacher 2", "teacher 3")}) == 3


def test_a_run_is_not_resumed_with_other_weights_of_a_further_teacher(config: DistillConfig) -> None:
    distill(config, "test.yaml")
    content = read_torch(Path(config.teachers[1].teacher))
    content["model_state"]["linear.bias"] += 1
    torch.save(content, config.teachers[1].teacher)
    with pytest.raises(UserError, match=r"sha256 of the teacher's weights 2: was .*, is "):
        distill(config, "test.yaml")


def test_a_single_teacher_in_the_list_is_the_short_form(config: DistillConfig, tmp_path: Path) -> None:
    first = config.teachers[0]
    short = replace(config, teachers=[], teacher=first.teacher, targets=first.targets, output=str(tmp_path / "short"))
    single = replace(config, teachers=[first], output=str(tmp_path / "single"))
    folders = [distill(settings, "test.yaml") for settings in (short, single)]
    students = [(folder / "model.safetensors").read_bytes() for folder in folders]
    assert students[0] == students[1]
    checkpoint = read_torch(folders[0] / "checkpoints/step-00000004.pt")
    assert "heads" not in checkpoint and checkpoint["settings"]["teachers"] == []


def test_a_checkpoint_of_a_version_without_teachers_is_resumed(config: DistillConfig) -> None:
    first = config.teachers[0]
    config = replace(config, teachers=[], teacher=first.teacher, targets=first.targets)
    folder = distill(config, "test.yaml")
    file = folder / "checkpoints/step-00000004.pt"
    content = read_torch(file)
    del content["settings"]["teachers"]
    torch.save(content, file)
    config.steps = 5
    distill(config, "test.yaml")
    assert (folder / "checkpoints/step-00000005.pt").is_file()


# settings

VALUES = {"output": "out", "data": {"paths": ["audio"]}}


def settings_of(teachers: object, **more: object) -> DistillConfig:
    return typed(DistillConfig, VALUES | {"teachers": teachers} | more, "y.yaml")


def test_the_list_of_teachers_is_read_from_yaml_values() -> None:
    config = settings_of([{"teacher": "shipped", "targets": [2, 1]}, {"teacher": "e.onnx", "targets": "utterance"}])
    assert config.teachers == [TeacherConfig("shipped", [2, 1], 1.0), TeacherConfig("e.onnx", "utterance", 1.0)]
    assert (config.teacher, config.targets) == ("shipped", [2, 1])
    short = typed(DistillConfig, VALUES | {"teacher": "shipped", "targets": [1]}, "y.yaml")
    assert short.all_teachers() == [TeacherConfig("shipped", [1])]


GOOD = {"teacher": "shipped", "targets": [1, 2]}
TWO = "teachers=[{teacher: shipped, targets: [2]}, {teacher: resemblyzer, targets: utterance, weight: 0.5}]"


@pytest.mark.parametrize("name", ["hubert-base", "demo"])
def test_teachers_on_the_command_line_replace_the_teacher_of_a_config(name: str) -> None:
    values = read_yaml(find_config(name, "distill"))
    config = read_config(values, "y.yaml", ["steps=3", TWO])
    assert config.teachers == [TeacherConfig("shipped", [2]), TeacherConfig("resemblyzer", "utterance", 0.5)]
    assert (config.teacher, config.targets, config.steps) == ("shipped", [2], 3)
    for pairs in (["teachers=[]"], []):  # no teacher in the list: the config's own one
        assert read_config(values, "y.yaml", pairs).teacher == values["teacher"]
    with pytest.raises(
        UserError, match=r"teacher: cannot be used with teachers: give either teachers=\[\.\.\.\], or both"
    ):
        read_config(values, "y.yaml", [TWO, "teacher=hubert"])


def test_a_teacher_and_targets_on_the_command_line_replace_the_teachers_of_a_config() -> None:
    values = VALUES | {"teachers": [GOOD, GOOD]}
    config = read_config(values, "y.yaml", ["teacher=hubert_base", "targets=[4]"])
    assert config.all_teachers() == [TeacherConfig("hubert_base", [4])]
    for pair in ("targets=[4]", "targets=[1, 2]", "teacher=hubert_base", "teacher=shipped"):  # also that of the first
        key = pair.partition("=")[0]
        with pytest.raises(
            UserError, match=rf"y\.yaml: {key}: cannot be used with teachers: .* or both teacher and targets"
        ):
            read_config(values, "y.yaml", [pair])
    assert read_config(values, "y.yaml", ["teachers=[]", "teacher=hubert_base"]).teacher == "hubert_base"


def test_a_file_with_teachers_and_the_teacher_of_the_first_of_them_is_refused() -> None:
    with pytest.raises(UserError, match=r"y\.yaml: teacher: cannot be used with teachers"):
        read_config(VALUES | {"teachers": [GOOD, GOOD], "teacher": "shipped"}, "y.yaml")


@pytest.mark.parametrize(
    ("teachers", "more", "message"),
    [
        ([], {}, "teacher: missing"),
        ([{"teacher": "resemblyzer", "targets": "utterance"}], {}, "the first one needs layers"),
        ([GOOD], {"teacher": "hubert"}, "give either teachers, or teacher and targets"),
        ([GOOD], {"targets": [1]}, "give either teachers, or teacher and targets"),
        ([GOOD | {"weight": 0}], {}, "weight: needs a positive number, not 0.0"),
        ([GOOD | {"targets": "embedding"}], {}, r"targets: 'embedding' is neither layers, as \[4, 8\], nor utterance"),
        ([GOOD | {"targets": []}], {}, "is neither layers"),
        ([GOOD, GOOD | {"weight": 2}], {}, r"teachers: shipped with targets \[1, 2\] is there twice: set its weight"),
        ([GOOD | {"targets": [0]}], {}, "is neither layers"),
        ([GOOD | {"targets": [1, 2, 1]}], {}, r"targets: \[1, 2, 1\] names a layer twice"),
        ([], {"teacher": "shipped", "targets": [2, 2]}, r"targets: \[2, 2\] names a layer twice"),
        ([GOOD | {"wieght": 2}], {}, r"teachers\[0\].wieght: no such key; did you mean `teachers\[0\].weight`?"),
        ([GOOD, {"teacher": "shipped"}], {}, r"teachers\[1\]: targets: missing"),
        (["shipped"], {}, r"teachers\[0\]: expected a group of keys, found 'shipped'"),
        ([GOOD, None], {}, r"teachers\[1\]: expected a group of keys, found null"),
        ("shipped", {}, r"teachers: expected a list, found 'shipped'"),
        ([GOOD | {"weight": "much"}], {}, r"teachers\[0\]: weight: expected a number, found 'much'"),
    ],
)
def test_wrong_teachers_are_named_in_one_line(teachers: object, more: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=rf"^y.yaml: .*{message}") as error:
        settings_of(teachers, **more)
    assert "\n" not in str(error.value)


def test_missing_output_or_data_are_still_required() -> None:
    for key in ("output", "data"):
        values = {"teacher": "shipped", **{name: value for name, value in VALUES.items() if name != key}}
        with pytest.raises(UserError, match=f"y.yaml: {key}: missing"):
            typed(DistillConfig, values, "y.yaml")
    with pytest.raises(ValueError, match="output: missing"):
        DistillConfig("shipped")


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (TeacherConfig("shipped", [3]), r"teachers\[1\].targets: \[3\]: the teacher has layers 1 to 2"),
        (TeacherConfig("gone.onnx", "utterance"), r"teachers\[1\].teacher: gone.onnx: no such file"),
        (
            TeacherConfig("resemblyzer", [1]),
            r"teachers\[1\].teacher: resemblyzer: is a speaker encoder: set targets: utt",
        ),
        (
            TeacherConfig("emb.onnx", [1]),
            r"teachers\[1\].teacher: emb.onnx: is a speaker encoder: set targets: utterance",
        ),
        (
            TeacherConfig("openwakeword", "utterance"),
            r"teachers\[1\].teacher: openwakeword: is an encoder of hidden states",
        ),
        (TeacherConfig("shipped", "utterance"), r"teachers\[1\].teacher: shipped: .* it needs layers, targets: \[1\]"),
        (TeacherConfig("hubert_base", "utterance"), r"teachers\[1\].teacher: hubert_base: .* it needs layers"),
        (TeacherConfig("shiped/x/", [1]), r"teachers\[1\].teacher: shiped/x/: no such file or folder"),
    ],
)
def test_early_checks_cover_every_teacher(config: DistillConfig, second: TeacherConfig, message: str) -> None:
    config.teachers[1:] = [second]
    with pytest.raises(UserError, match=rf"y.yaml: {message}"):
        check_settings(config, "y.yaml")


def test_a_teacher_alone_that_is_a_speaker_encoder_is_named_before_the_hub_is_asked(config: DistillConfig) -> None:
    config.teachers, config.teacher = [], "resemblyzer"
    with pytest.raises(
        UserError, match=r"y.yaml: teacher: resemblyzer: is a speaker encoder, which has no hidden states"
    ):
        check_settings(config, "y.yaml")
