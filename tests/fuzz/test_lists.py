"""Trial lists and lhotse manifests of any content are read or refused in one line, and no code in them runs."""

from __future__ import annotations

import base64
import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import soundfile
from conftest import tone
from fuzz.mutations import MANY, at_most, damaged, ends_well, reset
from hypothesis import given
from hypothesis import strategies as st
from lhotse.audio.utils import AudioLoadingError

from distilled_student import UserError
from distilled_student.corpora.speakers import read_trials
from distilled_student.distillation.data.cuts import DataConfig, make_loader, read_cuts
from distilled_student.distillation.data.manifests import load_audio, parse_cut, read_manifest

BOUND = 64  # MiB
LIST = "1 a/1.wav a/2.wav\n0 a/1.wav b/1.wav\n0 a/2.wav b/1.wav\n"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("root")
    for name in ("a/1.wav", "a/2.wav", "b/1.wav", "über/1.wav"):
        (folder / "wav" / name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(folder / "wav" / name, tone(0.2).numpy(), 16_000)
    soundfile.write(folder / "outside.wav", tone(0.2).numpy(), 16_000)
    return folder


WORDS = st.sampled_from(
    ["0", "1", "2", "a/1.wav", "b/1.wav", "/etc/passwd", "../outside.wav", "a", ".", "a/../b/1.wav"]
)
LINES = st.lists(st.one_of(WORDS, st.text(max_size=5)), max_size=6).map(" ".join)
LISTS = st.one_of(
    damaged(LIST.encode()),
    st.lists(LINES, max_size=5).map(lambda lines: (LIST + "\n".join(lines)).encode("utf-8", "surrogatepass")),
    st.lists(LINES, max_size=5).map(lambda lines: "\r\n".join(lines).encode("utf-8", "surrogatepass")),
)


def test_no_trial_list_gives_a_traceback_or_files_outside_its_root(root: Path) -> None:
    path = root / "trials.txt"

    @MANY
    @given(LISTS)
    def check(content: bytes) -> None:
        path.write_bytes(content)
        with at_most(BOUND):  # per list, because hypothesis makes a table of all characters once
            found = ends_well(lambda: read_trials(path, [root / "wav"]), path)
        if not isinstance(found, UserError):
            assert all(file.resolve().is_relative_to(root / "wav") for file in found[0].paths)
            assert len(found[0].labels) == len(found[0].left) == len(found[0].right)

    check()


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "../outside.wav", "a/../../outside.wav", "a/..", "C:\\a.wav", "..\\a.wav"]
)
def test_a_trial_outside_the_root_is_refused(name: str, root: Path, tmp_path: Path) -> None:
    path = tmp_path / "trials.txt"
    path.write_text(f"{LIST}0 a/1.wav {name}\n")
    with pytest.raises(UserError, match=r"trials\.txt: line 4: .*: leads out of the folder of the files: refused"):
        read_trials(path, [root / "wav"])


@pytest.mark.parametrize("line", ["0 a/1.wav my file.wav", "0 my file.wav a/1.wav", "1 a/1.wav no\u00a0break.wav"])
def test_a_file_name_with_a_space_in_a_trial_list_is_refused(line: str, root: Path, tmp_path: Path) -> None:
    path = tmp_path / "trials.txt"
    path.write_text(f"{line}\n{LIST}")
    assert "file names cannot contain white space" in str(ends_well(lambda: read_trials(path, [root / "wav"]), path))


def test_names_of_any_language_are_read_from_a_trial_list(root: Path, tmp_path: Path) -> None:
    path = tmp_path / "trials \n.txt"
    path.write_text(f"{LIST}0 a/1.wav über/1.wav\n", encoding="utf-8")
    trials, speakers = read_trials(path, [root / "wav"])
    assert len(trials.labels) == 4 and "über" in speakers


# manifests ------------------------------------------------------------------------------------------------------------


def recording(path: Path, **more: Any) -> dict[str, Any]:
    source = {"type": "file", "channels": [0], "source": str(path)}
    size = {"sampling_rate": 16_000, "num_samples": 3200, "duration": 0.2, "channel_ids": [0]}
    return {"id": "utterance", "sources": [source], **size, **more}


def cut(path: Path, **more: Any) -> dict[str, Any]:
    place = {"id": "cut", "start": 0.05, "duration": 0.1, "channel": 0, "supervisions": []}
    return {**place, "recording": recording(path), "type": "MonoCut", **more}


def dumped(values: list[Any]) -> bytes:
    return "".join(json.dumps(value) + "\n" for value in values).encode()


