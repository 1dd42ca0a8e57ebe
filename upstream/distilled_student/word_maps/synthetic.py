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
from typing import NamedTuple

from distilled_student.common.errors import UserError
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
        UserError: a list is missing or has no words.
    """
    found = {}
    for one in lists:
        language, _, file = one.partition(":")
        if not Path(file).is_file():
            raise UserError(f"{one}: expected LANGUAGE:FILE, with a word on each line of the file")
        lines = Path(file).read_text(encoding="utf-8", errors="ignore").splitlines()
        words = (line.partition("/")[0].strip() for line in lines)
        found[language] = [word for word in words if 2 <= len(word) <= LONGEST and not NO_WORD.search(word)]
        if not found[language]:
            raise UserError(f"{file}: has no words")
    return found


def voices() -> dict[str, list[str]]:
    """The installed voices of each program that is installed; those of espeak-ng are languages."""
    found = {}
    if shutil.which("espeak-ng"):
        lines = _output(["espeak-ng", "--voices"]).splitlines()[1:]
        found["espeak-ng"] = [line.split()[1] for line in lines]
    if shutil.which("flite"):
        found["flite"] = [name for name in FLITE if name in _output(["flite", "-lv"]).split()]
    if shutil.which("text2wave") and shutil.which("festival"):
        found["text2wave"] = _output(["festival", "--pipe"], FESTIVAL).split()
    return {program: names for program, names in found.items() if names}


def _output(command: list[str], text: str = "") -> str:
    return subprocess.run(command, input=text, text=True, capture_output=True, check=True).stdout


def draw(
    words: Mapping[str, list[str]], latin: list[str], found: Mapping[str, list[str]], file: Path, rng: random.Random
) -> Spoken:
    """A random voice of ``found`` that says words of its language, or else of ``latin``, into ``file``."""
    program = rng.choices(list(found), [SHARES[name] for name in found])[0]
    voice = rng.choice(found[program])
    listed = words.get(voice, latin) if program == "espeak-ng" else latin
    text = rng.choice(PAUSES).join(rng.choices(listed, k=rng.randint(*IN_A_FILE)))
    if program == "espeak-ng":
        options = ["-s", str(rng.randint(*SPEEDS)), "-p", str(rng.randint(*PITCHES))]
        return Spoken([program, "-v", voice + rng.choice(VARIANTS), *options, "-w", str(file), "--stdin"], text)
    if program == "flite":
        stretch = f"duration_stretch={rng.uniform(*STRETCHES):.2f}"
        return Spoken([program, "-voice", voice, "--setf", stretch, "-o", str(file), "-t", text], "")
    return Spoken([program, "-eval", f"(voice_{voice})", "-o", str(file)], text)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m distilled_student.word_maps.synthetic", description=DESCRIPTION)
    parser.add_argument("output", type=Path, help="a folder for the files")
    parser.add_argument("lists", nargs="+", help="LANGUAGE:FILE, as fr:/usr/share/dict/french; languages of espeak-ng")
    parser.add_argument("--files", type=int, default=8000, help="an hour has about 800 (default: 8000)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    try:
        words, found = read_words(options.lists), voices()
        latin = [word for listed in words.values() for word in listed if word.isascii()]
        if not found or not latin:
            missing = "a list of words in Latin letters is missing" if found else "install espeak-ng, flite or festival"
            raise UserError(missing)
    except UserError as error:
        sys.exit(str(error))
    options.output.mkdir(parents=True, exist_ok=True)
    rng = random.Random(options.seed)
    drawn = [draw(words, latin, found, options.output / f"{number:06}.wav", rng) for number in range(options.files)]

    def speak(one: Spoken) -> None:
        # a voice that fails on a word, or whose data are not installed, leaves its file out
        subprocess.run(one.command, input=one.text, text=True, capture_output=True, check=False)

    with ThreadPoolExecutor() as pool, Progress(len(drawn), "speaking") as progress:
        for _ in pool.map(speak, drawn):
            progress.update()
    print(f"{options.output}: {len(list(options.output.glob('*.wav')))} files")


if __name__ == "__main__":
    main()
