"""A streamed corpus: shards and large manifests, each utterance once per pass, resumed after any batch."""

from __future__ import annotations

import gzip
import io
import itertools
import sys
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import fsspec
import numpy as np
import pytest
import soundfile
import torch
from conftest import tone
from lhotse import CutSet, Recording

from distilled_student.common.arithmetic import ceil_div
from distilled_student.common.errors import UserError
from distilled_student.distillation.data import shards
from distilled_student.distillation.data.cuts import Batch, DataConfig
from distilled_student.distillation.data.shards import Unit, expand_braces, open_units, read_chunks
from distilled_student.distillation.data.stream import make_stream

sys.path.insert(0, str(Path(__file__).parents[1] / "stress"))
import corpus

SECONDS = {"min_seconds": 0.1, "max_seconds": 1.0, "batch_seconds": 2.0}


def flac(seconds: float, rate: int = 16_000, seed: int = 0, channels: int = 1, subtype: str = "PCM_16") -> bytes:
    """The bytes of a FLAC file."""
    file = io.BytesIO()
    samples = np.stack([tone(seconds, rate, seed).numpy()] * channels, 1)
    soundfile.write(file, samples, rate, format="FLAC", subtype=subtype)
    return file.getvalue()


def shard(members: dict[str, bytes]) -> bytes:
    """The bytes of a tar archive."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return file.getvalue()


def write_shards(folder: Path, count: int, each: int) -> str:
    """``count`` shards of ``each`` utterances, each with a text file; returns their pattern."""
    folder.mkdir(exist_ok=True)
    for number in range(count):
        members: dict[str, bytes] = {}
        for i in range(each):
            members[f"{number}-{i}.flac"] = flac(0.15 + 0.02 * (7 * i % each), seed=number * each + i)
            members[f"{number}-{i}.txt"] = b"words"
        (folder / f"{number:03d}.tar").write_bytes(shard(members))
    return str(folder / f"{{000..{count - 1:03d}}}.tar")


def write_manifest(path: Path, count: int) -> None:
    """A manifest of ``count`` cuts, and their audio files in the same folder, named by number."""
    cuts = []
    for i in range(count):
        file = path.parent / f"{i:03d}.wav"
        soundfile.write(file, tone(0.15 + 0.01 * i, seed=i).numpy(), 16_000)
        cuts.append(Recording.from_file(file).to_cut())
    CutSet.from_cuts(cuts).to_file(path)


def first_pass(config: DataConfig, units: Sequence[Unit], rank: int = 0, world: int = 1) -> list[Batch]:
    """The batches of a process's first pass over all its streams."""
    batches, ended = [], set()
    for batch in make_stream(config, units, 0, rank, world):
        if batch.position[0]:
            ended.add(batch.stream)
        else:
            batches.append(batch)
        if len(ended) == config.streams:
            return batches
    raise AssertionError


def names(batches: Sequence[Batch]) -> list[str]:
    """The utterances' names without folders and suffixes, sorted."""
    return sorted(Path(name).stem for batch in batches for name in batch.names)


def same(one: Batch, two: Batch) -> bool:
    """Whether two batches are equal bit for bit."""
    tensors = torch.equal(one.waveforms, two.waveforms) and torch.equal(one.lengths, two.lengths)
    described = [(batch.names, batch.failed, batch.stream, batch.position) for batch in (one, two)]
    return tensors and described[0] == described[1]


@pytest.fixture
def config(tmp_path: Path) -> DataConfig:
    """Seven shards of twelve utterances each, in two streams."""
    return DataConfig([write_shards(tmp_path / "shards", 7, 12)], **SECONDS, workers=0, streams=2)


def test_in_a_pass_all_processes_together_read_each_utterance_once(config: DataConfig) -> None:
    units = open_units(config, world=3)
    found = [names(first_pass(config, units, rank, 3)) for rank in range(3)]
    assert all(found)
    assert sorted(itertools.chain(*found)) == sorted(f"{shard}-{i}" for shard in range(7) for i in range(12))


def test_each_pass_of_a_stream_reads_its_units_in_another_order(config: DataConfig) -> None:
    config.streams = 1
    stream = make_stream(config, open_units(config), 0)
    passes: list[list[str]] = [[], [], []]
    for batch in itertools.takewhile(lambda batch: batch.position[0] < 3, stream):
        passes[batch.position[0]] += batch.names
    assert len({tuple(found) for found in passes}) == 3
    assert len({tuple(sorted(found)) for found in passes}) == 1


