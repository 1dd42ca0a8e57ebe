"""Short utterances: silence follows keyword clips, and speakers' utterances are repeated, the same everywhere."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from conftest import SMALL, tone
from helpers.trees import WORDS, speech_commands, voxceleb
from test_streaming import CAUSAL, joint
from torch.nn.utils.rnn import pad_sequence

import distilled_student as ds
from distilled_student import onnx
from distilled_student.export.stream import export_stream
from distilled_student.multitask.device_model import JointModel
from distilled_student.multitask.loader import EvaluationLoader, TrainingItems
from distilled_student.multitask.tasks import kws, sv
from distilled_student.streaming import Stream

STUDENTS = {
    "waveform": ds.StudentConfig(**SMALL, conv_dim=[8] * 7),
    "log-mel": dataclasses.replace(CAUSAL, causal=False, positions="sinusoidal", conv_norm="layer", encoder_stride=2),
    "causal": dataclasses.replace(CAUSAL, encoder_stride=2),
}
SECOND = 16_000


def outputs_of(model: JointModel, wave: torch.Tensor, samples: int, repeat: bool = False) -> dict[str, torch.Tensor]:
    """The outputs for a single utterance without `JointModel.forward`.

    Zeros follow the utterance until it has ``samples``, or it is repeated.
    """
    longer = np.resize(wave.numpy(), samples) if repeat else np.pad(wave.numpy(), (0, max(0, samples - len(wave))))
    padded = torch.from_numpy(longer) if len(wave) < samples else wave
    features = model.features(model.student(1.5 * padded[None]))
    count = round(len(padded) / 320)  # as s3prl, which repeats the last frame if there is one less
    index = torch.arange(count).clamp(max=features.shape[1] - 1)
    return model.heads(features[:, index], torch.tensor([count]))


def voice(seconds: float) -> torch.Tensor:
    """A tone that changes within an utterance, so that a repetition is no continuation."""
    samples = round(seconds * SECOND)
    return (tone(seconds + 0.01, seed=int(10 * seconds))[:samples] * torch.linspace(1.0, 0.2, samples)).contiguous()


@pytest.mark.parametrize("student", STUDENTS)
@pytest.mark.parametrize("fill", [True, False])
def test_a_device_fills_short_utterances_for_each_task_as_training_does(student: str, fill: bool) -> None:
    model = joint(STUDENTS[student])
    model.tasks["kws"].settings.fill = model.tasks["sv"].settings.fill = fill
    model.tasks["sv"].settings.crop_seconds = 1.2
    waves = [voice(seconds) for seconds in (0.6, 1.4, 0.12, 1.0, 0.05)]
    batch = model(pad_sequence(waves, batch_first=True), torch.tensor([len(wave) for wave in waves]))
    short_batch = model(pad_sequence(waves[::2], batch_first=True), torch.tensor([len(wave) for wave in waves[::2]]))
    for i, wave in enumerate(waves):
        scores = outputs_of(model, wave, SECOND if fill else 1_600)["keyword_scores"][0]
        embedding = outputs_of(model, wave, 19_200 if fill else 1_600, repeat=fill)["speaker_embedding"][0]
        hidden_state = model.student(1.5 * torch.from_numpy(np.pad(wave, (0, max(0, 1_600 - len(wave)))))[None])
        found = [(model(wave[None]), 0), (batch, i)] + ([] if i % 2 else [(short_batch, i // 2)])
        for output, at in found:
            torch.testing.assert_close(output.keyword_scores[at], scores, atol=1e-5, rtol=0)
            torch.testing.assert_close(output.speaker_embedding[at], embedding, atol=2e-5, rtol=1e-5)
            frames = int(output.frames[at])
            expected = hidden_state.last_hidden_state[0]
            torch.testing.assert_close(output.hidden_state[at, :frames], expected, atol=1e-5, rtol=1e-5)
            assert not output.hidden_state[at, frames:].any()
    short = outputs_of(model, waves[0], 0)
    for name, found in (("keyword_scores", batch.keyword_scores), ("speaker_embedding", batch.speaker_embedding)):
        different = (found[0] - short[name][0]).abs().max() > 1e-3
        assert bool(different) == fill, "it makes a difference"


def test_a_stream_scores_a_short_clip_as_an_evaluation_and_continues_without_the_silence() -> None:
    model, wave = joint(STUDENTS["causal"]), tone(1.28)
    stream, continued = Stream(model), Stream(model)
    for samples in wave[:9_600].split(640):
        last = stream.feed(samples)
    expected = outputs_of(model, wave[:9_600], SECOND)["keyword_scores"][0]
    torch.testing.assert_close(last.keyword_scores, expected, atol=1e-5, rtol=0)
    # the window holds 1 s of the 2 s of training; a chunk of this student has 640 samples
    expected = outputs_of(model, wave[:9_600], SECOND, repeat=True)["speaker_embedding"][0]
    torch.testing.assert_close(last.speaker_embedding, expected, atol=2e-5, rtol=1e-5)
    after, at_once = stream.feed(wave[9_600:]), continued.feed(wave)
    torch.testing.assert_close(after.keyword_scores, at_once.keyword_scores, atol=1e-5, rtol=0)
    torch.testing.assert_close(after.speaker_embedding, at_once.speaker_embedding, atol=2e-5, rtol=1e-5)


def test_an_exported_stream_repeats_a_short_utterance_as_an_evaluation(tmp_path: Path) -> None:
    model, wave, file = joint(STUDENTS["causal"]), voice(2.56), tmp_path / "stream.onnx"
    export_stream(model, file, window=2.0)
    stream, count = onnx.Stream(file), 24_960  # 1.56 s, whole chunks
    assert stream.model.repeated_to == {"speaker_embedding": 32_000}, "whole chunks of the window of 2 s"
    for samples in wave[:count].split(1_248):
        last = stream.feed(samples.numpy())
    processed = count // 640 * 640
    expected = outputs_of(model, wave[:processed], 32_000, repeat=True)
    np.testing.assert_allclose(last["speaker_embedding"], expected["speaker_embedding"][0], atol=1e-4)
    whole = stream.feed(wave[count:].numpy())
    at_once = Stream(model, window=2.0).feed(wave)
    np.testing.assert_allclose(whole["speaker_embedding"], at_once.speaker_embedding, atol=1e-4)


def test_training_and_evaluation_repeat_a_short_utterance_in_the_same_way(tmp_path: Path) -> None:
    root = voxceleb(tmp_path, speakers=4)
    samples = voice(0.6).numpy()
    for file in [*root.glob("dev/wav/*/*/*.wav"), *root.glob("test/wav/*/*/*.wav")]:
        soundfile.write(file, samples, SECOND, subtype="FLOAT")
    task = sv.Task(sv.Settings(root=str(root), dev_speakers=2, crop_seconds=1.3), 4, 0, "F")
    expected = np.resize(samples, 20_800)
    trained = TrainingItems(task.training_data(), [0])[0, 0].waveform.numpy()
    np.testing.assert_array_equal(trained, expected)
    for split in ("dev", "test"):
        for wavs, *_ in EvaluationLoader({"sv": task.evaluation_data(split)}, {"sv": 4}):
            for evaluated in wavs:
                np.testing.assert_array_equal(evaluated, expected)


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
        wav for wavs, _, _, keys, _ in batches for wav, key in zip(wavs, keys, strict=True) if "short_nohash" in key
    )
    expected = np.concatenate([samples, np.zeros(SECOND - len(samples), np.float32)])
    np.testing.assert_array_equal(trained, expected)
    np.testing.assert_array_equal(evaluated, expected)


def test_the_number_of_frames_is_that_of_the_front_end(student_variant: ds.Student) -> None:
    for samples in (1_600, 1_601, 1_919, 1_920, 5_000, 5_123, 16_000):
        frames, lengths = student_variant.frontend(torch.zeros(1, samples), torch.tensor([samples]))
        assert frames.shape[1] == int(lengths) == student_variant.frontend.frames(samples)


@pytest.mark.parametrize(("seconds", "reason"), [(0.5, "holds zeros only"), (0.05, "holds 0.05 s of audio, less than")])
def test_recordings_without_speech_are_named_once_in_training_and_evaluation(
    seconds: float, reason: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    samples = np.zeros(8_000, np.float32) if reason.endswith("only") else tone(0.1).numpy()[:800]
    root, vox = speech_commands(tmp_path / "sc", speakers=4), voxceleb(tmp_path / "vox", speakers=4)
    words = [root / folder / "yes/none_nohash_0.wav" for folder in ("train", "test")]
    voices = [*vox.glob("dev/wav/id1000/s0/00000.wav"), *vox.glob("test/wav/id2000/s0/00000.wav")]
    for file in [*words, *voices, root / "test/_silence_/none_nohash_0.wav"]:
        soundfile.write(file, samples, SECOND, subtype="FLOAT")
    folders = {"train_root": str(root / "train"), "test_root": str(root / "test")}
    keywords = kws.Settings(**folders, keywords=WORDS, validation_percentage=0, testing_percentage=0)
    tasks = [kws.Task(keywords, 4, 0, "F"), sv.Task(sv.Settings(root=str(vox), dev_speakers=0), 4, 0, "F")]
    for task in tasks:
        training, data = task.training_data(), task.evaluation_data("test")
        for _ in range(2):
            for place in range(len(training.labels if task is tasks[1] else training.clips)):
                TrainingItems(training, [0])[0, place]
            list(EvaluationLoader({"task": data}, {"task": 4}))
    found = sorted(record.getMessage() for record in caplog.records if "is used as speech" in record.getMessage())
    assert len(found) == 4 and all(reason in line and "remove the file" in line for line in found)
    assert {line.split(": ")[0] for line in found} == set(map(str, [*words, *voices]))
