"""The index of keyword spotting: the utterances of each set, as in TensorFlow's classic index or as in SUPERB."""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from distilled_student.common import audio_reading
from distilled_student.common.audio_folders import audio_files
from distilled_student.common.errors import UserError, one_line
from distilled_student.common.progress import note
from distilled_student.common.recordings import recordings_fingerprint
from distilled_student.corpora.held_out import by_hash, number_held_out
from distilled_student.corpora.keywords import (
    BACKGROUND,
    SILENCE,
    UNKNOWN,
    is_no_word,
    normal_word,
    set_of_speaker,
    speaker_of,
)
from distilled_student.corpora.speaker_names import identity, merged_names, speaker_by_pattern
from distilled_student.multitask.tasks.kws_settings import deeper_clip, no_noise, no_other_words
from distilled_student.multitask.tasks.settings import NO_TEST_PEOPLE

if TYPE_CHECKING:
    from distilled_student.multitask.tasks.kws import Settings

log = logging.getLogger(__name__)

SILENCE_LABEL, UNKNOWN_LABEL = 0, 1  # the classes are silence, unknown and the keywords


@dataclass(frozen=True)
class KeywordClip:
    """An utterance with its class and its name.

    Attributes:
        start, volume: Of silence, which is cut from background noise: where it starts in the file, in seconds, and what
            it is multiplied by. ``volume`` is None for speech, which is a whole file.
    """

    path: Path
    label: int
    key: str
    start: float = 0.0
    volume: float | None = None
    speaker: str = ""


def class_index(settings: Settings, seed: int, key: str) -> tuple[dict[str, list[KeywordClip]], list[Path]]:
    """The clips of the sets ``validation``, ``testing`` and ``training``, and the background noises.

    A set has its keyword utterances, then unknown and silent ones, each as many as a percentage of the keyword
    utterances. The numbers are those of ``prepare_data_index`` in TensorFlow's speech_commands/input_data.py; the seed
    chooses the unknown utterances of training (with ``unknown_each_pass`` all are there), and those of the other sets
    are the same for every seed. Training cuts its silence again in each pass. With None for both percentages the index
    is SUPERB's (s3prl, downstream/speech_commands): every word and each noise file.

    Raises:
        UserError: no folder, a keyword without files, a folder that is neither a word nor background noise, clips in
            further folders, or no background noise to cut silence from.
    """
    root = Path(settings.train_root)
    words = word_clips(root, settings, f"{key}.train_root")
    labels = {word: i for i, word in enumerate([SILENCE, UNKNOWN, *settings.keywords])}
    noises = [noise.path for noise in words.pop(BACKGROUND, [])]
    _check_words(words, settings, key)
    sets, unknown = _read_words(words, settings, labels, key)
    found = {clip.label for clips in sets.values() for clip in clips}
    for word in settings.keywords:
        if labels[word] not in found:
            raise UserError(f"{key}.keywords: {root / word}: class '{word}' has no files")
    if settings.unknown_percentage != 0 and not any(unknown.values()):
        raise no_other_words(root, key)
    if settings.silence_percentage != 0 and not noises:
        raise no_noise(root, key)
    return add_other_classes(sets, unknown, noises, settings, seed), noises


def add_other_classes(
    sets: dict[str, list[KeywordClip]],
    unknown: dict[str, list[KeywordClip]],
    noises: list[Path],
    settings: Settings,
    seed: int,
) -> dict[str, list[KeywordClip]]:
    """The keyword clips of each set, followed by its share of unknown and silent ones: see `class_index`."""
    for part, clips in sets.items():
        rng = random.Random(f"{seed if part == 'training' else 0} {part}")
        size = len(clips)
        rng.shuffle(unknown[part])
        share = share_of(size, settings.unknown_percentage)
        clips += unknown[part][: None if part == "training" and settings.unknown_each_pass else share]
        silent = share_of(size, settings.silence_percentage)
        for i, files in enumerate([[noise] for noise in noises] if silent is None else [noises] * silent):
            noise, start, volume = cut_silence(files, settings, rng)
            clips.append(KeywordClip(noise, SILENCE_LABEL, f"{SILENCE}/{i:05d}", start, volume))
    return sets


class FolderClip(NamedTuple):
    """A file in a word's folder: its path, the folder's name, and its path in the folder."""

    path: Path
    folder: str
    inside: str


