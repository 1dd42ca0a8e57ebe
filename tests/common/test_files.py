"""Files of weights: written completely or not at all; damage is detected."""

from __future__ import annotations

import resource
import signal
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from distilled_student.common.errors import UserError
from distilled_student.common.files import is_damaged, newest_undamaged, save_torch

CONTENT = {"weights": torch.arange(2_000.0), "step": 3}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save_torch(CONTENT, tmp_path / "a.pt")
    return tmp_path / "a.pt"


def test_torch_reads_a_file_with_a_checksum(saved: Path) -> None:
    for mapped in (False, True):
        found = torch.load(saved, weights_only=True, mmap=mapped)
        assert torch.equal(found["weights"], CONTENT["weights"]) and found["step"] == 3
    assert zipfile.ZipFile(saved).comment.startswith(b"sha256:") and not is_damaged(saved)


def test_any_flipped_bit_is_detected(saved: Path, tmp_path: Path) -> None:
    whole = saved.read_bytes()
    for place in range(0, len(whole), 7):
        broken = bytearray(whole)
        broken[place] ^= 1 << place % 8
        (tmp_path / "b.pt").write_bytes(broken)
        assert is_damaged(tmp_path / "b.pt"), place


@pytest.mark.parametrize("left", [0, 1, 100, -1, -70, -1000])
def test_a_truncated_file_is_detected(saved: Path, left: int) -> None:
    saved.write_bytes(saved.read_bytes()[:left])
    assert is_damaged(saved)


def test_damage_in_a_file_without_a_checksum_is_detected_by_those_of_its_parts(tmp_path: Path) -> None:
    torch.save(CONTENT, tmp_path / "plain.pt")
    assert not is_damaged(tmp_path / "plain.pt")
    broken = bytearray((tmp_path / "plain.pt").read_bytes())
    broken[broken.index(CONTENT["weights"][5:9].numpy().tobytes())] ^= 1
    (tmp_path / "plain.pt").write_bytes(broken)
    assert is_damaged(tmp_path / "plain.pt")


def test_the_newest_undamaged_file_is_used_and_damaged_ones_are_named(
    saved: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    newer = tmp_path / "b.pt"
    newer.write_bytes(saved.read_bytes()[:-5])
    assert newest_undamaged([saved, newer]) == saved and str(newer) in caplog.text
    assert newest_undamaged([]) is None
    with pytest.raises(UserError, match="and so are all older checkpoints"):
        newest_undamaged([newer])


@contextmanager
def full_disk() -> Iterator[None]:
    """No file may grow beyond 4 KB: a write fails half-way, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_is_an_error_in_one_line_and_the_old_file_is_kept(saved: Path) -> None:
    with full_disk(), pytest.raises(UserError, match=rf"^{saved}: cannot be written \(.*\)[^\n]*$"):
        save_torch({"weights": torch.zeros(10_000)}, saved)
    assert not is_damaged(saved) and [path.name for path in saved.parent.iterdir()] == ["a.pt"]
