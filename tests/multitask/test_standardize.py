"""The optional standardisation of pooled features."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from distilled_student.multitask.tasks.base import BaseTask
from distilled_student.multitask.tasks.settings import TaskSettings


def _pooled(task: BaseTask, features: Tensor, lengths: Tensor) -> Tensor:
    return task.head.standardize(task.head.pooling(features, lengths))


def test_standardised_features_have_zero_mean_and_unit_variance_in_training() -> None:
    task = BaseTask(TaskSettings(standardize=True), 6, 3)
    features, lengths = 50 + torch.randn(32, 9, 6), torch.full((32,), 9)
    pooled = _pooled(task, features, lengths)
    torch.testing.assert_close(pooled.mean(0), torch.zeros(6), atol=1e-4, rtol=0)
    torch.testing.assert_close(pooled.var(0, unbiased=False), torch.ones(6), atol=1e-3, rtol=0)
    assert sum(p.numel() for p in task.parameters()) == 6 * 3 + 3


def test_in_evaluation_an_utterance_does_not_depend_on_its_batch() -> None:
    task = BaseTask(TaskSettings(standardize=True), 6, 3)
    task(torch.randn(32, 9, 6), torch.full((32,), 9))
    task.eval()
    features, lengths = torch.randn(4, 9, 6), torch.full((4,), 9)
    torch.testing.assert_close(task(features, lengths)[:1], task(features[:1], lengths[:1]))


def test_a_batch_that_is_not_finite_does_not_change_the_statistics() -> None:
    task = BaseTask(TaskSettings(standardize=True), 6, 3)
    task(torch.randn(32, 9, 6), torch.full((32,), 9))
    norm = task.head.standardize
    before = norm.running_mean.clone(), norm.running_var.clone()
    task(torch.full((4, 9, 6), 1e30) * torch.randn(4, 9, 6), torch.full((4,), 9))
    assert torch.equal(norm.running_mean, before[0]) and torch.equal(norm.running_var, before[1])


def test_the_statistics_equal_those_of_torchs_batch_norm() -> None:
    task, torchs = BaseTask(TaskSettings(standardize=True), 6, 3), torch.nn.BatchNorm1d(6, affine=False)
    for momentum in (0.1, 0.1, None, None):
        task.head.standardize.momentum = torchs.momentum = momentum
        x = 3 + torch.randn(8, 6)
        torch.testing.assert_close(task.head.standardize(x), torchs(x))
    torch.testing.assert_close(task.head.standardize.state_dict(), torchs.state_dict())


def test_without_standardisation_the_pooled_features_go_into_the_linear_layer() -> None:
    task = BaseTask(TaskSettings(), 6, 3)
    features, lengths = torch.randn(4, 9, 6), torch.full((4,), 9)
    torch.testing.assert_close(task(features, lengths), task.head.linear(features.mean(1)))


def test_a_batch_of_one_cannot_be_standardised() -> None:
    with pytest.raises(ValueError, match="batch_size"):
        TaskSettings(standardize=True, batch_size=1)
