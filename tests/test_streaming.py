"""Streams: the results of a causal student on chunks are those on the whole utterance."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import pytest
import torch
from conftest import SMALL, tone
from helpers.references import perturbed
from torch import Tensor

import distilled_student as ds
from distilled_student.multitask.device_model import Features, JointModel
from distilled_student.multitask.heads import LayerChoice
from distilled_student.multitask.tasks import kws, sv
from distilled_student.streaming import Step, Stream, StreamOutput, listen

CAUSAL = dataclasses.replace(ds.named_size("tiny"), **SMALL, conv_dim=[8, 16], attention_context=20)
VARIANTS = {
    "tiny": ds.named_size("tiny"),
    "strided": dataclasses.replace(CAUSAL, encoder_stride=2),
    "shared": dataclasses.replace(CAUSAL, shared=True, layers=3),
    "without positions": dataclasses.replace(CAUSAL, positions="none", norm_first=False),
    "with a projection": dataclasses.replace(CAUSAL, conv_dim=[8, 12], projection=True, projection_norm=True),
    "one frame of context": dataclasses.replace(CAUSAL, attention_context=1, conv_kernel=[5, 4], conv_stride=[1, 4]),
}
CHUNKS = {f"{ms} ms": [16 * ms] for ms in (20, 40, 60, 80, 100)} | {"uneven": [1, 37, 700, 319, 5_001, 0, 123]}


def joint(
    config: ds.StudentConfig, key: str = "last_hidden_state", superb: bool = False, fill: bool = True
) -> JointModel:
    """A model with random weights and heads for both tasks, ours or SUPERB's.

    ``fill``: whether short utterances of speakers are repeated. A graph then encodes twice, which doubles its export.
    """
    torch.manual_seed(0)
    parts = {"last_hidden_state": 1, "concatenated": config.layers + 1, "predictions": 1}[key]
    width = config.target_size if key == "predictions" else config.hidden_size
    settings = {"standardize": not superb, "pooling": "mean_std"}
    words = kws.Settings(**settings, head="projection" if superb else "linear")
    settings |= {"fill": fill, "head": "xvector" if superb else "linear"}
    voices = sv.Settings(**settings, root=".", trials=None, embedding_size=8)
    tasks = {"kws": kws.Task(words, parts * width, 0, "kws"), "sv": sv.Task(voices, parts * width, 0, "sv")}
    model = JointModel(ds.build_student(config), Features(key), tasks, {n: LayerChoice(1, None) for n in tasks}, 1.5)
    return perturbed(model).requires_grad_(False)


def feed(stream: Stream, wave: Tensor, sizes: Sequence[int]) -> list[StreamOutput]:
    """The outputs of a stream for a waveform in chunks of these sizes; the sizes repeat until its end."""
    outputs, begin, turn = [], 0, 0
    while begin < len(wave):
        size = sizes[turn % len(sizes)]
        outputs.append(stream.feed(wave[begin : begin + size]))
        begin, turn = begin + size, turn + 1
    return [output for output in outputs if output is not None]


@pytest.mark.parametrize(
    ("variant", "chunks"),
    # all sizes of chunks where frames have 40 ms
    [*itertools.product(VARIANTS, ("60 ms", "uneven")), *(("strided", f"{ms} ms") for ms in (20, 40, 80, 100))],
)
def test_chunks_have_the_hidden_states_and_scores_of_the_whole_utterance(variant: str, chunks: str) -> None:
    model, wave = joint(VARIANTS[variant]), tone(2.4)  # longer than any context
    stream = Stream(model, window=2.4)
    outputs = feed(stream, wave, CHUNKS[chunks])
    with torch.no_grad():
        whole, scores = model.student(1.5 * wave[None]), model(wave[None], torch.tensor([len(wave)]))
    assert len(outputs) > 1
    for i, expected in enumerate(whole.hidden_states):
        found = torch.cat([output.hidden_states[i] for output in outputs])
        torch.testing.assert_close(found, expected[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(outputs[-1].keyword_scores, scores.keyword_scores[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(outputs[-1].speaker_embedding, scores.speaker_embedding[0], atol=1e-5, rtol=1e-5)
    assert outputs[0].keyword_scores.sub(scores.keyword_scores[0]).abs().max() > 1e-3, "scores depend on the audio"


def test_edge_has_the_same_hidden_states_on_chunks() -> None:
    model, wave = joint(ds.named_size("edge")), tone(2.2)
    found = torch.cat([output.hidden_states[-1] for output in feed(Stream(model), wave, [1_600])])
    with torch.no_grad():
        expected = model.student(1.5 * wave[None]).last_hidden_state[0]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("key", ["concatenated", "predictions"])
@pytest.mark.parametrize("superb", [False, True])
def test_all_features_and_heads_work_on_a_stream(key: str, superb: bool) -> None:
    model, wave = joint(CAUSAL, key, superb), tone(0.8)
    model.tasks["sv"].settings.crop_seconds = 1.0  # the window: short utterances are repeated up to the smaller one
    scores = model(wave[None], torch.tensor([len(wave)]))
    *_, last = feed(Stream(model), wave, [960])
    torch.testing.assert_close(last.keyword_scores, scores.keyword_scores[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(last.speaker_embedding, scores.speaker_embedding[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("window", [0.5, None])
def test_scores_depend_on_the_frames_in_the_window_only(window: float | None) -> None:
    model, wave = joint(VARIANTS["strided"]), tone(1.92)
    states = model.student(1.5 * wave[None]).last_hidden_state
    frames = states.shape[1] if window is None else 25
    expected = model.heads(states[:, -frames:], torch.tensor([frames]))["keyword_scores"]
    *_, last = feed(Stream(model, window), wave, [1_280])
    torch.testing.assert_close(last.keyword_scores, expected[0], atol=1e-5, rtol=0)


def test_samples_wait_until_their_frame_is_complete() -> None:
    stream = Stream(joint(VARIANTS["strided"]))
    assert stream.feed(torch.zeros(639)) is None
    assert len(stream.feed(torch.zeros(641)).hidden_states[-1]) == 4
    assert stream.feed(torch.zeros(0)) is None


def test_a_reset_stream_is_as_a_new_one() -> None:
    stream, wave = Stream(joint(CAUSAL)), tone(0.4)
    first = feed(stream, wave, [800])
    stream.reset()
    again = feed(stream, wave, [800])
    torch.testing.assert_close(again[-1].keyword_scores, first[-1].keyword_scores, atol=0, rtol=0)


def test_the_state_of_a_stream_has_a_fixed_size() -> None:
    step = Step(joint(CAUSAL))
    sizes = {name: tensor.shape for name, tensor in step.start().items()}
    state = step(torch.zeros(1, 64_000), step.start()).state
    assert {name: tensor.shape for name, tensor in state.items()} == sizes


def test_a_student_without_heads_streams_its_hidden_states() -> None:
    model = JointModel(ds.build_student(CAUSAL).eval(), Features("last_hidden_state"))
    output = Stream(model).feed(tone(0.2))
    assert [tuple(h.shape) for h in output.hidden_states] == [(10, 16)] * 3
    assert output.keyword_scores is None
    assert output.speaker_embedding is None


@pytest.mark.parametrize(("label", "times"), [("yes", [0.08]), ("_silence_", [])])
@pytest.mark.parametrize("chunk_ms", [10, 100, 600])
def test_a_keyword_is_reported_once_and_silence_never(chunk_ms: int, label: str, times: list[float]) -> None:
    model = joint(CAUSAL)
    model.tasks["kws"].head.linear.bias[model.labels.index(label)] += 100.0
    reported = [(found.seconds, found.label) for found in listen(Stream(model), tone(0.55), chunk_ms)]
    assert reported == [(pytest.approx(time), label) for time in times]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (ds.StudentConfig(**SMALL), "group norm computes mean and variance over the whole utterance"),
        (ds.StudentConfig(**SMALL, conv_norm="layer", normalize=True), "normalised over the whole utterance"),
        (dataclasses.replace(CAUSAL, causal=False), "its frames depend on later frames"),
    ],
)
def test_a_student_that_is_not_causal_is_an_error_that_names_the_reason(config: ds.StudentConfig, message: str) -> None:
    with pytest.raises(ds.UserError, match=message) as error:
        Stream(JointModel(ds.build_student(config).eval(), Features("last_hidden_state")))
    assert "\n" not in str(error.value)
