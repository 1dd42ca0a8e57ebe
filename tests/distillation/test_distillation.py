"""Distillation: initialisation, data, the command, resuming."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import yaml
from conftest import SMALL, tone
from helpers import references

import distilled_student as ds
from distilled_student.cli import main
from distilled_student.common import audio, audio_reading
from distilled_student.common.errors import UserError
from distilled_student.common.settings import find_config
from distilled_student.distillation.config import DistillConfig
from distilled_student.distillation.data.cuts import DataConfig, make_loader, read_cuts
from distilled_student.distillation.early_checks import check_settings
from distilled_student.distillation.initialize import initialize
from distilled_student.distillation.train import distill
from distilled_student.distillation.trainer import Distillation
from distilled_student.teachers.encoders import StudentEncoder
from distilled_student.teachers.open import open_teacher


def test_front_end_and_first_layers_of_the_same_shape_are_copied(small_cnn: ds.StudentConfig) -> None:
    teacher, student = ds.build_student(small_cnn), ds.build_student(small_cnn)
    found = initialize(student, StudentEncoder(teacher))
    parts = ["front end", "projection norm", "projection", "positions", "first norm", "layer 1", "layer 2"]
    assert (list(found.copied), found.refused) == (parts, {})
    wave = tone(0.5)[None]
    torch.testing.assert_close(
        student.eval()(wave).last_hidden_state, teacher.eval()(wave).last_hidden_state, atol=0, rtol=0
    )


def test_a_student_of_another_shape_keeps_its_random_weights(
    small_cnn: ds.StudentConfig, small_logmel: ds.StudentConfig
) -> None:
    student = ds.build_student(small_cnn)
    before = {n: v.clone() for n, v in student.state_dict().items()}
    found = initialize(student, StudentEncoder(ds.build_student(small_logmel)))
    assert found.copied == {} and found.refused["front end"] == "kind: teacher logmel, student cnn"
    assert all(torch.equal(v, before[n]) for n, v in student.state_dict().items())


def test_a_student_of_a_teacher_that_normalises_its_waveforms_starts_from_the_same_hidden_states(
    audio_folder: Path, tmp_path: Path
) -> None:
    model = references.transformers_model("hubert", **references.SMALL, **references.FORMS["layer-post"])
    teacher = open_teacher(references.save_transformers(model, tmp_path, normalize=True))
    fields = dataclasses.asdict(teacher.student.config) | {"layers": 1}
    fields = {key: value for key, value in fields.items() if not key.startswith(("normalize", "target"))}
    settings = DistillConfig(str(tmp_path), "student", DataConfig([str(audio_folder)]), targets=[2], student=fields)
    student = Distillation(settings, "test.yaml").student.eval()
    wave = 0.3 * tone(0.5)[None] + 0.1
    for ours, theirs in zip(student(wave).hidden_states, teacher(wave).hidden_states[:2], strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_any_rate_and_channel_count_is_read_and_bad_files_are_named(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "stereo.flac", np.stack([tone(1, 44_100).numpy()] * 2, 1), 44_100)
    soundfile.write(tmp_path / "telephone.wav", tone(1, 8_000).numpy(), 8_000)
    soundfile.write(tmp_path / "short.wav", tone(0.05).numpy(), 16_000)
    soundfile.write(tmp_path / "long.wav", tone(5).numpy(), 16_000)
    soundfile.write(tmp_path / "nan.wav", np.full(16_000, np.nan, dtype=np.float32), 16_000, subtype="FLOAT")
    (tmp_path / "text.wav").write_text("not audio")
    (tmp_path / "empty.wav").touch()
    config = DataConfig(paths=[str(tmp_path)], max_seconds=2, batch_seconds=4, workers=0)
    cuts, skipped = read_cuts(config)
    assert {Path(n).name for n in skipped.reasons} == {"short.wav", "text.wav", "empty.wav"}
    lengths, failed = [], {}
    for batch in make_loader(cuts, config, seed=0, epoch=0):
        lengths += batch.lengths.tolist()
        failed |= batch.failed
    assert sorted(lengths) == [16_000, 16_000, 16_000, 32_000, 32_000]
    assert [Path(n).name for n in failed] == ["nan.wav"]


def test_lhotse_manifests_are_read(audio_folder: Path, tmp_path: Path) -> None:
    cuts, _ = read_cuts(DataConfig(paths=[str(audio_folder)]))
    cuts.to_file(tmp_path / "cuts.jsonl.gz")
    again, _ = read_cuts(DataConfig(paths=[str(tmp_path / "cuts.jsonl.gz")]))
    assert len(again) == len(cuts) == 12


def test_batches_have_at_most_batch_seconds_of_audio(audio_folder: Path) -> None:
    config = DataConfig(paths=[str(audio_folder)], batch_seconds=4, max_seconds=2, workers=0)
    cuts, _ = read_cuts(config)
    batches = list(make_loader(cuts, config, seed=0, epoch=0))
    assert sum(len(b.lengths) for b in batches) == 12
    assert all(b.lengths.max() * len(b.lengths) <= 4.001 * 16_000 for b in batches)


@pytest.fixture
def config(tmp_path: Path, audio_folder: Path, small_cnn: ds.StudentConfig) -> Path:
    torch.manual_seed(1)
    ds.save_student(ds.build_student(small_cnn), tmp_path / "teacher")
    student = {**SMALL, "conv_dim": [8] * 7, "layers": 1}
    del student["targets"], student["target_size"]
    values = {
        "teacher": str(tmp_path / "teacher"),
        "targets": [1, 2],
        "student": student,
        "output": str(tmp_path / "out"),
        "data": {"paths": [str(audio_folder)], "batch_seconds": 6, "max_seconds": 3, "workers": 0},
        "steps": 12,
        "learning_rate": 1e-2,
        "log_every": 2,
        "save_every": 5,
    }
    path = tmp_path / "distill.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def _run(*argv: object) -> int:
    try:
        main(["distill", *map(str, argv)])
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_the_command_writes_a_student_with_a_card_and_the_loss_falls(config: Path, tmp_path: Path) -> None:
    assert _run(config) == 0
    student = ds.load_student(tmp_path / "out")
    assert student.config.layers == 1
    card = (tmp_path / "out" / "README.md").read_text()
    for word in ("teacher", "hours", "parameters", "multiply-accumulates", "| step | loss |"):
        assert word in card
    rows = [line.split("|")[2] for line in card.splitlines() if line.startswith("| ") and line[2].isdigit()]
    assert float(rows[-1]) < float(rows[0])
    assert list((tmp_path / "out" / "tensorboard").iterdir())


def test_the_card_describes_the_data_and_the_teacher_that_were_used(config: Path, tmp_path: Path) -> None:
    (tmp_path / "teacher/README.md").write_text("---\nlicense: cc-by-4.0\n---\n")
    files = sorted(path for path in (tmp_path / "audio").iterdir())
    assert _run(config) == 0
    card = (tmp_path / "out" / "README.md").read_text()
    seconds = sum(soundfile.info(str(file)).duration for file in files)
    size = f"{len(files)} utterances, {seconds / 3600:.2f} hours of unlabelled audio"
    assert f"| data | {tmp_path.name}/audio: {size}; trained on" in card
    assert "| licence | cc-by-4.0 (teacher); the licences of the data apply too |" in card
    for file in find_config("demo", "distill").parent.glob("*.yaml"):
        assert "description" not in yaml.safe_load(file.read_text()), "a config cannot know the data of its runs"


def test_weights_copied_from_the_teacher_have_their_own_learning_rate(config: Path, tmp_path: Path) -> None:
    assert _run(config, "copied_learning_rate=0") == 0
    teacher, student = ds.load_student(tmp_path / "teacher").state_dict(), ds.load_student(tmp_path / "out")
    copied = [name for name in student.state_dict() if name.startswith(("frontend.", "layers.0."))]
    assert copied and all(torch.equal(student.state_dict()[name], teacher[name]) for name in copied)
    torch.manual_seed(0)
    fresh = ds.Student(student.config).predictions.state_dict()
    assert not any(torch.equal(v, fresh[n]) for n, v in student.predictions.state_dict().items() if "weight" in n)
    assert _run(config, "copied_learning_rate=-1", f"output={tmp_path / 'b'}") == 2


def test_one_process_distils_in_two_precisions(config: Path, tmp_path: Path) -> None:
    for precision in ("fp32", "bf16"):
        assert _run(config, "steps=2", f"precision={precision}", f"output={tmp_path / precision}") == 0


def test_an_interrupted_run_resumes_to_the_same_student(config: Path, tmp_path: Path) -> None:
    assert _run(config) == 0
    other = tmp_path / "interrupted"
    assert _run(config, f"output={other}") == 0
    for path in (other / "checkpoints").glob("step-00000012.pt"):
        path.unlink()  # as after a kill between the checkpoints of steps 10 and 12
    assert _run(config, f"output={other}") == 0
    one, two = ds.load_student(tmp_path / "out"), ds.load_student(other)
    assert all(torch.equal(v, two.state_dict()[n]) for n, v in one.state_dict().items())


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("steps=many", "steps"),
        ("stepps=3", "stepps"),
        ("precision=int4", "precision"),
        ("student=huge", "student"),
        ("student.width=3", "width"),
        ("targets=[7]", "targets"),
        ("data.paths=[/no/such/folder]", "/no/such/folder"),
        ("teacher=facebook/nowhere", "facebook/nowhere"),
    ],
)
def test_a_wrong_setting_is_an_error_in_one_line_with_exit_code_2(
    config: Path, tmp_path: Path, override: str, message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert _run(config, override) == 2
    error = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(error) == 1
    assert message in error[0] and str(config) in error[0]
    assert not (tmp_path / "out").exists()


def test_if_all_checkpoints_are_damaged_the_newest_is_named(
    config: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert _run(config) == 0
    saved = sorted((tmp_path / "out" / "checkpoints").glob("*.pt"))
    for path in saved:
        path.write_bytes(b"torn")
    assert _run(config) == 2
    assert saved[-1].name in capfd.readouterr().err.splitlines()[-1]


def test_one_file_is_enough(config: Path, tmp_path: Path) -> None:
    folder = tmp_path / "one"
    folder.mkdir()
    soundfile.write(folder / "a.wav", tone(2).numpy(), 16_000)
    assert _run(config, f"data.paths=[{folder}]", "steps=3") == 0


def test_a_truncated_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "half.wav"
    soundfile.write(path, tone(2).numpy(), 16_000)
    path.write_bytes(path.read_bytes()[:30_000])
    for read in (audio.load, audio_reading.header):
        with pytest.raises(ds.UserError, match=r"half\.wav: not readable as audio \(truncated"):
            read(path)
    soundfile.write(tmp_path / "whole.wav", tone(1).numpy(), 16_000)
    _, skipped = read_cuts(DataConfig(paths=[str(tmp_path)]))
    assert list(skipped.reasons) == [str(path)]


def test_frame_shifts_that_do_not_fit_and_unreadable_audio_leave_no_folder(
    config: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert _run(config, "student.conv_stride=[5,2,2,2,2,2,3]") == 2
    assert "no rate is a multiple" in capfd.readouterr().err
    folder = tmp_path / "nan"
    folder.mkdir()
    soundfile.write(folder / "nan.wav", np.full(16_000, np.nan, dtype=np.float32), 16_000, subtype="FLOAT")
    assert _run(config, f"data.paths=[{folder}]") == 2
    assert f"{config}: data.paths: {folder}: no file could be read" in capfd.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_run_is_not_resumed_with_other_settings(config: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert _run(config) == 0
    assert _run(config, "learning_rate=1e-4", "steps=20") == 2
    assert "learning_rate: was 0.01, is 0.0001" in capfd.readouterr().err
    assert _run(config, "targets=[1]") == 2  # with other shapes of weights
    assert "holds another run, with other settings (targets: was [" in capfd.readouterr().err
    assert _run(config, "steps=14") == 0


def test_a_missing_folder_of_held_out_audio_is_reported_early(audio_folder: Path, tmp_path: Path) -> None:
    data = DataConfig([str(audio_folder)], held_out=[str(tmp_path / "gone")])
    with pytest.raises(
        UserError, match=r"^FILE: data\.held_out: .*gone: no such file or folder: give data\.held_out=\[FOLDER\], rec"
    ):
        check_settings(DistillConfig("shipped", str(tmp_path / "student"), data, targets=[1]), "FILE")


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("{audio}", "output: {audio}: is the folder of data.paths too: choose another folder"),
        ("{audio}/", "output: {audio}: is the folder of data.paths too: choose another folder"),
        ("{folder}/link", "output: {folder}/link: is the folder of data.paths too: choose another folder"),
        ("{folder}/others", "output: {folder}/others: is the folder of data.held_out too: choose another folder"),
        ("{folder}/teacher", "output: {folder}/teacher: is the folder of teacher too: choose another folder"),
        ("{folder}/loose", "output: {folder}/loose: holds audio, such as a.wav: choose another folder"),
    ],
)
def test_a_student_is_not_written_into_a_folder_of_data(
    output: str, message: str, audio_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "link").symlink_to(audio_folder)
    shutil.copytree(audio_folder, tmp_path / "others")
    (tmp_path / "teacher").mkdir()
    (tmp_path / "loose").mkdir()
    (tmp_path / "loose/a.wav").touch()
    names = {"audio": audio_folder, "folder": tmp_path}
    data = DataConfig([str(audio_folder)], held_out=[str(tmp_path / "others")])
    config = DistillConfig(str(tmp_path / "teacher"), output.format(**names), data)
    for check in (lambda: check_settings(config, "FILE"), lambda: distill(config, "FILE")):
        with pytest.raises(UserError) as error:
            check()
        assert str(error.value) == f"FILE: {message.format(**names)}"
    other = dataclasses.replace(config, output=str(tmp_path / "student"), cache=str(audio_folder))
    with pytest.raises(UserError, match=r"^FILE: cache: .*: is the folder of data\.paths too"):
        check_settings(other, "FILE")
