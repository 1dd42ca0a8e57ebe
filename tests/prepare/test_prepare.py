"""Preparing public corpora from a real local server that loses connections, refuses, and serves wrong files."""

from __future__ import annotations

import io
import os
from dataclasses import replace
from pathlib import Path

import pytest
from helpers import serving
from helpers.serving import Server, files_below, noise, published, run, tar
from hypothesis import given
from hypothesis import strategies as st

from distilled_student.common.errors import UserError
from distilled_student.prepare import counts, download
from distilled_student.prepare.catalog import CORPORA, Corpus, Part
from distilled_student.prepare.prepare_corpus import prepare
from distilled_student.prepare.unpack import Pieces

server, unreachable_url = serving.server, serving.unreachable_url  # pytest finds fixtures by name
NAME = "train.tar.gz"


READ = {f"LibriSpeech/train/{s}/7/{s}-7-{u}.flac": noise(f"{s}{u}") for s in (11, 12) for u in range(3)} | {
    "LibriSpeech/LICENSE.TXT": b"CC BY 4.0"
}


def corpus_of(archive: bytes, *urls: str, utterances: int = 6, unpacked: int = 0) -> Corpus:
    """A corpus in LibriSpeech's layout: two speakers with three utterances each."""
    expected = {"utterances": utterances, "speakers": 2}
    files = (published(NAME, archive, *urls),)
    part = Part("train", files, "LibriSpeech/train", unpacked, counts.speakers_and_utterances, expected)
    return Corpus("LibriSpeech", "a small corpus", (part,))


@pytest.fixture
def small(server: Server) -> Corpus:
    server.files[NAME] = tar(READ)
    return corpus_of(server.files[NAME], f"{server.url}/{NAME}")


def half(server: Server, root: Path, content: bytes | None = None) -> int:
    """Write the first half of the archive into ``root``, as an interrupted run does. Returns its length."""
    size = len(server.files[NAME]) // 2
    path = root / "LibriSpeech" / f"{NAME}.part"
    path.parent.mkdir(parents=True)
    path.write_bytes(server.files[NAME][:size] if content is None else content)
    return size


# downloading ---------------------------------------------------------------------------------------------------------


def test_a_corpus_is_downloaded_unpacked_and_counted_and_the_archive_is_deleted(small: Corpus, tmp_path: Path) -> None:
    prepare(small, tmp_path)
    assert files_below(tmp_path) == set(READ)
    assert all((tmp_path / name).read_bytes() == content for name, content in READ.items())


def test_a_second_run_makes_no_request(small: Corpus, server: Server, tmp_path: Path) -> None:
    prepare(small, tmp_path)
    prepare(small, tmp_path)
    assert server.requests == [(NAME, None)]


def test_a_lost_connection_is_resumed_at_its_last_byte(small: Corpus, server: Server, tmp_path: Path) -> None:
    server.cuts = [1000, 2500]
    prepare(small, tmp_path)
    assert server.requests == [(NAME, None), (NAME, "bytes=1000-"), (NAME, "bytes=3500-")]
    assert files_below(tmp_path) == set(READ)


@pytest.mark.parametrize("how", ["reset", "silent"])
def test_a_connection_that_is_reset_or_times_out_is_resumed(
    small: Corpus, server: Server, tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "TIMEOUT", 0.3)
    server.failure, server.cuts = how, [1000, 2500]
    prepare(small, tmp_path)
    assert len(server.requests) == 3
    assert files_below(tmp_path) == set(READ)


def test_a_later_run_resumes_the_download_of_an_interrupted_one(small: Corpus, server: Server, tmp_path: Path) -> None:
    size = half(server, tmp_path)
    prepare(small, tmp_path)
    assert server.requests == [(NAME, f"bytes={size}-")]


def test_a_complete_file_is_not_downloaded_again(small: Corpus, server: Server, tmp_path: Path) -> None:
    half(server, tmp_path, server.files[NAME])
    prepare(small, tmp_path)
    assert server.requests == []


def test_without_a_published_size_the_server_is_asked_for_the_missing_bytes(
    small: Corpus, server: Server, tmp_path: Path
) -> None:
    half(server, tmp_path, server.files[NAME])
    (part,) = small.parts
    unsized = replace(part, archives=(replace(part.archives[0], size=0),))
    prepare(replace(small, parts=(unsized,)), tmp_path)
    assert server.requests == [(NAME, f"bytes={len(server.files[NAME])}-")]


def test_a_partial_file_longer_than_the_servers_is_downloaded_again(
    small: Corpus, server: Server, tmp_path: Path
) -> None:
    half(server, tmp_path, server.files[NAME] + b"tail")
    prepare(small, tmp_path)
    assert [wanted for _, wanted in server.requests] == [f"bytes={len(server.files[NAME]) + 4}-", None]


