"""From hidden states to a task's outputs: the layers that it hears, and its head."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distilled_student.common.processes import count_processes, summed
from distilled_student.multitask.pooling import Pooling
from distilled_student.student.lengths import frame_mask, is_exporting, zero_padding

WEIGHTED = "weighted"


class LayerChoice(nn.Module):
    """Of layers side by side, ``(..., layers * features)``, what a task hears: ``(..., features)``.

    ``choice``: the number of a layer, None for all of them side by side, or ``weighted``: their sum under the softmax
    of a weight each, learned and equal at first (SUPERB, arXiv 2105.01051, section 3; s3prl's ``Featurizer``).
    """

    def __init__(self, layers: int, choice: int | str | None) -> None:
        super().__init__()
        self.layers, self.choice = layers, choice
        if choice == WEIGHTED:
            self.weights = nn.Parameter(torch.zeros(layers))

    def forward(self, features: Tensor) -> Tensor:
        if self.choice is None:
            return features
        layers = features.unflatten(-1, (self.layers, -1))
        if self.choice == WEIGHTED:
            return self.weights.softmax(dim=0) @ layers.float()
        return layers[..., self.choice, :]


class Standardize(nn.BatchNorm1d):
    """Batch norm without weights; in training over all processes' batches (torch's `SyncBatchNorm` is for GPUs alone).

    ``alone``: this process's batches only, where the others do not take part.
    """

    alone = False

    def __init__(self, features: int) -> None:
        super().__init__(features, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, features)``. A batch that is not finite, whose step is skipped, leaves the statistics alone."""
        if not self.training:
            return super().forward(x)
        self.num_batches_tracked += 1
        momentum = 1 / int(self.num_batches_tracked) if self.momentum is None else self.momentum
        statistics = self.running_mean.clone(), self.running_var.clone()
        if self.alone or count_processes() == 1:
            y = F.batch_norm(x, *statistics, training=True, momentum=momentum, eps=self.eps)
        else:
            y = self._together(x, *statistics, momentum)
        finite = torch.stack([part.isfinite().all() for part in statistics]).all()
        for buffer, part in zip((self.running_mean, self.running_var), statistics, strict=True):
            buffer.copy_(torch.where(finite, part, buffer))
        return y

    def _together(self, x: Tensor, running_mean: Tensor, running_var: Tensor, momentum: float) -> Tensor:
        from torch.distributed.nn.functional import all_reduce  # gradients go through it

        count = summed(x.new_tensor(float(len(x))))
        mean = all_reduce(x.sum(0)) / count
        variance = all_reduce((x - mean).square().sum(0)) / count
        with torch.no_grad():
            running_mean.lerp_(mean, momentum)
            running_var.lerp_(variance * count / (count - 1), momentum)
        return (x - mean) * torch.rsqrt(variance + self.eps)


class LinearHead(nn.Module):
    """The paper's: frames pooled, standardised where that is asked for, and one linear layer."""

    def __init__(self, features: int, outputs: int, pooling: str = "mean", standardize: bool = False) -> None:
        super().__init__()
        self.pooling = Pooling(pooling, features)
        size = self.pooling.output_size
        self.standardize = Standardize(size) if standardize else nn.Identity()
        self.linear = nn.Linear(size, outputs)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """``(batch, frames, features)`` + lengths in frames -> ``(batch, outputs)``, as of every head."""
        return self.linear(self.standardize(self.pooling(x, lengths)))


class ProjectionHead(nn.Module):
    """SUPERB's for keywords: each frame to ``size`` features, pooled, one linear layer; nothing nonlinear.

    s3prl: ``projector`` in downstream/speech_commands/expert.py and ``UtteranceLevel`` in downstream/model.py.
    """

    def __init__(self, features: int, outputs: int, pooling: str = "mean", size: int = 256) -> None:
        super().__init__()
        self.projector = nn.Linear(features, size)
        self.pooling = Pooling(pooling, size)
        self.linear = nn.Linear(self.pooling.output_size, outputs)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        x = zero_padding(x, frame_mask(lengths.to(x.device), x.shape[1]))
        return self.linear(self.pooling(self.projector(x), lengths))


class XVectorHead(nn.Module):
    """SUPERB's for speakers: an x-vector, five convolutions over time, pooled, two layers of which the first counts.

    Training gets the output of the second layer, evaluation the embedding, that of the first. s3prl:
    downstream/sv_voxceleb1/model.py (``Model``, ``XVector``, ``UtteranceExtractor``), after Snyder et al., "X-vectors:
    Robust DNN embeddings for speaker recognition", ICASSP 2018. Its statistics have the sample's deviation.
    """

    CONTEXT = ((5, 1), (3, 2), (3, 3), (1, 1), (1, 1))  # frames and their distance, of each convolution
    LOST = sum((size - 1) * distance for size, distance in CONTEXT)  # frames less after them than before: 14

    def __init__(self, features: int, outputs: int, pooling: str = "mean_std", pooled: int = 1500) -> None:
        super().__init__()
        self.connector = nn.Linear(features, outputs)
        widths = [outputs] * (len(self.CONTEXT) - 1) + [pooled]
        self.convolutions = nn.ModuleList(
            nn.Conv1d(outputs, width, size, dilation=distance)
            for width, (size, distance) in zip(widths, self.CONTEXT, strict=True)
        )
        self.pooling = Pooling(pooling, pooled, correction=1)
        self.embedding = nn.Linear(self.pooling.output_size, outputs)
        self.output = nn.Linear(outputs, outputs)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        # the last frame in place of padding, and repeated where an utterance is shorter than what the convolutions see
        enough = x.shape[1] + self.LOST if is_exporting() else max(x.shape[1], self.LOST + 1)  # graphs may lack max
        index = torch.arange(enough, device=x.device).minimum(lengths.to(x.device)[:, None] - 1)
        x = self.connector(x.gather(1, index[:, :, None].expand(-1, -1, x.shape[2]))).transpose(1, 2)
        for convolution in self.convolutions:
            x = convolution(x).relu()
        valid = (lengths - self.LOST).clamp(min=1)
        embedding = self.embedding(self.pooling(x.transpose(1, 2), valid)).relu()
        return self.output(embedding).relu() if self.training else embedding


HEADS = ("linear", "projection", "xvector")


def make_head(settings: Any, features: int, outputs: int) -> nn.Module:
    """The head that a task's settings name, of ``features`` a frame; `HEADS` are their names."""
    if settings.head == "xvector":
        return XVectorHead(features, outputs, settings.pooling)
    if settings.head == "projection":
        return ProjectionHead(features, outputs, settings.pooling)
    return LinearHead(features, outputs, settings.pooling, settings.standardize)