def word_clips(root: Path, settings: Settings, key: str) -> dict[str, list[FolderClip]]:
    """`normal_word` of each folder in ``root`` -> the audio files in the folders of this word, sorted by path.

    Logs audio files that lie in ``root`` itself.

    Raises:
        UserError: no such folder, or clips in further folders where no ``speaker_pattern`` says what those are.
    """
    if not root.is_dir():
        raise UserError(f"{key}: {root}: no such folder")
    words: dict[str, list[FolderClip]] = {}
    loose = []
    for path in audio_files(root, key):
        folder, _, inside = path.relative_to(root).as_posix().partition("/")
        if not inside:
            loose.append(folder)
            continue
        word = normal_word(folder)
        if "/" in inside and word != BACKGROUND and settings.speaker_pattern is None:
            raise deeper_clip(path, key)
        words.setdefault(word, []).append(FolderClip(path, folder, inside))
    if loose:
        reason = f"{len(loose)} audio files are in no word's folder and are not used; the first is {one_line(loose[0])}"
        log.warning("%s: %s: %s", key, root, reason)
    return words


def _check_words(words: Mapping[str, Sequence[FolderClip]], settings: Settings, key: str) -> None:
    """Refuse folders that are neither words nor background noise, and log the words taken as unknown."""
    keywords = set(map(normal_word, settings.keywords))
    others = {word: clips[0].folder for word, clips in words.items() if word not in keywords}
    for word, folder in others.items():
        if is_no_word(word):
            reason = f"{one_line(folder)}: is no word, but would be trained as '{UNKNOWN}'"
            remedy = f"move silence and noise to {BACKGROUND}, from which silence is cut, or rename the folder"
            raise UserError(f"{key}.train_root: {settings.train_root}/{reason}: {remedy}")
    if settings.unknown_percentage != 0 and others:
        names = one_line(", ".join(others.values()))
        note(f"{key}.train_root: {len(others)} words are taken as '{UNKNOWN}': {names}")


def _read_words(
    words: Mapping[str, Sequence[FolderClip]], settings: Settings, labels: Mapping[str, int], key: str
) -> tuple[dict[str, list[KeywordClip]], dict[str, list[KeywordClip]]]:
    """The keyword utterances of each set, and the utterances of all other words of each set."""
    sets: dict[str, list[KeywordClip]] = {"validation": [], "testing": [], "training": []}
    unknown: dict[str, list[KeywordClip]] = {name: [] for name in sets}
    keywords = {normal_word(word): word for word in settings.keywords}
    clips = [(clip, word) for word, of_word in words.items() for clip in of_word]
    speakers = _speakers([clip for clip, _ in clips], settings, key, "train_root")
    parts = _parts(set(speakers.values()), settings, key)
    for found, word in sorted(clips):
        speaker = speakers[found.path]
        part = parts[speaker]
        known, name = word in keywords, f"{found.folder}/{found.inside}"
        clip = KeywordClip(found.path, labels[keywords[word] if known else UNKNOWN], name, speaker=speaker)
        (sets if known else unknown)[part].append(clip)
    return sets, unknown


def _parts(speakers: set[str], settings: Settings, key: str) -> dict[str, str]:
    """Speaker -> ``validation``, ``testing`` or ``training``: by percentages of the hash, or by numbers of speakers.

    Raises:
        UserError: the numbers leave no training speaker.
    """
    if settings.dev_speakers is None or settings.test_speakers is None:
        percentages = settings.validation_percentage, settings.testing_percentage
        return {speaker: set_of_speaker(speaker, *percentages) for speaker in speakers}
    dev = number_held_out(settings.dev_speakers, len(speakers))
    both = dev + number_held_out(settings.test_speakers, len(speakers), is_test=True)
    if both >= len(speakers):
        reason = f"together with test_speakers {both} of {len(speakers)} speakers leave no training speaker"
        raise UserError(f"{key}.dev_speakers: {settings.train_root}: {reason}: set fewer, or record more speakers")
    names = by_hash(speakers)
    held_out = dict.fromkeys(names[:dev], "validation") | dict.fromkeys(names[dev:both], "testing")
    return {speaker: held_out.get(speaker, "training") for speaker in names}


def _speakers(clips: Sequence[FolderClip], settings: Settings, key: str, root: str) -> dict[Path, str]:
    """The speaker of each clip; logs clips whose name does not say it. ``root``: the setting that names the folder."""
    pattern, found, nameless = settings.speaker_pattern, dict[Path, str](), []
    for clip in clips:
        name = f"{clip.folder}/{clip.inside}"
        found[clip.path] = speaker_of(clip.path.name) if pattern is None else speaker_by_pattern(pattern, name, key)
        if pattern is None and found[clip.path] == clip.path.name:
            nameless.append(name)
    if nameless:
        reason = f"{len(nameless)} clips are not named SPEAKER_nohash_TAKE, such as {one_line(min(nameless))}"
        effect = "each counts as a speaker of its own, so one person can be in training and in development or test"
        log.warning("%s.%s: %s: %s: set %s.speaker_pattern", key, root, reason, effect, key)
    names = merged_names(found.values(), f"{key}.{root}")
    return {path: names[speaker] for path, speaker in found.items()}


