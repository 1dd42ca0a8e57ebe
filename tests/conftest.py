"""Fixtures and helpers of several test folders: synthetic audio, a small corpus, small students."""

from __future__ import annotations

import dataclasses
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # tests do not use the network
if "PYTEST_XDIST_WORKER" in os.environ:  # set, not only defaulted: workers inherit the number of their parent
    os.environ["OMP_NUM_THREADS"] = "1"
else:
    os.environ.setdefault("OMP_NUM_THREADS", "2")

import pytest
import soundfile
import torch
from filelock import FileLock

from distilled_student import Student, StudentConfig, build_student, named_size
from distilled_student.corpora import embedded, shipped

# Files of tests need not survive a power failure: waiting for the disk took a quarter of the suite's time.
os.fsync = lambda file: None
soundfile.SoundFile.flush = lambda self: None

SMALL = {
    "hidden_size": 16,
    "layers": 2,
    "heads": 2,
    "feed_forward": 32,
    "position_kernel": 8,
    "position_groups": 2,
    "targets": [1, 2],
    "target_size": 16,
    "prediction_size": 8,
}


# A CNN with the frame shift of the usual seven layers and as many samples in a frame. Its export takes two thirds of
# the time: each layer adds terms to the symbolic lengths that torch simplifies.
THREE_LAYERS = {"conv_dim": [8] * 3, "conv_kernel": [10, 15, 9], "conv_stride": [5, 8, 8]}


@pytest.fixture
def small_cnn() -> StudentConfig:
    """A tiny student with a CNN on the waveform."""
    return StudentConfig(conv_dim=[8] * 7, **SMALL)


@pytest.fixture
def small_logmel() -> StudentConfig:
    """A tiny student built as Whisper's encoder: log-mel input, pre-norm layers, sinusoidal positions."""
    return StudentConfig(
        **SMALL,
        frontend="logmel",
        mel_bins=20,
        conv_dim=[16, 16],
        conv_kernel=[3, 3],
        conv_stride=[1, 2],
        conv_bias=True,
        conv_norm="none",
        projection=False,
        projection_norm=False,
        norm_first=True,
        positions="sinusoidal",
    )


@pytest.fixture(params=["cnn", "cnn-layer-norm", "cnn-normalized", "logmel", "shared", "slow", "slow-causal", "edge"])
def student_variant(request: pytest.FixtureRequest, small_cnn: StudentConfig, small_logmel: StudentConfig) -> Student:
    """A small student with random weights, in eval mode. There is one parameter for each kind of network."""
    configs = {
        "cnn": small_cnn,
        "cnn-layer-norm": dataclasses.replace(small_cnn, conv_norm="layer", norm_first=True),
        "cnn-normalized": dataclasses.replace(small_cnn, normalize=True, conv_norm="layer", conv_bias=True),
        "logmel": small_logmel,
        "shared": dataclasses.replace(small_logmel, shared=True),
        "slow": dataclasses.replace(small_cnn, encoder_stride=2),
        "slow-causal": dataclasses.replace(small_logmel, encoder_stride=3, positions="conv", causal=True),
        "edge": named_size("edge"),
    }
    torch.manual_seed(0)
    return build_student(configs[request.param]).eval()


# Files that take longest. They run first, so that with several workers none of them runs alone at the end.
LONG_FILES = (
    "web/test_browser.py",
    "export/test_executorch.py",
    "export/test_utterance.py",
    "export/test_pack.py",
    "multitask/test_own_data.py",
    "multitask/test_device_model.py",
    "benchmark/test_benchmark.py",
    "common/test_processes.py",
    "host/test_resume.py",
    "test_end_to_end.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests of `LONG_FILES` first; the others keep their order."""
    tests = Path(__file__).parent
    long = {tests / name for name in LONG_FILES}
    items.sort(key=lambda item: item.path not in long)


# Voices of `small_corpus`: four for training, two for development, two for test.
SMALL_VOICES = ("af_alloy", "af_heart", "am_adam", "am_echo", "af_kore", "am_eric", "af_bella", "am_puck")


def tone(seconds: float, rate: int = 16_000, seed: int = 0) -> torch.Tensor:
    """``(samples,)``: five harmonics of a pitch that depends on the seed, with a little noise."""
    generator = torch.Generator().manual_seed(seed)
    time = torch.arange(int(seconds * rate)) / rate
    pitch = 90 + 150 * float(torch.rand(1, generator=generator))
    wave = sum(torch.sin(2 * torch.pi * k * pitch * time) / k for k in range(1, 6))
    return (0.1 * wave + 0.01 * torch.randn(len(time), generator=generator)).float()


@pytest.fixture
def audio_folder(tmp_path: Path) -> Path:
    """A folder with twelve audio files of 0.5 to 2 s."""
    folder = tmp_path / "audio"
    folder.mkdir()
    for i in range(12):
        soundfile.write(folder / f"{i:02d}.wav", tone(0.5 + 1.5 * i / 11, seed=i).numpy(), 16_000)
    return folder


def packed_subset(folder: Path, voices: tuple[str, ...]) -> Path:
    """Fill ``folder`` with a packed corpus of these voices of the shipped one."""
    for voice in voices:
        os.symlink(shipped.PACKED / f"{voice}.ogg", folder / f"{voice}.ogg")
    header, *clips = (shipped.PACKED / "index.csv").read_text(encoding="utf-8").splitlines()
    selected = [clip for clip in clips if clip.startswith(voices)]
    (folder / "index.csv").write_text("\n".join([header, *selected]) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], object]], Path]:
    """Calls ``make(folder)`` once in all workers for each name of a new folder; returns the folder, to be read only."""
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def once(name: str, make: Callable[[Path], object]) -> Path:
        folder, done = base / name, base / f"{name}.done"
        with FileLock(base / f"{name}.lock"):
            if not done.exists():
                shutil.rmtree(folder, ignore_errors=True)  # of a call that has failed
                folder.mkdir()
                make(folder)
                done.touch()
        return folder

    return once


@pytest.fixture(scope="session")
def small_corpus(
    made_once: Callable[[str, Callable[[Path], object]], Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Eight voices of the embedded corpus, in the layouts of Speech Commands and VoxCeleb1."""
    packed = packed_subset(tmp_path_factory.mktemp("packed"), SMALL_VOICES)
    return made_once("small_corpus", lambda folder: embedded.expand(folder / "small", packed=packed)) / "small"


@pytest.fixture(scope="session")
def people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips of three voices, see `helpers.people.write_clips`."""
    from helpers.people import write_clips

    return write_clips(tmp_path_factory.mktemp("people"))


@pytest.fixture
def command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Runs ``distilled-student`` with people in an empty folder and a known calibration: exit code, stdout, stderr."""
    from helpers.people import run_command, use_known_calibration

    use_known_calibration(monkeypatch)
    monkeypatch.setenv("DISTILLED_STUDENT_PROFILES", str(tmp_path / "profiles"))
    return lambda *words: run_command(words, capsys)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Report how many inputs the fuzz tests tried, if they ran."""
    if (mutations := sys.modules.get("fuzz.mutations")) is not None:
        terminalreporter.write_line(f"{mutations.TRIED['inputs']} bad inputs tried")
