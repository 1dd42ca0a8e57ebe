"""Expands the packed embedded corpus into two public layouts: Speech Commands and VoxCeleb1.

The package contains clean synthetic speech (``assets/corpus``, made by ``demo/make_corpus.py``). Clean synthetic voices
are too easy for both tasks, so every file gets its own reverberation, noise and channel (``embedded_effects.py``). The
random generator of a file is seeded with its name: the result does not depend on the order.
"""

from __future__ import annotations

import hashlib
import io
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations, count
from pathlib import Path

import numpy as np
import soundfile

from distilled_student.common.errors import UserError
from distilled_student.common.progress import Progress
from distilled_student.common.settings import cache_folder
from distilled_student.corpora.embedded_effects import SAMPLE_RATE, Audio, augment, make_noises
from distilled_student.corpora.keywords import hash_percentage
from distilled_student.corpora.shipped import PACKED, PackedClip, read_index, read_voice

RECIPE = 1  # increase it whenever the expanded files change, so that folders of an older recipe are made again
COPIES = 2  # files for each clip, each with another reverberation, noise and channel
TRIALS = 2_000
COMMANDS = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go")
STAMP = "corpus.sha256"


@dataclass(frozen=True)
class Output:
    """A file to write, its clip, and its length in samples (``fixed``); None: as long as the clip."""

    path: str
    clip: PackedClip
    fixed: int | None


def speaker_ids(clips: list[PackedClip]) -> dict[str, str]:
    """A VoxCeleb-like id for each voice, chosen so that its hash falls into the voice's own split.

    Speech Commands' hash in percent: below 10 is validation, below 20 is testing, the rest is training. A reader that
    splits by hash alone, as s3prl's does, thus gets our splits, which have no speaker in common.
    """
    bounds = {"dev": (0.0, 10.0), "test": (10.0, 20.0), "train": (20.0, 101.0)}
    ids: dict[str, str] = {}
    numbers = {split: count(10_001) for split in bounds}
    for voice, split in sorted({(clip.voice, clip.split) for clip in clips}):
        low, high = bounds[split]
        ids[voice] = next(name for n in numbers[split] if low <= hash_percentage(name := f"id{n}") < high)
    return ids


def _rng(key: str) -> np.random.Generator:
    return np.random.default_rng([RECIPE, zlib.crc32(key.encode())])


def _commands(clips: list[PackedClip], ids: dict[str, str]) -> Iterator[Output]:
    """Files of the Speech Commands layout. The test set has as many ``_unknown_`` files as files of one keyword."""
    test_voices = sorted({clip.voice for clip in clips if clip.split == "test"})
    takes = max(clip.take for clip in clips if clip.kind == "word")
    others = sorted({clip.text for clip in clips if clip.kind == "word"} - set(COMMANDS))
    # each test voice says the next words of the list, so that all words occur equally often
    per_voice = takes * COPIES
    unknown = {
        (voice, others[(n * per_voice + k) % len(others)])
        for n, voice in enumerate(test_voices)
        for k in range(per_voice)
    }
    for clip in clips:
        if clip.kind != "word":
            continue
        name = ids[clip.voice]
        numbers = [(clip.take - 1) * COPIES + copy for copy in range(COPIES)]
        if clip.split != "test":
            paths = [f"train/{clip.text}/{name}_nohash_{number}.wav" for number in numbers]
        elif clip.text in COMMANDS:
            paths = [f"test/{clip.text}/{name}_nohash_{number}.wav" for number in numbers]
        else:
            number = others.index(clip.text)  # the path does not contain the word, so the number makes the name unique
            paths = [f"test/_unknown_/{name}_nohash_{number}.wav"] if (clip.voice, clip.text) in unknown else []
        yield from (Output(f"speech_commands/{path}", clip, SAMPLE_RATE) for path in paths)


def _sentences(clips: list[PackedClip], ids: dict[str, str]) -> Iterator[Output]:
    """Files of the VoxCeleb1 layout: each sentence once per session."""
    numbers: dict[str, Iterator[int]] = {voice: count(1) for voice in ids}
    for clip in clips:
        if clip.kind == "sentence":
            part, number = "test" if clip.split == "test" else "dev", next(numbers[clip.voice])
            for session in range(COPIES):
                path = f"voxceleb1/{part}/wav/{ids[clip.voice]}/session{session}/{number:05d}.wav"
                yield Output(path, clip, None)


def make_trials(outputs: list[Output], wanted: int = TRIALS) -> list[str]:
    """Lines ``1 a.wav b.wav`` as in VoxCeleb1's trial list (1: same speaker), in random order.

    Half of them are target trials. The two sides never say the same sentence. Four of five non-target trials have two
    voices of one gender, which is harder.
    """
    prefix = "voxceleb1/test/wav/"
    files = [output for output in outputs if output.path.startswith(prefix)]
    pools: dict[str, list[str]] = {"target": [], "same": [], "cross": []}
    for a, b in combinations(files, 2):
        if a.clip.text == b.clip.text:
            continue
        target = a.clip.voice == b.clip.voice
        gender = "same" if a.clip.voice[1] == b.clip.voice[1] else "cross"  # second letter of Kokoro's names: f or m
        line = f"{int(target)} {a.path.removeprefix(prefix)} {b.path.removeprefix(prefix)}"
        pools["target" if target else gender].append(line)
    rng = _rng("trials")
    shares = {"target": 0.5, "same": 0.4, "cross": 0.1}
    lines = [
        str(line) for kind, share in shares.items() for line in rng.permutation(pools[kind])[: int(share * wanted)]
    ]
    return [str(line) for line in rng.permutation(lines)]


