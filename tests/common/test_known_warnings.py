"""What libraries print at every start is gone, line by line; everything else is still printed."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest

from distilled_student.common.known_warnings import LOG_LINES, suppress_known_warnings


@pytest.mark.parametrize(
    "code",
    [
        "import distilled_student as ds; ds.register(); from s3prl import hub; hub.fbank()",
        "from distilled_student.teachers.open import open_teacher; open_teacher('shipped'); import torchao",
    ],
)
def test_a_start_prints_nothing(code: str) -> None:
    code = f"from distilled_student.common.known_warnings import suppress_known_warnings as s; s(); {code}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stderr == ""


@pytest.mark.parametrize("name", LOG_LINES)
def test_other_lines_of_the_same_logger_are_printed(name: str, caplog: pytest.LogCaptureFixture) -> None:
    suppress_known_warnings()
    logging.getLogger(name).warning(f"{LOG_LINES[name]}, and more")
    logging.getLogger(name).warning("something else")
    assert [record.message for record in caplog.records] == ["something else"]
