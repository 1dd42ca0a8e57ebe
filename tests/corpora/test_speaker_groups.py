"""The file of the groups of speakers: where it is found, how it is read, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from distilled_student.common.errors import UserError
from distilled_student.corpora.speaker_groups import find_speaker_groups, read_speaker_groups


def written(folder: Path, text: str, encoding: str = "utf-8") -> Path:
    file = folder / "speakers.csv"
    file.write_bytes(text.encode(encoding))
    return file


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_columns_are_separated_by_commas_semicolons_or_tabs(separator: str, encoding: str, tmp_path: Path) -> None:
    rows = [
        ["sex", "Speaker", "age, rounded"],
        ["f", "Zoë", '"20-29"'],
        ["m", " bob ", ""],
        [],
        ["f", "ann", " 30  39"],
    ]
    rows[0][2] = '"age, rounded"'
    found = read_speaker_groups(written(tmp_path, "\r\n".join(map(separator.join, rows)), encoding))
    assert found.columns == {
        "sex": {"zoë": "f", "bob": "m", "ann": "f"},
        "age, rounded": {"zoë": "20-29", "ann": "30 39"},
    }
    assert found.without_row(["Ann", "ZOE\u0308", "carl"]) == ["carl"]


def test_the_file_is_that_of_the_nearest_folder_up_to_two_above_the_corpus(tmp_path: Path) -> None:
    corpus = tmp_path / "a/b/speech/train"
    corpus.mkdir(parents=True)
    assert find_speaker_groups(corpus) is None
    for folder, found in (("a", None), ("a/b", "a/b"), ("a/b/speech", "a/b/speech"), ("a/b/speech/train",) * 2):
        written(tmp_path / folder, f"speaker,from\nann,{folder}\n")
        groups = find_speaker_groups(corpus)
        assert (groups and groups.columns["from"]) == (found and {"ann": found})


def test_a_speaker_may_have_several_rows_that_say_the_same(tmp_path: Path) -> None:
    found = read_speaker_groups(written(tmp_path, "speaker,sex\nann,f\nAnn,f\n"))
    assert found.columns == {"sex": {"ann": "f"}}


def test_groups_that_differ_in_case_or_white_space_are_one_group_as_first_written(tmp_path: Path) -> None:
    rows = "ann,F, New  York|bob, m ,Zoe\u0301 Ville|carl,M,new york|Ann,f,NEW YORK|zoe,f,zo\u00e9 ville"
    text = "speaker,sex,from\n" + rows.replace("|", "\n")
    assert read_speaker_groups(written(tmp_path, text)).columns == {
        "sex": {"ann": "F", "bob": "m", "carl": "m", "zoe": "F"},
        "from": {"ann": "New York", "bob": "Zoe\u0301 Ville", "carl": "New York", "zoe": "Zoe\u0301 Ville"},
    }


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            "name,sex\nann,f\n",
            r"has no column `speaker`, the heading has 'name', 'sex': rename the column of the speakers to `speaker`",
        ),
        (
            "speakers,sex\nann,f\n",
            r"has no column `speaker`, .*: if 'speakers' has the speakers, rename it to `speaker`",
        ),
        ("", r"has no column `speaker`, the heading has nothing"),
        ("speaker\nann\n", r"has only the column `speaker`: add a column of groups, such as sex, age or accent"),
        ("speaker,sex,sex\nann,f,f\n", r"two columns are named 'sex': each needs a name of its own"),
        ("speaker,sex,Sex\nann,f,f\n", r"two columns are named 'sex': each needs a name of its own"),
        ("speaker,sex,\nann,f,f\n", r"a column has no name: each needs"),
        ("speaker,sex\n", r"has no speakers below its heading"),
        ("speaker,sex\nann,f\n,m\n", r"line 3: column `speaker` is empty: name the speaker, or remove the line"),
        ("speaker,sex\n\nann,f,20\n", r"line 3: 3 cells, but the heading has 2"),
        ("speaker,sex\nann,f\nbob,m\nANN,m\n", r"line 4: speaker 'ANN' has other values than in line 2: keep one of"),
        ("speaker,sex\nann,f\nbob,\nbob,m\n", r"line 4: speaker 'bob' has other values than in line 3"),
        ('speaker,sex\nann,"f\n', r"line 2: is not CSV \(unexpected end of data\)"),
        ("speaker,age\n" + "".join(f"s{i},{i + 20}\n" for i in range(30)), r"column `age`: 30 different values for 30"),
        ("speaker,pitch\na,0.5\nb,0.25\n", r"column `pitch`: decimal fractions are no groups: write ranges, or remove"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_with_its_line_or_column(text: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"speakers\.csv: {reason}"):
        read_speaker_groups(written(tmp_path, text))


@pytest.mark.parametrize(
    ("encoding", "reason"),
    [("latin-1", r"cannot be read as a list of speakers, is not UTF-8 .*: save it as UTF-8"), ("utf-16", "is UTF-16")],
)
def test_another_encoding_is_refused_with_the_remedy(encoding: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"speakers\.csv: {reason}"):
        read_speaker_groups(written(tmp_path, "speaker,sex\nzoë,f\n", encoding))
