"""s3prl's typed recipes with our upstreams: runs on small corpora, with results recomputed from the saved weights."""

from __future__ import annotations

import csv
import logging
import math
from pathlib import Path

import pytest
import soundfile
import torch
import yaml
from conftest import SMALL
from torch import Tensor
from torch.nn.functional import conv1d, cosine_similarity, linear

import distilled_student as ds
from distilled_student.cli import main
from distilled_student.host.superb import helpers
from distilled_student.host.superb.recipes import parse_overrides
from distilled_student.multitask.metrics import eer

ds.register()


def s3prl_main(*arguments: object) -> int:
    """Run ``s3prl-main`` and return its exit code. s3prl changes the root logger, which is restored here."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        main(["s3prl-main", *map(str, arguments)])
    except SystemExit as stopped:
        return stopped.code or 0
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
    return 0


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small student with random weights."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("student")
    ds.save_student(ds.build_student(ds.StudentConfig(conv_dim=[8] * 7, **SMALL)), folder)
    return folder


def common_settings(folder: Path, student: Path) -> list[object]:
    """Settings of both recipes: the student as upstream, no file outside ``folder``, no data workers."""
    upstream = ["--build_upstream.name", "distilled_student", "--build_upstream.path_or_url", student]
    return ["--target_dir", folder, "--cache_dir", folder / "cache", "--num_workers", 0, *upstream]


def weighted_features(student: ds.Student, wave: Tensor, state: dict[str, Tensor]) -> Tensor:
    """s3prl's weighted sum of the hidden states, ``(ceil(samples / 320), features)``: the last frame is repeated."""
    with torch.no_grad():
        states = torch.stack([hidden[0] for hidden in student(wave[None]).hidden_states])
    missing = math.ceil(len(wave) / 320) - states.shape[1]
    states = torch.cat([states, states[:, -1:].expand(-1, missing, -1)], dim=1)
    return torch.einsum("l,lfd->fd", state["featurizer.weights"].softmax(0), states)


