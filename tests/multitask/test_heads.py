"""Heads and the choice of layers equal s3prl's modules with the same weights, and do not depend on padding."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import distilled_student
from distilled_student.multitask.heads import LayerChoice, LinearHead, PooledHead, ProjectionHead, XVectorHead
from distilled_student.multitask.losses import SpeakerLoss
from distilled_student.multitask.tasks.settings import LossSettings

MADE: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: LinearHead(6, 4, "attentive"),
    "pooled": lambda: PooledHead(6, "attentive_std"),
    "projection": lambda: ProjectionHead(6, 4, size=5),
    "xvector": lambda: XVectorHead(6, 4, pooled=5),
}


@pytest.fixture(scope="module", autouse=True)
def _s3prl() -> None:
    distilled_student.register()


def largest_difference(a: Tensor, b: Tensor) -> float:
    return (a - b).abs().max().item()


@pytest.mark.parametrize("batch", [1, 4])
def test_the_projection_head_equals_s3prls_keyword_model(batch: int) -> None:
    from s3prl.downstream.model import UtteranceLevel

    torch.manual_seed(0)
    projector, model = nn.Linear(768, 256), UtteranceLevel(256, 12, pooling="MeanPooling")
    ours = ProjectionHead(768, 12)
    ours.projector.load_state_dict(projector.state_dict())
    ours.linear.load_state_dict(model.post_net.linear.state_dict())
    x, lengths = torch.randn(batch, 49, 768), torch.full((batch,), 49)
    theirs, _ = model(projector(x), lengths)
    assert largest_difference(ours(x, lengths), theirs) < 1e-5
    parts = (model, projector)
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for m in parts for p in m.parameters())


def s3prls_xvector(ours: XVectorHead) -> tuple[nn.Module, nn.Module]:
    """s3prl's connector and model with SUPERB's settings (configs/amsoftmax.yaml) and the weights of ``ours``."""
    from s3prl.downstream.sv_voxceleb1.model import Model

    hparams = {"agg_dim": 1500, "dropout_p": 0.0, "batch_norm": False}
    model = Model(512, 1500, "SP", "XVector", "UtteranceExtractor", hparams)
    with torch.no_grad():
        for theirs, convolution in zip(model.framelevel_feature_extractor.module, ours.convolutions, strict=True):
            theirs.kernel.weight.copy_(convolution.weight.transpose(1, 2).flatten(1))
            theirs.kernel.bias.copy_(convolution.bias)
    model.utterancelevel_feature_extractor.linear1.load_state_dict(ours.embedding.state_dict())
    model.utterancelevel_feature_extractor.linear2.load_state_dict(ours.output.state_dict())
    return ours.connector, model


@pytest.mark.parametrize("batch", [1, 3])
def test_the_xvector_head_equals_s3prls_speaker_model_in_training_and_in_evaluation(batch: int) -> None:
    torch.manual_seed(0)
    ours = XVectorHead(768, 512)
    connector, model = s3prls_xvector(ours)
    x, lengths = torch.randn(batch, 120, 768), torch.full((batch,), 120)
    mask = torch.zeros(batch, 120 - XVectorHead.LOST_FRAMES)
    assert largest_difference(ours.train()(x, lengths), model(connector(x), mask)) < 1e-5
    assert largest_difference(ours.eval()(x, lengths), model.inference(connector(x), mask)) < 1e-5
    parts = (connector, model)
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for m in parts for p in m.parameters())


def test_am_softmax_and_its_gradients_through_the_head_equal_s3prls() -> None:
    from s3prl.downstream.sv_voxceleb1.model import AMSoftmaxLoss

    torch.manual_seed(0)
    ours, loss = XVectorHead(32, 512), SpeakerLoss(LossSettings(name="am", margin=0.4, scale=30), 512, 7)
    connector, model = s3prls_xvector(ours)
    theirs = AMSoftmaxLoss(512, 7, s=30.0, m=0.4)
    theirs.W.data.copy_(loss.weight.data.T)
    x, lengths, labels = torch.randn(5, 60, 32), torch.full((5,), 60), torch.tensor([0, 3, 3, 6, 1])
    wanted = theirs(model(connector(x), torch.zeros(5, 60 - XVectorHead.LOST_FRAMES)), labels)
    wanted.backward()
    connectors = ours.connector.weight.grad.clone()
    ours.zero_grad()
    found = loss(ours(x, lengths), labels)
    found.backward()
    assert largest_difference(found, wanted) < 1e-5
    assert largest_difference(loss.weight.grad, theirs.W.grad.T) < 1e-5
    assert largest_difference(ours.connector.weight.grad, connectors) < 1e-5
    tdnn = model.framelevel_feature_extractor.module[0].kernel.weight.grad
    assert largest_difference(ours.convolutions[0].weight.grad.transpose(1, 2).flatten(1), tdnn) < 1e-5


def test_the_weighted_sum_equals_s3prls_featurizer() -> None:
    from s3prl.upstream.interfaces import Featurizer

    class Upstream(nn.Module):
        def forward(self, wavs: list[Tensor]) -> dict[str, list[Tensor]]:
            return {"hidden_states": states}

    states = [torch.randn(1, 50, 8) for _ in range(3)]
    featurizer, ours = Featurizer(Upstream(), upstream_device="cpu"), LayerChoice(3, "weighted")
    weights = torch.tensor([0.3, -1.0, 2.0])
    featurizer.weights.data.copy_(weights)
    concatenated = torch.cat(states, dim=2)
    assert largest_difference(ours(concatenated), torch.stack(states).mean(0)) < 1e-6, "equal weights at first"
    ours.weights.data.copy_(weights)
    assert largest_difference(ours(concatenated), featurizer._weighted_sum(states)) < 1e-5
    assert LayerChoice(3, 1)(concatenated).equal(states[1]) and LayerChoice(3, None)(concatenated).equal(concatenated)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", MADE)
def test_padding_never_changes_a_heads_output_even_when_it_is_nan(name: str, training: bool) -> None:
    torch.manual_seed(0)
    head, lengths = MADE[name]().train(training), [30, 17, 15, 3, 1]
    utterances = [torch.randn(n, 6) for n in lengths]
    padded = torch.full((5, 33, 6), float("nan"))
    for row, utterance in zip(padded, utterances, strict=True):
        row[: len(utterance)] = utterance
    together = head(padded, torch.tensor(lengths))
    assert together.shape == (5, 12 if name == "pooled" else 4)
    for row, utterance in zip(together, utterances, strict=True):
        torch.testing.assert_close(row, head(utterance[None], torch.tensor([len(utterance)]))[0], atol=1e-6, rtol=1e-5)
    together.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in head.parameters())
