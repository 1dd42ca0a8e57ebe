"""Words of one's own on disk and on the command line: what is added, refused, listed and forgotten."""

from __future__ import annotations

import json
import math
import shutil
import stat
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner

from distilled_student.cli import app
from distilled_student.common.errors import UserError
from distilled_student.corpora.shipped import read_index, read_voice
from distilled_student.device.model_files import open_model
from distilled_student.device.own_words import OwnWords, Recording, add_word
from distilled_student.device.word_commands import words as command
from distilled_student.onnx import Model

VOICES = ["af_heart", "am_adam", "bf_emma", "af_sky"]


@pytest.fixture(scope="module")
def model() -> Model:
    return open_model("tiny")


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """The file of a word by a voice, at 16 kHz."""
    folder = tmp_path_factory.mktemp("recordings")
    clips = {(clip.text, clip.voice): clip for clip in read_index() if clip.kind == "word" and clip.take == 1}

    def write(word: str, voice: str) -> Path:
        clip, file = clips[word, voice], folder / f"{word}_{voice}.wav"
        if not file.exists():
            audio = read_voice(voice)[max(0, clip.start - 1_600) : clip.start + clip.samples + 1_600]
            soundfile.write(file, audio, 16_000)
        return file

    return write


def test_recordings_that_are_added_at_the_same_time_are_all_kept(model: Model, tmp_path: Path) -> None:
    vectors = np.eye(model.word_maps.others.shape[1], dtype=np.float32)[:6]

    def add(number: int) -> None:
        OwnWords(tmp_path, model, "tiny").write("happy", [Recording(f"{number}.wav", vectors[number], 20.0)])

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(add, range(6)))
    kept = OwnWords(tmp_path, model).find("happy")
    assert np.array(kept.vectors).sum(axis=0).tolist() == vectors.sum(axis=0).tolist()


def test_a_word_is_kept_in_a_private_file_with_vectors_and_without_audio(
    model: Model, recording: Callable[[str, str], Path], tmp_path: Path
) -> None:
    own, files = OwnWords(tmp_path / "kept", model, "tiny"), [recording("happy", voice) for voice in VOICES]
    assert add_word(own, "happy", files[:2]).notes == (
        "2 of at least 3 recordings: words are missed more often; add others",
    )
    done = add_word(own, "happy", files[2:])
    assert (done.word.count, done.refused, done.notes) == (4, [], ())
    [file] = own.folder.glob("*.json")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    content = json.loads(file.read_text())
    assert content.keys() == {"name", "model", "fingerprint", "maps", "frames", "vectors", "level", "format"}
    assert content["fingerprint"] == model.fingerprint
    templates, others = own.templates()
    expected = model.enrol_word([soundfile.read(file, dtype="float32")[0] for file in files])
    np.testing.assert_allclose(templates["happy"].vector, expected.vector, atol=1e-5)
    assert templates["happy"].frames == pytest.approx(expected.frames)
    assert templates["happy"].level == pytest.approx(model.word_maps.level(expected), abs=1e-5)
    assert (templates["happy"].clips, others) == (4, [])
    with pytest.raises(UserError, match=r"hapy: is not a word in .*; did you mean `happy`"):
        own.forget("hapy")
    own.forget("happy")
    assert own.all() == []


def test_recordings_that_are_silent_copies_or_of_another_word_are_refused(
    model: Model, recording: Callable[[str, str], Path], tmp_path: Path
) -> None:
    silent = tmp_path / "silent.wav"
    soundfile.write(silent, np.zeros(16_000), 16_000)
    files = [recording("happy", voice) for voice in VOICES]
    own = OwnWords(tmp_path / "kept", model, "tiny")
    done = add_word(own, "happy", [*files, silent, files[0], recording("zero", "af_heart")])
    assert [clip.file for clip in done.added] == [str(file) for file in files]
    assert [problem.split(":")[0] for clip in done.refused for problem in clip.problems] == [
        "silent",
        f"a copy of {files[0]}",
        "unlike the others",
    ]
    assert add_word(own, "happy", [silent]).added == [] and own.find("happy").count == len(files)
    assert add_word(own, "happy", [files[1]]).refused[0].problems == ["added already"]
    assert add_word(own, "happy", [silent], force=True).word.count == 5


