"""Each corpus that can be prepared: its layout, its counts, and the published figures."""

from __future__ import annotations

import hashlib
import io
import math
import os
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import soundfile
from conftest import tone
from helpers import serving
from helpers.serving import Server, files_below, published, run, tar

import distilled_student
from distilled_student.common.errors import UserError
from distilled_student.corpora.keywords import KEYWORDS
from distilled_student.prepare import counts
from distilled_student.prepare.catalog import CORPORA, LIBRISPEECH, SPEECH_COMMANDS, VOXCELEB1, Corpus
from distilled_student.prepare.prepare_corpus import prepare

server, unreachable_url = serving.server, serving.unreachable_url  # pytest finds fixtures by name


@pytest.fixture
def commands(tmp_path: Path) -> dict[str, bytes]:
    """Files of a small Speech Commands. The word files are empty: counting does not open them."""
    noise = tmp_path / "hum.wav"
    soundfile.write(noise, tone(2.0).numpy(), 16_000)
    words = [*KEYWORDS, "bed", "cat"]
    files = {
        f"./{word}/{hashlib.md5(bytes([i])).hexdigest()[:8]}_nohash_0.wav": b"" for word in words for i in range(40)
    }
    return files | {"./_background_noise_/hum.wav": noise.read_bytes(), "./_background_noise_/README.md": b"hum"}


def speech_commands(files: Mapping[str, bytes], server: Server) -> Corpus:
    """The published corpus with small archives."""
    test = {f"{word}/a_nohash_{i}.wav": b"" for word in ["_silence_", "_unknown_", *KEYWORDS] for i in range(2)}
    archives = [(tar(files), SPEECH_COMMANDS.parts[0]), (tar(test), SPEECH_COMMANDS.parts[1])]
    parts = []
    for content, part in archives:
        name = part.archives[0].name
        server.files[name] = content
        archive = published(name, content, f"{server.url}/{name}")
        parts.append(replace(part, archives=(archive,), unpacked=0))
    return replace(SPEECH_COMMANDS, parts=tuple(parts))


def test_speech_commands_is_counted_as_s3prl_and_the_classic_index_count(
    commands: dict[str, bytes], server: Server, tmp_path: Path
) -> None:
    distilled_student.register()
    from s3prl.downstream.speech_commands import dataset, expert

    corpus = speech_commands(commands, server)
    with pytest.raises(UserError, match="test: 24 test utterances, but 3,081 are published"):
        prepare(corpus, tmp_path)
    train = tmp_path / "speech_commands" / "train"
    found = counts.speech_commands_training(train)
    training, validation = expert.split_dataset(train)
    superb = [dataset.SpeechCommandsDataset(split, speech_commands_root=train) for split in (training, validation)]
    classic = [
        len(keywords) + 2 * math.ceil(len(keywords) / 10)
        for split in (training, validation)
        if (keywords := [word for word, _ in split if word in KEYWORDS])
    ]
    assert found == {
        "words": 480,
        "background noises": 1,
        "classic training utterances": classic[0],
        "classic validation utterances": classic[1],
        "SUPERB training utterances": len(superb[0]),
        "SUPERB validation utterances": len(superb[1]) - 1,  # the noise, which only s3prl has in this set
    }
    assert 0 < len(validation) < len(training) < 480
    right = [replace(p, expected=p.count(tmp_path / "speech_commands" / p.folder)) for p in corpus.parts]
    prepare(replace(corpus, parts=tuple(right)), tmp_path)


# VoxCeleb1 --------------------------------------------------------------------------------------------------------

DEV, TEST = ("id10001", "id10002", "id10003"), ("id10270", "id10271")
TRIALS = b"1 id10270/v0/00001.wav id10270/v1/00001.wav\n0 id10270/v0/00001.wav id10271/v0/00002.wav\n"
HARD = b"0 id10001/v0/00001.wav id10002/v1/00002.wav\n"


def interviews(speakers: tuple[str, ...]) -> dict[str, bytes]:
    return {f"wav/{s}/v{v}/0000{u}.wav": f"{s}{v}{u}".encode() for s in speakers for v in range(2) for u in (1, 2)}