def test_a_server_without_ranges_sends_the_whole_file_again(small: Corpus, server: Server, tmp_path: Path) -> None:
    half(server, tmp_path)
    server.ranges, server.cuts = False, [3000]
    prepare(small, tmp_path)
    assert len(server.requests) == 2
    assert files_below(tmp_path) == set(READ)


@pytest.mark.parametrize("ranges", [True, False])
def test_retries_without_new_bytes_are_bounded_and_the_partial_file_is_kept(
    small: Corpus, server: Server, tmp_path: Path, ranges: bool
) -> None:
    server.ranges, server.cuts = ranges, [1000, *[0 if ranges else 1000] * 99]
    with pytest.raises(UserError, match=rf"{NAME}: cannot be downloaded \(.*: connection lost after 1,000 of "):
        prepare(small, tmp_path)
    assert len(server.requests) == 2 + download.RETRIES
    assert files_below(tmp_path) == {f"LibriSpeech/{NAME}.part"}
    server.cuts = []
    prepare(small, tmp_path)
    assert files_below(tmp_path) == set(READ)


def test_a_busy_server_is_retried_and_a_refusal_is_not(small: Corpus, server: Server, tmp_path: Path) -> None:
    server.statuses = [503, 429, 403]
    with pytest.raises(UserError, match=rf"{NAME}: .* 403: Forbidden"):
        prepare(small, tmp_path)
    assert len(server.requests) == 3
    assert files_below(tmp_path) == set()


def test_the_next_address_is_tried_when_one_fails(server: Server, unreachable_url: str, tmp_path: Path) -> None:
    server.files[NAME] = tar(READ)
    addresses = (f"{unreachable_url}/{NAME}", f"{server.url}/gone", f"{server.url}/{NAME}")
    prepare(corpus_of(server.files[NAME], *addresses), tmp_path)
    assert [name for name, _ in server.requests] == ["gone", NAME]


def test_a_mirror_replaces_the_published_addresses(server: Server, unreachable_url: str, tmp_path: Path) -> None:
    server.files[f"pub/{NAME}"] = tar(READ)
    prepare(corpus_of(server.files[f"pub/{NAME}"], f"{unreachable_url}/{NAME}"), tmp_path, mirror=f"{server.url}/pub/")
    assert files_below(tmp_path) == set(READ)


def test_a_wrong_checksum_deletes_the_file_and_the_next_run_downloads_it_again(
    small: Corpus, server: Server, tmp_path: Path
) -> None:
    right, server.files[NAME] = server.files[NAME], tar({"LibriSpeech/train/1/1.flac": noise("another")})
    with pytest.raises(UserError, match=rf"{NAME}\.part: not the published file \(sha256 [0-9a-f]{{64}}, .* deleted"):
        prepare(small, tmp_path)
    assert files_below(tmp_path) == set()
    server.files[NAME] = right
    prepare(small, tmp_path)


def test_a_file_that_changed_on_the_server_between_two_runs_is_detected(
    small: Corpus, server: Server, tmp_path: Path
) -> None:
    half(server, tmp_path, noise("another"))
    with pytest.raises(UserError, match="not the published file"):
        prepare(small, tmp_path)
    assert files_below(tmp_path) == set()


def test_the_users_own_archive_is_used_offline_and_kept(unreachable_url: str, tmp_path: Path) -> None:
    archive = tar(READ)
    own = tmp_path / "LibriSpeech" / NAME
    own.parent.mkdir()
    own.write_bytes(archive)
    prepare(corpus_of(archive, unreachable_url), tmp_path)
    assert files_below(tmp_path) == {*READ, f"LibriSpeech/{NAME}"}


def test_the_users_own_archive_with_a_wrong_checksum_is_refused_and_kept(unreachable_url: str, tmp_path: Path) -> None:
    own = tmp_path / "LibriSpeech" / NAME
    own.parent.mkdir()
    own.write_bytes(b"something else")
    with pytest.raises(UserError, match=f"{NAME}: not the published file"):
        prepare(corpus_of(tar(READ), unreachable_url), tmp_path)
    assert own.read_bytes() == b"something else"


# the command ------------------------------------------------------------------------------------------------------


