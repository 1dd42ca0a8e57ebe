"""The embedded corpus: the packed files, and the two public layouts that they are expanded into."""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import packed_subset

from distilled_student.common import progress
from distilled_student.common.errors import UserError
from distilled_student.corpora import embedded, shipped


@pytest.fixture(scope="module")
def clips() -> list[shipped.PackedClip]:
    """All clips of the packed corpus."""
    return shipped.read_index()


@pytest.fixture(scope="module")
def part(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A packed corpus of eleven voices: six for training, two for development, three for test."""
    voices = ("af_alloy", "af_heart", "am_adam", "em_alex", "jf_alpha", "zm_yunjian", "af_kore", "bm_fable")
    return packed_subset(tmp_path_factory.mktemp("packed"), (*voices, "af_bella", "bm_george", "zf_xiaoyi"))


@pytest.fixture(scope="module")
def root(part: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packed corpus of eleven voices, expanded."""
    return embedded.expand(tmp_path_factory.mktemp("cache") / "demo", packed=part)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A packed corpus of a few clips of seven voices, for tests that expand it."""
    voices = ("af_alloy", "af_aoede", "af_heart", "af_jessica", "af_kore", "af_bella", "am_puck")
    packed = packed_subset(tmp_path_factory.mktemp("packed"), voices)
    header, *clips = (packed / "index.csv").read_text(encoding="utf-8").splitlines()
    (packed / "index.csv").write_text("\n".join([header, *clips[::5]]) + "\n", encoding="utf-8")
    return packed


def names(folder: Path) -> set[str]:
    """Names of the files and folders directly in ``folder``."""
    return {path.name for path in folder.iterdir()}


def speakers(folder: Path, pattern: str) -> set[str]:
    """Speaker IDs of the Speech Commands files that match ``pattern``."""
    return {path.name.split("_nohash_")[0] for path in folder.glob(pattern) if "_nohash_" in path.name}


def test_packed_corpus_is_at_most_12_megabytes() -> None:
    assert sum(path.stat().st_size for path in shipped.PACKED.iterdir()) <= 12e6


def test_packed_corpus_has_50_voices_each_with_10_commands_15_other_words_and_8_sentences(
    clips: list[shipped.PackedClip],
) -> None:
    spoken: dict[tuple[str, str], set[str]] = defaultdict(set)
    for clip in clips:
        spoken[clip.voice, clip.kind].add(clip.text)
    voices = {clip.voice for clip in clips}
    assert len(voices) >= 50
    for voice in voices:
        assert set(embedded.COMMANDS) <= spoken[voice, "word"]
        assert len(spoken[voice, "word"] - set(embedded.COMMANDS)) >= 15
        assert len(spoken[voice, "sentence"]) >= 8


def test_no_voice_is_in_two_splits(clips: list[shipped.PackedClip]) -> None:
    splits = Counter(voice for voice, _ in {(clip.voice, clip.split) for clip in clips})
    assert set(splits.values()) == {1}


def test_each_clip_is_inside_its_file_and_audible(clips: list[shipped.PackedClip]) -> None:
    for name in ("af_heart", "zm_yunyang"):
        voice = shipped.read_voice(name)
        for clip in clips:
            if clip.voice == name:
                piece = voice[clip.start : clip.start + clip.samples]
                assert len(piece) == clip.samples
                assert np.abs(piece).max() > 0.3


def test_the_hash_of_speech_commands_assigns_each_speaker_id_to_the_split_of_its_voice(
    clips: list[shipped.PackedClip],
) -> None:
    ids = embedded.speaker_ids(clips)
    assert len(set(ids.values())) == len(ids)
    bounds = {"dev": (0, 10), "test": (10, 20), "train": (20, 101)}
    for clip in clips:
        low, high = bounds[clip.split]
        assert low <= embedded.hash_percentage(ids[clip.voice]) < high


def test_hash_percentage_agrees_with_the_published_validation_and_testing_lists() -> None:
    assert 0 <= embedded.hash_percentage("026290a7") < 10  # validation_list.txt: bed/026290a7_nohash_0.wav
    assert 10 <= embedded.hash_percentage("0c40e715") < 20  # testing_list.txt: bed/0c40e715_nohash_0.wav


def test_speech_commands_train_has_all_words_and_background_noises_of_20_to_30_seconds(root: Path) -> None:
    train = root / "speech_commands/train"
    words = names(train) - {"_background_noise_"}
    assert set(embedded.COMMANDS) <= words
    assert len(words) >= 25
    noises = list((train / "_background_noise_").glob("*.wav"))
    assert 4 <= len(noises) <= 6
    assert all(20 <= soundfile.info(path).duration <= 30 for path in noises)


def test_speech_commands_test_has_twelve_folders_with_equally_many_files(root: Path) -> None:
    test = root / "speech_commands/test"
    assert names(test) == {*embedded.COMMANDS, "_unknown_", "_silence_"}
    assert len({len(list(folder.iterdir())) for folder in test.iterdir()}) == 1


def test_unknown_test_words_are_used_equally_often(clips: list[shipped.PackedClip]) -> None:
    unknown = Counter(output.clip.text for output in embedded.plan_files() if "/_unknown_/" in output.path)
    others = {clip.text for clip in clips if clip.kind == "word"} - set(embedded.COMMANDS)
    assert set(unknown) == others
    assert max(unknown.values()) - min(unknown.values()) <= 1


def test_each_word_file_is_one_second_of_16_khz_mono_pcm_16(root: Path) -> None:
    for path in [*(root / "speech_commands/train/yes").iterdir(), *(root / "speech_commands/test").glob("*/*.wav")]:
        info = soundfile.info(path)
        assert (info.frames, info.samplerate, info.channels, info.subtype) == (16_000, 16_000, 1, "PCM_16"), path


def test_no_test_speaker_is_in_a_training_folder_of_either_layout(root: Path) -> None:
    commands_train = speakers(root / "speech_commands/train", "*/*.wav")
    commands_test = speakers(root / "speech_commands/test", "*/*.wav")
    voxceleb_dev, voxceleb_test = (names(root / f"voxceleb1/{part}/wav") for part in ("dev", "test"))
    assert commands_train == voxceleb_dev
    assert commands_test == voxceleb_test
    assert not commands_train & commands_test


def test_each_voxceleb_speaker_has_two_sessions_of_utterances_of_at_least_1_5_seconds(root: Path) -> None:
    for speaker in [*(root / "voxceleb1/dev/wav").iterdir(), *(root / "voxceleb1/test/wav").iterdir()]:
        sessions = [{path.name for path in session.iterdir()} for session in speaker.iterdir()]
        assert len(sessions) == 2
        assert sessions[0] == sessions[1]
        assert len(sessions[0]) >= 8
        assert all(soundfile.info(path).duration >= 1.5 for path in speaker.rglob("*.wav"))


def test_trials_are_balanced_unique_and_correct_and_most_impostors_have_the_same_gender(
    root: Path, part: Path, clips: list[shipped.PackedClip]
) -> None:
    gender = {speaker: voice[1] for voice, speaker in embedded.speaker_ids(clips).items()}
    outputs = embedded.plan_files()
    trials = [line.split(" ") for line in embedded.make_trials(outputs)]
    assert 1_800 <= len(trials) <= 2_200
    assert len({(a, b) for _, a, b in trials}) == len(trials)
    assert sum(label == "1" for label, _, _ in trials) == len(trials) / 2
    same_gender = 0
    for label, a, b in trials:
        assert (label == "1") == (a.split("/")[0] == b.split("/")[0])
        same_gender += label == "0" and gender[a.split("/")[0]] == gender[b.split("/")[0]]
    assert same_gender > 0.7 * len(trials) / 2
    paths = {f"voxceleb1/test/wav/{path}" for _, *pair in trials for path in pair}
    assert paths <= {output.path for output in outputs}
    lines = (root / "voxceleb1/veri_test.txt").read_text().splitlines()
    assert lines == embedded.make_trials(embedded.plan_files(part))
    paths = {path for line in lines for path in line.split(" ")[1:]}
    assert all((root / "voxceleb1/test/wav" / path).is_file() for path in paths)


def test_a_file_rendered_alone_equals_the_file_of_the_whole_expansion(root: Path, part: Path) -> None:
    train_noises, test_noises = embedded.noise_sets(part)
    outputs = embedded.plan_files(part)
    for output in outputs[:: len(outputs) // 12]:
        noises = test_noises if output.clip.split == "test" else train_noises
        alone = embedded.render(output, shipped.read_voice(output.clip.voice), noises)
        written = soundfile.read(root / output.path, dtype="float32")[0]
        assert len(alone) == len(written)
        assert np.abs(alone - written).max() < 1e-4  # one step of 16 bits is 3e-5


def test_two_files_made_from_one_clip_differ(root: Path) -> None:
    first, second = (soundfile.read(path)[0] for path in sorted((root / "speech_commands/train/yes").iterdir())[:2])
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.9


def test_a_second_expansion_writes_nothing_and_an_outdated_one_is_replaced(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rendered, render = [], embedded.render
    monkeypatch.setattr(embedded, "render", lambda output, *rest: rendered.append(output) or render(output, *rest))
    root = embedded.expand(tmp_path / "demo", packed=small)
    assert rendered == embedded.plan_files(small)
    rendered.clear()
    embedded.expand(root, packed=small)
    assert not rendered
    (root / embedded.STAMP).write_text("an older recipe")
    (root / "leftover").touch()
    embedded.expand(root, packed=small)
    assert not (root / "leftover").exists()
    assert names(tmp_path) == {"demo"}


def test_an_interrupted_expansion_leaves_no_files(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(embedded, "render", interrupt)
    with pytest.raises(KeyboardInterrupt):
        embedded.expand(tmp_path / "demo", packed=small)
    assert not names(tmp_path)


def test_expansion_shows_one_progress_bar_on_a_terminal_and_lines_elsewhere(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    embedded.expand(tmp_path / "lines", packed=small)
    err = capsys.readouterr().err
    count = len(embedded.plan_files(small))
    assert f"expanding the embedded corpus: {count} of {count}" in err.splitlines()[-1] and "\r" not in err
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    embedded.expand(tmp_path / "bar", packed=small)
    err = capsys.readouterr().err
    assert "\r" in err and "\n" not in err


def test_a_folder_with_other_files_is_refused_and_not_changed(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="exists and is not the embedded corpus"):
        embedded.expand(tmp_path)
    assert names(tmp_path) == {"thesis.txt"}
