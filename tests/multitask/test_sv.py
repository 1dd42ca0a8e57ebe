"""Speaker verification: who is trained on, development trials, scores, crops, and wrong data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.trees import voxceleb, write_tone

from distilled_student.common.errors import UserError
from distilled_student.corpora.keywords import hash_percentage
from distilled_student.corpora.speakers import Trials
from distilled_student.multitask import scoring
from distilled_student.multitask.tasks import sv
from distilled_student.multitask.tasks.sv_index import SpeakerIndex


def index(root: Path, dev: int = 2, extra: tuple[str, ...] = (), trials: str | None = "veri_test.txt") -> SpeakerIndex:
    return SpeakerIndex(root, trials, dev, extra, "F")


def test_no_development_or_test_speaker_is_a_training_speaker(tmp_path: Path) -> None:
    root = voxceleb(tmp_path)
    # the same speakers in another corpus; then both parts in one folder, as VoxCeleb1 is often unpacked
    extra = tmp_path / "extra"
    for name in [*(f"id1{i:03d}" for i in range(6)), "id2000", "stranger"]:
        write_tone(extra / name / "chapter/a.wav", 200, 1.0)
    found = index(root, extra=(str(extra),))
    training = {Path(name.rpartition(":")[2]).name for name in found.training}
    assert not training & set(found.development) and "id2000" not in training and "stranger" in training
    (root / "dev/wav").rename(root / "wav")
    for folder in (root / "test/wav").iterdir():
        folder.rename(root / "wav" / folder.name)
    merged = index(root)
    assert set(merged.development) == set(found.development)
    assert not {"id2000", "id2001"} & (set(merged.training) | set(merged.development))


def test_the_development_speakers_have_the_lowest_hashes(tmp_path: Path) -> None:
    found = index(voxceleb(tmp_path))
    dev, rest = ([hash_percentage(n) for n in group] for group in (found.development, found.training))
    assert len(dev) == 2 and max(dev) < min(rest)


def test_development_trials_are_seeded_balanced_and_distinct_and_prefer_different_sessions(tmp_path: Path) -> None:
    found = index(voxceleb(tmp_path, utterances=3), dev=3)
    t = found.development_trials(40, 0)
    who = [p.parent.parent.name for p in t.paths]
    assert [who[i] == who[j] for i, j in zip(t.left, t.right, strict=True)] == t.labels.astype(bool).tolist()
    assert t.labels.sum() == 20 and len(t.labels) == 40
    assert len({frozenset(pair) for pair in zip(t.left, t.right, strict=True)}) == 40
    assert set(who) <= set(found.development) and all(i != j for i, j in zip(t.left, t.right, strict=True))
    assert all(t.paths[i].parent != t.paths[j].parent for i, j in zip(t.left[:20], t.right[:20], strict=True))
    again, other = found.development_trials(40, 0), found.development_trials(40, 1)
    assert again.paths == t.paths and (again.left == t.left).all()
    assert (other.left.tolist(), other.right.tolist()) != (t.left.tolist(), t.right.tolist())


def test_scores_equal_a_loop_over_the_trials() -> None:
    torch.manual_seed(0)
    x, rng = torch.randn(30, 6), np.random.default_rng(0)
    t = Trials([], rng.integers(30, size=200), rng.integers(30, size=200), np.zeros(200), np.zeros(30, int))
    want = [torch.cosine_similarity(x[i], x[j], dim=0).item() for i, j in zip(t.left, t.right, strict=True)]
    np.testing.assert_allclose(scoring.cosine_scores(x, t.left, t.right), want, atol=1e-6)


def test_a_file_of_an_extra_speaker_counts_once_for_each_crop_and_speakers_can_be_balanced(tmp_path: Path) -> None:
    root = voxceleb(tmp_path / "vox")
    write_tone(tmp_path / "extra/reader/book/long.wav", 200, 3.0)
    s = sv.Settings(
        root=str(root), dev_speakers=2, dev_trials=8, crop_seconds=0.5, extra_roots=[str(tmp_path / "extra")]
    )
    train = sv.Task(s, 4, 0, "F").training_data()
    counts = np.bincount(train.labels)
    assert counts.tolist() == [4, 4, 4, 4, 6]
    s.sampling = "speaker"
    drawn = train.labels[train.order(np.random.default_rng(0))]
    assert np.ptp(np.bincount(drawn)) <= 1
    items = [train.item(i, np.random.default_rng(0)) for i in range(len(train.items))]
    assert {len(item.waveform) for item in items} == {8000}


def test_drawn_crop_lengths_lie_between_the_shortest_and_the_longest(tmp_path: Path) -> None:
    root = voxceleb(tmp_path / "vox")
    s = sv.Settings(root=str(root), dev_speakers=2, dev_trials=8, crop_seconds=0.2, longest_crop_seconds=0.4)
    train = sv.Task(s, 4, 0, "F").training_data()
    lengths = [len(train.item(0, np.random.default_rng(i)).waveform) for i in range(50)]
    assert 3200 <= min(lengths) < 3900 and 5700 < max(lengths) <= 6400
    with pytest.raises(ValueError, match="longest_crop_seconds: needs at least crop_seconds"):
        sv.Settings(crop_seconds=2.0, longest_crop_seconds=1.0)


@pytest.mark.parametrize("bad", ["root", "list", "line", "file", "speaker", "one", "all held out", "one kind"])
def test_missing_data_give_one_line_with_their_name(tmp_path: Path, bad: str) -> None:
    root, dev = voxceleb(tmp_path / "vox"), 2
    trials = root / "veri_test.txt"
    match = {
        "root": r"F\.root: .*gone: no such folder",
        "list": r"veri_test.txt: cannot be read as a trial list",
        "line": r"veri_test.txt: line 7: expected '1\|0 FILE FILE'",
        "file": r"veri_test.txt: line 7: no file id9/x\.wav under",
        "speaker": r"speaker 'id1777' has no files",
        "one": r"speaker 'id1\d+' has one utterance",
        "all held out": r"F\.dev_speakers: 6 of 6 speakers leave no training speaker",
        "one kind": r"needs both target \(1\) and non-target",
    }[bad]
    if bad == "root":
        root = tmp_path / "gone"
    elif bad == "list":
        trials.unlink()
    elif bad == "line":
        trials.write_text(trials.read_text() + "yes a b\n")
    elif bad == "file":
        trials.write_text(trials.read_text() + "1 id9/x.wav id9/x.wav\n")
    elif bad == "speaker":
        (root / "dev/wav/id1777").mkdir()
    elif bad == "one":
        for folder in (root / "dev/wav").iterdir():
            for file in sorted(folder.rglob("*.wav"))[1:]:
                file.unlink()
    elif bad == "all held out":
        dev = 6
    else:
        trials.write_text(trials.read_text().splitlines()[0] + "\n")
    with pytest.raises(UserError, match=match):
        index(root, dev).development_trials(8, 0)


def test_trial_lists_with_training_speakers_and_further_columns_are_read(tmp_path: Path) -> None:
    root = voxceleb(tmp_path)
    # as in VoxCeleb1-E and -H: most of the files are those of the dev part
    lines = ["1 id1000/s0/00000.wav id1000/s1/00000.wav f GB", "0 id1000/s0/00000.wav id2000/s0/00000.wav m US"]
    lines += ["0 id1000/s0/00000.wav id1001/s0/00000.wav f US"]
    (root / "hard.txt").write_text("\n".join(lines))
    trials = index(root, trials="hard.txt").test
    assert trials.speakers[trials.left].tolist() == [0, 0, 0] and trials.speakers[trials.right].tolist() == [0, 2, 1]
    groups = sv.by_group(np.array([0.9, 0.1, 0.2]), trials)
    assert groups["column 4"] == {
        "f": {"eer": 0.0, "min_dcf_0.01": 0.0, "min_dcf_0.05": 0.0, "trials": 2},
        "m": {"eer": None, "min_dcf_0.01": None, "min_dcf_0.05": None, "trials": 1},
    }
    assert set(groups["column 5"]) == {"GB", "US"}
    (root / "hard.txt").write_text("\n".join([*lines, "0 id1000/s0/00000.wav id1001/s0/00000.wav f"]))
    with pytest.raises(UserError, match=r"hard\.txt: line 4: 4 columns, but the first line has 5"):
        _ = index(root, trials="hard.txt").test


def test_development_trials_are_the_same_for_every_seed(tmp_path: Path) -> None:
    s = sv.Settings(root=str(voxceleb(tmp_path)), dev_speakers=3, dev_trials=20)
    one, two = (sv.Task(s, 4, seed, "F").development for seed in (0, 1))
    assert one.paths == two.paths
    assert (one.left.tolist(), one.right.tolist()) == (two.left.tolist(), two.right.tolist())


def test_held_out_utterances_are_of_all_speakers_who_stay_training_speakers(tmp_path: Path) -> None:
    root = voxceleb(tmp_path)
    s = sv.Settings(root=str(root), dev_utterances=14, dev_trials=20, crop_seconds=0.5)
    s.check_folders("F")  # dev_speakers, 40, is not used
    task = sv.Task(s, 4, 0, "F")
    task.prepare_training()
    training, held_out = {path for path, _ in task.training_data().items}, set(task.development.paths)
    files = {path for path in (root / "dev/wav").rglob("*.wav")}
    assert len(files) == 24 and training == files - {p for paths in task.index.development.values() for p in paths}
    assert held_out <= files - training and len(files - training) == 14
    assert len(task.class_names) == 6 == len({path.parent.parent for path in training})
    # those with the lowest hash of all that are not the last of their speaker
    names = {path: hash_percentage(path.relative_to(root).as_posix()) for path in files}
    kept = {max((p for p in files if p.parent.parent == who), key=names.get) for who in (root / "dev/wav").iterdir()}
    assert files - training == set(sorted(files - kept, key=names.get)[:14])
    with pytest.raises(UserError, match=r"F.dev_utterances: 19 of 18 utterances that leave each speaker one"):
        sv.Task(sv.Settings(root=str(root), dev_utterances=19), 4, 0, "F").prepare_training()


def test_the_pooled_features_are_the_embedding_and_the_loss_has_the_only_linear_layer(tmp_path: Path) -> None:
    s = sv.Settings(root=str(voxceleb(tmp_path)), dev_speakers=2, dev_trials=8, head="pooled", pooling="mean_std")
    task = sv.Task(s, 4, 0, "F")
    task.prepare_training()
    assert {name: tuple(p.shape) for name, p in task.named_parameters()} == {"objective.weight": (4, 8)}
    x, lengths = torch.randn(3, 7, 4), torch.tensor([7, 5, 2])
    embedding = task(x, lengths)
    for row, frames, length in zip(embedding, x, lengths, strict=True):
        valid = frames[:length]
        torch.testing.assert_close(row, torch.cat([valid.mean(0), valid.std(0, correction=0)]))
    task.loss(embedding, torch.tensor([0, 1, 2]))[0].backward()
    again = sv.Task(s, 4, 0, "F")  # an evaluation: the checkpoint alone knows the speakers
    again.load_state_dict(task.state_dict())
    assert torch.equal(again.cohort(), task.objective.weight)


def test_a_tested_recording_under_another_name_is_not_trained_on(tmp_path: Path) -> None:
    root = voxceleb(tmp_path)
    (root / "dev/wav/somebody").symlink_to(root / "test/wav/id2000")
    with pytest.raises(
        UserError, match=r"F\.root: .*is a recording of the test trials, .*another name than 'somebody'"
    ):
        sv.Task(sv.Settings(root=str(root), dev_speakers=2), 4, 0, "F").prepare_training()


def test_a_calibration_that_prefers_unlike_voices_is_not_exported(tmp_path: Path) -> None:
    task = sv.Task(sv.Settings(root=str(voxceleb(tmp_path)), dev_speakers=2), 4, 0, "F")
    task.calibration[0] = torch.tensor([2.0, -1.0])
    assert task.device_metadata(None) == {"sv_slope": 2.0, "sv_offset": -1.0, "sv_threshold": 0.5}
    task.calibration[0] = torch.tensor([-2.0, 1.0])
    assert task.device_metadata(None) == {}