def plan_files(packed: Path = PACKED) -> list[Output]:
    """All files that contain speech, grouped by voice."""
    clips = read_index(packed)
    ids = speaker_ids(clips)
    return sorted([*_commands(clips, ids), *_sentences(clips, ids)], key=lambda output: output.clip.voice)


def noise_sets(packed: Path = PACKED) -> tuple[dict[str, Audio], dict[str, Audio]]:
    """Noises for training and development, and other noises of the same kinds for testing, with other babble voices."""
    babblers = sorted({clip.voice for clip in read_index(packed) if clip.split == "train"})[::3][:12]
    voices = [read_voice(voice, packed) for voice in babblers]
    return make_noises(_rng("train noise"), voices[::2]), make_noises(_rng("test noise"), voices[1::2])


def render(output: Output, voice: Audio, noises: dict[str, Audio]) -> Audio:
    """The samples ``(samples,)`` of one file; ``voice``: the whole packed file of its voice."""
    clip = output.clip
    speech = voice[clip.start : clip.start + clip.samples]
    return augment(speech, noises, _rng(output.path), output.fixed)


def _write(path: Path, audio: Audio) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    file = io.BytesIO()  # soundfile would wait for the disk after each file, more than half of the time of all this
    soundfile.write(file, np.round(audio * 32767).astype(np.int16), SAMPLE_RATE, format="WAV", subtype="PCM_16")
    path.write_bytes(file.getvalue())


def _fill(root: Path, packed: Path) -> None:
    """Write all files into ``root``."""
    outputs = plan_files(packed)
    train_noises, test_noises = noise_sets(packed)
    for name, noise in train_noises.items():
        _write(
            root / f"speech_commands/train/_background_noise_/{name}.wav", 0.1 * noise / max(1, np.abs(noise).max() / 9)
        )
    silences = sum(output.path.startswith("speech_commands/test/yes/") for output in outputs)
    for number in range(silences):
        path = f"speech_commands/test/_silence_/{number:03d}.wav"
        rng = _rng(path)
        noise = test_noises[rng.choice(sorted(test_noises))]
        start = int(rng.integers(len(noise) - SAMPLE_RATE))
        crop = noise[start : start + SAMPLE_RATE]
        _write(root / path, crop / np.abs(crop).max() * 10 ** (rng.uniform(-30, -1) / 20))
    loaded, voice = "", np.zeros(0, np.float32)  # name and samples of the voice that was read last
    with Progress(len(outputs), "expanding the embedded corpus") as progress:
        for output in outputs:
            if output.clip.voice != loaded:
                loaded, voice = output.clip.voice, read_voice(output.clip.voice, packed)
            noises = test_noises if output.clip.split == "test" else train_noises
            _write(root / output.path, render(output, voice, noises))
            progress.update()
    (root / "voxceleb1/veri_test.txt").write_text("\n".join(make_trials(outputs)) + "\n", encoding="utf-8")


def fingerprint(packed: Path = PACKED) -> str:
    """SHA-256 of what an expanded folder is made from: the packed files and the recipe's version."""
    digest = hashlib.sha256(f"recipe {RECIPE}".encode())
    for path in [*sorted(packed.glob("*.ogg")), packed / "index.csv"]:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def expand(root: Path, packed: Path = PACKED) -> Path:
    """Make ``root/speech_commands`` and ``root/voxceleb1``, unless an earlier call has made the same files.

    Args:
        root: The folder to make. An older expansion there is replaced; a folder of other files is refused.
        packed: The folder with ``index.csv`` and one ``VOICE.ogg`` per voice.

    Returns:
        ``root``, which is complete. After an interruption it does not exist.

    Raises:
        UserError: ``root`` holds other files than the embedded corpus.
    """
    wanted = fingerprint(packed)
    stamp = root / STAMP
    if stamp.is_file() and stamp.read_text() == wanted:
        return root
    if root.exists() and not stamp.is_file() and (not root.is_dir() or any(root.iterdir())):
        raise UserError(f"{root}: exists and is not the embedded corpus: remove it or choose another folder")
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{root.name}-", dir=root.parent) as folder:
        made = Path(folder) / "made"
        _fill(made, packed)
        (made / STAMP).write_text(wanted)
        if root.exists():
            shutil.rmtree(root)
        made.rename(root)
    return root


def cached() -> Path:
    """The folder of the embedded corpus in both public layouts; the first call expands it into the cache."""
    folder = cache_folder() / f"corpus-{fingerprint()[:12]}"
    try:
        return expand(folder)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror}): set XDG_CACHE_HOME") from None