def test_no_manifest_gives_a_traceback_or_needs_more_memory_than_stated(root: Path) -> None:
    file = root / "wav" / "a" / "1.wav"
    valid = [cut(file), recording(file), cut(file, id="two")]
    noise = [{"type": "command"}, {"type": "MixedCut"}, [{"name": "Speed", "kwargs": {"factor": 1e-9}}], "utterance"]
    plain = st.one_of(damaged(dumped(valid)), reset(valid, noise).map(dumped))
    squeezed = damaged(gzip.compress(dumped(valid), mtime=0))

    @MANY
    @given(st.one_of(st.tuples(st.just("m.jsonl"), plain), st.tuples(st.just("m.jsonl.gz"), squeezed)))
    def check(made: tuple[str, bytes]) -> None:
        path = root / made[0]
        path.write_bytes(made[1])
        found = ends_well(lambda: list(read_manifest(path)), path)
        for one in [] if isinstance(found, UserError) else found:
            assert 0 < one.duration <= 24 * 3600
            try:
                load_audio(one)
            except Exception:  # the line is valid but its file is missing; the caller names it
                continue

    list(parse_cut(line) for line in dumped(valid).splitlines())
    with at_most(BOUND):
        check()


def hostile(folder: Path) -> dict[str, Any]:
    command = {"type": "command", "channels": [0], "source": f"touch {folder / 'ran'}"}
    rir = recording(folder / "a.wav", sources=[command])
    return {
        "a command": recording(folder / "a.wav", sources=[command]),
        "a command in a cut": cut(folder / "a.wav", recording=rir),
        "a command in a transform": recording(
            folder / "a.wav", transforms=[{"name": "ReverbWithImpulseResponse", "kwargs": {"rir": rir}}]
        ),
        "a command in a mixture": {
            "id": "m",
            "tracks": [{"cut": cut(folder / "a.wav", recording=rir)}],
            "type": "MixedCut",
        },
        "memory": recording(
            folder / "a.wav",
            sources=[{"type": "memory", "channels": [0], "source": base64.b64encode(b"RIFF").decode()}],
        ),
        "years": recording(folder / "a.wav", duration=1e12, num_samples=16_000 * 10**12),
        "one hertz": recording(folder / "a.wav", sampling_rate=1, duration=3200.0),
        "a slow motion": recording(folder / "a.wav", transforms=[{"name": "Speed", "kwargs": {"factor": 1e-9}}]),
        "no duration": recording(folder / "a.wav", duration=float("nan")),
    }


@pytest.mark.parametrize("what", list(hostile(Path())))
def test_a_manifest_can_neither_run_a_program_nor_need_unlimited_memory(what: str, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", tone(0.2).numpy(), 16_000)
    path = tmp_path / "m.jsonl"
    path.write_bytes(dumped([recording(tmp_path / "a.wav"), hostile(tmp_path)[what]]))
    found = ends_well(lambda: list(read_manifest(path)), path)
    assert isinstance(found, UserError) and "line 2" in str(found)
    assert not (tmp_path / "ran").exists()


def test_the_name_of_a_sphere_file_reaches_no_shell(tmp_path: Path) -> None:
    source = f"{tmp_path / 'a'}; touch {tmp_path / 'ran'}; x.sph"
    one = parse_cut(json.dumps(recording(Path(source))))
    with pytest.raises((AudioLoadingError, OSError, RuntimeError, TypeError, ValueError)):
        load_audio(one)
    assert not (tmp_path / "ran").exists()


def test_a_command_in_a_distillation_manifest_does_not_run(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", tone(0.2).numpy(), 16_000)
    path = tmp_path / "m.jsonl"
    path.write_bytes(dumped([recording(tmp_path / "a.wav"), hostile(tmp_path)["a command"]]))
    config = DataConfig([str(path)], workers=0)
    with pytest.raises(UserError, match="a source of type 'command'"):
        list(make_loader(read_cuts(config)[0], config, seed=0, epoch=0))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("depth", [900, 100_000])
def test_a_line_of_nested_lists_is_refused(depth: int, tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text("[" * depth + "]" * depth)
    assert isinstance(ends_well(lambda: list(read_manifest(path)), path), UserError)


def test_a_compressed_file_with_a_line_of_gigabytes_is_refused_in_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl.gz"
    path.write_bytes(gzip.compress(b" " * 2**28))
    with at_most(BOUND):
        found = ends_well(lambda: list(read_manifest(path)), path)
    assert "longer than 1048576 bytes" in str(found)
