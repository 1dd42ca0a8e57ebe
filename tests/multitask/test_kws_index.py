"""The index on a folder with the file names of Speech Commands v0.01: published counts, and TensorFlow's own sets.

Sources of the counts: the archive has 64,721 files, with the numbers per word below. Its validation_list.txt has 6,798
files and its testing_list.txt 6,835, of which 2,577 and 2,567 are keywords. With unknown and silent utterances these
are the 3,093 and 3,081 that papers on keyword spotting report. The training set follows: 23,682 keyword utterances
minus 5,144 are 18,538; a tenth of that, rounded up, is 1,854, for unknown and for silence: 22,246 in all. Some papers
report 22,236, which no rounding of these counts gives.
"""

from __future__ import annotations

import hashlib
import math
import os
import random
import re
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.trees import write_tone

from distilled_student.multitask.tasks import kws, kws_index

KEYWORDS = {"yes": 2377, "no": 2375, "up": 2375, "down": 2359, "left": 2353, "right": 2367, "on": 2367, "off": 2357}
KEYWORDS |= {"stop": 2380, "go": 2372}
OTHERS = {"zero": 2376, "one": 2370, "two": 2373, "three": 2356, "four": 2372, "five": 2357, "six": 2369, "seven": 2377}
OTHERS |= {"eight": 2352, "nine": 2364, "bed": 1713, "bird": 1731, "cat": 1733, "dog": 1746, "happy": 1742}
OTHERS |= {"house": 1750, "marvin": 1746, "sheila": 1734, "tree": 1733, "wow": 1745}
HELD_OUT = {"validation": (2577, 6798), "testing": (2567, 6835)}  # files of keywords, and all files
NOISES = ["doing_the_dishes", "dude_miaowing", "exercise_bike", "pink_noise", "running_tap", "white_noise"]


def shared_out(total: int, words: dict[str, int]) -> dict[str, int]:
    """``total`` divided over the words as evenly as possible."""
    return {word: total // len(words) + (i < total % len(words)) for i, word in enumerate(words)}


def tensorflows_set(file_name: str) -> str:
    """``which_set`` after the documentation in TensorFlow's speech_commands/input_data.py.

    The hash of the name up to _nohash_ as a percentage of 2**27 - 1: 10 % are validation, the next 10 % testing.
    """
    digest = hashlib.sha1(re.sub("_nohash_.*$", "", file_name).encode()).hexdigest()
    share = int(digest, 16) % 2**27 * (100 / (2**27 - 1))
    return "validation" if share < 10 else "testing" if share < 20 else "training"


@pytest.fixture(scope="module")
def root() -> Iterator[Path]:
    """64,727 files named as in the archive; only the noises are not empty.

    Random speakers are drawn until each set has its number of files. The folder is in memory if the system has one:
    on a busy disk so many files take a minute.
    """
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder:
        yield archive(Path(folder))


def archive(folder: Path) -> Path:
    rng = random.Random(0)
    needed = {word: {"training": count} for word, count in (KEYWORDS | OTHERS).items()}
    for part, (of_keywords, of_all) in HELD_OUT.items():
        shares = shared_out(of_keywords, KEYWORDS) | shared_out(of_all - of_keywords, OTHERS)
        for word, share in shares.items():
            needed[word][part] = share
            needed[word]["training"] -= share
    for word, left in needed.items():
        (folder / word).mkdir()
        while any(left.values()):
            speaker = f"{rng.getrandbits(32):08x}"
            part = tensorflows_set(f"{speaker}_nohash_0.wav")
            for take in range(min(left[part], rng.choice([1, 1, 1, 2, 5]))):
                (folder / word / f"{speaker}_nohash_{take}.wav").touch()
                left[part] -= 1
    (folder / "_background_noise_").mkdir()
    for noise in NOISES:
        write_tone(folder / f"_background_noise_/{noise}.wav", 50, 1.5)
    (folder / "_background_noise_/README.md").touch()
    (folder / "validation_list.txt").touch()
    return folder


def settings(root: Path, **more: object) -> kws.Settings:
    return kws.Settings(train_root=str(root), test_root=None, **more)


def tensorflows_index(root: Path) -> dict[str, dict[str, set[str]]]:
    """``prepare_data_index`` after its documentation: files of keywords and of other words by set."""
    index: dict[str, dict[str, set[str]]] = {part: {"known": set(), "other": set()} for part in (*HELD_OUT, "training")}
    for file in root.glob("*/*.wav"):
        if file.parent.name != "_background_noise_":
            kind = "known" if file.parent.name in KEYWORDS else "other"
            index[tensorflows_set(file.name)][kind].add(f"{file.parent.name}/{file.name}")
    return index


def test_the_folder_has_the_numbers_of_files_of_the_archive() -> None:
    assert sum(KEYWORDS.values()) + sum(OTHERS.values()) == 64_721 and len(KEYWORDS | OTHERS) == 30
    assert sum(KEYWORDS.values()) == 23_682


def test_the_classic_index_has_the_published_counts_and_tensorflows_sets(root: Path) -> None:
    sets, noises = kws_index.class_index(settings(root), 0, "F")
    assert {part: len(clips) for part, clips in sets.items()} == {
        "validation": 3093,
        "testing": 3081,
        "training": 18_538 + 2 * math.ceil(1853.8),
    }
    assert [noise.stem for noise in noises] == NOISES
    for part, wanted in tensorflows_index(root).items():
        clips = [clip for clip in sets[part] if clip.volume is None]
        assert {clip.key for clip in clips if clip.label > 1} == wanted["known"], part
        unknown = [clip.key for clip in clips if clip.label == 1]
        assert len(set(unknown)) == len(unknown) == math.ceil(len(wanted["known"]) / 10)
        assert set(unknown) < wanted["other"]
        assert len(sets[part]) - len(clips) == len(unknown), "as many silent utterances"
    words = Counter(clip.key.partition("/")[0] for clips in sets.values() for clip in clips if clip.label > 1)
    assert words == KEYWORDS


def test_superbs_index_has_all_words_and_the_six_noises(root: Path) -> None:
    superb = settings(root, unknown_percentage=None, silence_percentage=None)
    sets, _ = kws_index.class_index(superb, 0, "F")
    # s3prl adds the noises to its training and its development list; it makes no testing list from this archive
    assert {part: len(clips) - 6 for part, clips in sets.items()} == {
        "validation": 6798,
        "testing": 6835,
        "training": 51_088,
    }
    for part, wanted in tensorflows_index(root).items():
        speech = {clip.key for clip in sets[part] if clip.volume is None}
        assert speech == wanted["known"] | wanted["other"], part


def test_the_index_equals_s3prls_own_split(root: Path) -> None:
    import distilled_student

    distilled_student.register()
    from s3prl.downstream.speech_commands.expert import split_dataset

    sets, _ = kws_index.class_index(settings(root, unknown_percentage=None, silence_percentage=None), 0, "F")
    for part, listed in zip(("training", "validation"), split_dataset(root), strict=True):
        theirs = {f"{word}/{path.name}" for word, path in listed}
        assert {clip.key for clip in sets[part] if clip.volume is None} == theirs
