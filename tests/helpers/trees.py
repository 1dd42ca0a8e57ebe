"""Tiny synthetic corpora in the layouts of Speech Commands and VoxCeleb1: each word and each speaker has a pitch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile

RATE = 16_000
WORDS = ["yes", "no"]
OTHERS = ["bed", "cat"]
TASKS = "config.downstream_expert.tasks"
# what a joint training on these corpora needs, as overrides of a shipped config
SMALL_JOINT = [
    "config.downstream_expert.num_workers=0",
    f"{TASKS}.kws.keywords={WORDS}",
    f"{TASKS}.kws.validation_percentage=30",
    f"{TASKS}.kws.batch_size=4",
    f"{TASKS}.sv.dev_speakers=2",
    f"{TASKS}.sv.dev_trials=20",
]


def write_tone(
    path: Path, pitch: float, seconds: float = 1.0, seed: int = 0, rate: int = RATE, channels: int = 1
) -> Path:
    """Write a sine of ``pitch`` Hz with a little noise; returns ``path``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    wave = 0.3 * np.sin(2 * np.pi * pitch * np.arange(int(seconds * rate)) / rate)
    wave = wave + 0.01 * rng.standard_normal(len(wave))
    soundfile.write(path, np.stack([wave] * channels, axis=1), rate, subtype="PCM_16")
    return path


def speech_commands(root: Path, speakers: int = 10, takes: int = 1, test: bool = True) -> Path:
    """Write ``train/WORD/``, and ``test/CLASS/`` if ``test`` is true; returns ``root``."""
    for w, word in enumerate(WORDS + OTHERS):
        for s in range(speakers):
            for take in range(takes):
                write_tone(root / "train" / word / f"spk{s}_nohash_{take}.wav", 200 + 150 * w, 1.0 - 0.1 * (s % 2), s)
    for i in range(2):
        write_tone(root / "train" / "_background_noise_" / f"noise{i}.wav", 50, 3.0, i)
    if test:
        for w, word in enumerate(["_silence_", "_unknown_", *WORDS]):
            for s in range(2):
                write_tone(root / "test" / word / f"new{s}_nohash_0.wav", 100 + 150 * w, 1.0, s)
    return root


def voxceleb(root: Path, speakers: int = 6, sessions: int = 2, utterances: int = 2, seconds: float = 0.5) -> Path:
    """Write ``dev/wav/SPEAKER/SESSION/``, two speakers in ``test/wav`` and their trials in ``veri_test.txt``."""
    for part, prefix, count in (("dev", "id1", speakers), ("test", "id2", 2)):
        for s in range(count):
            for session in range(sessions):
                for u in range(utterances):
                    path = root / part / "wav" / f"{prefix}{s:03d}" / f"s{session}" / f"{u:05d}.wav"
                    write_tone(path, 100 + 40 * s, seconds + 0.25 * u, s)
    names = [f"id2{s:03d}/s{i}/00000.wav" for s in range(2) for i in range(2)]
    pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
    lines = [f"{int(a[:6] == b[:6])} {a} {b}\n" for a, b in pairs]
    (root / "veri_test.txt").write_text("".join(lines))
    return root


def tasks(folder: Path) -> dict[str, dict]:
    """Write both corpora into ``folder``; returns ``downstream_expert.tasks`` that use them."""
    speech_commands(folder / "sc")
    voxceleb(folder / "vox")
    return {
        "kws": {
            "train_root": str(folder / "sc/train"),
            "test_root": str(folder / "sc/test"),
            "keywords": WORDS,
            "validation_percentage": 30,
            "batch_size": 4,
        },
        "sv": {
            "root": str(folder / "vox"),
            "dev_speakers": 2,
            "dev_trials": 20,
            "crop_seconds": 0.4,
            "embedding_size": 8,
            "batch_size": 4,
        },
    }
