"""What is no batch of waveforms is refused in words, wherever a model is called from Python."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from conftest import SMALL, tone
from test_streaming import CAUSAL, joint

import distilled_student as ds
from distilled_student import UserError
from distilled_student.host.upstreams import StudentUpstream
from distilled_student.streaming import Stream

SPEECH = tone(0.7)  # 11,200 samples
BATCH = SPEECH[None]


@pytest.fixture(scope="module")
def models() -> dict[str, Callable[..., object]]:
    student = ds.build_student(ds.StudentConfig(**SMALL, conv_dim=[8] * 7)).eval()
    return {"student": student, "joint": joint(CAUSAL)}


@pytest.mark.parametrize("name", ["student", "joint"])
@pytest.mark.parametrize(
    ("waveforms", "lengths", "message"),
    [
        (BATCH.numpy(), None, "waveforms: expected a torch.Tensor, found ndarray: use torch.as_tensor"),
        (BATCH.tolist(), None, "waveforms: expected a torch.Tensor, found list: use torch.as_tensor"),
        (None, None, "waveforms: expected a torch.Tensor, found NoneType"),
        (SPEECH, None, "waveforms: expected (batch, samples), found (11200,)"),
        (torch.zeros(0, 11_200), None, "waveforms: an empty batch: give one utterance or more"),
        (torch.zeros(1, 0), None, "waveforms: expected (batch, samples), found (1, 0)"),
        (BATCH, [11_200], "lengths: expected a torch.Tensor, found list: use torch.as_tensor"),
        (BATCH, np.array([11_200]), "lengths: expected a torch.Tensor, found ndarray: use torch.as_tensor"),
        (BATCH, 11_200, "lengths: expected a torch.Tensor, found int"),
        (BATCH, torch.tensor([1.0]), "lengths: expected whole numbers of samples, found torch.float32"),
        (BATCH, torch.tensor([11_200, 11_200]), "lengths: expected (1,), found (2,)"),
        (BATCH, torch.tensor([11_201]), "lengths: expected 1 to 11200 samples, found [11201]"),
        (BATCH, torch.tensor([0]), "lengths: expected 1 to 11200 samples, found [0]"),
    ],
)
def test_a_model_says_what_is_wrong_with_a_batch(
    models: dict[str, Callable[..., object]], name: str, waveforms: object, lengths: object, message: str
) -> None:
    with pytest.raises(ValueError) as error:
        models[name](waveforms, lengths)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("wavs", "message"),
    [
        ([], "wavs: an empty batch: give one utterance or more"),
        ([SPEECH, SPEECH.numpy()], "wavs[1]: expected a torch.Tensor, found ndarray: use torch.as_tensor"),
        ([BATCH], "wavs[0]: expected (samples,), found (1, 11200)"),
        ([SPEECH, torch.zeros(0)], "wavs[1]: expected (samples,), found (0,)"),
    ],
)
def test_an_upstream_says_what_is_wrong_with_its_waveforms(
    models: dict[str, Callable[..., object]], wavs: list[object], message: str
) -> None:
    upstream = StudentUpstream(models["student"])
    with pytest.raises(ValueError) as error:
        upstream(wavs)
    assert str(error.value) == message
    assert len(upstream(BATCH)["hidden_states"]) == len(upstream([SPEECH])["hidden_states"])  # a tensor is a list too


def test_a_stream_refuses_several_channels(models: dict[str, Callable[..., object]]) -> None:
    stream = Stream(models["joint"])
    with pytest.raises(UserError, match=r"^samples: expected one channel \(samples,\), found shape \(1, 11200\)$"):
        stream.feed(BATCH)
    assert stream.feed(SPEECH.numpy()) is not None
