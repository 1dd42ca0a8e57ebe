"""Speech Commands' layout, ``WORD/SPEAKER_nohash_TAKE.wav``: keywords, other classes, sets of speakers."""

from __future__ import annotations

import hashlib
import re
import unicodedata

KEYWORDS = ["yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go"]
SILENCE, UNKNOWN, BACKGROUND = "_silence_", "_unknown_", "_background_noise_"
HASH_RANGE = 2**27 - 1
# names of folders without speech, which are no words, without spaces, hyphens and underscores
NO_WORDS = {"silence", "silent", "sil", "noise", "noises", "background", "backgroundnoise", "backgroundnoises"}
NO_WORDS |= {"nospeech", "nonspeech", "musan"}


def normal_word(name: str) -> str:
    """A word or a folder's name in one case and one Unicode normal form, by which words and folders are compared."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def is_no_word(name: str) -> bool:
    """Whether a folder of this name holds no word: silence or noise, or a class that begins with ``_``."""
    word = normal_word(name)
    return re.sub("[ _-]", "", word) in NO_WORDS or (word.startswith("_") and word != UNKNOWN)


def speaker_of(name: str) -> str:
    """The speaker in ``SPEAKER_nohash_TAKE.wav``."""
    return re.sub(r"_nohash_.*$", "", name)


def which_set(name: str, validation_percentage: float, testing_percentage: float) -> str:
    """``validation``, ``testing`` or ``training``, by the hash of the speaker (TensorFlow's function of this name)."""
    return set_of_speaker(speaker_of(name), validation_percentage, testing_percentage)


def set_of_speaker(speaker: str, validation_percentage: float, testing_percentage: float) -> str:
    """`which_set` of a speaker's name."""
    percentage = hash_percentage(speaker)
    if percentage < validation_percentage:
        return "validation"
    return "testing" if percentage < testing_percentage + validation_percentage else "training"


def hash_percentage(name: str) -> float:
    """A number in [0, 100] that depends only on the speaker (from TensorFlow's speech_commands/input_data.py)."""
    digest = hashlib.sha1(name.encode(), usedforsecurity=False).hexdigest()
    return int(digest, 16) % (HASH_RANGE + 1) * (100.0 / HASH_RANGE)
