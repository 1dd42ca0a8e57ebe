"""``downstream_expert.data``: one folder of own recordings becomes the settings of both tasks."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from distilled_student.common.errors import UserError, did_you_mean, one_line
from distilled_student.corpora.keywords import normal_word
from distilled_student.corpora.own_folder import OwnFolder, read_own_folder, split_people

TASKS = ("kws", "sv")
# settings of the tasks that name data in other layouts, or who is held out of those
EXCLUDED = ("train_root", "test_root", "root", "trials", "trials_root", "speaker_pattern")
EXCLUDED += ("dev_speakers", "test_speakers", "dev_utterances", "validation_percentage", "testing_percentage")
FEW_PEOPLE, FEW_CLIPS = 5, 10  # fewer are too few to trust the figures, or to train a word
AT_MOST = 15  # lines about what is too little


def resolve_data(expert: dict[str, Any], where: str) -> None:
    """Complete ``downstream_expert`` in place from the folder that its key ``data`` names.

    Both tasks get the folder and the names of the people who are held out; the keyword task gets its keywords where
    they are null. What a checkpoint's settings have already is kept, so that a folder is read once for a run.

    Args:
        where: ``FILE: downstream_expert``, for messages.

    Raises:
        UserError: see `read_own_folder` and `split_people`; a keyword without recordings; a setting that excludes
            ``data``.
    """
    groups = _groups(expert)
    if (data := expert.get("data")) is None:
        if "kws" in groups and "keywords" in groups["kws"] and groups["kws"]["keywords"] is None:
            reason = "null stands for all words of downstream_expert.data, which is not set"
            raise UserError(f"{where}.tasks.kws.keywords: {reason}: set data, or give a list of words")
        return
    if not isinstance(data, str):
        raise UserError(f"{where}.data: expected a folder, found {data!r}: write its name in quotes")
    for name, group in groups.items():
        for key in EXCLUDED:
            if group.get(key) is not None:
                remedy = "remove one of the two" + "; who is held out: downstream_expert.dev_speakers" * ("dev" in key)
                raise UserError(f"{where}.tasks.{name}.{key}: cannot be used with downstream_expert.data: {remedy}")
        group["data"], group["layout"] = data, expert.get("layout")
    unresolved = [group for group in groups.values() if group.get("dev_people") is None]
    if not groups or not (unresolved or ("kws" in groups and groups["kws"].get("keywords") is None)):
        return
    wanted = groups.get("kws", {}).get("keywords")
    folder = read_own_folder(Path(data), f"{where}.data", expert.get("layout"), wanted or ())
    keywords = _keywords(folder, wanted, f"{where}.tasks.kws.keywords")
    shares = expert.get("dev_speakers", 0.2), expert.get("test_speakers", 0.2)
    dev, test = split_people(folder, keywords, *shares, where)
    for name, group in groups.items():
        group |= {"dev_people": dev, "test_people": test} | ({"keywords": keywords} if name == "kws" else {})


def _groups(expert: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The settings of the tasks that a folder of recordings can train; what is no group is reported elsewhere."""
    tasks = expert.get("tasks")
    found = tasks.items() if isinstance(tasks, Mapping) else ()
    return {name: group for name, group in found if name in TASKS and isinstance(group, dict)}


def _keywords(folder: OwnFolder, wanted: Sequence[str] | None, key: str) -> list[str]:
    """The keywords in the folder's spelling: those that are ``wanted``, or all words."""
    words = {normal_word(word): word for word in folder.words}
    if wanted is None:
        return list(words.values())
    for word in wanted:
        if normal_word(str(word)) not in words:
            hint = did_you_mean(word, folder.words) or f": the words there are {one_line(', '.join(folder.words[:20]))}"
            raise UserError(f"{key}: '{word}' has no recordings in {folder.root}{hint}")
    return [words[normal_word(str(word))] for word in wanted]


