"""The paper's distillation loss (Kerpicci et al. 2023, eq. 1; first used by DistilHuBERT, Chang et al. 2022)."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from distilled_student.student.lengths import frame_mask


class LossParts(NamedTuple):
    """Both parts of the loss, summed over valid frames, ``(targets,)``, and the number of valid ``frames``, ``()``.

    ``l1`` is the mean absolute difference over features, ``cosine`` is ``-log sigmoid(cosine similarity)``.
    """

    l1: Tensor
    cosine: Tensor
    frames: Tensor

    @property
    def total(self) -> Tensor:
        """The paper's loss ``()``: the unweighted sum of both parts over frames and target layers."""
        return (self.l1 + self.cosine).sum()


def distillation_loss(predictions: Tensor, targets: Tensor, lengths: Tensor) -> LossParts:
    """L1 distance and negative log-sigmoid of the cosine similarity, per target layer, over valid frames only.

    Args:
        predictions: The student's predictions, ``(batch, targets, frames, features)``.
        targets: The teacher's hidden states, of the same shape.
        lengths: ``(batch,)`` valid frames.
    """
    wide = torch.promote_types(predictions.dtype, torch.float32)  # in half precision small differences would be lost
    predictions, targets = predictions.to(wide), targets.to(wide)
    valid = frame_mask(lengths, predictions.shape[2], predictions.device)[:, None, :]
    l1 = (predictions - targets).abs().mean(dim=3)
    cosine = -F.logsigmoid(F.cosine_similarity(predictions, targets, dim=3))
    keep = valid.to(l1.dtype)
    return LossParts((l1 * keep).sum(dim=(0, 2)), (cosine * keep).sum(dim=(0, 2)), valid.sum())