def class_recordings(training: Sequence[KeywordClip], classes: int) -> list[str]:
    """`recordings_fingerprint` of each keyword's training clips.

    It is empty for silence, which is cut from noise, and for the class of other words, which the seed chooses.
    """
    files: list[list[Path]] = [[] for _ in range(classes)]
    for clip in training:
        if clip.label > UNKNOWN_LABEL:
            files[clip.label].append(clip.path)
    return list(map(recordings_fingerprint, files))


def check_training(sets: Mapping[str, Sequence[KeywordClip]], settings: Settings, key: str) -> None:
    """Raise UserError where the hash of the speakers' names leaves a keyword without training clips."""
    root, clips = settings.train_root, sets["training"]
    smaller = "set smaller validation_percentage and testing_percentage, or record more speakers"
    if not clips:
        raise UserError(f"{key}.train_root: {root}: the hash of the file names leaves no training speaker: {smaller}")
    trained = {clip.label for clip in clips}
    for label, word in enumerate(settings.keywords, start=2):
        if label not in trained:
            reason = f"the hash of the speakers' names leaves keyword '{word}' no training clip"
            raise UserError(f"{key}.train_root: {root}: {reason}: {smaller}")


def warn_of_tested_speakers(training: Sequence[KeywordClip], test: Sequence[KeywordClip], key: str) -> None:
    """Log speakers of the test archive who are trained on too."""
    trained = {identity(clip.speaker) for clip in training if clip.speaker}
    names = {clip.speaker for clip in test if clip.speaker}
    # the test archive names unknown files WORD_SPEAKER_nohash_TAKE
    names |= {clip.speaker.partition("_")[2] for clip in test if clip.label == UNKNOWN_LABEL}
    if both := sorted(name for name in names if identity(name) in trained):
        reason = f"{len(both)} test speakers are training speakers, such as '{one_line(both[0])}'"
        log.warning("%s.test_root: %s: the results do not hold for new speakers", key, reason)


def no_speaker(part: str, settings: Settings, key: str) -> UserError:
    """The error about a set, ``dev`` or ``test``, into which the hash of the names puts no speaker."""
    if settings.data is not None:
        return UserError(f"{key}.{part}_people: {settings.data}: {NO_TEST_PEOPLE}: evaluate dev (--split dev)")
    name = settings.held_out_setting(part)
    value = getattr(settings, name)
    if settings.dev_speakers is not None:
        return UserError(
            f"{key}.{name}: {settings.train_root}: {value:g} puts no speaker into {part}: set a larger number"
        )
    reason = f"the hash of the speakers' names puts no speaker into {part} at {value:g} %"
    return UserError(f"{key}.{name}: {settings.train_root}: {reason}: set a larger percentage, or record more speakers")


def share_of(size: int, percentage: float | None) -> int | None:
    """``percentage`` of ``size``, rounded up; None stands for all."""
    return None if percentage is None else math.ceil(size * percentage / 100)


def cut_silence(noises: Sequence[Path], settings: Settings, rng: Any) -> tuple[Path, float, float]:
    """A random file, start in seconds and volume; ``rng`` is a generator of Python or numpy."""
    path = noises[int(rng.random() * len(noises))]
    spare = max(0.0, audio_reading.seconds(path) - settings.crop_seconds)
    return path, rng.uniform(0.0, spare), rng.uniform(*settings.silence_volume)


def test_index(settings: Settings, key: str) -> list[KeywordClip]:
    """The clips of the test archive, which has a folder per class; logs folders that are no class.

    Raises:
        UserError: no folder, a class without files, or clips in further folders.
    """
    root, found = Path(str(settings.test_root)), list[tuple[FolderClip, int, str]]()
    words = word_clips(root, settings, f"{key}.test_root")
    for label, word in enumerate([SILENCE, UNKNOWN, *settings.keywords]):
        files = words.pop(normal_word(word), [])
        if not files:
            raise UserError(f"{key}.test_root: {root / word}: class '{word}' has no files")
        found += [(file, label, f"{word}/{file.inside}") for file in files]
    spoken = [file for file, label, _ in found if label != SILENCE_LABEL]
    speakers = _speakers(spoken, settings, key, "test_root")
    clips = [KeywordClip(file.path, label, name, speaker=speakers.get(file.path, "")) for file, label, name in found]
    if words:
        names = one_line(", ".join(of_word[0].folder for of_word in words.values()))
        log.warning("%s.test_root: %s: these folders are no class and are not tested: %s", key, root, names)
    return clips


test_index.__test__ = False  # type: ignore[attr-defined]  # pytest must not collect it as a test