def test_the_command_prepares_and_logs_each_count(
    small: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(CORPORA, "librispeech", small)
    with caplog.at_level("INFO"):
        assert run("librispeech", tmp_path, "--parts", "train") == 0
    assert f"{tmp_path / 'LibriSpeech/train'}: 6 utterances of 6" in caplog.text


def test_offline_the_command_ends_in_one_line(
    unreachable_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(CORPORA, "librispeech", corpus_of(tar(READ), unreachable_url))
    assert run("librispeech", tmp_path) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {NAME}: cannot be downloaded ({unreachable_url}: ")
    assert "refused" in line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["mnist", "."], "mnist: not one of librispeech"), (["librispeech", ".", "--parts", "dev"], "--parts dev: not")],
)
def test_unknown_names_end_in_one_line_that_lists_the_known(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert "train-clean-100" in line or "voxceleb1" in line


def test_too_little_disk_space_is_an_error_before_the_download(server: Server, tmp_path: Path) -> None:
    server.files[NAME] = tar(READ)
    with pytest.raises(UserError, match=r"LibriSpeech: needs 1,000,000,000\.0 GB of disk, [\d,.]+ GB are free"):
        prepare(corpus_of(server.files[NAME], f"{server.url}/{NAME}", unpacked=10**18), tmp_path)
    assert server.requests == []


def test_bytes_that_are_already_downloaded_need_no_more_disk_space(server: Server, tmp_path: Path) -> None:
    server.files[NAME] = tar(READ)
    size, (archive,) = len(server.files[NAME]), corpus_of(server.files[NAME]).parts[0].archives
    assert download.bytes_to_fetch(archive, tmp_path / "LibriSpeech") == size
    assert download.bytes_to_fetch(archive, tmp_path / "LibriSpeech") - half(server, tmp_path) == (size + 1) // 2
    assert download.bytes_to_fetch(archive, tmp_path / "LibriSpeech") == (size + 1) // 2


def test_a_root_that_cannot_be_written_is_an_error_in_one_line(small: Corpus, tmp_path: Path) -> None:
    (tmp_path / "LibriSpeech").write_text("a file instead of a folder")
    with pytest.raises(UserError, match="LibriSpeech"):
        prepare(small, tmp_path)


# unpacking --------------------------------------------------------------------------------------------------------


def test_a_member_that_leads_out_of_the_folder_is_refused(server: Server, tmp_path: Path) -> None:
    server.files[NAME] = tar(READ | {"../../escaped": b"x"})
    with pytest.raises(UserError, match=rf"{NAME}\.part: cannot be unpacked .*escaped"):
        prepare(corpus_of(server.files[NAME], f"{server.url}/{NAME}"), tmp_path / "root")
    assert files_below(tmp_path) == {f"root/LibriSpeech/{NAME}.part"}


def test_half_an_archive_leaves_no_folder_and_files_of_a_killed_run_are_deleted(server: Server, tmp_path: Path) -> None:
    rest = tmp_path / "LibriSpeech" / ".train.partial" / "LibriSpeech" / "train" / "99" / "old.flac"
    rest.parent.mkdir(parents=True)
    rest.write_bytes(b"")
    good = tar(READ)
    server.files[NAME] = good[: len(good) // 2]
    with pytest.raises(UserError, match="cannot be unpacked"):
        prepare(corpus_of(server.files[NAME], f"{server.url}/{NAME}"), tmp_path)
    assert not (tmp_path / "LibriSpeech" / "train").exists()
    assert not rest.exists()


def test_an_archive_without_the_expected_folder_is_named(server: Server, tmp_path: Path) -> None:
    server.files[NAME] = tar({"other/file": b""})
    with pytest.raises(UserError, match=f"{NAME}.part: holds no folder LibriSpeech/train"):
        prepare(corpus_of(server.files[NAME], f"{server.url}/{NAME}"), tmp_path)


@given(st.lists(st.binary(max_size=9), min_size=1, max_size=4), st.integers(0, 40), st.integers(0, 40))
def test_pieces_read_as_the_joined_file(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[bytes], start: int, size: int
) -> None:
    folder = tmp_path_factory.mktemp("pieces")
    paths = [folder / str(i) for i in range(len(pieces))]
    for path, content in zip(paths, pieces, strict=True):
        path.write_bytes(content)
    with io.BufferedReader(Pieces(paths), 4) as joined:
        joined.seek(start)
        assert joined.read(size) == b"".join(pieces)[start : start + size]
        assert joined.seek(0, os.SEEK_END) == sum(map(len, pieces))


def test_a_missing_file_is_an_error_with_the_published_count(small: Corpus, tmp_path: Path) -> None:
    prepare(small, tmp_path)
    (tmp_path / next(iter(READ))).unlink()
    with pytest.raises(UserError, match=r"LibriSpeech/train: 5 utterances, but 6 are published; remove"):
        prepare(small, tmp_path)
