"""Accuracy and EER by group of speakers are those of a plain computation; small groups have no figure."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from helpers.trees import tasks, write_tone

from distilled_student.common.settings import find_config, read_yaml
from distilled_student.corpora.speaker_groups import SpeakerGroups
from distilled_student.corpora.speakers import Trials
from distilled_student.host import launch
from distilled_student.multitask.evaluate import evaluate
from distilled_student.multitask.group_figures import accuracy_by_group, eer_by_group, figure_lines

RNG = np.random.default_rng(0)
PEOPLE = [f"p{number:02d}" for number in range(16)]


def groups_of(columns: dict[str, dict[str, str]]) -> SpeakerGroups:
    return SpeakerGroups(
        Path("speakers.csv"), columns, frozenset(name for column in columns.values() for name in column)
    )


def sexes() -> SpeakerGroups:
    """Six women, seven men, two others; one speaker without a value and one without a row."""
    sex = dict(zip(PEOPLE, 6 * "f" + 7 * "m" + 2 * "x", strict=False))
    del sex["p02"]
    return groups_of({"sex": sex, "accent": dict.fromkeys(PEOPLE[:15], "GB")})


def plain_eer(targets: list[float], others: list[float]) -> float:
    """Where the two error rates, linear between thresholds, are equal: found on a fine grid of the lines."""
    at = np.array([np.inf, *sorted({*targets, *others}, reverse=True)])
    misses = np.array([np.mean([score < t for score in targets]) for t in at])
    accepts = np.array([np.mean([score >= t for score in others]) for t in at])
    grid = np.linspace(0, len(at) - 1, 200_001)
    lines = [np.interp(grid, np.arange(len(at)), rates) for rates in (misses, accepts)]
    return float(np.mean([line[np.argmin(np.abs(lines[0] - lines[1]))] for line in lines]))


def test_the_accuracy_of_a_group_is_the_mean_over_the_clips_of_its_speakers(caplog: pytest.LogCaptureFixture) -> None:
    speakers = RNG.choice(PEOPLE, size=400).tolist()
    correct = RNG.random(400) < 0.8
    groups = sexes()
    found = accuracy_by_group(groups, speakers, correct)
    assert list(found) == ["sex", "accent"] and list(found["sex"]) == ["f", "m", "x"]
    for column, of_column in found.items():
        for group, figure in of_column.items():
            chosen = [i for i, name in enumerate(speakers) if groups.columns[column].get(name) == group]
            people = {speakers[i] for i in chosen}
            assert (figure["utterances"], figure["speakers"]) == (len(chosen), len(people))
            if len(people) < 5:
                assert figure["accuracy"] is None and figure["too_few_speakers"] and "accuracy_interval" not in figure
                continue
            assert figure["accuracy"] == pytest.approx(100 * sum(correct[i] for i in chosen) / len(chosen))
            draws = [[name for name in RNG.choice(sorted(people), len(people))] for _ in range(2000)]
            hits = {name: [correct[i] for i in chosen if speakers[i] == name] for name in people}
            means = [100 * np.mean(np.concatenate([hits[name] for name in draw])) for draw in draws]
            np.testing.assert_allclose(figure["accuracy_interval"], np.quantile(means, [0.025, 0.975]), atol=1.0)
    assert "has no row of 1 of the 16 speakers who are evaluated, such as 'p15': they are in no group" in caplog.text
    assert accuracy_by_group(groups, [], np.array([])) == {}
    assert "speakers.csv: is not used: the names of the evaluated files do not say the speakers" in caplog.text
    assert figure_lines(found, "accuracy")[0].endswith(", x too few speakers (at least 5) (2 speakers)")


@pytest.mark.parametrize("order", ["by speaker", "drawn"])
def test_the_eer_of_a_group_has_the_trials_with_one_of_its_speakers_enrolled(order: str) -> None:
    """Whichever side of a trial is enrolled, its score is the same: a loop over both counts each enrolled speaker."""
    speakers, groups = np.repeat(np.arange(16), 4), sexes()
    left, right = np.triu_indices(len(speakers), k=1)
    kept = RNG.permutation(len(left))[:900]
    kept = np.concatenate([kept, np.flatnonzero(speakers[left] == speakers[right])])
    left, right = left[kept], right[kept]
    if order == "drawn":
        swapped = RNG.random(len(left)) < 0.5
        left, right = np.where(swapped, right, left), np.where(swapped, left, right)
    labels = (speakers[left] == speakers[right]).astype(int)
    scores = RNG.standard_normal(len(left)) + 1.5 * labels + 0.05 * speakers[left] + 0.05 * speakers[right]
    trials = Trials([Path(f"{i}") for i in range(64)], left, right, labels, speakers, speaker_names=PEOPLE)
    found = eer_by_group(groups, trials, scores)
    for group in "fm":
        members = {i for i, name in enumerate(PEOPLE) if groups.columns["sex"].get(name) == group}
        of_kind: dict[int, list[float]] = {0: [], 1: []}
        for a, b, label, score in zip(speakers[left], speakers[right], labels, scores, strict=True):
            of_kind[label] += [score for enrolled in (a, b) if enrolled in members]
        figure = found["sex"][group]
        assert figure["eer"] == pytest.approx(100 * plain_eer(of_kind[1], of_kind[0]), abs=0.02)
        assert figure["eer_interval"][0] <= figure["eer"] <= figure["eer_interval"][1]
        involved = [
            label for a, b, label in zip(speakers[left], speakers[right], labels, strict=True) if {a, b} & members
        ]
        assert (figure["targets"], figure["non_targets"]) == (sum(involved), len(involved) - sum(involved))
        assert figure["speakers"] == len(members)
    assert found["sex"]["x"]["eer"] is None and found["sex"]["x"]["too_few_speakers"]


def test_a_group_of_all_speakers_has_the_eer_of_all_trials() -> None:
    speakers = np.repeat(np.arange(16), 3)
    left, right = np.triu_indices(len(speakers), k=1)
    labels = (speakers[left] == speakers[right]).astype(int)
    trials = Trials([Path(f"{i}") for i in range(48)], left, right, labels, speakers, speaker_names=PEOPLE)
    scores = RNG.standard_normal(len(left)) + labels
    found = eer_by_group(groups_of({"all": dict.fromkeys(PEOPLE, "one")}), trials, scores)["all"]["one"]
    assert found["eer"] == pytest.approx(
        100 * plain_eer(scores[labels == 1].tolist(), scores[labels == 0].tolist()), abs=0.02
    )
    only_targets = Trials(
        trials.paths, left[labels == 1], right[labels == 1], labels[labels == 1], speakers, {}, PEOPLE
    )
    found = eer_by_group(groups_of({"all": dict.fromkeys(PEOPLE, "one")}), only_targets, scores[labels == 1])
    assert figure_lines(found, "eer") == ["by all: one no target or no non-target trials (16 speakers)"]


def test_a_line_with_many_groups_has_the_lowest_and_the_highest() -> None:
    figures = {f"g{i}": {"accuracy": 90.0 + i, "speakers": 5} for i in range(8)} | {
        "a": {"accuracy": None, "speakers": 1}
    }
    expected = "by accent: from g0 90.00 (5 speakers) to g7 97.00 (5 speakers), 1 of 9 groups without a figure"
    assert figure_lines({"accent": figures}, "accuracy") == [expected]
    single = {"a": {"accuracy": None, "too_few_speakers": True, "speakers": 1}}
    assert figure_lines({"accent": single}, "accuracy") == ["by accent: a too few speakers (at least 5) (1 speaker)"]


def test_an_evaluation_prints_and_writes_the_figures_of_each_group(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    config = read_yaml(find_config("default", kind="multitask"))
    config["runner"] |= {"total_steps": 2, "log_step": 2, "eval_step": 2, "save_step": 2}
    config["downstream_expert"] |= {"num_workers": 0, "tasks": tasks(tmp_path)}
    for word, pitch in (("_unknown_", 250), ("yes", 400), ("no", 550)):
        for speaker in range(2, 11):
            write_tone(tmp_path / f"sc/test/{word}/new{speaker}_nohash_0.wav", pitch, seed=speaker)
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config))
    exp = tmp_path / "exp"
    train = ["-m", "train", "-u", "fbank", "-d", "multitask", "-c", str(tmp_path / "c.yaml"), "-p", str(exp)]
    assert launch.main([*train, "--device", "cpu"]) == 0
    plain = evaluate(exp, device="cpu")
    assert "speaker_groups" not in plain["kws"] and "The data do not say groups" in (exp / "README.md").read_text()
    lines = [f"new{i},{'f' if i < 6 else 'm'}" for i in range(11)] + ["id2000,f", "id2001,f", "elsewhere,m"]
    (tmp_path / "speakers.csv").write_text("\n".join(["speaker,sex", *lines]))
    capsys.readouterr()
    results = evaluate(exp, device="cpu")
    printed = capsys.readouterr()
    by_sex, scores = results["kws"].pop("speaker_groups")["sex"], np.load(exp / "scores-test.npz")
    assert by_sex["f"]["speakers"] == 6 and by_sex["m"]["speakers"] == 5
    assert by_sex["f"]["utterances"] == 6 * 3, "silence is of no speaker"
    right, spoken = scores["kws_labels"] == scores["kws_predicted"], scores["kws_labels"] > 0
    hits = sum(by_sex[sex]["accuracy"] * by_sex[sex]["utterances"] / 100 for sex in "fm")
    assert hits == pytest.approx(right[spoken].sum(), abs=1e-3)
    assert results["sv"].pop("speaker_groups")["sex"] == {
        "f": {"eer": None, "too_few_speakers": True, "speakers": 2, "targets": 2, "non_targets": 4}
    }
    assert (results["kws"], results["sv"]) == (plain["kws"], plain["sv"]), "the other figures stay"
    low, high = results["kws"]["accuracy_interval"]
    assert low < results["kws"]["accuracy"] < high and high - low > 5, "of eleven speakers"
    whole = f"{results['kws']['accuracy']:.2f} [{low:.2f}, {high:.2f}]"
    assert f"test: kws: accuracy {whole} %" in printed.out + printed.err
    assert (
        "kws: by sex: f " in printed.out + printed.err and "sv: by sex: f too few speakers" in printed.out + printed.err
    )
    card = (exp / "README.md").read_text().replace("\\", "")
    assert f"| kws: test accuracy | {whole} |" in card
    assert "| kws: group of speakers | accuracy | number |" in card and "The data do not say groups" not in card
    low, high = by_sex["m"]["accuracy_interval"]
    row = f"| sex: m | {by_sex['m']['accuracy']:.2f} [{low:.2f}, {high:.2f}] | 5 speakers, 15 utterances |"
    assert row in card
    assert "| sex: f | too few speakers (at least 5) | 2 speakers, 2 targets, 4 non-targets |" in card
    assert "speakers.csv" in json.loads((exp / "provenance-test.json").read_text())["data"]["kws"]
