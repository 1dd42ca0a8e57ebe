"""An hour of speech: encoded in pieces, in memory that does not depend on its length."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from fuzz.mutations import at_most
from torch import Tensor, nn

from distilled_student import StudentConfig, build_student
from distilled_student.common.audio import MAX_ENCODED_SECONDS
from distilled_student.host import upstreams
from distilled_student.host.upstreams import StudentUpstream, TeacherUpstream, Upstream
from distilled_student.multitask.loader import equal_length_batches
from distilled_student.teachers.encoders import EqualLengthEncoder, StudentEncoder

RATE = 16_000


def student(config: StudentConfig) -> StudentUpstream:
    torch.manual_seed(0)
    return StudentUpstream(build_student(config)).eval()


def teacher(config: StudentConfig) -> TeacherUpstream:
    torch.manual_seed(0)
    return TeacherUpstream(StudentEncoder(build_student(config))).eval()


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces of a second, so that the tests take none."""
    monkeypatch.setattr(upstreams, "MAX_ENCODED_SECONDS", 1)


def equal(found: dict, wanted: dict) -> None:
    assert found.keys() == wanted.keys()
    for name, value in found.items():
        torch.testing.assert_close(value, wanted[name], atol=0, rtol=0)


@pytest.mark.parametrize("make", [student, teacher])
@pytest.mark.parametrize("samples", [16_001, 40_000, 48_000, 100_003])
def test_a_long_utterances_pieces_are_what_separate_calls_give(
    make: Callable[[StudentConfig], Upstream], samples: int, small_cnn: StudentConfig, short: None
) -> None:
    upstream, wave = make(small_cnn), torch.randn(samples)
    with torch.no_grad():
        found = upstream([wave])
    frames = -(-samples // 320)
    size = -(-frames // -(-frames // 50)) * 320
    assert size <= RATE
    with torch.no_grad():
        pieces = [upstream([piece]) for piece in wave.split(size)]
    for i, state in enumerate(found["hidden_states"]):
        assert state.shape[:2] == (1, frames)
        torch.testing.assert_close(state, torch.cat([p["hidden_states"][i] for p in pieces], 1), atol=0, rtol=0)
    torch.testing.assert_close(found["last_hidden_state"], found["hidden_states"][-1], atol=0, rtol=0)
    assert found["concatenated"].shape == (1, frames, 16 * 3)


def test_a_batch_with_a_long_utterance_is_padded_to_it(small_logmel: StudentConfig, short: None) -> None:
    upstream, waves = student(small_logmel), [torch.randn(8_000), torch.randn(40_000)]
    with torch.no_grad():
        found, alone = upstream(waves), [upstream([wave]) for wave in waves]
    assert found["last_hidden_state"].shape[:2] == (2, 125)
    for row, one in enumerate(alone):
        frames = one["last_hidden_state"].shape[1]
        torch.testing.assert_close(found["last_hidden_state"][row, :frames], one["last_hidden_state"][0])


def test_up_to_the_longest_and_in_training_nothing_is_cut(
    small_cnn: StudentConfig, short: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    upstream, waves = student(small_cnn), [torch.randn(RATE), torch.randn(5_000)]
    heard: list[list[int]] = []
    encode = upstream.encode
    monkeypatch.setattr(upstream, "encode", lambda w, n: heard.append(n.tolist()) or encode(w, n))
    upstream(waves)
    upstream.train()([torch.randn(RATE + 1), *waves])
    assert heard == [[RATE, 5_000], [RATE + 1, RATE, 5_000]]


def test_four_minutes_are_encoded_at_once(small_cnn: StudentConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    upstream = student(small_cnn)
    heard: list[int] = []

    def encode(waveforms: Tensor, lengths: Tensor) -> tuple[dict[str, list[Tensor]], Tensor]:
        heard.append(int(lengths[0]))
        frames = int(lengths[0]) // 320
        return {"hidden_states": [torch.zeros(1, frames, 2)]}, torch.tensor([frames])

    monkeypatch.setattr(upstream, "encode", encode)
    upstream([torch.zeros(MAX_ENCODED_SECONDS * RATE)])
    assert heard == [MAX_ENCODED_SECONDS * RATE]
    heard.clear()
    found = upstream([torch.zeros(3600 * RATE + 1)])
    assert len(heard) == 16 and max(heard) <= MAX_ENCODED_SECONDS * RATE and sum(heard) == 3600 * RATE + 1
    assert len(set(heard[:-1])) == 1 and heard[-1] <= heard[0]
    assert found["last_hidden_state"].shape[1] == 180_001


def test_what_was_selected_is_all_that_is_joined(small_cnn: StudentConfig, short: None) -> None:
    upstream = student(small_cnn)
    upstream.selected = "last_hidden_state"
    with torch.no_grad():
        assert list(upstream([torch.randn(40_000)])) == ["last_hidden_state"]


class Doubling(EqualLengthEncoder):
    """A teacher of another make."""

    hidden_size, num_layers, frame_shift = 1, 1, 320

    def __init__(self) -> None:
        nn.Module.__init__(self)

    def encode(self, waveforms: Tensor) -> list[Tensor]:
        return [waveforms[:, : waveforms.shape[1] // 320 * 320 : 320, None] * scale for scale in (1, 2)]


def test_teachers_of_another_make_are_cut_too(short: None) -> None:
    upstream, wave = TeacherUpstream(Doubling()).eval(), torch.arange(100_000.0)
    torch.testing.assert_close(upstream([wave])["hidden_states"][1][0, :312, 0], 2 * wave[: 312 * 320 : 320])


def test_an_hour_takes_little_more_memory_than_its_waveform(small_logmel: StudentConfig) -> None:
    upstream = student(replace(small_logmel, layers=1, conv_stride=[2, 4], targets=[]))
    with torch.no_grad():
        upstream([torch.randn(5 * RATE)])
        with at_most(600):  # the waveform has 220 MiB, the spectrum of four minutes 150; that of the hour 2,200
            found = upstream([torch.zeros(3600 * RATE)])
    assert found["last_hidden_state"].shape == (1, 45_000, 16)


class Lengths:
    """Evaluation data of these lengths, in seconds."""

    def __init__(self, *seconds: float) -> None:
        self.seconds = seconds

    def __len__(self) -> int:
        return len(self.seconds)

    def samples(self, index: int) -> int:
        return int(self.seconds[index] * RATE)


def test_a_batch_holds_four_minutes_at_most_and_a_longer_utterance_is_alone() -> None:
    data = Lengths(*[100.0] * 5, *[3600.0] * 2, *[1.0] * 20, *[240.0] * 2, *[120.0] * 3)
    batches = equal_length_batches(data, 16)
    assert sorted(index for batch in batches for index in batch) == list(range(len(data)))
    for batch in batches:
        total = sum(data.seconds[index] for index in batch)
        assert len({data.seconds[index] for index in batch}) == 1
        assert total <= MAX_ENCODED_SECONDS or len(batch) == 1
    assert [len(batch) for batch in batches] == [16, 4, 2, 2, 1, 2, 1, 1, 1, 1, 1]
