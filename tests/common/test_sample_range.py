"""Samples far outside [-1, 1], integers, and channels that cancel each other are refused wherever samples enter."""

from __future__ import annotations

import wave
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from conftest import SMALL, tone
from test_streaming import CAUSAL, joint

import distilled_student as ds
from distilled_student import UserError, onnx
from distilled_student.common import audio
from distilled_student.corpora.keywords import KEYWORDS
from distilled_student.distillation.data.config import DataConfig
from distilled_student.distillation.data.cuts import CutDataset, read_cuts
from distilled_student.host.upstreams import StudentUpstream, TeacherUpstream
from distilled_student.multitask.loader import EvaluationItems, TrainingItems
from distilled_student.multitask.tasks import kws
from distilled_student.multitask.tasks.kws_index import KeywordClip
from distilled_student.patches import torchaudio_names
from distilled_student.streaming import Stream
from distilled_student.teachers.open import open_teacher

SPEECH = tone(0.7)
LOUD = 32768 * SPEECH


@pytest.fixture(scope="module")
def student() -> ds.Student:
    return ds.build_student(ds.StudentConfig(**SMALL, conv_dim=[8] * 7)).eval()


def student_calls(student: ds.Student, folder: Path) -> dict[str, Callable[[torch.Tensor], object]]:
    ds.save_student(student, folder / "student")
    teacher = TeacherUpstream(open_teacher(str(folder / "student")))
    return {
        "student": lambda samples: student(samples[None]),
        "student in training": lambda samples: student.train()(samples[None]),
        "batch": lambda samples: student(torch.stack([samples, samples]), torch.tensor([8_000, 11_200])),
        "upstream": lambda samples: StudentUpstream(student)([samples, samples[:8_000]]),
        "teacher": lambda samples: teacher([samples]),
    }


@pytest.mark.parametrize("name", ["student", "student in training", "batch", "upstream", "teacher"])
def test_a_model_refuses_samples_that_are_no_floats_in_range(name: str, student: ds.Student, tmp_path: Path) -> None:
    call = student_calls(student, tmp_path)[name]
    call(SPEECH)
    with pytest.raises(ValueError, match=r"^waveforms: a peak of .* divide samples of 16 bits by 32768$"):
        call(LOUD)
    for kind, remedy in ((torch.int16, ": divide by 32768"), (torch.int32, ""), (torch.uint8, ""), (torch.int64, "")):
        name = str(kind).removeprefix("torch.")
        with pytest.raises(ValueError, match=rf"^waveforms: expected floats in \[-1, 1\], found {name}{remedy}"):
            call(LOUD.to(kind))
    student.eval()


@pytest.mark.parametrize("peak", [1.0, 1.4, 4.0, 7.9])
def test_samples_a_little_above_one_are_accepted(peak: float, student: ds.Student, tmp_path: Path) -> None:
    samples = SPEECH / SPEECH.abs().max() * peak
    student(samples[None])
    soundfile.write(tmp_path / "a.wav", samples.numpy(), 16_000, subtype="FLOAT")
    torch.testing.assert_close(audio.load(tmp_path / "a.wav"), samples)


def test_what_is_behind_the_length_of_an_utterance_may_have_any_value(student: ds.Student) -> None:
    padded = torch.stack([SPEECH, torch.cat([SPEECH[:8_000], torch.full((3_200,), 1e4)])])
    student(padded, torch.tensor([11_200, 8_000]))


def test_the_check_of_the_range_is_not_in_an_exported_graph(student: ds.Student) -> None:
    graph = torch.export.export(student, (SPEECH[None], torch.tensor([11_200])))
    assert "aminmax" not in graph.graph_module.code


def test_a_stream_refuses_samples_that_are_no_floats_in_range() -> None:
    stream = Stream(joint(CAUSAL))
    for samples in (LOUD, LOUD.double(), LOUD.tolist()):
        with pytest.raises(UserError, match=r"^samples: a peak of .*: divide samples of 16 bits by 32768$"):
            stream.feed(samples)
    with pytest.raises(UserError, match=r"^samples: expected floats in \[-1, 1\], found int16: divide by 32768$"):
        stream.feed(LOUD.short())
    assert stream.feed(SPEECH) is not None, "after a refusal the stream is as before"


