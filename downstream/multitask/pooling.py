"""Pooling of the valid frames of an utterance to one vector: mean or mean and deviation, plain or with attention."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from distilled_student.multitask.tasks.settings import POOLINGS
from distilled_student.student.lengths import frame_mask


class Pooling(nn.Module):
    """``(batch, frames, features)`` and ``lengths (batch,)`` in frames -> ``(batch, output_size)``.

    * ``mean``: average of the valid frames.
    * ``mean_std``: average and standard deviation, concatenated (Snyder et al., x-vectors, 2018); the deviation of the
      population, or with ``correction`` 1 of the sample.
    * ``attentive``: average weighted by softmax(v . tanh(W x + b)) over the valid frames: the attention and the
      weighted mean of Okabe et al. (arXiv 1803.10963, section 3), without their weighted deviation.
    * ``attentive_std``: their attentive statistics: that average and the deviation from it with the same weights,
      concatenated.

    Raises:
        ValueError: ``kind`` is none of these.
    """

    def __init__(self, kind: str, features: int, hidden: int = 128, correction: int = 0) -> None:
        super().__init__()
        if kind not in POOLINGS:
            raise ValueError(f"pooling: '{kind}' is not one of {', '.join(POOLINGS)}")
        self.kind, self.correction = kind, correction
        self.output_size = 2 * features if kind.endswith("_std") else features
        if kind.startswith("attentive"):
            self.attention = nn.Sequential(nn.Linear(features, hidden), nn.Tanh(), nn.Linear(hidden, 1, bias=False))

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        mask = frame_mask(lengths, x.shape[1], x.device).unsqueeze(2)
        # masked_fill, not a multiplication by the mask: NaN * 0 is NaN
        x = x.masked_fill(~mask, 0.0)
        if self.kind.startswith("attentive"):
            weights = self.attention(x).masked_fill(~mask, float("-inf")).softmax(dim=1)
            mean = (weights * x).sum(dim=1)
            if self.kind == "attentive":
                return mean
            return _with_deviation(mean, (weights * (x - mean[:, None]).square()).sum(dim=1))
        count = mask.sum(dim=1).to(x.dtype)
        mean = x.sum(dim=1) / count
        if self.kind == "mean":
            return mean
        centred = (x - mean[:, None]).masked_fill(~mask, 0.0)
        return _with_deviation(mean, centred.square().sum(dim=1) / (count - self.correction).clamp(min=1))


def _with_deviation(mean: Tensor, variance: Tensor) -> Tensor:
    """``(batch, features)`` each -> mean and standard deviation ``(batch, 2 * features)``."""
    # the clamp keeps the gradient of the square root finite if a feature does not vary (one frame, silence)
    return torch.cat([mean, variance.clamp(min=1e-20).sqrt()], dim=1)
