"""Progress: one bar at a time on a terminal; whole lines and no control characters elsewhere."""

from __future__ import annotations

import io
import logging
import sys
from collections.abc import Iterator

import pytest

from distilled_student.common import progress
from distilled_student.common.progress import Progress, note


class Terminal(io.StringIO):
    """Text that was written to a terminal."""

    def isatty(self) -> bool:
        return True

    def screen(self) -> list[str]:
        """The lines that the terminal shows: a carriage return goes back to the start of the line."""
        lines = []
        for line in self.getvalue().split("\n"):
            shown = ""
            for part in line.split("\r"):
                shown = part + shown[len(part) :]
            lines.append(shown.rstrip())
        return lines


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """The time in seconds, as a list of one number that a test changes."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    yield now


@pytest.fixture
def terminal() -> Terminal:
    return Terminal()


def test_a_terminal_shows_a_bar_that_is_removed_at_the_end(terminal: Terminal) -> None:
    with Progress(4, "training", done=1, file=terminal) as shown:
        assert "training" in terminal.screen()[-1] and "1/4" in terminal.screen()[-1]
        shown.update(2)
        shown._bar.refresh()
        assert "3/4" in terminal.screen()[-1]
    assert terminal.screen() == [""]


def test_a_nested_bar_hides_the_outer_one_until_it_is_closed(terminal: Terminal) -> None:
    with Progress(9, "outer", file=terminal) as outer:
        for _ in range(2):
            with Progress(5, "inner", file=terminal) as inner:
                inner.update()
                outer.update()  # counts, but draws nothing
                assert "inner" in terminal.screen()[-1] and "outer" not in terminal.screen()[-1]
            assert "outer" in terminal.screen()[-1] and "inner" not in terminal.screen()[-1]
        assert "2/9" in terminal.screen()[-1]
        assert len(terminal.screen()) == 1


def test_log_messages_and_notes_appear_above_the_bar(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", terminal)
    handler = logging.StreamHandler(terminal)
    logging.getLogger().addHandler(handler)
    try:
        with Progress(9, "outer"), Progress(8, "middle"), Progress(5, "inner"):
            logging.getLogger("any").warning("a message")
            note("a note")
            assert terminal.screen()[:2] == ["a message", "a note"] and "inner" in terminal.screen()[2]
            assert len(terminal.screen()) == 3
        logging.getLogger("any").warning("after the end")
    finally:
        logging.getLogger().removeHandler(handler)
    assert terminal.screen() == ["a message", "a note", "after the end", ""]


def test_a_file_gets_a_line_every_30_seconds_and_no_carriage_return(clock: list[float]) -> None:
    file = io.StringIO()
    with Progress(100, "training", done=10, file=file) as shown:
        for _ in range(8):  # 80 seconds, one item in ten seconds
            clock[0] += 10
            shown.update()
    assert file.getvalue() == "training: 13 of 100, 0.1 per second\ntraining: 16 of 100, 0.1 per second\n"


def test_nested_work_in_a_file_is_whole_lines_too(clock: list[float]) -> None:
    file = io.StringIO()
    with Progress(2, "outer", file=file) as outer:
        with Progress(4, "inner", file=file) as inner:
            for _ in range(2):
                clock[0] += 30
                inner.update()
        outer.update()
    expected = [
        "inner: 1 of 4, 0.0333 per second",
        "inner: 2 of 4, 0.0333 per second",
        "outer: 1 of 2, 0.0167 per second",
    ]
    assert file.getvalue().splitlines() == expected
    assert "\r" not in file.getvalue() and "\x1b" not in file.getvalue()


def test_bytes_are_printed_with_a_unit_and_a_total_may_be_unknown(clock: list[float]) -> None:
    file = io.StringIO()
    for total in (3_000_000_000, None):
        with Progress(total, "fetch a.tar", unit="B", file=file) as shown:
            clock[0] += 30
            shown.update_to(1_500_000_000)
            shown.update_to(20_000_000)  # starts again; no line before 30 more seconds
    assert file.getvalue().splitlines() == [
        "fetch a.tar: 1.50GB of 3.00GB, 50.0MB per second",
        "fetch a.tar: 1.50GB, 50.0MB per second",
    ]
    assert shown.done == 20_000_000


@pytest.mark.parametrize("silent", [{"shown": False}, {"lines": False}])
def test_a_silent_process_prints_nothing(silent: dict[str, bool], clock: list[float]) -> None:
    file = io.StringIO()
    with Progress(2, "training", file=file, **silent) as shown:
        clock[0] += 60
        shown.update()
    assert file.getvalue() == ""


def test_an_error_removes_the_bar(terminal: Terminal) -> None:
    with pytest.raises(KeyboardInterrupt), Progress(2, "outer", file=terminal), Progress(2, "inner", file=terminal):
        raise KeyboardInterrupt
    assert terminal.screen() == [""] and not Progress._open
