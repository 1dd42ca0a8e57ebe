"""The comparison of exported models with PyTorch: relative to what the outputs are used for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

import distilled_student as ds
from distilled_student.export import utterance
from distilled_student.export.graph import compare, difference
from distilled_student.export.utterance import check_graph
from distilled_student.multitask.device_model import Features, JointModel, JointOutput


def random(*shape: int, scale: float = 1.0) -> Tensor:
    return torch.from_numpy(scale * np.random.default_rng(0).standard_normal(shape)).float()


@pytest.mark.parametrize("scale", [1e-3, 1.0, 500.0])
def test_hidden_states_are_compared_relative_to_their_largest_value(scale: float) -> None:
    expected = random(1, 49, 16, scale=scale)
    largest = np.abs(expected.numpy()).max()
    wrong = expected.clone()
    wrong[0, 20, 3] += 5e-5 * largest
    assert compare("hidden_state", expected, wrong, "") == pytest.approx(5e-5, rel=0.01)
    wrong[0, 20, 3] += 1e-4 * largest
    with pytest.raises(ds.UserError, match=r"hidden_state: differs by 1\.5e-04 from PyTorch on speech"):
        compare("hidden_state", expected, wrong, "on speech")


def test_speaker_embeddings_are_compared_at_length_one() -> None:
    expected = random(2, 256, scale=100.0)
    unit = expected.numpy() / np.linalg.norm(expected.numpy(), axis=1, keepdims=True)
    found = expected + random(2, 256, scale=1e-3)
    other = found.numpy() / np.linalg.norm(found.numpy(), axis=1, keepdims=True)
    for name in ("speaker_embedding", "sv2_speaker_embedding"):
        assert difference(name, expected, found) == pytest.approx(np.abs(unit - other).max(), rel=0.01)
    with pytest.raises(ds.UserError, match="speaker_embedding: differs"):
        compare("speaker_embedding", expected, expected.roll(1, dims=1), "")


def test_scores_are_compared_as_they_are_and_numbers_of_frames_exactly() -> None:
    scores = torch.tensor([[0.7, 0.2, 0.1]])
    assert difference("keyword_scores", scores, scores + 5e-5) == pytest.approx(5e-5, rel=0.01)
    with pytest.raises(ds.UserError, match="keyword_scores: differs by 2"):
        compare("keyword_scores", scores, scores + 2e-4, "")
    with pytest.raises(ds.UserError, match=r"frames: differs by 1\.0e\+00"):
        compare("frames", torch.tensor([200_000]), torch.tensor([200_001]), "")


@pytest.mark.parametrize("name", ["hidden_state", "speaker_embedding", "keyword_scores"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_that_are_not_finite_and_other_shapes_are_refused(name: str, bad: float) -> None:
    expected = random(1, 8)
    changed = expected.clone()
    changed[0, 3] = bad
    for pair in ((expected, changed), (changed, expected), (changed, changed)):
        with pytest.raises(ds.UserError, match=f"{name}: differs by"):
            compare(name, *pair, "")
    with pytest.raises(ds.UserError, match=f"{name}: differs by inf"):
        compare(name, expected, expected[:, :4], "")


def test_a_model_with_large_hidden_states_is_exported(
    monkeypatch: pytest.MonkeyPatch, small_cnn: ds.StudentConfig
) -> None:
    torch.manual_seed(0)
    model = JointModel(ds.build_student(small_cnn), Features("last_hidden_state")).eval()
    model.student.layers[-1].norm2.weight.data.mul_(300.0)
    in_double = JointModel(ds.build_student(small_cnn), Features("last_hidden_state")).eval()
    in_double.load_state_dict(model.state_dict())
    in_double.double()

    def run(waveforms: Tensor, lengths: Tensor) -> JointOutput:
        output = in_double(waveforms.double(), lengths)
        return output._replace(hidden_state=output.hidden_state.float())

    monkeypatch.setattr(utterance, "Graph", lambda file: run)
    waveforms = [random(8_000, scale=0.1), random(16_000, scale=0.1)]
    with torch.no_grad():
        outputs = [(model(wave[None]), run(wave[None], torch.tensor([len(wave)]))) for wave in waveforms]
    assert max(float((a.hidden_state - b.hidden_state).abs().max()) for a, b in outputs) > 1e-4
    assert check_graph("", model, waveforms) < 1e-5