def zipped(files: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


ARCHIVES = {"dev": zipped(interviews(DEV)), "test": zipped(interviews(TEST))}
CUT = len(ARCHIVES["dev"]) // 3
PIECES = {"vox1_dev_wav_partaa": ARCHIVES["dev"][:CUT], "vox1_dev_wav_partab": ARCHIVES["dev"][CUT:]}
ASKED_FOR = {**PIECES, "vox1_test_wav.zip": ARCHIVES["test"]}
ARRANGED = {f"dev/{n}" for n in interviews(DEV)} | {f"test/{n}" for n in interviews(TEST)}


def voxceleb(url: str) -> Corpus:
    dev, test = VOXCELEB1.parts
    return replace(
        VOXCELEB1,
        parts=(
            replace(
                dev,
                archives=tuple(published(name, content) for name, content in PIECES.items()),
                joined=published("vox1_dev_wav.zip", ARCHIVES["dev"]),
                expected={"utterances": 12, "speakers": 3},
            ),
            replace(
                test,
                archives=(published("vox1_test_wav.zip", ARCHIVES["test"]),),
                expected={"utterances": 8, "speakers": 2},
            ),
        ),
        trials=(published("veri_test.txt", TRIALS, f"{url}/veri_test.txt"), 2),
        more_trials=((published("hard.txt", HARD, f"{url}/hard.txt"), 1),),
    )


def put(folder: Path, files: Mapping[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def test_voxceleb_is_arranged_from_pieces_and_a_zip_which_are_kept(unreachable_url: str, tmp_path: Path) -> None:
    home = put(tmp_path / "voxceleb1", {f"from mail/{n}": c for n, c in ASKED_FOR.items()} | {"veri_test.txt": TRIALS})
    prepare(voxceleb(unreachable_url), tmp_path)
    assert files_below(home) == ARRANGED | {"veri_test.txt"} | {f"from mail/{name}" for name in ASKED_FOR}
    assert (home / "dev/wav/id10002/v1/00002.wav").read_bytes() == b"id1000212"


def test_voxceleb_is_arranged_from_the_joined_zip_with_the_lists_from_the_server(
    server: Server, tmp_path: Path
) -> None:
    server.files = {"veri_test.txt": TRIALS, "hard.txt": HARD}
    source = put(tmp_path / "downloads", {"vox1_dev_wav.zip": ARCHIVES["dev"], "vox1_test_wav.zip": ARCHIVES["test"]})
    prepare(voxceleb(server.url), tmp_path / "data", source=source)
    assert files_below(tmp_path / "data/voxceleb1") == ARRANGED | {"veri_test.txt", "hard.txt"}
    prepare(voxceleb(server.url), tmp_path / "data", source=source)
    assert len(server.requests) == 2


def test_speakers_unpacked_into_one_folder_are_sorted_by_the_trial_list(unreachable_url: str, tmp_path: Path) -> None:
    home = put(tmp_path / "voxceleb1", interviews(DEV + TEST) | {"veri_test.txt": TRIALS})
    prepare(voxceleb(unreachable_url), tmp_path)
    assert files_below(home) == ARRANGED | {"veri_test.txt"}


def test_files_in_another_folder_are_linked_and_not_changed(unreachable_url: str, tmp_path: Path) -> None:
    source = put(tmp_path / "mine", interviews(DEV + TEST) | {"veri_test.txt": TRIALS})
    before = files_below(source)
    prepare(voxceleb(unreachable_url), tmp_path / "data", source=source)
    home = tmp_path / "data/voxceleb1"
    assert files_below(source) == before
    assert files_below(home) == ARRANGED | {"veri_test.txt"}
    walked = {Path(folder, name) for folder, _, names in os.walk(home / "dev") for name in names}  # as s3prl walks
    assert len(walked) == 12
    assert all(path.is_symlink() for path in walked)


def test_folders_of_voxceleb_may_be_links(unreachable_url: str, tmp_path: Path) -> None:
    store = put(tmp_path / "store", interviews(DEV + TEST) | {"veri_test.txt": TRIALS})
    before = files_below(store)
    source, home = tmp_path / "mine", tmp_path / "data/voxceleb1"
    source.mkdir()
    (source / "all").symlink_to(store)
    (store / "loop").symlink_to(source)
    prepare(voxceleb(unreachable_url), tmp_path / "data", source=source)
    assert files_below(home) == ARRANGED | {"veri_test.txt"}
    (store / "loop").unlink()
    assert files_below(store) == before


def test_links_to_speakers_in_the_corpus_folder_are_not_moved_away_from_what_they_lead_to(
    unreachable_url: str, tmp_path: Path
) -> None:
    store = put(tmp_path / "store", interviews(DEV + TEST))
    home = put(tmp_path / "data/voxceleb1", {"veri_test.txt": TRIALS})
    for speaker in {name.split("/")[0] for name in files_below(store)}:
        (home / speaker).symlink_to(Path("../../store") / speaker)
    prepare(voxceleb(unreachable_url), tmp_path / "data")
    for name in ARRANGED:
        assert (home / name).read_bytes()


def test_missing_files_of_voxceleb_are_listed_with_the_page_to_request_them(
    unreachable_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setitem(CORPORA, "voxceleb1", voxceleb(unreachable_url))
    put(tmp_path / "voxceleb1", {"vox1_dev_wav_partaa": PIECES["vox1_dev_wav_partaa"]})
    assert run("voxceleb1", tmp_path) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "voxceleb1: 3 files are missing; request the archives at https://mm.kaist.ac.kr/datasets/voxceleb" in line
    names = [record.getMessage().strip() for record in caplog.records]
    assert names[-3:] == ["veri_test.txt", "vox1_dev_wav_partab", "vox1_test_wav.zip"]
    assert run("voxceleb1", tmp_path / "new") == 2  # a folder that does not exist yet
    assert "voxceleb1: 4 files are missing; request the archives at" in capsys.readouterr().err


def test_a_source_that_does_not_exist_or_is_not_needed_is_refused(unreachable_url: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--source .*gone: no such folder"):
        prepare(voxceleb(unreachable_url), tmp_path, source=tmp_path / "gone")
    with pytest.raises(UserError, match="--source: LibriSpeech is downloaded"):
        prepare(LIBRISPEECH, tmp_path, source=tmp_path)


@pytest.mark.parametrize("what", ["flipped", "cut"])
def test_a_damaged_piece_is_named_and_not_changed(unreachable_url: str, tmp_path: Path, what: str) -> None:
    name, content = "vox1_dev_wav_partab", PIECES["vox1_dev_wav_partab"]
    bad = content[:-1] if what == "cut" else bytes([content[0] ^ 1]) + content[1:]
    home = put(tmp_path / "voxceleb1", ASKED_FOR | {"veri_test.txt": TRIALS, name: bad})
    with pytest.raises(UserError, match=f"{name}: not the published file"):
        prepare(voxceleb(unreachable_url), tmp_path)
    assert files_below(home) == {*ASKED_FOR, "veri_test.txt"}


def one_file_less(home: Path) -> None:
    (home / "test/wav/id10271/v0/00002.wav").unlink()


def one_trial_less(home: Path) -> None:
    (home / "veri_test.txt").write_bytes(TRIALS.splitlines(keepends=True)[0])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            one_file_less,
            "test/wav: 7 utterances, but 8 are published; .*: 1 of its files are missing, such as id10271/v0/00002",
        ),
        (one_trial_less, "veri_test.txt: 1 trials, but 2 are published"),
    ],
)
def test_counts_that_differ_from_the_published_are_errors(
    unreachable_url: str, tmp_path: Path, spoil: Callable[[Path], None], message: str
) -> None:
    home = put(tmp_path / "voxceleb1", interviews(DEV + TEST) | {"veri_test.txt": TRIALS})
    prepare(voxceleb(unreachable_url), tmp_path)
    spoil(home)
    with pytest.raises(UserError, match=message):
        prepare(voxceleb(unreachable_url), tmp_path)


def test_a_deleted_speaker_is_unpacked_again(unreachable_url: str, tmp_path: Path) -> None:
    home = put(tmp_path / "voxceleb1", ASKED_FOR | {"veri_test.txt": TRIALS})
    prepare(voxceleb(unreachable_url), tmp_path)
    for path in sorted((home / "dev/wav/id10003").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    (home / "dev/wav/id10003").rmdir()
    prepare(voxceleb(unreachable_url), tmp_path)
    assert files_below(home) > ARRANGED


def test_the_test_speakers_alone_are_enough_to_evaluate(unreachable_url: str, tmp_path: Path) -> None:
    lists = {"veri_test.txt": TRIALS, "hard.txt": HARD}
    home = put(tmp_path / "voxceleb1", {"vox1_test_wav.zip": ARCHIVES["test"]} | lists)
    prepare(voxceleb(unreachable_url), tmp_path, parts=["test"])
    assert not (home / "dev").exists()
    with pytest.raises(UserError, match="2 files are missing"):
        prepare(voxceleb(unreachable_url), tmp_path)


# published figures ------------------------------------------------------------------------------------------------


def test_checksums_and_addresses_equal_those_in_torchaudio_and_lhotse() -> None:
    from lhotse.recipes import speechcommands as lhotse_commands
    from torchaudio.datasets import librispeech as read
    from torchaudio.datasets import speechcommands as spoken
    from torchaudio.datasets import voxceleb1 as vox

    for part in LIBRISPEECH.parts:
        (archive,) = part.archives
        (known,) = (sum_ for url, sum_ in read._CHECKSUMS.items() if url.endswith(f"/12/{archive.name}"))
        assert archive.checksum == known
        assert archive.urls[0].endswith(f"www.openslr.org/resources/12/{archive.name}")
    training, test = (part.archives[0] for part in SPEECH_COMMANDS.parts)
    assert training.checksum == spoken._CHECKSUMS[training.urls[0]]
    assert training.urls[0] == lhotse_commands._DOWNLOAD_PATH_V1
    assert test.urls[0] == lhotse_commands._TEST_DOWNLOAD_PATH_V1
    dev, test = VOXCELEB1.parts
    assert [a.checksum for a in dev.archives] == vox._ARCHIVE_CONFIGS["dev"]["checksums"]
    assert [a.name for a in dev.archives] == [u.rsplit("/", 1)[1] for u in vox._ARCHIVE_CONFIGS["dev"]["urls"]]
    assert test.archives[0].checksum == vox._ARCHIVE_CONFIGS["test"]["checksum"]
    assert VOXCELEB1.trials and VOXCELEB1.trials[0].urls[0] == vox._VERI_TEST_URL


def test_published_counts_agree_with_each_other() -> None:
    assert sum(part.expected["utterances"] for part in LIBRISPEECH.parts) == 281_241
    assert sum(part.expected["speakers"] for part in LIBRISPEECH.parts) == 2_338
    assert sum(part.expected["utterances"] for part in VOXCELEB1.parts) == 153_516
    assert sum(part.expected["speakers"] for part in VOXCELEB1.parts) == 1_251
    words, test = (part.expected for part in SPEECH_COMMANDS.parts)
    # files of each word in the archive; validation_list.txt and testing_list.txt have 6,798 and 6,835 lines, of which
    # 2,577 and 2,567 are keywords
    keywords = sum((2377, 2375, 2375, 2359, 2353, 2367, 2367, 2357, 2380, 2372))
    assert words["words"] == words["SUPERB training utterances"] - 6 + 6_798 + 6_835 == 64_727 - 6
    assert words["SUPERB validation utterances"] == 6_798
    for what, count in (
        (words["classic training utterances"], keywords - 2_577 - 2_567),
        (words["classic validation utterances"], 2_577),
        (test["test utterances"], 2_567),
    ):
        assert what == count + 2 * math.ceil(0.1 * count)


def test_every_checksum_is_complete_and_unique() -> None:
    parts = [part for corpus in CORPORA.values() for part in corpus.parts]
    archives = [a for part in parts for a in (*part.archives, *([part.joined] if part.joined else []))]
    archives += [a for corpus in CORPORA.values() if corpus.trials for a, _ in (corpus.trials, *corpus.more_trials)]
    assert all(len(bytes.fromhex(a.checksum)) in (16, 32) for a in archives)
    assert len({a.checksum for a in archives}) == len({a.name for a in archives}) == len(archives) == 17