def rows(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file by column name."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def weights(checkpoint: Path) -> dict[str, Tensor]:
    """The weights in a checkpoint folder of s3prl."""
    return torch.load(checkpoint / "model" / "state_dict.pt", weights_only=True)


@pytest.fixture(scope="module")
def keywords(small_corpus: Path, student: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[object]]:
    """A finished run of SuperbKS, and its arguments."""
    folder, root = tmp_path_factory.mktemp("ks"), small_corpus / "speech_commands"
    data = ["--prepare_data.gsc1", root / "train", "--prepare_data.gsc1_test", root / "test"]
    steps = ["--train.total_steps", 30, "--train.eval_step", 30, "--train.save_step", 15, "--train.log_step", 15]
    arguments = ["SuperbKS", *common_settings(folder, student), *data, *steps, "--build_optimizer.conf.lr", "1e-2"]
    torch.manual_seed(0)
    assert s3prl_main(*arguments) == 0
    return folder, arguments


def test_keyword_accuracy_and_loss_equal_those_recomputed_from_the_saved_weights(
    keywords: tuple[Path, list[object]], student: Path
) -> None:
    folder, _ = keywords
    classes = sorted({row["label"] for split in ("train", "valid", "test") for row in rows(folder / f"{split}.csv")})
    assert len(classes) == 12
    state, upstream, correct = weights(folder / "train/valid_best"), ds.load_student(student), 0
    test_rows, losses = rows(folder / "test.csv"), []
    for row in test_rows:
        data, rate = soundfile.read(row["wav_path"], dtype="float32")
        start, end = (float(row[key] or 0) for key in ("start_sec", "end_sec"))
        wave = torch.from_numpy(data[int(start * rate) : int(end * rate) or None]) * 10 ** (-3 / 20)  # gain of -3 dB
        features = weighted_features(upstream, wave, state)
        hidden = linear(features, *(state[f"downstream.hidden_layers.0.{kind}"] for kind in ("weight", "bias")))
        logits = linear(hidden.mean(dim=0), *(state[f"downstream.final_proj.{kind}"] for kind in ("weight", "bias")))
        correct += classes[int(logits.argmax())] == row["label"]
        losses.append(-logits.log_softmax(0)[classes.index(row["label"])])
    result = yaml.safe_load((folder / "evaluate/valid_best/test/result.yaml").read_text())
    assert result["accuracy"] == pytest.approx(correct / len(test_rows)) and correct > 0
    batches = [torch.stack(losses[start : start + 32]).mean() for start in range(0, len(losses), 32)]
    assert result["loss"] == pytest.approx(float(torch.stack(batches).mean()), abs=1e-4)


def test_keyword_training_resumes_and_its_new_checkpoint_is_tested(keywords: tuple[Path, list[object]]) -> None:
    folder, arguments = keywords
    before = weights(folder / "train/step_30")
    assert s3prl_main(*arguments, "--train.total_steps", 31, "--train.save_step", 31, "--start", 2, "--stop", 2) == 0
    stats = yaml.safe_load((folder / "train/step_31/training_stats.yaml").read_text())
    assert stats["global_step"] == 31
    optimizer = torch.load(folder / "train/step_31/optimizer.pt", weights_only=True)
    assert {int(entry["step"]) for entry in optimizer["state"].values()} == {31}
    after = weights(folder / "train/step_31")
    assert not torch.equal(before["downstream.final_proj.weight"], after["downstream.final_proj.weight"])
    name = next(key for key in after if key.startswith("upstream.") and key.endswith("weight"))
    assert torch.equal(before[name], after[name])  # the upstream is frozen
    assert s3prl_main(*arguments, "--start", 3, "--test_ckpt_dir", folder / "train/step_31") == 0
    assert (folder / "evaluate/step_31/test/result.yaml").is_file()


@pytest.fixture(scope="module")
def speakers(small_corpus: Path, student: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[object]]:
    """A finished run of SuperbASV, and its arguments."""
    folder = tmp_path_factory.mktemp("asv")
    data = ["--prepare_data.dataset_root", small_corpus / "voxceleb1", "--build_dataset.train.min_secs", 0.5]
    steps = ["--train.total_steps", 4, "--train.save_step", 2, "--train.log_step", 2, "--train.gradient_accumulate", 1]
    arguments = ["SuperbASV", *common_settings(folder, student), *data, *steps, "--build_dataset.train.max_secs", 1.5]
    torch.manual_seed(0)
    assert s3prl_main(*arguments) == 0
    return folder, arguments


def x_vector(features: Tensor, state: dict[str, Tensor]) -> Tensor:
    """SUPERB's speaker embedding, computed with convolutions; s3prl unfolds the frames and multiplies matrices."""
    x = linear(features, state["downstream.projector.weight"], state["downstream.projector.bias"]).T[None]
    for layer, (width, dilation) in enumerate([(5, 1), (3, 2), (3, 3), (1, 1), (1, 1)]):
        kernel, bias = (state[f"downstream.tdnns.module.{layer}.kernel.{kind}"] for kind in ("weight", "bias"))
        x = conv1d(x, kernel.unflatten(1, (width, -1)).transpose(1, 2), bias, dilation=dilation).relu()
    pooled = torch.cat([x[0].mean(dim=1), x[0].std(dim=1)])
    return linear(pooled, *(state[f"downstream.affine.linear1.{kind}"] for kind in ("weight", "bias"))).relu()


def test_the_eer_equals_that_recomputed_from_the_saved_weights(
    speakers: tuple[Path, list[object]], student: Path, small_corpus: Path
) -> None:
    folder, _ = speakers
    upstream, errors = ds.load_student(student), {}
    lines = [line.split() for line in (small_corpus / "voxceleb1/veri_test.txt").read_text().splitlines()]
    names = sorted({name for line in lines for name in line[1:3]})
    waves = [soundfile.read(small_corpus / "voxceleb1/test/wav" / name, dtype="float32")[0] for name in names]
    for step in ("step_2", "step_4"):
        state = weights(folder / "train" / step)
        with torch.no_grad():
            embeddings = [x_vector(weighted_features(upstream, torch.from_numpy(wave), state), state) for wave in waves]
        embedding_of = dict(zip(names, embeddings, strict=True))
        scores = [float(cosine_similarity(embedding_of[a], embedding_of[b], dim=0)) for _, a, b in lines]
        labels = [int(line[0]) for line in lines]
        errors[step] = eer(scores, labels)
        result = yaml.safe_load((folder / "evaluate/test_trial" / step / "result.yaml").read_text())
        # float32 rounding may swap two scores, which changes each error rate by one step
        tolerance = 2 / min(sum(labels), len(labels) - sum(labels))
        assert result["EER"] == pytest.approx(errors[step], abs=tolerance)
    best = yaml.safe_load((folder / "evaluate/test_trial/best_result.yaml").read_text())
    assert best["EER"] == pytest.approx(min(errors.values()), abs=tolerance)
    assert 0 < best["EER"] < 0.5


def test_speaker_lists_contain_the_whole_corpus(speakers: tuple[Path, list[object]], small_corpus: Path) -> None:
    folder, _ = speakers
    root = (small_corpus / "voxceleb1").resolve()
    train, trials = rows(folder / "train.csv"), rows(folder / "test_trial.csv")
    assert {row["wav_path"] for row in train} == set(map(str, (root / "dev/wav").rglob("*.wav")))
    assert len({row["spk"] for row in train}) == 6
    assert len(trials) == len((root / "veri_test.txt").read_text().splitlines())


def test_speaker_training_resumes_and_its_new_checkpoint_is_tested(speakers: tuple[Path, list[object]]) -> None:
    folder, arguments = speakers
    assert s3prl_main(*arguments, "--train.total_steps", 5, "--train.save_step", 5, "--start", 2, "--stop", 2) == 0
    assert yaml.safe_load((folder / "train/step_5/training_stats.yaml").read_text())["global_step"] == 5
    where = ["--test_ckpt_dir", folder / "train/step_5", "--test_ckpt_steps", "[]"]
    assert s3prl_main(*arguments, "--start", 3, "--stop", 3, *where) == 0
    assert (folder / "evaluate/test_trial/step_5/result.yaml").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["SuperbKZ"], "SuperbKZ: no such recipe; did you mean `SuperbKS`?"),
        (["SuperbKS", "--target_dir"], "--target_dir: settings are written --KEY.KEY VALUE"),
        (["SuperbKS", "--target_dir=exp"], "--target_dir=exp: settings are written"),
        (["SuperbKS", "--target_dir", "exp", "--target_dir.a", "1"], "target_dir is a value, not a group of keys"),
        (["SuperbKS", "--target_dir", "exp"], "SuperbKS: --prepare_data.gsc1: Missing mandatory value"),
        (["SuperbKS", "--target_dir", "exp", "--config", "none.yaml"], "none.yaml"),
        (
            ["SuperbASV", "--target_dir", "exp", "--prepare_data.dataset_root", "no", "--build_upstream.name", "x"],
            "/no/",
        ),
    ],
)
def test_a_users_error_is_reported_in_one_line(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))  # where s3prl keeps its cache
    assert s3prl_main(*arguments, *(["--verbose", "ERROR"] if "=" not in arguments[-1] else [])) == 2
    line = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(line) == 1 and message in line[0]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (["--build_upstream.name", "fbnak"], "--build_upstream.name fbnak: no such upstream; did you mean `fbank`?"),
        (["--train.totl_steps", 3], "SuperbKS: totl_steps: no such setting"),
        (["--trian.total_steps", 3], "SuperbKS: trian: no such setting"),
        (["--build_upstream.path_or_url", "nowhere"], "nowhere"),
    ],
)
def test_a_wrong_setting_is_reported_in_one_line(
    keywords: tuple[Path, list[object]], setting: list[object], message: str, capsys: pytest.CaptureFixture
) -> None:
    assert s3prl_main(*keywords[1], "--start", 2, *setting) == 2
    line = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(line) == 1 and message in line[0]


