"""The plugin of OVOS, found and loaded by its plugin manager."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ovos_utils", reason="ovos-plugin-manager is not installed")
pytest.importorskip("onnxruntime")

from helpers import ovos_logger  # noqa: F401  before the plugin manager, which logs while it is imported
from helpers.people import CALIBRATION
from helpers.spoken import spoken
from ovos_plugin_manager.templates.hotwords import HotWordVerifier
from ovos_plugin_manager.wakewords import find_wake_word_verifier_plugins, load_wake_word_verifier_plugin

from distilled_student import onnx
from distilled_student.common.errors import UserError
from distilled_student.device import model_files, ovos
from distilled_student.device.profiles import Profiles

NAME = "ovos-ww-verifier-distilled-student"
VOICES = ("am_onyx", "af_river", "if_sara")


@pytest.fixture(autouse=True)
def known_calibration(monkeypatch: pytest.MonkeyPatch) -> None:
    """The models have the calibration of known numbers."""

    def opened(name: str) -> onnx.Model:
        model = model_files.open_model(name)
        model.calibration = CALIBRATION
        return model

    monkeypatch.setattr(ovos, "open_model", opened)


def verifier(**config: Any) -> HotWordVerifier:
    return load_wake_word_verifier_plugin(NAME)({"false_accepts": 0.001, **config})


@pytest.fixture(scope="module")
def profiles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder where two voices are enrolled, by other words than those that are verified."""
    folder, model = tmp_path_factory.mktemp("profiles"), onnx.load("tiny")
    for voice in VOICES[:2]:
        enrolment = model.enrol([spoken(voice, ["yes", "no"]), spoken(voice, ["stop", "left"])])
        Profiles(folder, model, "tiny").write(voice, enrolment.vector[None], enrolment.seconds)
    return folder


def test_the_plugin_manager_finds_the_plugin() -> None:
    assert issubclass(find_wake_word_verifier_plugins()[NAME], HotWordVerifier)


def test_enrolled_people_are_accepted_and_others_rejected(profiles: Path) -> None:
    plugin = verifier(model="tiny", profiles=str(profiles))
    words = {voice: spoken(voice, ["go", "right"]) for voice in VOICES}
    assert [plugin.verify(words[voice].tobytes()) for voice in VOICES] == [True, True, False]
    only = verifier(model="tiny", profiles=str(profiles), people=["af_river"])
    assert not only.verify(words["am_onyx"].tobytes())


@pytest.mark.parametrize(
    "config",
    [
        {"profiles": "nobody"},
        {"model": "no such model"},
    ],
)
def test_without_profiles_and_after_an_error_it_accepts(profiles: Path, tmp_path: Path, config: dict[str, Any]) -> None:
    if config.get("profiles"):
        config = {"profiles": str(tmp_path / "nobody")}
    wanted = {"model": "tiny", "profiles": str(profiles), **config}
    chunk = spoken("if_sara", ["go", "right"]).tobytes()
    assert verifier(**wanted).verify(chunk)
    assert not verifier(**wanted, fail_open=False).verify(chunk)


def test_people_are_names_and_nobody_else_is_accepted(profiles: Path, caplog: pytest.LogCaptureFixture) -> None:
    chunks = {voice: spoken(voice, ["go", "right"]).tobytes() for voice in VOICES}
    for people, accepted in (
        ("am_onyx", [True, False, False]),
        (["am_onyx", "am_onyx"], [True, False, False]),
        ("am_onyx and others", [False, False, False]),  # a name is not looked for in a longer one
        (["am_onyx", "Nobody"], [True, False, False]),
        (["Nobody"], [False, False, False]),
    ):
        plugin = verifier(model="tiny", profiles=str(profiles), people=people)
        assert [plugin.verify(chunks[voice]) for voice in VOICES] == accepted, people
    said = [record.getMessage() for record in caplog.records if "not enrolled" in record.getMessage()]
    assert len(said) == 3 and said[-1].startswith("people: not enrolled and never accepted: Nobody; enrolled: ")
    assert not verifier(model="tiny", profiles=str(profiles / "nobody"), people="am_onyx").verify(chunks["am_onyx"])


def test_a_share_may_be_given_as_on_the_command_line(profiles: Path) -> None:
    chunk = spoken("if_sara", ["go", "right"]).tobytes()
    for share in ("0.1%", "0.001", 0.001):
        assert not verifier(model="tiny", profiles=str(profiles), false_accepts=share).verify(chunk)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"false_accepts": 0.2},
            r"^false_accepts 0\.2: must be from 0\.1% to 5% \(0.*\); did you mean 0\.2%\?$",
        ),
        ({"false_accepts": 0}, r"^false_accepts 0: must be from 0\.1% to 5%"),
        ({"false_accepts": "many"}, r"^false_accepts many: must be from 0\.1% to 5%"),
        ({"fail_open": "false"}, r"^fail_open: expected true or false, found 'false'$"),
        ({"people": []}, r"^people: expected a name or a list of names, found \[\]; without it all are accepted$"),
        ({"people": {"Ada": 1}}, r"^people: expected a name or a list of names"),
        ({"profiles": 5}, r"^profiles: expected a folder, found 5$"),
    ],
)
def test_a_setting_that_cannot_be_used_is_one_line_at_the_start(
    profiles: Path, config: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        verifier(**{"model": "tiny", "profiles": str(profiles), **config})


def test_chunks_that_are_no_audio_are_accepted(profiles: Path) -> None:
    plugin = verifier(model="tiny", profiles=str(profiles))
    assert all(plugin.verify(chunk) for chunk in (b"", b"\0", b"RIFF damaged", "text"))


def test_a_wav_file_is_read_too(profiles: Path, tmp_path: Path) -> None:
    import soundfile

    plugin = verifier(model="tiny", profiles=str(profiles))
    for voice in VOICES:
        samples = spoken(voice, ["go", "right"])
        soundfile.write(tmp_path / "a.wav", samples, 16_000)
        assert plugin.verify((tmp_path / "a.wav").read_bytes()) == plugin.verify(samples.tobytes())
