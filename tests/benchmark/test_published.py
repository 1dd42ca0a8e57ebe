"""Published results: the shipped tables are complete and have sources; an error in a file is named."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from distilled_student.benchmark.published import SETTINGS, read_baselines, read_paper_results
from distilled_student.common.errors import UserError
from distilled_student.common.settings import find_config, read_yaml


def test_superb_rows_are_the_published_ones_with_their_sources() -> None:
    rows = {row.upstream: row for row in read_baselines()}
    assert len(rows) == len(read_baselines()) == 28
    found = {name: (rows[name].ks, rows[name].asv, rows[name].parameters, "".join(rows[name].sources)) for name in rows}
    assert found["FBANK"] == (8.63, 9.56, 0, "S")
    assert found["FBANK (revised)"] == (41.38, 9.56, 0, "L")
    assert found["HuBERT Base"] == (96.30, 5.11, 94.68, "S")
    assert found["DistilHuBERT"] == (95.98, 8.55, 23.49, "DA")
    assert found["ARMHuBERT"] == (96.88, 5.68, 26.45, "A")
    assert found["STaRHuBERT"] == (96.27, 5.39, 22.31, "T")


def test_every_source_is_cited_and_every_trained_upstream_has_parameters() -> None:
    rows = read_baselines()
    defined = read_yaml(find_config("baselines", "superb"))["sources"]
    assert {letter for row in rows for letter in row.sources} == set(defined)
    assert all(source.title and source.url.startswith("https://") for row in rows for source in row.sources.values())
    assert [row.upstream for row in rows if row.parameters == 0] == ["FBANK", "FBANK (revised)"]


def test_the_papers_tables_have_every_cell_and_agree_with_its_text() -> None:
    cells = {(row.model, row.setting): row for row in read_paper_results()}
    models = ("wav2vec 2.0 BASE", "Distilled wav2vec 2.0", "Distilled HuBERT")
    assert set(cells) == {(model, setting) for model in models for setting in SETTINGS}
    teacher, student = "wav2vec 2.0 BASE", "Distilled HuBERT"
    # The abstract: single-task students lose "0.1 % accuracy and 0.9 % EER". Section 4: fine-tuned against frozen.
    lost = cells[teacher, "single kws"].kws_accuracy - cells["Distilled wav2vec 2.0", "single kws"].kws_accuracy
    assert lost == pytest.approx(0.09)
    assert cells[student, "single sv"].sv_eer - cells[teacher, "single sv"].sv_eer == pytest.approx(0.91)
    assert cells[student, "joint frozen"].sv_eer - cells[student, "joint"].sv_eer == pytest.approx(8.40)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ks": "high"}, "baselines[0]: ks: expected a number, found 'high'"),
        ({"ks": 963}, "baselines[0]: ks: 963.0 is not a percentage"),
        ({"kws": 1}, "kws"),
        ({"parameters": -1}, "parameters"),
        ({"sources": ["S", "X"]}, "sources: 'X' is not one of S"),
        ({"sources": []}, "sources"),
    ],
)
def test_a_wrong_row_is_named_in_one_line(change: dict[str, object], message: str, tmp_path: Path) -> None:
    row = {"upstream": "A", "ks": 96.3, "asv": 5.1, "parameters": 94.7, "sources": ["S"]}
    path = tmp_path / "table.yaml"
    content = {"sources": {"S": {"title": "A paper", "url": "https://a.org"}}, "baselines": [row | change]}
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(UserError) as error:
        read_baselines(path)
    assert f"{path}: " in str(error.value) and message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("sources: {}", "baselines: is missing"),
        ("{sources: {}, baselines: [], more: 1}", "more: unknown key"),
        ("{sources: [], baselines: []}", "sources: expected a dict"),
        ("{sources: {}, baselines: [5]}", "baselines[0]: expected a group of keys"),
    ],
)
def test_a_wrong_table_is_named_in_one_line(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "table.yaml"
    path.write_text(content)
    with pytest.raises(UserError) as error:
        read_baselines(path)
    assert f"{path}: {message}" in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"setting": "both"}, "setting: 'both'"),
        ({"setting": "single kws"}, "sv_eer: does not fit the setting 'single kws'"),
        ({"kws_accuracy": None}, "kws_accuracy: does not fit the setting 'joint'"),
    ],
)
def test_a_cell_has_the_tasks_of_its_setting(change: dict[str, object], message: str, tmp_path: Path) -> None:
    row = {"model": "A", "parameters": 27, "setting": "joint", "kws_accuracy": 97.9, "sv_eer": 4.3}
    path = tmp_path / "paper.yaml"
    path.write_text(yaml.safe_dump({"source": {"title": "A", "url": "https://a.org"}, "results": [row | change]}))
    with pytest.raises(UserError) as error:
        read_paper_results(path)
    assert f"results[0]: {message}" in str(error.value)
