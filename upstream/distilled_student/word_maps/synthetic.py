"""The command ``python -m distilled_student.word_maps.synthetic``: words of many languages, spoken by synthesizers.

Recordings of a few hundred words teach the network of `WordMaps` these words. Synthesizers say any word; how natural
they sound matters less than that there are many sounds in many orders.
"""

from __future__ import annotations

import argparse
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from distilled_student.common.early_checks import check_new_folder
from distilled_student.common.errors import UserError
from distilled_student.common.files import read_utf8
from distilled_student.common.progress import Progress

DESCRIPTION = """Writes files with lists of random words, spoken by the voices of espeak-ng, flite and festival that are
installed. A voice without a list of its language reads words in Latin letters of all lists."""
LONGEST = 11  # letters of a word
NO_WORD = re.compile(r"\d|[\W_]{2}")  # single signs are vowels in some scripts
IN_A_FILE = (4, 7)  # words
PAUSES = (" ", ", ", " ")
SPEEDS, PITCHES = (115, 230), (15, 90)  # of espeak-ng: words a minute, and its scale of 0 to 99
STRETCHES = (0.75, 1.3)  # of flite: of the durations
VARIANTS = ("", *(f"+m{number}" for number in range(1, 9)), *(f"+f{number}" for number in range(1, 6)))
SHARES = {"espeak-ng": 0.8, "flite": 0.1, "text2wave": 0.1}  # of the files
FLITE = ("awb", "kal16", "rms", "slt")  # those at 16 kHz
LONGEST_WAIT = 60.0  # seconds for a file
AS_TEXT: dict[str, Any] = {"encoding": "utf-8", "errors": "replace"}
FESTIVAL = "(mapcar (lambda (name) (print name)) (voice.list))"


class Spoken(NamedTuple):
    """A command that speaks what it reads from its input."""

    command: list[str]
    text: str


def read_words(lists: Sequence[str]) -> dict[str, list[str]]:
    """The words of lists ``LANGUAGE:FILE``, by language.

    A file has a word on each line, as in /usr/share/dict; what follows a slash is left out, as in the dictionaries of
    hunspell.

    Raises:
        UserError: a list is missing, is not in UTF-8 or has no words.
    """
    found: dict[str, list[str]] = {}
    for one in lists:
        language, _, file = one.partition(":")
        if not Path(file).is_file():
            raise UserError(f"{one}: expected LANGUAGE:FILE, with a word on each line of the file")
        lines = read_utf8(Path(file), "a list of words").splitlines()
        words = (line.partition("/")[0].strip() for line in lines)
        kept = [word for word in words if 2 <= len(word) <= LONGEST and not NO_WORD.search(word)]
        if not kept:
            raise UserError(f"{file}: has no words")
        found.setdefault(language, []).extend(kept)
    return found


def voices() -> dict[str, list[str]]:
    """The voices of each program that is installed and answers; those of espeak-ng are languages."""
    espeak = [line.split()[1] for line in _output(["espeak-ng", "--voices"]).splitlines()[1:]]
    flite = _output(["flite", "-lv"]).split()
    festival = _output(["festival", "--pipe"], FESTIVAL).split() if shutil.which("text2wave") else []
    found = {"espeak-ng": espeak, "flite": [name for name in FLITE if name in flite], "text2wave": festival}
    return {program: names for program, names in found.items() if names}


def _output(command: list[str], text: str = "") -> str:
    """What a program prints; nothing if it is not installed or fails."""
    try:
        done = subprocess.run(command, input=text, capture_output=True, timeout=LONGEST_WAIT, check=True, **AS_TEXT)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout


def own_list(voice: str, words: Mapping[str, list[str]]) -> list[str] | None:
    """The words for a voice of espeak-ng, such as ``fr-be``: of this language, or of ``fr``."""
    return words.get(voice) or words.get(voice.partition("-")[0])