def test_an_unreadable_file_in_a_data_worker_is_reported_in_one_line(
    keywords: tuple[Path, list[object]], capsys: pytest.CaptureFixture
) -> None:
    folder, arguments = keywords
    listed, bad = (folder / "test.csv").read_text(), folder / "bad.wav"
    bad.write_text("no audio")
    try:
        (folder / "test.csv").write_text(listed.replace(rows(folder / "test.csv")[0]["wav_path"], str(bad)))
        assert s3prl_main(*arguments, "--start", 3, "--num_workers", 1) == 2
    finally:
        (folder / "test.csv").write_text(listed)
    assert f"error: SuperbKS: {bad}: not readable as audio" in capsys.readouterr().err


def test_help_lists_the_recipes_and_the_options_of_s3prl(capsys: pytest.CaptureFixture) -> None:
    assert s3prl_main("--help") == 0
    assert "SuperbKS, SuperbSID" in capsys.readouterr().out
    assert s3prl_main("SuperbKS", "--help") == 0
    assert "--dump_config" in capsys.readouterr().out


def test_values_are_read_as_literals_and_never_run_as_code() -> None:
    options = ["--a.b", "1e-3", "--a.c", "[1, 'x']", "--d", "null", "--e", "__import__('os').getcwd()"]
    assert parse_overrides(options) == {"a": {"b": 1e-3, "c": [1, "x"]}, "d": None, "e": "__import__('os').getcwd()"}


def test_a_missing_package_is_an_error_only_when_it_is_used() -> None:
    assert helpers.optional("csv") is csv
    missing_package = helpers.optional("no_such_package.part")
    with pytest.raises(ds.UserError, match="needs the Python package no_such_package"):
        missing_package.part.measure(1)