def readers(path: Path) -> dict[str, Callable[[], object]]:
    clip = KeywordClip(path, 2, "yes/a")
    settings = kws.Settings(train_root=str(path.parent), keywords=KEYWORDS)

    def item(dataset: TrainingItems | EvaluationItems, place: object) -> None:
        found = dataset[place]
        if isinstance(found, UserError):
            raise found

    def distillation() -> None:
        cuts, _ = read_cuts(DataConfig([str(path.parent)]))
        if failed := CutDataset()[cuts].failed:
            raise UserError("; ".join(f"{name}: {reason}" for name, reason in failed.items()))

    return {
        "load": lambda: audio.load(path),
        "training": lambda: item(TrainingItems(kws.Training([clip], settings, [], "kws"), [0]), (0, 0)),
        "evaluation": lambda: item(EvaluationItems(kws.Evaluation([clip], kws.Settings())), 0),
        "distillation": distillation,
        "s3prl": lambda: torchaudio_names.load(path),
        "device": lambda: onnx.wav.read_samples(path, 16_000),
    }


@pytest.mark.parametrize("reader", ["load", "training", "evaluation", "distillation", "s3prl", "device"])
@pytest.mark.parametrize("subtype", ["FLOAT", "DOUBLE"])
def test_a_file_of_floats_at_the_scale_of_16_bits_is_named(reader: str, subtype: str, tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, LOUD.numpy(), 16_000, subtype=subtype)
    with pytest.raises((UserError, ValueError), match=rf"{path}: a peak of .* divide samples of 16 bits by 32768"):
        readers(path)[reader]()


@pytest.mark.parametrize("reader", ["load", "training", "evaluation", "distillation", "device"])
@pytest.mark.parametrize("second", [-1.0, -0.95])
def test_a_file_whose_channels_cancel_is_named(reader: str, second: float, tmp_path: Path) -> None:
    path, speech = tmp_path / "a.wav", SPEECH.numpy()
    soundfile.write(path, np.stack([speech, second * speech], axis=1), 16_000, subtype="PCM_16")
    with pytest.raises((UserError, ValueError), match=rf"{path}: .*its 2 channels cancel each other"):
        readers(path)[reader]()


@pytest.mark.parametrize("channels", ["equal", "one silent", "different", "silent", "many", "almost opposite"])
def test_other_channels_are_averaged(channels: str, tmp_path: Path) -> None:
    speech, rng = SPEECH.numpy(), np.random.default_rng(0)
    samples = {
        "equal": [speech, speech],
        "one silent": [speech, 0 * speech],
        "different": [speech, tone(0.7, seed=1).numpy()],
        "silent": [0 * speech, 0 * speech],
        "many": list(0.1 * rng.standard_normal((64, len(speech)))),
        "almost opposite": [speech, -0.5 * speech],
    }[channels]
    path = tmp_path / "a.wav"
    soundfile.write(path, np.stack(samples, axis=1), 16_000, subtype="FLOAT")
    expected = soundfile.read(path, dtype="float32")[0].mean(axis=1)
    np.testing.assert_allclose(audio.load(path).numpy(), expected, atol=1e-6)
    np.testing.assert_allclose(onnx.read_wav(path, 16_000), expected, atol=1e-6)
    (batch,) = [CutDataset()[read_cuts(DataConfig([str(tmp_path)]))[0]]]
    assert not batch.failed
    np.testing.assert_allclose(batch.waveforms[0].numpy(), expected, atol=1e-6)


def test_a_file_of_integers_is_read_in_range_whatever_its_bits(tmp_path: Path) -> None:
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
        file.writeframes(np.full(1_600, -32768, "<i2").tobytes())
    assert audio.load(tmp_path / "a.wav").abs().max() == 1.0


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_samples_that_are_not_finite_are_refused_among_samples_of_16_bits(student: ds.Student, value: float) -> None:
    samples = LOUD[None].clone()
    samples[0, 100] = value
    with pytest.raises(ValueError, match="holds NaN or infinite samples"):
        student(samples)
