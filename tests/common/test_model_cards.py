"""The names of corpora in model cards, and where the licence of a model is found."""

from __future__ import annotations

from pathlib import Path

import pytest

from distilled_student.common.model_cards import corpus_names, licence_of, stated_licence

CARD = "---\nlanguage: en\nlicense: apache-2.0\ntags:\n- speech\n---\n# HuBERT\nlicense: none\n"


@pytest.mark.parametrize(
    ("name", "text", "licence"),
    [
        ("README.md", CARD, "apache-2.0"),
        ("README.md", "# Student\n\n| | |\n|---|---|\n| licence | MIT (teacher) |\n", "MIT (teacher)"),
        ("README.md", "# Student\nlicense: of another model\n", None),
        ("LICENSE", "\nMIT License\n\nCopyright\n", "MIT License"),
        ("notes.txt", "MIT", None),
    ],
)
def test_the_licence_that_a_folder_states(name: str, text: str, licence: str | None, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    assert stated_licence(tmp_path) == licence
    sentence = f"{licence} (hubert)" if licence else "not stated by hubert: look it up where it was published"
    assert licence_of("hubert", tmp_path) == sentence
    assert licence_of("hubert", None).startswith("not stated by hubert")


def test_the_shipped_models_and_the_embedded_corpus_state_theirs() -> None:
    from distilled_student.corpora.shipped import PACKED

    for name in ("models/edge", "models/tiny", "teacher"):
        assert stated_licence(PACKED.parent / name) == "MIT, as Whisper's weights"
    text = (PACKED / "README.md").read_text().partition("## Licence\n")[2]
    assert text.startswith("Apache License 2.0") and "not the project's MIT licence" in text


def test_a_corpus_is_named_by_the_end_of_its_path() -> None:
    paths = ["/home/me/data/speech_commands/train", "data/speech_commands/train/", "./audio"]
    assert corpus_names(paths) == "speech_commands/train, audio"
