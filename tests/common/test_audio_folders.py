"""What a folder of audio holds: links, hidden names, formats; what is not read is named."""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path

import pytest
import soundfile
from conftest import tone
from helpers.trees import speech_commands, voxceleb, write_tone

from distilled_student import UserError
from distilled_student.common import audio_folders
from distilled_student.common.audio_folders import AudioFolders, audio_files, is_audio, subfolders
from distilled_student.corpora.speakers import speaker_files
from distilled_student.distillation.config import DistillConfig
from distilled_student.distillation.data.config import DataConfig
from distilled_student.distillation.data.cuts import read_cuts
from distilled_student.distillation.early_checks import check_settings
from distilled_student.host.superb.helpers import find_files
from distilled_student.multitask.augment import Augmentation
from distilled_student.multitask.tasks import kws, kws_index
from distilled_student.multitask.tasks.settings import AugmentSettings
from distilled_student.multitask.tasks.sv_index import SpeakerIndex
from distilled_student.prepare.counts import relative_audio_paths, speakers_and_utterances

LEFT_OUT = [
    "__MACOSX",
    "@eaDir",
    "lost+found",
    ".ipynb_checkpoints",
    ".git",
    "$RECYCLE.BIN",
    "System Volume Information",
]


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def corpus(root: Path) -> set[str]:
    """A folder with three files that count, and much that does not; returns the names of the three."""
    write_tone(root / "a" / "1.wav", 200)
    write_tone(root / "a" / "b" / "2.WAV", 200)
    write_tone(root.parent / "elsewhere" / "3.flac", 200)
    (root / "linked").symlink_to(root.parent / "elsewhere")
    (root / "a" / "loop").symlink_to(root)
    (root / "z again").symlink_to(root / "a")
    for name in LEFT_OUT:
        shutil.copy(root / "a" / "1.wav", touch_folder(root / name) / "1.wav")
    touch(root / "a" / "._1.wav", root / ".hidden.wav", root / "notes.txt", root / "a" / "1.wav.part")
    return {"a/1.wav", "a/b/2.WAV", "linked/3.flac"}


def touch_folder(path: Path) -> Path:
    path.mkdir(parents=True)
    return path


def test_all_parts_of_the_package_find_the_same_files_in_a_folder(tmp_path: Path) -> None:
    root = tmp_path / "root"
    expected = corpus(root)
    settings = AugmentSettings(noise=1.0, noise_root=str(root), reverb=1.0, rir_root=str(root))
    augment = Augmentation(settings, "augment")
    cuts, skipped = read_cuts(DataConfig([str(root)]))
    found = {
        "walk": audio_files(root, "root"),
        "noise": augment.noises,
        "rir": augment.rirs,
        "distillation": [Path(cut.recording.id) for cut in cuts],
        "superb": list(map(Path, find_files(root))),
        "prepare": [root / name for name in relative_audio_paths(root)],
        "speakers": [file for files in speaker_files(root, "root").values() for file in files],
    }
    for user, files in found.items():
        assert sorted(str(file.relative_to(root)) for file in files) == sorted(expected), user
    assert not len(skipped)
    assert speakers_and_utterances(root) == {"utterances": 3, "speakers": 2}


def test_files_are_sorted_by_their_path_whatever_the_order_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["b/1.wav", "a/2.wav", "a b/3.wav", "a.wav", "b.d/4.wav"]
    touch(*(tmp_path / name for name in names))
    found = audio_files(tmp_path, "root")
    assert found == sorted(tmp_path / name for name in names)
    scandir = os.scandir

    class Reversed:
        def __init__(self, path: str) -> None:
            with scandir(path) as entries:
                self.entries = sorted(entries, key=lambda entry: entry.name, reverse=True)

        def __enter__(self) -> list[os.DirEntry[str]]:
            return self.entries

        def __exit__(self, *error: object) -> None: ...

    monkeypatch.setattr(os, "scandir", Reversed)
    assert audio_files(tmp_path, "root") == found


