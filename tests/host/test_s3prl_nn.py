"""s3prl's Python interface ``s3prl.nn``: with our upstreams it returns our hidden states, alone and in any batch."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from conftest import tone
from torch import Tensor
from torch.nn.functional import layer_norm
from torch.nn.utils.rnn import pad_sequence

import distilled_student as ds
from distilled_student.teachers.open import open_teacher

ds.register()

from s3prl.nn import Featurizer, S3PRLUpstream  # noqa: E402  (s3prl is patched by the registration)

SHIFT = 320  # samples at 16 kHz per frame


@pytest.fixture(params=["small_cnn", "small_logmel"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The folder of a saved student. There is one parameter for each front end."""
    torch.manual_seed(0)
    ds.save_student(ds.build_student(request.getfixturevalue(request.param)), tmp_path / "student")
    return tmp_path / "student"


def run(upstream: S3PRLUpstream, waves: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Hidden states and lengths of each layer, for the waveforms as one padded batch."""
    with torch.no_grad():
        return upstream.eval()(pad_sequence(waves, batch_first=True), torch.tensor([len(wave) for wave in waves]))


def test_features_of_a_padded_batch_are_those_of_each_utterance_alone(folder: Path) -> None:
    upstream, student = S3PRLUpstream("distilled_student", path_or_url=str(folder)), ds.load_student(folder)
    waves = [tone(seconds, seed=i) for i, seconds in enumerate((1.0, 0.63, 1.37, 0.06))]
    states, lengths = run(upstream, waves)
    assert upstream.num_layers == len(states) == 3
    assert upstream.hidden_sizes == [16] * 3 and upstream.downsample_rates == [SHIFT] * 3
    for b, wave in enumerate(waves):
        with torch.no_grad():
            own = student(wave[None])
        frames, expected = int(own.lengths[0]), math.ceil(len(wave) / SHIFT)
        assert expected - 2 <= frames <= expected
        for layer, (state, length) in enumerate(zip(states, lengths, strict=True)):
            assert int(length[b]) == expected
            torch.testing.assert_close(state[b, :frames], own.hidden_states[layer][0, :frames], atol=1e-5, rtol=0)
            # s3prl counts up to two frames more than the front end makes: these repeat the last frame
            assert torch.equal(state[b, frames:expected], state[b, frames - 1 : frames].expand(expected - frames, -1))


def test_a_batch_of_only_short_utterances_is_zero_padded_to_the_minimum_of_s3prl(folder: Path) -> None:
    upstream, student = S3PRLUpstream("distilled_student", path_or_url=str(folder)), ds.load_student(folder)
    short = tone(0.02)
    states, lengths = run(upstream, [short])
    with torch.no_grad():
        own = student(torch.cat([short, torch.zeros(800 - len(short))])[None])  # 0.05 s
    assert [int(length[0]) for length in lengths] == [1] * 3
    torch.testing.assert_close(states[2][0], own.hidden_states[2][0, :1], atol=1e-5, rtol=0)


def test_features_of_an_utterance_shorter_than_a_frame_are_finite_in_a_batch_with_a_longer_one(folder: Path) -> None:
    states, lengths = run(S3PRLUpstream("distilled_student", path_or_url=str(folder)), [tone(0.5), tone(0.005)])
    assert lengths[0].tolist() == [25, 1]
    assert all(torch.isfinite(state).all() for state in states)


def test_the_featurizer_sums_all_layers_or_the_selected_ones(folder: Path) -> None:
    upstream = S3PRLUpstream("distilled_student", path_or_url=str(folder))
    states, lengths = run(upstream, [tone(0.7), tone(0.4)])
    for selected in (None, [0, 2], [1]):
        featurizer = Featurizer(upstream, layer_selections=selected)
        features, found = featurizer(states, lengths)
        mean = torch.stack([states[layer] for layer in selected or range(3)]).mean(
            dim=0
        )  # the initial weights are equal
        torch.testing.assert_close(features, mean)
        assert torch.equal(found, lengths[0]) and featurizer.output_size == 16
    features, _ = Featurizer(upstream, layer_selections=[1], normalize=True)(states, lengths)
    torch.testing.assert_close(features, layer_norm(states[1], (16,)))


def test_a_randomized_upstream_has_different_but_finite_features(folder: Path) -> None:
    plain = S3PRLUpstream("distilled_student", path_or_url=str(folder))
    other = S3PRLUpstream("distilled_student", path_or_url=str(folder), randomize=True, refresh=True)
    wave = [tone(0.5)]
    state, randomized = run(plain, wave)[0][2], run(other, wave)[0][2]
    assert torch.isfinite(randomized).all() and not torch.allclose(state, randomized, atol=0.1)


def test_the_upstream_of_the_shipped_teacher_returns_the_hidden_states_of_the_teacher() -> None:
    upstream, teacher = S3PRLUpstream("teacher", path_or_url="shipped"), open_teacher("shipped")
    wave = tone(0.8)
    with torch.no_grad():
        own = teacher(wave[None], torch.tensor([len(wave)]))
    states, _ = run(upstream, [wave])
    frames = int(own.lengths[0])
    assert len(states) == len(own.hidden_states)
    for state, expected in zip(states, own.hidden_states, strict=True):
        torch.testing.assert_close(state[0, :frames], expected[0, :frames], atol=1e-5, rtol=0)


def test_gradients_reach_the_student(folder: Path) -> None:
    upstream = S3PRLUpstream("distilled_student", path_or_url=str(folder))
    states, _ = upstream(tone(0.5)[None], torch.tensor([8000]))
    states[-1].square().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in upstream.parameters() if p.grad is not None)
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in upstream.parameters())


def test_our_upstreams_are_among_the_available_names() -> None:
    assert {"distilled_student", "teacher"} <= set(S3PRLUpstream.available_names(only_registered_ckpt=True))
    with pytest.raises(ds.UserError, match="nowhere"):
        S3PRLUpstream("distilled_student", path_or_url="nowhere")
