"""The index of keyword spotting on a folder of own recordings: other words and noise come from the embedded corpus."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from distilled_student.common.errors import UserError, one_line
from distilled_student.corpora import embedded
from distilled_student.corpora.keywords import BACKGROUND, normal_word
from distilled_student.corpora.own_folder import read_own_folder
from distilled_student.multitask.tasks.kws_index import UNKNOWN_LABEL, KeywordClip, add_other_classes

if TYPE_CHECKING:
    from distilled_student.multitask.tasks.kws import Settings

SPEAKER = "^[^/]+/([^/]+)/"  # finds the speaker in the key of a clip, WORD/SPEAKER/FILE
NEARLY_ALL = 0.999  # of the largest energy
PARTS = {"train": "training", "dev": "validation", "test": "testing"}  # part of the embedded corpus -> set


def own_class_index(settings: Settings, seed: int, key: str) -> tuple[dict[str, list[KeywordClip]], list[Path]]:
    """As `class_index`: the clips of the sets ``validation``, ``testing`` and ``training``, and background noises.

    The sets are those of ``dev_people``, of ``test_people`` and of all others. Unknown words are the folder's other
    words and those of the embedded corpus that are no keywords, by voices of the same part.

    Raises:
        UserError: the folder lacks a person or a keyword that it had when the training started.
    """
    keywords, data = settings.keywords or [], Path(str(settings.data))
    folder = read_own_folder(data, f"{key}.data", settings.layout, keywords)
    part_of = dict.fromkeys(settings.dev_people or (), "validation")
    part_of |= dict.fromkeys(settings.test_people or (), "testing")
    for missing in sorted({*part_of} - {*folder.people}):
        raise UserError(f"{key}.data: {data}: has no recordings of '{one_line(missing)}', who is held out")
    labels = {normal_word(word): label for label, word in enumerate(keywords, start=UNKNOWN_LABEL + 1)}
    if missing := [word for word in keywords if normal_word(word) not in set(map(normal_word, folder.words))]:
        raise UserError(f"{key}.data: {data}: keyword '{one_line(missing[0])}' has no recordings")
    sets: dict[str, list[KeywordClip]] = {"validation": [], "testing": [], "training": []}
    unknown: dict[str, list[KeywordClip]] = {name: [] for name in sets}
    for clip in (*folder.clips, *folder.other):
        label = labels.get(normal_word(clip.word), UNKNOWN_LABEL)
        name = f"{clip.word}/{clip.speaker}/{clip.path.parent.name} {clip.path.name}"  # spellings share a word
        of_class = sets if label > UNKNOWN_LABEL else unknown
        part = part_of.get(clip.speaker, "training")
        of_class[part].append(KeywordClip(clip.path, label, name, speaker=clip.speaker))
    for part, clip in _embedded_words({*labels}):
        unknown[part].append(clip)
    noises = sorted((embedded.cached() / "speech_commands/train" / BACKGROUND).glob("*.wav"))
    if not sets["testing"]:
        unknown["testing"] = []
    sets = {
        part: clips and add_other_classes({part: clips}, unknown, [*folder.noises, *noises], settings, seed)[part]
        for part, clips in sets.items()
    }
    return sets, [*folder.noises, *noises]


def _embedded_words(keywords: set[str]) -> Iterator[tuple[str, KeywordClip]]:
    """``(set, clip)`` of the words of the embedded corpus that are no keywords, and for training of its sentences.

    ``keywords`` are in `normal_word`'s form. A sentence that contains one is left out.
    """
    root = embedded.cached()
    for output in embedded.plan_files():
        clip = output.clip
        words = {normal_word(word.strip(".,;:!?")) for word in clip.text.split()} | {normal_word(clip.text)}
        if not words & keywords and (clip.kind == "word" or clip.split == "train"):
            speaker, path = f"embedded {clip.voice}", root / output.path
            key = f"{clip.text}/{speaker}/{path.parent.name} {path.name}"
            yield PARTS[clip.split], KeywordClip(path, UNKNOWN_LABEL, key, speaker=speaker)


def loudest(waveform: Tensor, samples: int) -> int:
    """Where the ``samples`` with the most energy begin in ``waveform (samples,)``; 0 in one that is not longer.

    Of the windows with nearly the most energy it is the one in the middle, as silence may be on both sides of a word.
    """
    if len(waveform) <= samples:
        return 0
    energy = F.pad(waveform.double().square().cumsum(dim=0), (1, 0))
    of_window = energy[samples:] - energy[:-samples]
    nearly = torch.nonzero(of_window >= NEARLY_ALL * of_window.max())
    return int(nearly[len(nearly) // 2])