def usable(found: Mapping[str, list[str]], words: Mapping[str, list[str]]) -> dict[str, list[str]]:
    """The voices without those of espeak-ng that have no list and spell words in Latin letters instead of reading them.

    Raises:
        UserError: a list is of no language of espeak-ng.
    """
    if "espeak-ng" not in found:
        return dict(found)
    languages = {part for voice in found["espeak-ng"] for part in (voice, voice.partition("-")[0])}
    if unknown := sorted(set(words) - languages):
        raise UserError(f"{unknown[0]}: is no language of `espeak-ng --voices`")
    with ThreadPoolExecutor() as pool:
        said = pool.map(lambda voice: _output(["espeak-ng", "-v", voice, "-x", "-q", "maletu"]), found["espeak-ng"])
        pairs = list(zip(found["espeak-ng"], said, strict=True))
    return {**found, "espeak-ng": [voice for voice, text in pairs if own_list(voice, words) or "(en)" not in text]}


def draw(
    words: Mapping[str, list[str]], latin: list[str], found: Mapping[str, list[str]], file: Path, rng: random.Random
) -> Spoken:
    """A random voice of ``found`` that says words of its language, or else of ``latin``, into ``file``."""
    program = rng.choices(list(found), [SHARES[name] for name in found])[0]
    voice = rng.choice(found[program])
    listed = (own_list(voice, words) if program == "espeak-ng" else None) or latin
    text = rng.choice(PAUSES).join(rng.choices(listed, k=rng.randint(*IN_A_FILE)))
    if program == "espeak-ng":
        options = ["-s", str(rng.randint(*SPEEDS)), "-p", str(rng.randint(*PITCHES))]
        return Spoken([program, "-v", voice + rng.choice(VARIANTS), *options, "-w", str(file), "--stdin"], text)
    if program == "flite":
        stretch = f"duration_stretch={rng.uniform(*STRETCHES):.2f}"
        return Spoken([program, "-voice", voice, "--setf", stretch, "-o", str(file), "-t", text], "")
    return Spoken([program, "-eval", f"(voice_{voice})", "-o", str(file)], text)


def speak(folder: Path, lists: Sequence[str], files: int, seed: int) -> int:
    """Write the files into a folder that has none; the number that was written.

    A voice that fails on a word, or whose data are not installed, leaves its file out.

    Raises:
        UserError: see `check_new_folder`, `read_words` and `usable`; no synthesizer is installed, or nothing was
            written.
    """
    if files < 1:
        raise UserError(f"--files: {files}: expected 1 or more")
    check_new_folder("", folder)
    words, found = read_words(lists), voices()
    latin = [word for listed in words.values() for word in listed if word.isascii()]
    if not found or not latin:
        missing = "a list of words in Latin letters is missing" if found else "install espeak-ng, flite or festival"
        raise UserError(missing)
    found, rng = usable(found, words), random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    drawn = [draw(words, latin, found, folder / f"{number:06}.wav", rng) for number in range(files)]
    with ThreadPoolExecutor() as pool, Progress(len(drawn), "speaking") as progress:
        for _ in pool.map(lambda one: _output(one.command, one.text), drawn):
            progress.update()
    if not (written := len(list(folder.glob("*.wav")))):
        raise UserError(f"{folder}: none of the voices has spoken")
    return written


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m distilled_student.word_maps.synthetic", description=DESCRIPTION)
    parser.add_argument("output", type=Path, help="a new folder for the files")
    parser.add_argument("lists", nargs="+", help="LANGUAGE:FILE, as fr:/usr/share/dict/french; languages of espeak-ng")
    parser.add_argument("--files", type=int, default=5000, help="an hour has about 700 to 900 (default: 5000)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    try:
        written = speak(options.output, options.lists, options.files, options.seed)
    except UserError as error:
        sys.exit(str(error))
    print(f"{options.output}: {written} of {options.files} files were spoken")


if __name__ == "__main__":
    main()