def test_batches_do_not_depend_on_the_number_of_workers_and_resume_after_any_batch(config: DataConfig) -> None:
    units = open_units(config)
    whole = list(itertools.islice(make_stream(config, units, 3), 60))
    assert max(batch.position[0] for batch in whole) >= 1 and len({batch.position[1] for batch in whole}) > 2
    for workers, used in ((0, 1), (0, 59), (1, 0), (1, 24), (2, 0), (2, 23)):
        config.workers = workers
        positions = {batch.stream: batch.position for batch in whole[:used]}
        rest = itertools.islice(make_stream(config, units, 3, positions=positions, count=used), 60 - used)
        assert all(same(one, two) for one, two in zip(whole[used:], rest, strict=True))


def test_resuming_opens_no_unit_that_was_used(config: DataConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    config.streams, opened, really = 1, [], shards._open
    monkeypatch.setattr(shards, "_open", lambda path: opened.append(path) or really(path))
    units = open_units(config)
    fourth = next(batch for batch in make_stream(config, units, 0) if batch.position[1] == 3)
    before = list(opened)
    opened.clear()
    next(make_stream(config, units, 0, positions={0: fourth.position}, count=1))
    assert opened == before[3:4]


def test_chunks_are_bounded_and_batches_have_utterances_of_similar_length(
    config: DataConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "CHUNK_ITEMS", 5)
    units = open_units(config)
    assert [len(items) for items, _ in read_chunks(units[0])] == [5, 5, 2]
    batches = first_pass(config, units)
    assert all(batch.lengths.max() * len(batch.lengths) <= 2.001 * 16_000 for batch in batches)
    assert {batch.position[2] for batch in batches} == {0, 1, 2}
    monkeypatch.setattr(shards, "CHUNK_BYTES", 1)
    assert [len(items) for items, _ in read_chunks(units[0])] == [1] * 12
    whole = sum(int(batch.lengths.sum()) for batch in batches) / sum(batch.waveforms.numel() for batch in batches)
    assert whole > 0.7


def test_any_rate_depth_and_channel_count_is_read_and_damaged_members_are_named(tmp_path: Path) -> None:
    nan = io.BytesIO()
    soundfile.write(nan, np.full(8_000, np.nan, dtype=np.float32), 16_000, format="WAV", subtype="FLOAT")
    wav = io.BytesIO()
    soundfile.write(wav, tone(0.5).numpy(), 16_000, format="WAV")
    endless = bytearray(flac(0.5))
    endless[21] |= 0x0F  # the header's number of samples: 36 bits from here on
    endless[22:26] = b"\xff" * 4
    members = {
        "stereo.flac": flac(0.5, 44_100, channels=2, subtype="PCM_24"),
        "telephone.FLAC": flac(0.5, 8_000),
        "long.flac": flac(2.5),
        "short.flac": flac(0.05),
        "nan.wav": nan.getvalue(),
        "cut.wav": wav.getvalue()[:9_000],
        "endless.flac": bytes(endless),
        "text.ogg": b"no audio",
        "torn.flac": flac(0.8)[:5_000],
        "notes.json": b"{",
    }
    (tmp_path / "a.tar").write_bytes(shard(members))
    config = DataConfig([str(tmp_path / "a.tar")], **SECONDS, workers=0, streams=1)
    batches = first_pass(config, open_units(config))
    assert Counter(names(batches)) == {"stereo": 1, "telephone": 1, "long": 3}
    lengths = sorted(length for batch in batches for length in batch.lengths.tolist())
    assert lengths == [8_000, 8_000, 8_000, 16_000, 16_000]
    failed = {Path(name).stem: reason for batch in batches for name, reason in batch.failed.items()}
    assert set(failed) == {"nan", "cut", "endless", "text", "torn"}
    assert "NaN" in failed["nan"] and "truncated" in failed["cut"] and "in its header" in failed["endless"]


def test_a_damaged_shard_is_read_up_to_the_damage_and_named(config: DataConfig) -> None:
    config.streams = 1
    units = open_units(config)
    paths = [Path(unit.path) for unit in units]
    paths[0].write_bytes(paths[0].read_bytes()[:60_000])  # within a member
    torn = bytearray(paths[1].read_bytes())
    torn[51_200:] = b"\x07" * len(torn[51_200:])  # no valid member after this
    paths[1].write_bytes(torn)
    paths[2].unlink()
    paths[3].write_bytes(b"no tar")
    batches = first_pass(config, units)
    assert {name for batch in batches for name in batch.failed} >= {str(path) for path in paths[:4]}
    found = Counter(name.split("-")[0] for name in names(batches))
    assert all(0 < found[number] < 12 for number in "01") and all(found[number] == 12 for number in "456")


@pytest.mark.parametrize("size", [1, 7, 100, 1_000, 100_000])
@pytest.mark.parametrize("ending", [b"", b"\n", b"\n\n"])
def test_parts_of_a_manifest_have_each_line_once(tmp_path: Path, size: int, ending: bytes) -> None:
    lines = [b"%d" % i * (1 + i % 50) for i in range(100)]
    content = b"\n".join(lines) + ending
    plain, packed = tmp_path / "a.jsonl", tmp_path / "a.jsonl.gz"
    plain.write_bytes(content)
    packed.write_bytes(gzip.compress(content))
    parts = ceil_div(len(content), size)
    for units in (
        [Unit(str(plain), part, parts, len(content)) for part in range(parts)],
        [Unit(str(packed), part, 3) for part in range(3)],
    ):
        items = [item for unit in units for chunk, failed in read_chunks(unit) for item in chunk if not failed]
        assert sorted(item.content.strip() for item in items) == sorted(lines)
    for unit in [Unit(str(plain), part, parts, len(content)) for part in range(parts)]:
        for item in [item for chunk, _ in read_chunks(unit) for item in chunk]:
            assert content[int(item.name.split("byte ")[1]) :].startswith(item.content)


@pytest.mark.parametrize("name", ["cuts.jsonl", "cuts.jsonl.gz", "recordings.jsonl"])
def test_a_large_manifest_is_streamed_and_a_small_one_is_not(tmp_path: Path, name: str) -> None:
    write_manifest(tmp_path / name, 40)
    config = DataConfig([str(tmp_path / name)], **SECONDS, workers=0)
    assert open_units(config) is None
    units = open_units(config, world=2, limit=100)
    assert len(units) >= 8
    batches = first_pass(config, units, 0, 2) + first_pass(config, units, 1, 2)
    assert names(batches) == [f"{i:03d}" for i in range(40)]
    for batch in batches:
        for waveform, length, found in zip(batch.waveforms, batch.lengths, batch.names, strict=True):
            samples, _ = soundfile.read(tmp_path / f"{found}.wav", dtype="float32")
            assert torch.equal(waveform[:length], torch.from_numpy(samples))


def test_damaged_lines_and_files_unlike_the_manifest_are_named(tmp_path: Path) -> None:
    write_manifest(tmp_path / "cuts.jsonl", 12)
    soundfile.write(tmp_path / "003.wav", tone(6).numpy(), 16_000)
    (tmp_path / "004.wav").unlink()
    lines = (tmp_path / "cuts.jsonl").read_text().splitlines()
    lines[5] = lines[5][:40]
    lines[6] = lines[6].replace('"duration": 0.21', '"duration": 1e12')
    lines[7] = '{"id": "s", "recording_id": "r", "start": 0, "duration": 1, "channel": 0, "text": ""}'
    lines[8] = lines[8].replace('"type": "file"', '"type": "command"').replace(str(tmp_path), f"touch {tmp_path}/run ")
    (tmp_path / "cuts.jsonl").write_text("\n".join(lines))
    config = DataConfig([str(tmp_path / "cuts.jsonl")], **SECONDS, workers=0, streams=1)
    batches = first_pass(config, open_units(config, limit=0))
    assert names(batches) == ["000", "001", "002", "009", "010", "011"]
    failed = {name: reason for batch in batches for name, reason in batch.failed.items()}
    assert "in the manifest" in failed["003"] and "004" in failed
    assert any("refused" in reason for reason in failed.values()) and not (tmp_path / "run").exists()
    assert len(failed) == 6 and all("cuts.jsonl, byte" in name for name in set(failed) - {"003", "004"})


def test_cuts_of_several_recordings_and_of_a_part_of_one_are_read(tmp_path: Path) -> None:
    write_manifest(tmp_path / "cuts.jsonl", 4)
    one, two, *_ = CutSet.from_file(tmp_path / "cuts.jsonl")
    CutSet.from_cuts([one.append(two), two.truncate(offset=0.02, duration=0.12)]).to_file(tmp_path / "more.jsonl")
    config = DataConfig([str(tmp_path / "more.jsonl")], **SECONDS, workers=0, streams=1)
    batches = first_pass(config, open_units(config, limit=0))
    assert sorted(length for batch in batches for length in batch.lengths.tolist()) == [1_920, 2_400 + 2_560]


@pytest.fixture
def store() -> Iterator[fsspec.AbstractFileSystem]:
    """Files in memory, behind memory://."""
    system = fsspec.filesystem("memory")
    yield system
    system.rm("/", recursive=True)


def test_shards_and_manifests_are_read_through_urls(
    tmp_path: Path, store: fsspec.AbstractFileSystem, config: DataConfig
) -> None:
    for path in (tmp_path / "shards").iterdir():
        store.pipe(f"/corpus/{path.name}", path.read_bytes())
    write_manifest(tmp_path / "cuts.jsonl", 12)
    store.pipe("/corpus/cuts.jsonl", (tmp_path / "cuts.jsonl").read_bytes())
    local = first_pass(config, open_units(config))
    for pattern in ("{000..006}.tar", "*.tar"):
        config.paths = [f"memory://corpus/{pattern}"]
        for workers in (0, 2):
            config.workers = workers
            found = first_pass(config, open_units(config))
            assert names(found) == names(local)
            assert all(torch.equal(one.waveforms, two.waveforms) for one, two in zip(found, local, strict=True))
    config.paths.append("memory://corpus/cuts.jsonl")
    assert len(names(first_pass(config, open_units(config)))) == 7 * 12 + 12


def test_braces_are_expanded_as_in_a_shell() -> None:
    assert expand_braces("a-{08..11}.tar") == ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar"]
    assert expand_braces("{a,b}/{0..1}") == ["a/0", "a/1", "b/0", "b/1"]
    assert expand_braces("plain{x}") == ["plain{x}"]
    with pytest.raises(ValueError, match="at most a million"):
        expand_braces("{5..1}")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"paths": ["{}/shards/{000..009}.tar"]}, "No such file or directory: {}/shards/007.tar"),
        ({"paths": ["{}/shards/x*.tar"]}, "no such file"),
        ({"paths": ["{}/none.tar"]}, "No such file"),
        ({"paths": ["{}/shards/*.tar", "{}/shards"]}, "{}/shards: a folder cannot be streamed"),
        ({"paths": ["{}/shards/*.tar", "{}/words.txt"]}, "words.txt is neither a shard nor a manifest"),
        ({"paths": ["{}/shards/*.tar", "{}/foreign.jsonl"]}, "foreign.jsonl: cannot be read as a lhotse manifest"),
        ({"paths": ["nowhere://a.tar"]}, "nowhere://a.tar: Protocol not known: nowhere"),
        ({"paths": ["memory://nothing/cuts.jsonl"]}, "memory://nothing/cuts.jsonl: "),
        ({"streams": 8}, "7 shards for 8 streams"),
        ({"workers": 4}, "test.yaml: data.workers: 4 cannot share 2 streams evenly"),
    ],
)
def test_a_corpus_that_cannot_be_streamed_is_an_error_in_one_line(
    config: DataConfig, tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    (tmp_path / "words.txt").touch()
    (tmp_path / "foreign.jsonl").write_text('{"text": "of something else"}\n')
    for key, value in changes.items():
        setattr(config, key, [v.replace("{}", str(tmp_path)) for v in value] if key == "paths" else value)
    with pytest.raises(UserError) as error:
        open_units(config, "test.yaml: data")
    assert message.replace("{}", str(tmp_path)) in str(error.value) and str(error.value).startswith("test.yaml: data.")
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


@pytest.mark.parametrize("workers", [0, 1])
def test_a_corpus_without_audio_is_an_error_in_one_line(tmp_path: Path, workers: int) -> None:
    (tmp_path / "a.tar").write_bytes(shard({"a.flac": b"nothing"}))
    (tmp_path / "b.tar").write_bytes(shard({"a.txt": b"nothing"}))
    config = DataConfig([str(tmp_path / "*.tar")], workers=workers, streams=2)
    with pytest.raises(UserError, match=r"^test: data\.paths: .*no audio could be read") as error:
        list(make_stream(config, open_units(config), 0, where="test: data"))
    assert "\n" not in str(error.value)


def test_folders_and_small_manifests_are_not_streamed(audio_folder: Path, tmp_path: Path) -> None:
    write_manifest(tmp_path / "cuts.jsonl", 2)
    assert open_units(DataConfig([str(audio_folder), str(tmp_path / "cuts.jsonl")])) is None
    assert open_units(DataConfig(["/no/such/folder"])) is None
    with pytest.raises(ValueError, match="streams"):
        DataConfig(["a"], streams=0)


def test_memory_and_time_to_the_first_batch_do_not_grow_with_the_corpus(tmp_path: Path) -> None:
    figures = {}
    for lines in (1_000, 100_000):
        corpus.write_manifest(tmp_path / "cuts.jsonl", lines)
        figures[lines] = corpus.measure(tmp_path / "cuts.jsonl", lines)
    assert figures[100_000].megabytes < figures[1_000].megabytes + 50
    assert figures[100_000].seconds < figures[1_000].seconds + 5  # other processes may slow this one down
