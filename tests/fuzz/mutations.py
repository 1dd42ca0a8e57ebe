"""Shared by the fuzz tests: how valid files are damaged, which outcomes are allowed, and the allowed memory."""

from __future__ import annotations

import io
import os
import resource
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from distilled_student.common.errors import UserError

CASES = os.environ.get("FUZZ_CASES")  # number of random inputs per test; without it, always the same 200
MANY = settings(
    max_examples=int(CASES or 200),
    derandomize=CASES is None,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
MIB = 2**20
TRIED = Counter[str]()  # printed by `make stress`
# unexpected values of a setting
ODD: list[Any] = [None, True, -1, 0, 1, 2**31, 2**63, 10**400, 0.5, -0.0, float("nan"), float("inf"), 1e308]
ODD += ["", "a\nb", "\x00", "../x", "1e3", "${oc.env:HOME}", "${missing}", "???", [], [[]], [None], {}, {"a": {"a": 1}}]
ODD += [{1: 2}, "\udcff", "x" * 3000, ["a"] * 300]


def damaged(valid: bytes) -> st.SearchStrategy[bytes]:
    """A valid file that is truncated or has bytes changed, inserted or removed; sometimes random bytes."""
    position, some = st.integers(0, len(valid)), st.binary(min_size=1, max_size=8)

    def overwritten(edits: list[tuple[int, bytes]]) -> bytes:
        content = bytearray(valid)
        for start, new in edits:
            content[start : start + len(new)] = new
        return bytes(content)

    # damage in a header has the most different effects
    early = st.tuples(st.integers(0, min(len(valid), 256)), some)
    return st.one_of(
        position.map(lambda end: valid[:end]),
        st.lists(early, min_size=1, max_size=3).map(overwritten),
        st.lists(st.tuples(position, some), min_size=1, max_size=6).map(overwritten),
        st.tuples(position, some).map(lambda edit: valid[: edit[0]] + edit[1] + valid[edit[0] :]),
        st.tuples(position, st.integers(1, 64)).map(lambda cut: valid[: cut[0]] + valid[cut[0] + cut[1] :]),
        st.binary(max_size=200),
    )


def rezipped(valid: bytes) -> st.SearchStrategy[bytes]:
    """A zip archive with one member damaged or removed, and with correct checksums."""
    with zipfile.ZipFile(io.BytesIO(valid)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}

    def zipped(change: tuple[str, bytes | None, int]) -> bytes:
        name, content, method = change
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w", method) as archive:
            for member, old in members.items():
                if member != name:
                    archive.writestr(member, old)
                elif content is not None:
                    archive.writestr(member, content)
        return out.getvalue()

    pickled = [name for name in members if name.endswith("data.pkl")]
    methods = st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
    one = st.sampled_from([*members, *pickled * 2 * len(members)])
    return one.flatmap(
        lambda name: st.tuples(st.just(name), st.one_of(damaged(members[name]), st.none()), methods)
    ).map(zipped)


def value_paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path (keys and indices) of every value in nested mappings and lists."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*path, key)
        yield from value_paths(inner, (*path, key))


def replaced(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """A copy of ``value`` with ``new`` at ``path``; without the entry if ``new`` is `MISSING`."""
    if not path:
        return new
    copied = dict(value) if isinstance(value, dict) else dict(enumerate(value))
    copied[path[0]] = replaced(copied[path[0]], path[1:], new)
    copied = {key: inner for key, inner in copied.items() if inner is not MISSING}
    return copied if isinstance(value, dict) else list(copied.values())


MISSING = object()


def reset(valid: Any, more: list[Any] | None = None) -> st.SearchStrategy[Any]:
    """Nested settings with one or two entries replaced by an odd value or removed."""
    where = st.sampled_from(list(value_paths(valid)))
    what = st.sampled_from([*ODD, *(more or []), MISSING])

    def change(edits: list[tuple[tuple[Any, ...], Any]]) -> Any:
        value = valid
        for path, new in edits:
            if path in set(value_paths(value)):
                value = replaced(value, path, new)
        return value

    return st.lists(st.tuples(where, what), min_size=1, max_size=2).map(change)


def ends_well(run: Callable[[], Any], name: str | Path) -> Any:
    """The result of ``run``, or its UserError if that is one line that contains ``name``. Other errors are raised."""
    TRIED["inputs"] += 1
    try:
        return run()
    except UserError as error:
        message = str(error)
        assert message.isprintable(), repr(message)
        assert str(name) in message, message
        return error


def _peak() -> int:
    """Peak memory of this process in bytes; on Linux since `_reset_peak`."""
    status = Path("/proc/self/status")
    if status.is_file():
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
        return int(lines["VmHWM"].split()[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if os.uname().sysname == "Darwin" else 1024)


def _reset_peak() -> None:
    with suppress(OSError):  # not Linux, or not allowed: then the peak since the start of the process is compared
        Path("/proc/self/clear_refs").write_text("5")


@contextmanager
def at_most(mebibytes: int) -> Iterator[None]:
    """Fail if the code inside this context raises the peak memory of the process by more than this."""
    _reset_peak()
    before = _peak()
    yield
    grown = (_peak() - before) / MIB
    assert grown <= mebibytes, f"{grown:.0f} MiB more, but {mebibytes} are allowed"
