"""Corpora in read-only folders with unusual names are indexed and read, and nothing in the folders changes."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import soundfile
from conftest import tone
from helpers.trees import speech_commands, voxceleb

from distilled_student import UserError
from distilled_student.distillation.data.cuts import DataConfig, make_loader, read_cuts
from distilled_student.multitask.loader import EvaluationLoader
from distilled_student.multitask.tasks import kws, sv

NAMES = ["a b", "語 ключ", "a\nb", "a\r\u2028b", "[bold] {x} $HOME 'x'"]
WORDS = ["yes", "no"]


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and modification time of the folder and of everything below it, by path."""
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in [folder, *folder.rglob("*")]}


@pytest.fixture(params=NAMES)
def corpus_folder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A folder with an unusual name, which a test fills and then makes read-only."""
    folder = tmp_path / request.param
    folder.mkdir()
    yield folder
    for path in [folder, *(p for p in folder.rglob("*") if p.is_dir())]:
        path.chmod(0o755)


def make_read_only(folder: Path) -> dict[str, tuple[int, int]]:
    """Remove all write permissions in the folder; returns its snapshot."""
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    return snapshot(folder)


def test_keywords_are_indexed_and_read_in_such_a_folder(corpus_folder: Path) -> None:
    speech_commands(corpus_folder / "sc", speakers=6)
    shutil.copy(corpus_folder / "sc/train/yes/spk0_nohash_0.wav", corpus_folder / "sc/train/yes/spk \n語_nohash_0.wav")
    before = make_read_only(corpus_folder)
    settings = kws.Settings(
        train_root=str(corpus_folder / "sc/train"),
        test_root=str(corpus_folder / "sc/test"),
        keywords=WORDS,
        validation_percentage=30.0,
    )
    task = kws.Task(settings, 8, 0, "settings.yaml: kws")
    task.prepare_training()
    assert any("語" in clip.key for clips in task.index[0].values() for clip in clips)
    batches = list(EvaluationLoader({"kws": task.evaluation_data("test")}, {"kws": 4}))
    assert sum(len(keys) for *_, keys in batches) == 8
    assert snapshot(corpus_folder) == before


def test_speakers_are_indexed_and_read_in_such_a_folder(corpus_folder: Path) -> None:
    voxceleb(corpus_folder / "vox")
    (corpus_folder / "vox/dev/wav/id1000").rename(corpus_folder / "vox/dev/wav/id \nß")
    before = make_read_only(corpus_folder)
    settings = sv.Settings(root=str(corpus_folder / "vox"), dev_speakers=2, dev_trials=10)
    task = sv.Task(settings, 8, 0, "settings.yaml: sv")
    task.prepare_training()
    assert len(task.index.training) == 4
    assert len(task.training_data().items) == 16
    for split in ("dev", "test"):
        assert len(list(EvaluationLoader({"sv": task.evaluation_data(split)}, {"sv": 4}))) > 0
    assert snapshot(corpus_folder) == before


def test_audio_for_distillation_is_read_in_such_a_folder(corpus_folder: Path) -> None:
    for name in ("a b.wav", "語.flac", "a\nb.wav", "short\n.wav"):
        soundfile.write(corpus_folder / name, tone(0.05 if "short" in name else 0.5).numpy(), 16_000)
    (corpus_folder / "text\n.wav").write_text("no audio")
    before = make_read_only(corpus_folder)
    config = DataConfig([str(corpus_folder)], workers=0)
    cuts, skipped = read_cuts(config, "settings.yaml: data")
    assert len(cuts) == 3
    assert {Path(name).name for name in skipped.reasons} == {"short\n.wav", "text\n.wav"}
    assert all(len(reason.splitlines()) == 1 for reason in skipped.reasons.values())
    batches = list(make_loader(cuts, config, seed=0, epoch=0))
    assert sum(len(batch.lengths) for batch in batches) == 3 and not any(batch.failed for batch in batches)
    assert snapshot(corpus_folder) == before


def test_missing_data_in_such_a_folder_is_reported_in_one_printable_line(corpus_folder: Path) -> None:
    for read in (
        lambda: read_cuts(DataConfig([str(corpus_folder / "none")])),
        lambda: read_cuts(DataConfig([str(corpus_folder)])),
        lambda: sv.Task(sv.Settings(root=str(corpus_folder / "none")), 8, 0, "settings.yaml: sv").prepare_training(),
        lambda: sv.Task(sv.Settings(root=str(corpus_folder)), 8, 0, "settings.yaml: sv").prepare_training(),
        lambda: kws.Task(kws.Settings(train_root=str(corpus_folder)), 8, 0, "settings.yaml: kws").prepare_training(),
    ):
        with pytest.raises(UserError) as error:
            read()
        message = str(error.value)
        assert len(message.splitlines()) == 1 and message.isprintable()
        name = corpus_folder.name
        assert (name if name.isprintable() else name.encode("unicode_escape").decode()) in message


@pytest.mark.skipif(os.geteuid() == 0, reason="root can read every file")
def test_a_folder_whose_only_file_cannot_be_read_has_no_usable_audio(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", tone(0.5).numpy(), 16_000)
    (tmp_path / "a.wav").chmod(0)
    with pytest.raises(UserError, match="no usable audio"):
        read_cuts(DataConfig([str(tmp_path)]))