def report(folder: OwnFolder, keywords: Sequence[str], dev: Sequence[str], test: Sequence[str]) -> list[str]:
    """What a folder holds, who is held out, and what is too little, one line for each."""
    from distilled_student.common import audio_reading

    seconds = {clip.path: audio_reading.seconds(clip.path) for clip in folder.clips}
    train = [name for name in folder.people if name not in {*dev, *test}]
    others = [word for word in folder.words if word not in set(keywords)]
    lines = [
        f"{folder.root}: {folder.layout}: {_counted(len(keywords), 'keyword', keywords)}, "
        + (f"{_counted(len(others), 'other word', others)}, " if others else "")
        + f"{_counted(len(folder.people), 'person', folder.people)}, "
        + f"{_counted(len(folder.clips), 'clip')} of {sum(seconds.values()) / 60:.1f} minutes"
    ]
    parts = {"training": train, "dev": dev, "test": test}
    lines.append("; ".join(f"{part}: {_people(folder, names)}" for part, names in parts.items()))
    lines += folder.unused
    too_little = [f"too little: {line}" for line in _too_little(folder, keywords, train, dev, test)]
    more = len(too_little) - AT_MOST
    return lines + too_little[:AT_MOST] + ([f"too little: {more} more such lines"] if more > 0 else [])


def _counted(count: int, noun: str, names: Sequence[str] = ()) -> str:
    plural = {"person": "people"}.get(noun, f"{noun}s") if count != 1 else noun
    listed = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
    return f"{count} {plural}" + (f" ({one_line(listed)})" if names else "")


def _people(folder: OwnFolder, names: Sequence[str]) -> str:
    if not names:
        return "nobody"
    clips = sum(clip.speaker in set(names) for clip in folder.clips)
    return f"{one_line(', '.join(names[:12]))}{', ...' if len(names) > 12 else ''} ({_counted(clips, 'clip')})"


def _too_little(
    folder: OwnFolder, keywords: Sequence[str], train: Sequence[str], dev: Sequence[str], test: Sequence[str]
) -> list[str]:
    """What makes the model or its figures worse than more recordings would, with the remedy."""
    lines = []
    if len(folder.people) < FEW_PEOPLE:
        reason = f"{len(folder.people)} people, so the figures on dev are of {_counted(len(dev), 'person')}"
        lines.append(f"{reason}: record {FEW_PEOPLE} people or more")
    trained = Counter(clip.word for clip in folder.clips if clip.speaker in set(train))
    speakers = {word: {clip.speaker for clip in folder.clips if clip.word == word} & set(train) for word in keywords}
    for word in keywords:
        if trained[word] < FEW_CLIPS or len(speakers[word]) < 2:
            found = f"{_counted(trained[word], 'training clip')} of {_counted(len(speakers[word]), 'person')}"
            lines.append(f"word '{one_line(word)}' has {found}: record {FEW_CLIPS} or more, of 3 people or more")
    takes = Counter((clip.speaker, clip.word) for clip in folder.clips if clip.word in set(keywords))
    single = sorted(pair for pair, count in takes.items() if count == 1)
    if single:
        example = f"'{one_line(single[0][0])}' says '{one_line(single[0][1])}'"
        lines.append(f"{len(single)} of {len(takes)} words of a person have one take ({example}): record 3 or more")
    for name in folder.people:
        said = {clip.word for clip in folder.of(name)}
        missing = [word for word in keywords if word not in said]
        if len(folder.of(name)) == 1:
            lines.append(f"'{one_line(name)}' has one clip, which says little about the voice: record 3 or more")
        elif missing:
            part = "dev" if name in dev else "test" if name in test else "training"
            lines.append(f"'{one_line(name)}' ({part}) does not say {one_line(', '.join(missing[:12]))}")
    return lines


def long_words(folder: OwnFolder, keywords: Sequence[str], crop_seconds: float) -> str | None:
    """A line about words whose clips are longer than a training clip; None if there are none."""
    from distilled_student.common import audio_reading

    medians = {
        word: statistics.median(audio_reading.seconds(clip.path) for clip in folder.clips if clip.word == word)
        for word in keywords
    }
    long = {word: median for word, median in medians.items() if median > 1.5 * crop_seconds}
    if not long:
        return None
    word = max(long, key=lambda name: long[name])
    reason = f"clips of '{one_line(word)}' have {long[word]:.1f} s, of which the loudest {crop_seconds:g} s are used"
    return f"{reason}: if the word itself is longer, set downstream_expert.tasks.kws.crop_seconds"
