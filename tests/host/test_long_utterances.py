"""Long utterances are encoded in pieces, so that an hour needs little more memory than its waveform."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import ceil

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

RATE, FRAME_SHIFT = 16_000, 320


def student(config: StudentConfig) -> StudentUpstream:
    torch.manual_seed(0)
    return StudentUpstream(build_student(config)).eval()


def teacher(config: StudentConfig) -> TeacherUpstream:
    torch.manual_seed(0)
    return TeacherUpstream(StudentEncoder(build_student(config))).eval()


@pytest.fixture
def one_second_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces of at most one second instead of 240, so that the tests are fast."""
    monkeypatch.setattr(upstreams, "MAX_ENCODED_SECONDS", 1)


@pytest.mark.parametrize("make", [student, teacher])
@pytest.mark.parametrize("samples", [16_001, 40_000, 48_000, 100_003])
def test_a_long_utterance_has_the_features_of_its_pieces_in_separate_calls(
    make: Callable[[StudentConfig], Upstream], samples: int, small_cnn: StudentConfig, one_second_pieces: None
) -> None:
    upstream, wave = make(small_cnn), torch.randn(samples)
    with torch.no_grad():
        found = upstream([wave])
    frames = ceil(samples / FRAME_SHIFT)
    piece_count = ceil(frames * FRAME_SHIFT / RATE)
    piece_samples = ceil(frames / piece_count) * FRAME_SHIFT
    assert piece_samples <= RATE
    with torch.no_grad():
        pieces = [upstream([piece]) for piece in wave.split(piece_samples)]
    for i, state in enumerate(found["hidden_states"]):
        assert state.shape[:2] == (1, frames)
        torch.testing.assert_close(state, torch.cat([p["hidden_states"][i] for p in pieces], 1), atol=0, rtol=0)
    torch.testing.assert_close(found["last_hidden_state"], found["hidden_states"][-1], atol=0, rtol=0)
    assert found["concatenated"].shape == (1, frames, 16 * 3)


def test_a_batch_is_padded_to_its_long_utterance(small_logmel: StudentConfig, one_second_pieces: None) -> None:
    upstream, waves = student(small_logmel), [torch.randn(8_000), torch.randn(40_000)]
    with torch.no_grad():
        found, alone = upstream(waves), [upstream([wave]) for wave in waves]
    assert found["last_hidden_state"].shape[:2] == (2, 125)
    for row, one in enumerate(alone):
        frames = one["last_hidden_state"].shape[1]
        torch.testing.assert_close(found["last_hidden_state"][row, :frames], one["last_hidden_state"][0])


def test_utterances_up_to_the_maximum_and_in_training_are_encoded_whole(
    small_cnn: StudentConfig, one_second_pieces: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    upstream, waves = student(small_cnn), [torch.randn(RATE), torch.randn(5_000)]
    encoded: list[list[int]] = []  # lengths of each batch
    encode = upstream.encode
    monkeypatch.setattr(upstream, "encode", lambda w, n: encoded.append(n.tolist()) or encode(w, n))
    upstream(waves)
    upstream.train()([torch.randn(RATE + 1), *waves])
    assert encoded == [[RATE, 5_000], [RATE + 1, RATE, 5_000]]


def test_four_minutes_are_encoded_at_once_and_an_hour_in_equal_pieces(
    small_cnn: StudentConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    upstream = student(small_cnn)
    encoded: list[int] = []  # length of each piece

    def encode(waveforms: Tensor, lengths: Tensor) -> tuple[dict[str, list[Tensor]], Tensor]:
        encoded.append(int(lengths[0]))
        frames = int(lengths[0]) // FRAME_SHIFT
        return {"hidden_states": [torch.zeros(1, frames, 2)]}, torch.tensor([frames])

    monkeypatch.setattr(upstream, "encode", encode)
    upstream([torch.zeros(MAX_ENCODED_SECONDS * RATE)])
    assert encoded == [MAX_ENCODED_SECONDS * RATE]
    encoded.clear()
    found = upstream([torch.zeros(3600 * RATE + 1)])
    assert len(encoded) == 16 and max(encoded) <= MAX_ENCODED_SECONDS * RATE and sum(encoded) == 3600 * RATE + 1
    assert len(set(encoded[:-1])) == 1 and encoded[-1] <= encoded[0]
    assert found["last_hidden_state"].shape[1] == 180_001


def test_only_the_selected_features_are_returned(small_cnn: StudentConfig, one_second_pieces: None) -> None:
    upstream = student(small_cnn)
    upstream.selected = "last_hidden_state"
    with torch.no_grad():
        assert list(upstream([torch.randn(40_000)])) == ["last_hidden_state"]


class Doubling(EqualLengthEncoder):
    """A teacher that is not a student: its hidden states are every 320th sample, once and twice its value."""

    hidden_size, num_layers, frame_shift = 1, 1, FRAME_SHIFT

    def __init__(self) -> None:
        nn.Module.__init__(self)

    def encode(self, waveforms: Tensor) -> list[Tensor]:
        whole_frames = waveforms.shape[1] // FRAME_SHIFT * FRAME_SHIFT
        return [waveforms[:, :whole_frames:FRAME_SHIFT, None] * scale for scale in (1, 2)]


def test_a_teacher_of_another_class_encodes_long_utterances_in_pieces_too(one_second_pieces: None) -> None:
    upstream, wave = TeacherUpstream(Doubling()).eval(), torch.arange(100_000.0) / 2**17
    torch.testing.assert_close(upstream([wave])["hidden_states"][1][0, :312, 0], 2 * wave[: 312 * 320 : 320])


def test_an_hour_takes_little_more_memory_than_its_waveform(small_logmel: StudentConfig) -> None:
    upstream = student(replace(small_logmel, layers=1, conv_stride=[2, 4], targets=[]))
    with torch.no_grad():
        upstream([torch.randn(5 * RATE)])
        with at_most(1000):  # waveform: 220 MiB; spectrum of four minutes: 150 and its copies; of the hour: 2,200
            found = upstream([torch.zeros(3600 * RATE)])
    assert found["last_hidden_state"].shape == (1, 45_000, 16)


class Lengths:
    """Evaluation data whose utterances last this many seconds."""

    def __init__(self, *seconds: float) -> None:
        self.seconds = seconds

    def __len__(self) -> int:
        return len(self.seconds)

    def samples(self, index: int) -> int:
        return int(self.seconds[index] * RATE)


def test_an_evaluation_batch_has_at_most_four_minutes_or_a_single_longer_utterance() -> None:
    data = Lengths(*[100.0] * 5, *[3600.0] * 2, *[1.0] * 20, *[240.0] * 2, *[120.0] * 3)
    batches = equal_length_batches(data, 16)
    assert sorted(index for batch in batches for index in batch) == list(range(len(data)))
    for batch in batches:
        total = sum(data.seconds[index] for index in batch)
        assert len({data.seconds[index] for index in batch}) == 1
        assert total <= MAX_ENCODED_SECONDS or len(batch) == 1
    assert [len(batch) for batch in batches] == [16, 4, 2, 2, 1, 2, 1, 1, 1, 1, 1]
