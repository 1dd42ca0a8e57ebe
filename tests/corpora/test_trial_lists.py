"""Who the speakers of a trial list are, and which lists are refused with the remedy."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import numpy as np
import pytest
from helpers.trees import voxceleb, write_tone

from distilled_student.common.errors import UserError
from distilled_student.corpora.speakers import Trials, read_trials
from distilled_student.multitask.tasks import sv
from distilled_student.multitask.tasks.sv_index import SpeakerIndex

KEY = "my.yaml: downstream_expert.tasks.sv"
SECOND_FOLDER = "^[^/]+/([^/]+)/"


def read(root: Path, lines: list[str], pattern: str | None = None) -> Trials:
    """The trials in a list of these lines, whose missing files are written under ``root/wav``."""
    for name in {name for line in lines for name in line.split()[1:3]}:
        if not (root / "wav" / name).exists():
            (root / "wav" / name).parent.mkdir(parents=True, exist_ok=True)
            (root / "wav" / name).touch()
    (root / "list.txt").write_text("\n".join(lines), encoding="utf-8")
    return read_trials(root / "list.txt", [root / "wav", root], KEY, pattern)[0]


def pairs(name: str, target: str = "1", other: str = "0") -> list[str]:
    """Trials of four speakers with two utterances; ``name`` is the path with {speaker} and {take}."""
    lines = []
    for speaker in "abcd":
        lines.append(f"{target} {name.format(speaker=speaker, take=1)} {name.format(speaker=speaker, take=2)}")
        neighbour = "abcda"["abcd".index(speaker) + 1]
        lines.append(f"{other} {name.format(speaker=speaker, take=1)} {name.format(speaker=neighbour, take=2)}")
    return lines


@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        ("corpus/{speaker}/{take}.wav", SECOND_FOLDER),
        ("part{take}/{speaker}/{take}.wav", SECOND_FOLDER),
        ("x/y/{speaker}/{take}.wav", "([^/]+)/[^/]+$"),
        ("{speaker}-{take}.wav", "([^/_-]+)[_-][^/]*$"),
    ],
)
def test_a_list_whose_first_folder_is_not_the_speaker_is_refused_with_a_pattern_that_reads_it(
    name: str, pattern: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"list\.txt: line \d+: [01] marks a trial of .* set my\.yaml: ") as refused:
        read(tmp_path, pairs(name))
    assert f"{KEY}.speaker_pattern, such as '{pattern}'" in str(refused.value)
    trials = read(tmp_path, pairs(name), pattern)
    assert trials.speaker_names == ["a", "b", "c", "d"]
    assert [trials.speaker_names[i] for i in trials.speakers[trials.left]] == list("aabbccdd")


def test_a_single_wrong_label_is_named_with_its_line(tmp_path: Path) -> None:
    lines = pairs("{speaker}/s/{take}.wav")
    lines[2] = f"0{lines[2][1:]}"
    with pytest.raises(UserError, match=r"line 3: 0 marks a trial of two speakers, but both files are of one, 'b'"):
        read(tmp_path, lines)
    lines[2], lines[5] = f"1{lines[2][1:]}", f"1{lines[5][1:]}"
    with pytest.raises(UserError, match=r"line 6: 1 marks a trial of one speaker, but .* of two, 'c' and 'd'"):
        read(tmp_path, lines)


@pytest.mark.parametrize("name", ["{speaker}/s/{take}.wav", "corpus/{speaker}/{take}.wav"])
def test_reversed_labels_are_recognised(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"line 1: .*; all labels are reversed: 1 must mark a trial of one speaker"):
        read(tmp_path, pairs(name, target="0", other="1"))


def test_a_byte_order_mark_backslashes_and_absolute_paths_into_the_folder_are_read(tmp_path: Path) -> None:
    expected = read(tmp_path, lines := pairs("{speaker}/s/{take}.wav"))
    changed = {
        "mark": "\ufeff" + "\n".join(lines),
        "backslashes": "\r\n".join(lines).replace("/", "\\"),
        "absolute": "\n".join(lines).replace(" ", f" {tmp_path}/wav/"),
        "from the root": "\n".join(lines).replace(" ", " ./wav/"),
    }
    for what, text in changed.items():
        (tmp_path / "list.txt").write_text(text, encoding="utf-8")
        found, names = read_trials(tmp_path / "list.txt", [tmp_path / "wav", tmp_path], KEY)
        assert found.paths == expected.paths and names == set("abcd"), what
        assert (found.left.tolist(), found.right.tolist()) == (expected.left.tolist(), expected.right.tolist()), what


def test_file_names_are_found_in_either_unicode_form(tmp_path: Path) -> None:
    composed, decomposed = (unicodedata.normalize(form, "zoë") for form in ("NFC", "NFD"))
    read(tmp_path, [f"1 {composed}/0.wav {composed}/1.wav", f"0 {composed}/0.wav b/1.wav"])
    lines = [f"1 {composed}/0.wav {decomposed}/1.wav", f"0 {decomposed}/0.wav b/1.wav"]
    (tmp_path / "list.txt").write_text("\n".join(lines))
    found, names = read_trials(tmp_path / "list.txt", [tmp_path / "wav"], KEY)
    assert names == {composed, "b"} and len(found.paths) == 3


def test_a_trial_of_a_recording_with_itself_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"list\.txt: line 2: both sides are one recording, a/1\.wav"):
        read(tmp_path, ["0 a/1.wav b/1.wav", "1 a/1.wav a/1.wav"])


@pytest.mark.parametrize(
    ("line", "remedy"),
    [
        ("a/s/1.wav a/s/2.wav 1", r"the label is last; reorder the columns: awk '\{print \$3, \$1, \$2\}' LIST"),
        ("a/s/1.wav a/s/2.wav target", r"the label is last; .* \(\$3 == \"target\"\)"),
        ("1,a/s/1.wav,a/s/2.wav", "separated by white space, not by commas"),
        ("1;a/s/1.wav;a/s/2.wav", "separated by white space, not by semicolons: tr ';' ' ' < LIST"),
        ("a/s/1.wav 1 a/s/2.wav", r"the label is in the middle; .*: awk '\{print \$2, \$1, \$3\}' LIST"),
        ("1.0 a/s/1.wav a/s/2.wav", r"a whole number: awk '\{\$1 = \(\$1 > 0\) \+ 0; print\}' LIST"),
        ("-1 a/s/1.wav b/s/2.wav", "0 must mark a trial of two speakers, not -1: awk"),
        ('"1" "a/s/1.wav" "a/s/2.wav"', "remove the quotes: tr -d"),
        ('1 "a/s/1.wav" "a/s/2.wav"', "remove the quotes: tr -d"),
        ("a/s/1.wav a/s/2.wav", "the label is missing"),
        ("1 /elsewhere/1.wav a/s/2.wav", r"refused; give a path relative to .*, or another folder \(--trials-root\)"),
    ],
)
def test_other_forms_of_a_line_are_refused_with_the_remedy(line: str, remedy: str, tmp_path: Path) -> None:
    read(tmp_path, lines := pairs("{speaker}/s/{take}.wav"))
    (tmp_path / "list.txt").write_text("\n".join([*lines, line]))
    with pytest.raises(UserError, match=rf"list\.txt: line 9: .*{remedy}"):
        read_trials(tmp_path / "list.txt", [tmp_path / "wav"], KEY)


@pytest.mark.parametrize("header", ["label file1 file2", "same enrol test"])
def test_a_header_is_refused_with_the_remedy(header: str, tmp_path: Path) -> None:
    read(tmp_path, lines := pairs("{speaker}/s/{take}.wav"))
    (tmp_path / "list.txt").write_text("\n".join([header, *lines]))
    with pytest.raises(UserError, match=r"list\.txt: line 1: .*looks like a header: remove it: tail -n \+2 LIST"):
        read_trials(tmp_path / "list.txt", [tmp_path / "wav"], KEY)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "latin-1"])
def test_a_list_in_another_encoding_is_refused_with_the_remedy(encoding: str, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_bytes("1 ä/1.wav ä/2.wav\n".encode(encoding))
    with pytest.raises(UserError, match=r"list\.txt: .*not UTF-8.*: iconv -f \S+ -t UTF-8"):
        read_trials(tmp_path / "list.txt", [tmp_path], KEY)


def test_repeated_trials_count_and_are_reported_in_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lines = pairs("{speaker}/s/{take}.wav")
    label, left, right = lines[2].split()
    assert len(read(tmp_path, lines).labels) == 8 and not caplog.records
    assert len(read(tmp_path, [*lines, f"{label} {right} {left}", lines[0]]).labels) == 10
    (record,) = caplog.records
    assert "list.txt: 2 of 10 lines repeat a trial, such as line 9 that of line 3" in record.getMessage()


def test_a_single_training_speaker_is_refused(tmp_path: Path) -> None:
    root = voxceleb(tmp_path, speakers=3)
    task = sv.Task(sv.Settings(root=str(root), dev_speakers=2, dev_trials=4), 4, 0, KEY)
    with pytest.raises(UserError, match=r"sv\.root: .*: one training speaker, 'id1\d+', .*: add speakers"):
        task.prepare_training()


@pytest.mark.parametrize("count", [4, 75])
def test_a_column_of_scores_is_no_group(count: int, tmp_path: Path) -> None:
    rng, lines = np.random.default_rng(0), pairs("{speaker}/s/{take}.wav") * count
    with pytest.raises(
        UserError, match=r"list\.txt: column 4: \d+ different values in \d+ trials, .*: remove a column of"
    ):
        read(tmp_path, [f"{line} {score:.6f}" for line, score in zip(lines, rng.random(len(lines)), strict=True)])
    trials = read(tmp_path, [f"{line} {'fm'[i % 2]}" for i, line in enumerate(lines)])
    assert set(trials.groups["column 4"]) == {"f", "m"}


# Who is trained on


def index(root: Path, extra: tuple[str, ...] = (), **more: str) -> SpeakerIndex:
    return SpeakerIndex(root, "veri_test.txt", 2, extra, KEY, **more)


def test_the_pattern_finds_the_speakers_of_training_too(tmp_path: Path) -> None:
    for speaker in range(5):
        for take in range(2):
            write_tone(tmp_path / f"wav/{'fm'[speaker % 2]}/s{speaker}/{take}.wav", 100 + 20 * speaker, 0.2)
    lines = ["1 f/s0/0.wav f/s0/1.wav", "0 f/s0/0.wav m/s1/0.wav"]
    (tmp_path / "veri_test.txt").write_text("\n".join(lines))
    found = index(tmp_path, speaker_pattern=SECOND_FOLDER)
    assert sorted([*found.training, *found.development]) == ["s2", "s3", "s4"]
    assert {path.parent.name for path in found.training[next(iter(found.training))]} == set(found.training)


def test_a_flat_folder_of_training_speakers_is_refused_or_read_with_a_pattern(tmp_path: Path) -> None:
    for speaker in range(4):
        for take in range(2):
            write_tone(tmp_path / f"dev/wav/s{speaker}_{take}.wav", 100, 0.2)
    flat = SpeakerIndex(tmp_path, None, 2, (), KEY)
    with pytest.raises(
        UserError, match=r"sv\.root: .*wav: has files, but no folder of a speaker: set .*speaker_pattern"
    ):
        _ = flat.training
    found = SpeakerIndex(tmp_path, None, 2, (), KEY, speaker_pattern="([^/_-]+)[_-][^/]*$")
    assert sorted([*found.training, *found.development]) == ["s0", "s1", "s2", "s3"]


def test_the_numbers_of_speakers_are_printed(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    task = sv.Task(sv.Settings(root=str(voxceleb(tmp_path)), dev_speakers=2, dev_trials=8), 4, 0, KEY)
    task.prepare_training()
    first = next(iter(task.index.training))
    line = f"{KEY}.root: 4 training speakers, such as '{first}', and 2 development speakers"
    assert line in capsys.readouterr().err


def test_a_list_whose_second_folder_is_a_training_speaker_is_refused(tmp_path: Path) -> None:
    root = voxceleb(tmp_path)  # id1000 is a training speaker
    for name, take in (("id1000", 0), ("id1000", 1), ("id1001", 0)):
        write_tone(root / f"test/wav/{'x' if name == 'id1000' else 'y'}/{name}/{take}.wav", 100, 0.2)
    (root / "veri_test.txt").write_text("1 x/id1000/0.wav x/id1000/1.wav\n0 x/id1000/0.wav y/id1001/0.wav\n")
    with pytest.raises(UserError, match=r"2 training speakers, such as 'id1000', .* set .*speaker_pattern, such as"):
        _ = index(root).training
    named = index(root, speaker_pattern="([^/]+)/[^/]+$")
    assert named.test_speakers == {"id1000", "id1001"}


def test_a_tested_speaker_in_an_extra_root_is_left_out_or_refused(tmp_path: Path) -> None:
    root = voxceleb(tmp_path / "vox")
    for name in ("ID2000", "stranger"):  # id2000 is tested
        write_tone(tmp_path / "extra" / name / "1.wav", 100, 0.2)
    assert {name.rpartition(":")[2] for name in index(root, (str(tmp_path / "extra"),)).extra} == {"stranger"}
    with pytest.raises(UserError, match=r"extra_roots: .*: speaker 'wav' has .*, a file of the test trials"):
        _ = index(root, (str(root / "test"),)).training


def test_another_root_holds_the_files_of_a_list(tmp_path: Path) -> None:
    root, other = voxceleb(tmp_path / "vox"), tmp_path / "other"
    (root / "test").rename(tmp_path / "test")
    other.mkdir()
    (tmp_path / "test/wav").rename(other / "wav")
    (root / "veri_test.txt").rename(other / "veri_test.txt")
    found = index(root, trials_root=str(other))
    assert found.test_speakers == {"id2000", "id2001"} and len(found.training) == 4
    with pytest.raises(UserError, match=r"trials_root: .*gone: no such folder"):
        _ = index(root, trials_root=str(tmp_path / "gone")).test


def test_fewer_than_three_speakers_have_no_interval() -> None:
    labels, sides = np.array([1, 1, 0, 0]), (np.array([0, 2, 0, 1]), np.array([1, 3, 2, 3]))
    trials = Trials([], *sides, labels, np.array([0, 0, 1, 1]))
    found = sv.verification(np.array([0.9, 0.2, 0.3, 0.1]), trials, None)
    assert found["eer_interval"] is None and found["eer"] > 0


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [("(", "is not a regular expression"), ("abc", r"has 0 groups"), ("(a)(b)", r"has 2 groups \(\.\.\.\); needs one")],
)
def test_a_wrong_pattern_is_named(pattern: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"speaker_pattern: .*{reason}"):
        sv.Settings(speaker_pattern=pattern)
    with pytest.raises(UserError, match=r"speaker_pattern: '\(z\)' finds no speaker in a/s/1\.wav"):
        read(tmp_path, pairs("{speaker}/s/{take}.wav"), "(z)")


def test_a_column_of_decimal_fractions_is_no_group(tmp_path: Path) -> None:
    lines = ["1 a/1.wav a/2.wav 0.5", "0 a/1.wav b/1.wav 0.5", "0 a/2.wav b/1.wav -1.25"]
    with pytest.raises(UserError, match=r"list\.txt: column 4: decimal fractions are no groups"):
        read(tmp_path, lines)
