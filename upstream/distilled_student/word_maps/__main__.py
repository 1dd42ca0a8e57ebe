"""The command ``python -m distilled_student.word_maps``."""

from __future__ import annotations

import argparse
import itertools
import logging
import os
import sys
from pathlib import Path

from distilled_student.common.effect_settings import EffectSettings
from distilled_student.common.effects import Effects, files_of
from distilled_student.common.errors import UserError
from distilled_student.common.sample_rate import SAMPLE_RATE
from distilled_student.corpora.keywords import UNKNOWN
from distilled_student.onnx import Model, load
from distilled_student.onnx.words import LEAST_WORDS, WORDS, WordMaps
from distilled_student.teachers.open import open_teacher
from distilled_student.word_maps import network
from distilled_student.word_maps.clips import draw, find_words, read_clips, strips
from distilled_student.word_maps.teacher_words import fit_words, word_segments
from distilled_student.word_maps.thresholds import RUNNING_STRIPS, encode_running, with_thresholds

DESCRIPTION = """Makes the file of a model that words of one's own need: a small network on its hidden states, other
words and thresholds. The network learns from a teacher, on any speech; labelled words say what a word is."""


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m distilled_student.word_maps", description=DESCRIPTION)
    parser.add_argument("model", help="a packed folder with a stream, or edge or tiny")
    parser.add_argument(
        "folders", nargs="+", help=f"WORD/SPEAKER_*.wav of a language; several are joined with {os.pathsep}"
    )
    parser.add_argument(
        "--without", nargs="*", default=[], help="words to leave out, as NUMBER:WORD; 0 is the first language"
    )
    parser.add_argument("--audio", nargs="*", default=[], type=Path, help="folders with any speech of people")
    parser.add_argument(
        "--synthetic",
        nargs="*",
        default=[],
        type=Path,
        help="folders with speech of synthesizers, better in many languages: for the training of the network alone",
    )
    parser.add_argument("--teacher", default="openai/whisper-base", help="as in the settings of a distillation")
    parser.add_argument("--layer", type=int, default=5, help="of the teacher; those that know words (default: 5)")
    parser.add_argument("--noise", help="a folder of noises that the network learns to ignore; default: white noise")
    parser.add_argument("--steps", type=int, default=6000, help="of the training (default: 6000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--output", type=Path, help=f"default: {WORDS} in the model's folder")
    return parser


def make(model: Model, options: argparse.Namespace) -> tuple[WordMaps, int]:
    """The maps of ``model``, and the number of words. Raises UserError."""
    encoder = open_teacher(options.teacher)
    if not 0 <= options.layer <= encoder.num_layers:
        raise UserError(f"--layer: {options.teacher} has the layers 0 to {encoder.num_layers}, not {options.layer}")
    languages = [[Path(folder) for folder in folders.split(os.pathsep)] for folders in options.folders]
    found = find_words(languages, options.without)
    files = draw(found, options.seed)
    labelled = [one for one in files if one.word != UNKNOWN]
    words = [one.word for one in labelled]
    if (number := len(set(words))) < LEAST_WORDS:
        raise UserError(f"{number} words; the maps need at least {LEAST_WORDS}, better hundreds")
    running = [file for folder in options.audio for file in files_of(folder, "--audio")]
    synthetic = [file for folder in options.synthetic for file in files_of(folder, "--synthetic")]
    audio = [one.file for one in found] + running
    # words alone would not do where there is other speech: they hold the words of the tests
    speech_alone = list(itertools.islice(strips(running or audio, network.STRIP, options.seed), RUNNING_STRIPS))
    if len(speech_alone) < network.LEAST_STRIPS:
        least = network.LEAST_STRIPS * network.STRIP // SAMPLE_RATE
        raise UserError(f"--audio: too little: needs {least} seconds of speech, better hours")
    noise = {"noise": 0.5, "snr": [5.0, 30.0], "noise_root": options.noise, "gain": 1.0, "gain_db": [-12.0, 6.0]}
    effects = Effects(EffectSettings(**noise), "--noise")
    of_teacher = fit_words(word_segments(encoder, options.layer, labelled, options.seed), words)
    pieces = strips(audio, network.STRIP, options.seed, synthetic)
    speech = network.encode(model, encoder, options.layer, of_teacher, pieces, effects, options.seed)
    maps = network.train(speech, of_teacher, model.fingerprint, options.steps, options.seed)
    features = encode_running(model, maps, speech_alone)
    return with_thresholds(maps, read_clips(model, files, options.seed), features, options.seed), number


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    options = arguments().parse_args()
    try:
        model = load(options.model)
        maps, words = make(model, options)
    except (UserError, ValueError) as error:
        sys.exit(str(error))
    file = options.output or model.file.with_name(WORDS)
    maps.write(file)
    print(f"{file}: {words} words, {file.stat().st_size} bytes")


if __name__ == "__main__":
    main()
