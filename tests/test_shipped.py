"""The models that ship, on the embedded corpus: synthetic voices, which say the ten words and others."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

import distilled_student as ds
from distilled_student.common.shipped_models import MODELS, shipped_models
from distilled_student.corpora.shipped import read_index, read_voice
from distilled_student.multitask.device_model import open_joint

pytest.importorskip("onnxruntime")
WORDS = ["yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go"]
VOICES = ("af_bella", "bf_emma", "am_michael", "bm_george")
MODEL_NAMES = shipped_models()


@pytest.fixture(scope="module")
def clips() -> dict[tuple[str, str], np.ndarray]:
    """A second of audio of each voice and word."""
    found = {}
    for voice in VOICES:
        audio = read_voice(voice)
        for clip in read_index():
            if clip.voice == voice and clip.kind == "word" and clip.take == 1:
                speech = audio[clip.start : clip.start + clip.samples][:16_000]
                before = (16_000 - len(speech)) // 2
                found[voice, clip.text] = np.pad(speech, (before, 16_000 - len(speech) - before))
    return found


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_a_shipped_model_spots_most_words_and_few_others(name: str, clips: dict[tuple[str, str], np.ndarray]) -> None:
    model = ds.load(name)
    assert model.labels == ["_silence_", "_unknown_", *WORDS]
    spotted = {key: model.spot(wave).label for key, wave in clips.items()}
    right = [spotted[voice, word] == word for voice in VOICES for word in WORDS]
    false = [label is not None for (_, word), label in spotted.items() if word not in WORDS]
    assert np.mean(right) >= 0.75 and np.mean(false) < 0.2


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_a_shipped_model_finds_one_voice_more_alike_than_two(
    name: str, clips: dict[tuple[str, str], np.ndarray]
) -> None:
    model = ds.load(name)
    voices = {voice: [model.embed(clips[voice, word]) for word in WORDS] for voice in VOICES}
    same = [a @ b for of_one in voices.values() for a, b in itertools.combinations(of_one, 2)]
    other = [a @ b for one, two in itertools.combinations(VOICES, 2) for a in voices[one] for b in voices[two]]
    assert np.quantile(same, 0.2) > np.quantile(other, 0.8)
    verified = model.verify(clips[VOICES[0], "yes"], [clips[VOICES[0], word] for word in WORDS[1:]])
    assert verified.accepted and verified.ratio > 0


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_a_shipped_models_graphs_are_its_weights(name: str, clips: dict[tuple[str, str], np.ndarray]) -> None:
    joint, model = open_joint(name), ds.load(name)
    stream = model.stream()
    for wave in list(clips.values())[:10]:
        expected = joint(torch.from_numpy(wave)[None], torch.tensor([len(wave)]))
        scores = np.array(list(model.scores(wave).values()))
        np.testing.assert_allclose(scores, expected.keyword_scores[0], atol=0.2)
        embedding = torch.nn.functional.normalize(expected.speaker_embedding[0], dim=0).numpy()
        assert embedding @ model.embed(wave) > 0.95
        stream.reset()
        for chunk in wave.reshape(-1, 640):
            outputs = stream.feed(chunk)
        np.testing.assert_allclose(outputs["keyword_scores"], scores, atol=0.2)
    threshold = joint.stored_thresholds["kws"]
    assert 0 < threshold < 1 and model.threshold == pytest.approx(threshold, abs=0.2)


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_a_shipped_model_is_small_and_streams_and_says_where_it_comes_from(name: str) -> None:
    student, folder = ds.load_student(name), MODELS / name
    limits = {"edge": (5e6, 22), "tiny": (0.9e6, 6)}[name]
    heads = sum(p.numel() for task in open_joint(name).tasks.values() for p in task.head.parameters())
    assert sum(p.numel() for p in student.parameters()) + heads <= limits[0]
    assert student.config.causal
    assert sum(file.stat().st_size for file in folder.iterdir()) <= limits[1] * 1e6
    card = Path(folder, "README.md").read_text()
    for part in ("Whisper", "CC BY 4.0", "| licence |", "## Limits", "## Made by"):
        assert part in card
    parameters = sum(p.numel() for p in student.parameters())
    assert f"| parameters | {parameters / 1e6:.2f} M in the upstream, {heads / 1e6:.3f} M in the heads |" in card
