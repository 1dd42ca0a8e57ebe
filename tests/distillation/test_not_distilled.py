"""Zero steps of distillation: a student that is initialised from the teacher and not trained."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
import torch
import yaml
from conftest import SMALL

import distilled_student as ds
from distilled_student.cli import main
from distilled_student.common.base_configs import read_config_file
from distilled_student.distillation.config import read_config
from distilled_student.distillation.early_checks import check_settings


@pytest.fixture
def config(tmp_path: Path, audio_folder: Path, small_cnn: ds.StudentConfig) -> Path:
    torch.manual_seed(1)
    ds.save_student(ds.build_student(small_cnn), tmp_path / "teacher")
    student = {key: SMALL[key] for key in SMALL if key not in ("targets", "target_size")}
    values = {
        "teacher": str(tmp_path / "teacher"),
        "targets": [1, 2],
        "student": {**student, "conv_dim": [8] * 7, "layers": 1},
        "output": str(tmp_path / "out"),
        "data": {"paths": [str(audio_folder)], "batch_seconds": 6, "max_seconds": 3, "workers": 0},
        "steps": 2,
    }
    path = tmp_path / "distill.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def run(*argv: object) -> int:
    with pytest.raises(SystemExit) as end:
        main(["distill", *map(str, argv)])
    return int(end.value.code or 0)


def test_without_steps_the_student_has_the_teachers_weights_and_its_card_says_so(config: Path, tmp_path: Path) -> None:
    assert run(config, "steps=0") == 0
    weights, teacher = (
        ds.load_student(tmp_path / "out").state_dict(),
        ds.load_student(tmp_path / "teacher").state_dict(),
    )
    copied = [name for name in weights if name.startswith(("frontend.", "layers.0."))]
    assert copied and all(torch.equal(weights[name], teacher[name]) for name in copied)
    card = (tmp_path / "out/README.md").read_text()
    assert "| data | none: the student is initialised and not distilled |" in card and "| step | loss |" not in card


def test_a_run_starts_from_the_weights_of_another_student_and_its_card_says_so(config: Path, tmp_path: Path) -> None:
    assert run(config, "steps=2") == 0
    first = ds.load_student(tmp_path / "out").state_dict()
    assert run(config, "steps=0", f"start_from={tmp_path / 'out'}", f"output={tmp_path / 'second'}") == 0
    second = ds.load_student(tmp_path / "second").state_dict()
    assert all(torch.equal(value, first[name]) for name, value in second.items())
    assert "| starts from | the student out |" in (tmp_path / "second/README.md").read_text()


def test_a_student_without_prediction_layers_is_a_start_too(config: Path, tmp_path: Path) -> None:
    assert run(config, "steps=2") == 0
    student = ds.load_student(tmp_path / "out")
    kept = {name: value for name, value in student.state_dict().items() if not name.startswith("predictions.")}
    student.config, student.predictions = dataclasses.replace(student.config, targets=[]), None
    ds.save_student(student, tmp_path / "packed")
    assert run(config, "steps=0", f"start_from={tmp_path / 'packed'}", f"output={tmp_path / 'second'}") == 0
    second = ds.load_student(tmp_path / "second")
    assert all(torch.equal(second.state_dict()[name], value) for name, value in kept.items())
    assert second.predictions is not None


def test_a_student_of_another_configuration_is_no_start(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert run(config, "steps=0", f"start_from={tmp_path / 'teacher'}") == 2
    assert (
        "distill.yaml: start_from: " in (message := capsys.readouterr().err)
        and "another configuration (layers" in message
    )


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("openwakeword", "openwakeword: is the name of a teacher, which is not trained further: give edge, tiny, "),
        ("shipped", "shipped: is the name of a teacher, which is not trained further: give edge, tiny, "),
        ("hubert_base", "hubert_base: is the name of a teacher, which is not trained further: give edge, tiny, "),
        ("tinyy", "OWNER/NAME; did you mean `tiny`?"),
        ("wavlm", "wavlm: model_type: 'wavlm' is not one of distilled_student, hubert, wav2vec2, whisper: give edge"),
        ("empty", "start_from: empty: is not a student: the folder has no config.json"),
        ("clip.wav", "start_from: clip.wav: is not a student"),
    ],
)
def test_what_is_no_student_is_no_start_and_is_refused_before_torch_is_needed(
    name: str, reason: str, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("wavlm", "empty"):
        Path(folder).mkdir()
    Path("wavlm/config.json").write_text('{"model_type": "wavlm"}')
    Path("wavlm/model.safetensors").touch()
    Path("clip.wav").write_bytes(b"RIFF")
    settings = read_config(read_config_file(config, "distill"), config, [f"start_from={name}"])
    with pytest.raises(ds.UserError, match=re.escape(reason)) as error:
        check_settings(settings, "distill.yaml")
    assert str(error.value).startswith("distill.yaml: start_from: ")


def test_a_missing_folder_is_no_start(config: Path, capsys: pytest.CaptureFixture) -> None:
    assert run(config, "steps=0", "start_from=exp/nothing") == 2
    assert "distill.yaml: start_from: exp/nothing: no such file or folder" in capsys.readouterr().err


def test_the_same_command_finds_its_student_again_and_more_steps_train_it(
    config: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    assert run(config, "steps=0") == 0
    before = ds.load_student(tmp_path / "out").state_dict()
    assert run(config, "steps=0") == 0
    assert "finished: all 0 steps are trained" in caplog.text
    assert all(
        torch.equal(before[name], value) for name, value in ds.load_student(tmp_path / "out").state_dict().items()
    )
    assert run(config) == 0
    after = ds.load_student(tmp_path / "out").state_dict()
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_the_random_weights_are_those_before_the_first_step_of_a_distillation(config: Path, tmp_path: Path) -> None:
    assert run(config, "steps=0") == 0
    assert run(config, "steps=1", "learning_rate=1.0e-30", f"output={tmp_path / 'one'}") == 0
    untrained, trained = (ds.load_student(tmp_path / name).state_dict() for name in ("out", "one"))
    assert all(torch.allclose(untrained[name], trained[name], rtol=0, atol=1e-20) for name in untrained)


def test_a_negative_number_of_steps_is_refused(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(config, "steps=-1") == 2
    assert "steps: needs 0 or more" in capsys.readouterr().err