def test_names_of_keywords_and_words_of_another_model_are_refused(
    model: Model, recording: Callable[[str, str], Path], tmp_path: Path
) -> None:
    own, file = OwnWords(tmp_path, model, "tiny"), recording("happy", "af_heart")
    with pytest.raises(UserError, match="stop: is a class of the model"):
        add_word(own, "stop", [file])
    add_word(own, "happy", [file])
    [kept] = tmp_path.glob("*.json")
    alone = tmp_path / "alone"  # an exported file of the model, without words.npz in its folder
    alone.mkdir()
    shutil.copy(model.file.with_name("stream.onnx"), alone / "stream.onnx")
    exported = OwnWords(tmp_path, Model(alone / "stream.onnx"), "stream.onnx")
    reason = "added with a copy of this model that has words.npz in its folder"
    assert exported.templates() == ({}, [f"words not used, {reason}: happy"])
    kept.write_text(kept.read_text().replace(model.fingerprint, "another"))
    assert own.templates() == ({}, ["words not used, added with another model: happy"])
    with pytest.raises(UserError, match="happy: was added with another model, tiny: use --model tiny"):
        add_word(own, "happy", [file])
    assert add_word(own, "happy", [file], replace=True).word.count == 1
    kept.write_text(kept.read_text().replace('"format": 1', '"format": 2'))
    with pytest.raises(UserError, match=r"is not a word of one's own \(format: expected 1, found 2\); delete it"):
        own.all()


def test_the_commands_add_list_and_forget_words(recording: Callable[[str, str], Path], tmp_path: Path) -> None:
    def run(*arguments: str) -> tuple[int, str]:
        result = CliRunner().invoke(command, [*arguments, "--profiles", str(tmp_path / "kept")])
        return result.exit_code, result.stdout

    files = [str(recording("happy", voice)) for voice in VOICES]
    code, text = run("add", "happy", *files, "--model", "tiny", "--json")
    assert code == 0 and json.loads(text)["count"] == 4
    code, text = run("add", "happy", files[0], "--model", "tiny")
    assert code == 1 and "refused; added already" in text and "happy: not added; 4 recordings from before" in text
    assert run() == run("--model", "tiny") == (0, "happy: 4 recordings, model tiny\n")
    assert run("--model", "edge")[1].startswith("no words of edge in")
    here = ["--model", "tiny", "--profiles", str(tmp_path / "kept"), "--json"]
    spotted = CliRunner().invoke(app, ["spot", files[1], *here])
    assert spotted.exit_code == 0 and json.loads(spotted.stdout)["label"] == "happy"
    listened = CliRunner().invoke(app, ["listen", files[1], *here])
    assert listened.exit_code in (0, 1), listened.output
    of_other = CliRunner().invoke(app, ["spot", files[1], "--model", "edge", *here[2:]])
    assert of_other.stderr == "note: words not used, added with another model: happy\n"
    assert "different words" in CliRunner().invoke(command, ["add", "Happy", files[0], *here[:4]]).stderr
    assert run("forget", "Happy") == (0, "Happy: forgotten\n")
    assert run("forget", "happy", "--json") == (0, '{"name": "happy", "forgotten": true}\n')
    assert run()[1].startswith("no words in")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"frames": [math.inf]}, "frames: expected positive numbers up to"),
        ({"frames": [10**400]}, "frames: expected positive numbers up to"),
        ({"vectors": [[10**400, 0.0]]}, "vectors: expected lists of numbers, of one size"),
        ({"level": math.nan}, "level: expected a difference of cosines"),
        ({"vectors": [[1.0]]}, "vectors: 1 numbers, but those of the model have"),
    ],
)
def test_a_file_with_impossible_lengths_or_vectors_is_named(
    change: dict[str, object], reason: str, model: Model, tmp_path: Path
) -> None:
    vector = np.eye(1, model.word_maps.mapping.shape[1], dtype=np.float32)[0]
    OwnWords(tmp_path, model).write("hey", [Recording("", vector, 20.0)])
    (file,) = tmp_path.glob("word-*.json")
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(UserError, match=f"{file.name}: .*{reason}.*delete it and add the word again"):
        OwnWords(tmp_path, model).templates()


@pytest.mark.parametrize("name", ["stop", "../hey", "hey\u0007", "hey "])
def test_a_file_with_another_name_than_that_of_its_word_is_refused(name: str, model: Model, tmp_path: Path) -> None:
    vector = np.eye(1, model.word_maps.mapping.shape[1], dtype=np.float32)[0]
    own = OwnWords(tmp_path, model)
    own.write("hey", [Recording("", vector, 20.0)])
    (file,) = tmp_path.glob("word-*.json")
    (tmp_path / "word-copy.json").write_text(file.read_text())
    with pytest.raises(UserError, match=f"word-copy.json: .*name: hey belongs in the file {file.name}"):
        own.all()
    (tmp_path / "word-copy.json").unlink()
    file.write_text(json.dumps(json.loads(file.read_text()) | {"name": name}))
    for attempt in (own.all, own.templates, lambda: own.find("hey")):
        with pytest.raises(UserError, match=f"{file.name}: is not a word of one's own .*delete it") as error:
            attempt()
        assert str(error.value).isprintable()


def test_a_recording_that_is_added_by_several_processes_at_once_counts_once(
    recording: Callable[[str, str], Path], tmp_path: Path
) -> None:
    file = recording("happy", VOICES[0])

    def add(_: int) -> int:
        return len(add_word(OwnWords(tmp_path / "kept", open_model("tiny")), "happy", [file]).added)

    with ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(add, range(4))) == [0, 0, 0, 1]