def test_every_format_that_libsndfile_writes_here_is_found_and_read(tmp_path: Path) -> None:
    written = []
    for name in soundfile.available_formats():
        for suffix in [name.lower(), *audio_folders.USUAL_SUFFIXES.get(name, ())]:
            if name not in ("RAW", "MAT4", *audio_folders.WITHOUT_LENGTH):
                path = tmp_path / f"a.{suffix}"
                soundfile.write(path, tone(0.2).numpy(), 16_000, format=name, subtype=soundfile.default_subtype(name))
                written.append(path)
    for suffix in ("sph", "oga", "aifc", "rf64", "w64", "wave", "snd", "caf", "voc", "mp3", "opus"):
        assert tmp_path / f"a.{suffix}" in written
    assert audio_files(tmp_path, "root") == sorted(written)
    cuts, skipped = read_cuts(DataConfig([str(tmp_path)]))
    assert len(cuts) == len(written) and not len(skipped)


@pytest.mark.parametrize("suffix", ["m4a", "MP4", "aac", "wma", "webm", "amr"])
def test_files_that_look_like_audio_but_are_not_read_are_named_in_one_line_with_the_remedy(
    suffix: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_tone(tmp_path / "spk" / "a.wav", 200)
    touch(*(tmp_path / "spk" / f"{i}.{suffix}" for i in range(3)))
    with caplog.at_level(logging.WARNING):
        read_cuts(DataConfig([str(tmp_path)]))
        speaker_files(tmp_path, "sv.root")
        audio_files(tmp_path, "noise_root")
    assert len(caplog.messages) == 3
    for line in caplog.messages:
        assert f"0.{suffix} and 2 more: .{suffix.lower()} is not read" in line
        assert f"convert it, as in `ffmpeg -i 0.{suffix} 0.wav`" in line
    (tmp_path / "spk" / "a.wav").unlink()
    for read in (
        lambda: read_cuts(DataConfig([str(tmp_path)])),
        lambda: speaker_files(tmp_path, "sv.root"),
        lambda: audio_files(tmp_path, "noise_root"),
    ):
        with pytest.raises(UserError, match=rf"0\.{suffix} and 2 more: .* convert it"):
            read()


@pytest.fixture
def closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that cannot be opened, next to a file. Permissions do not bind root, so the error is injected."""
    write_tone(tmp_path / "root" / "spk" / "a.wav", 200)
    folder = touch_folder(tmp_path / "root" / "spk" / "closed")
    scandir = os.scandir

    def refusing(path: str) -> object:
        if Path(path) == folder:
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    return folder


def test_a_folder_that_cannot_be_opened_is_named(closed: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = closed.parent.parent
    message = rf"{closed}: cannot be opened \(Permission denied\)"
    with pytest.raises(UserError, match=f"sv.root: {message}"):
        speaker_files(root, "sv.root")
    with pytest.raises(UserError, match=f"augment.noise_root: {message}"):
        Augmentation(AugmentSettings(noise=1.0, noise_root=str(root)), "augment")
    for find in (find_files, relative_audio_paths):
        with pytest.raises(UserError, match=message):
            find(root)
    cuts, skipped = read_cuts(DataConfig([str(root)]))
    assert len(cuts) == 1 and skipped.reasons == {str(closed): "cannot be opened (Permission denied)"}
    assert "Permission denied" in caplog.text


@pytest.mark.parametrize(
    "paths", [["."] * 2, [".", "a"], ["a", "."], [".", "./"], [".", "../link"], ["a/b", "a", "."], ["a", "a/b"]]
)
def test_nested_and_repeated_roots_are_counted_once(paths: list[str], tmp_path: Path) -> None:
    root = tmp_path / "root"
    for name in ("a/1.wav", "a/b/2.wav"):
        write_tone(root / name, 200)
    (tmp_path / "link").symlink_to(root)
    cuts, _ = read_cuts(DataConfig([f"{root}/{path}" for path in paths]))
    assert sorted(Path(cut.recording.id).name for cut in cuts) == ["1.wav", "2.wav"]


def test_a_manifest_that_is_named_twice_is_read_once(tmp_path: Path) -> None:
    write_tone(tmp_path / "audio" / "1.wav", 200)
    cuts, _ = read_cuts(DataConfig([str(tmp_path / "audio")]))
    cuts.to_file(tmp_path / "cuts.jsonl")
    paths = [str(tmp_path / "cuts.jsonl"), f"{tmp_path}/audio/../cuts.jsonl"]
    assert len(read_cuts(DataConfig(paths))[0]) == 1


def test_speakers_of_extra_roots_that_are_already_in_the_root_do_not_become_further_classes(tmp_path: Path) -> None:
    voxceleb(tmp_path)
    write_tone(tmp_path / "more" / "new" / "a.wav", 300)
    extra = [str(tmp_path / "dev" / "wav"), str(tmp_path / "more"), str(tmp_path / "more")]
    index = SpeakerIndex(tmp_path, None, 2, extra, "sv")
    assert len(index.training) == 4 + 1
    assert len(index.development) == 2


def test_keyword_folders_may_be_links_and_system_folders_are_no_words(tmp_path: Path) -> None:
    speech_commands(tmp_path / "corpus")
    root = tmp_path / "corpus" / "train"
    expected = index(root)
    shutil.move(root / "yes", tmp_path / "elsewhere")
    (root / "yes").symlink_to(tmp_path / "elsewhere")
    shutil.copytree(root / "no", root / "@eaDir")
    shutil.copytree(root / "no", root / "__MACOSX")
    shutil.copy(next((root / "no").iterdir()), root / "no" / "._spk0_nohash_0.wav")
    assert index(root) == expected


def index(root: Path) -> dict[str, list[tuple[str, int]]]:
    settings = kws.Settings(train_root=str(root), keywords=["yes", "no"])
    sets, noises = kws_index.class_index(settings, 0, "kws")
    found = {name: [(clip.key, clip.label) for clip in clips] for name, clips in sets.items()}
    return found | {"noises": [(path.name, 0) for path in noises]}


def test_pipes_are_not_waited_for_and_broken_links_are_named(tmp_path: Path) -> None:
    write_tone(tmp_path / "a.wav", 200)
    os.mkfifo(tmp_path / "pipe.wav")
    (tmp_path / "broken.wav").symlink_to(tmp_path / "missing.wav")
    (tmp_path / "itself.wav").symlink_to(tmp_path / "itself.wav")
    cuts, skipped = read_cuts(DataConfig([str(tmp_path)]))
    assert len(cuts) == 1
    assert {Path(name).name for name in skipped.reasons} == {"broken.wav", "itself.wav"}


def test_hidden_members_of_an_archive_are_no_audio() -> None:
    assert is_audio("a/b.wav") and is_audio("b.FLAC")
    assert not any(map(is_audio, ["__MACOSX/a/._b.wav", "a/._b.wav", ".b.wav", "a/@eaDir/b.wav", "b.txt", "b"]))


def test_folders_of_one_level_are_those_that_are_not_left_out(tmp_path: Path) -> None:
    for name in [*LEFT_OUT, "b", "a"]:
        touch_folder(tmp_path / name)
    (tmp_path / "c").symlink_to(tmp_path / "a")
    touch(tmp_path / "file.wav")
    assert [path.name for path in subfolders(tmp_path, "root")] == ["a", "b", "c"]


def test_a_folder_whose_inode_number_is_unknown_is_still_walked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path / "a" / "1.wav", tmp_path / "b" / "2.wav")
    real = os.stat

    def without_inodes(path: str, **options: bool) -> os.stat_result:
        fields = list(real(path, **options))
        fields[1] = 0
        return os.stat_result(fields)

    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", without_inodes)
        found = AudioFolders().files(tmp_path)
    assert len(found) == 2


def test_the_early_check_of_a_distillation_names_files_that_are_not_read(tmp_path: Path) -> None:
    touch(tmp_path / "audio" / "a.m4a")
    with pytest.raises(UserError, match=r"data\.paths: .*no audio files in this folder \(.*a\.m4a: \.m4a is not read"):
        check_settings(
            DistillConfig("shipped", str(tmp_path / "out"), DataConfig([str(tmp_path / "audio")])), "own.yaml"
        )


def test_a_folder_whose_parents_are_missing_holds_no_audio(tmp_path: Path) -> None:
    assert AudioFolders().files(tmp_path / "exp" / "distill" / "tiny", depth=0) == []


def test_a_distillation_makes_the_parents_of_its_output(tmp_path: Path) -> None:
    write_tone(tmp_path / "audio" / "one.wav", 200)
    data = DataConfig(paths=[str(tmp_path / "audio")])
    config = DistillConfig(teacher="shipped", output=str(tmp_path / "exp" / "distill"), data=data, targets=[1, 2])
    check_settings(config, "config.yaml")
