"""Short keyword clips: the same silence follows them in training, in evaluation, on a device and in streams."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from conftest import SMALL, tone
from helpers.trees import WORDS, speech_commands
from test_streaming import CAUSAL, joint
from torch.nn.utils.rnn import pad_sequence

import distilled_student as ds
from distilled_student.multitask.device_model import JointModel
from distilled_student.multitask.loader import EvaluationLoader, TrainingItems
from distilled_student.multitask.tasks import kws
from distilled_student.streaming import Stream

STUDENTS = {
    "waveform": ds.StudentConfig(**SMALL, conv_dim=[8] * 7),
    "log-mel": dataclasses.replace(CAUSAL, causal=False, positions="sinusoidal", conv_norm="layer", encoder_stride=2),
    "causal": dataclasses.replace(CAUSAL, encoder_stride=2),
}
SECOND = 16_000


def outputs_of(model: JointModel, wave: torch.Tensor, samples: int) -> dict[str, torch.Tensor]:
    """The outputs for a single utterance that zeros follow until it has ``samples``, without `JointModel.forward`."""
    padded = torch.from_numpy(np.pad(wave.numpy(), (0, max(0, samples - len(wave)))))
    features = model.features(model.student(1.5 * padded[None]))
    count = round(len(padded) / 320)  # as s3prl, which repeats the last frame if there is one less
    index = torch.arange(count).clamp(max=features.shape[1] - 1)
    return model.heads(features[:, index], torch.tensor([count]))


@pytest.mark.parametrize("student", STUDENTS)
@pytest.mark.parametrize("fill", [True, False])
def test_a_device_pads_keyword_clips_as_training_does_and_nothing_else(student: str, fill: bool) -> None:
    model = joint(STUDENTS[student])
    model.tasks["kws"].settings.fill = fill
    waves = [tone(seconds, seed=int(10 * seconds)) for seconds in (0.6, 1.4, 0.12, 1.0)]
    batch = model(pad_sequence(waves, batch_first=True), torch.tensor([len(wave) for wave in waves]))
    short_batch = model(pad_sequence(waves[::2], batch_first=True), torch.tensor([len(wave) for wave in waves[::2]]))
    for i, wave in enumerate(waves):
        scores = outputs_of(model, wave, SECOND if fill else 0)["keyword_scores"][0]
        embedding, hidden_state = outputs_of(model, wave, 0)["speaker_embedding"][0], model.student(1.5 * wave[None])
        found = [(model(wave[None]), 0), (batch, i)] + ([] if i % 2 else [(short_batch, i // 2)])
        for output, at in found:
            torch.testing.assert_close(output.keyword_scores[at], scores, atol=1e-5, rtol=0)
            torch.testing.assert_close(output.speaker_embedding[at], embedding, atol=2e-5, rtol=1e-5)
            frames = int(output.frames[at])
            expected = hidden_state.last_hidden_state[0]
            torch.testing.assert_close(output.hidden_state[at, :frames], expected, atol=1e-5, rtol=1e-5)
            assert not output.hidden_state[at, frames:].any()
    short = outputs_of(model, waves[0], 0)["keyword_scores"][0]
    different = (batch.keyword_scores[0] - short).abs().max() > 1e-3
    assert bool(different) == fill, "the silence makes a difference"


def test_a_stream_scores_a_short_clip_as_an_evaluation_and_continues_without_the_silence() -> None:
    model, wave = joint(STUDENTS["causal"]), tone(1.28)
    stream, continued = Stream(model), Stream(model)
    for samples in wave[:9_600].split(640):
        last = stream.feed(samples)
    expected = outputs_of(model, wave[:9_600], SECOND)["keyword_scores"][0]
    torch.testing.assert_close(last.keyword_scores, expected, atol=1e-5, rtol=0)
    expected = outputs_of(model, wave[:9_600], 0)["speaker_embedding"][0]
    torch.testing.assert_close(last.speaker_embedding, expected, atol=2e-5, rtol=1e-5)
    after, at_once = stream.feed(wave[9_600:]), continued.feed(wave)
    torch.testing.assert_close(after.keyword_scores, at_once.keyword_scores, atol=1e-5, rtol=0)


def test_training_and_evaluation_put_the_same_silence_behind_a_short_clip(tmp_path: Path) -> None:
    root = speech_commands(tmp_path, speakers=4)
    samples = tone(0.6).numpy()
    for folder in ("train", "test"):
        soundfile.write(root / folder / "yes/short_nohash_0.wav", samples, 16_000, subtype="FLOAT")
    folders = {"train_root": str(root / "train"), "test_root": str(root / "test")}
    task = kws.Task(kws.Settings(**folders, keywords=WORDS, validation_percentage=0, testing_percentage=0), 4, 0, "F")
    training, data = task.training_data(), task.evaluation_data("test")
    place = next(i for i, clip in enumerate(training.clips) if clip.key == "yes/short_nohash_0.wav")
    trained = TrainingItems(training, [0])[0, place].waveform.numpy()
    batches = EvaluationLoader({"kws": data}, {"kws": 4})
    (evaluated,) = (
        wav for wavs, _, _, keys in batches for wav, key in zip(wavs, keys, strict=True) if "short_nohash" in key
    )
    expected = np.concatenate([samples, np.zeros(SECOND - len(samples), np.float32)])
    np.testing.assert_array_equal(trained, expected)
    np.testing.assert_array_equal(evaluated, expected)


def test_the_number_of_frames_is_that_of_the_front_end(student_variant: ds.Student) -> None:
    for samples in (1_600, 1_601, 1_919, 1_920, 5_000, 5_123, 16_000):
        frames, lengths = student_variant.frontend(torch.zeros(1, samples), torch.tensor([samples]))
        assert frames.shape[1] == int(lengths) == student_variant.frontend.frames(samples)
