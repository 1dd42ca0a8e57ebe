"""From hidden states to the outputs of a task: the choice of layers, and the head."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distilled_student.common.processes import count_processes, sum_over_processes
from distilled_student.multitask.pooling import Pooling
from distilled_student.multitask.tasks.settings import WEIGHTED
from distilled_student.student.lengths import frame_mask, zero_padding
from distilled_student.student.run_mode import is_exporting


class LayerChoice(nn.Module):
    """The layers that a task uses: concatenated layers ``(..., layers * features)`` -> ``(..., features)``.

    ``choice``: the number of a layer; None: all layers, still concatenated; ``weighted``: the sum of all layers, with
    the softmax of learned weights, equal at first (SUPERB, arXiv 2105.01051, section 3; s3prl's ``Featurizer``).
    ``branches``: the number of further layers after these, which are used by number only.
    """

    def __init__(self, layers: int, choice: int | str | None, branches: int = 0) -> None:
        super().__init__()
        self.layers, self.choice, self.branches = layers, choice, branches
        if choice == WEIGHTED:
            self.weights = nn.Parameter(torch.zeros(layers))

    def forward(self, features: Tensor) -> Tensor:
        if self.choice is None and not self.branches:
            return features
        layers = features.unflatten(-1, (self.layers + self.branches, -1))
        if self.choice is None:
            return layers[..., : self.layers, :].flatten(-2)
        if self.choice == WEIGHTED:
            return self.weights.softmax(dim=0) @ layers[..., : self.layers, :].float()
        return layers[..., self.choice, :]


class Standardize(nn.BatchNorm1d):
    """Batch norm without weights, in training over the batches of all processes.

    torch's `SyncBatchNorm` does the same, but on GPUs only.

    Attributes:
        this_process_only: Whether only the batches of this process count, because the other processes do not take part.
    """

    this_process_only = False

    def __init__(self, features: int) -> None:
        super().__init__(features, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, features)`` -> ``(batch, features)``. A batch that is not finite does not change the statistics.

        The runner skips the optimizer step of such a batch too.
        """
        if not self.training:
            return super().forward(x)
        self.num_batches_tracked += 1
        momentum = 1 / int(self.num_batches_tracked) if self.momentum is None else self.momentum
        statistics = self.running_mean.clone(), self.running_var.clone()
        if self.this_process_only or count_processes() == 1:
            y = F.batch_norm(x, *statistics, training=True, momentum=momentum, eps=self.eps)
        else:
            y = self._over_processes(x, *statistics, momentum)
        finite = torch.stack([part.isfinite().all() for part in statistics]).all()
        for buffer, part in zip((self.running_mean, self.running_var), statistics, strict=True):
            buffer.copy_(torch.where(finite, part, buffer))
        return y

    def _over_processes(self, x: Tensor, running_mean: Tensor, running_var: Tensor, momentum: float) -> Tensor:
        from torch.distributed.nn.functional import all_reduce  # this one has a gradient

        count = sum_over_processes(x.new_tensor(float(len(x))))
        mean = all_reduce(x.sum(0)) / count
        variance = all_reduce((x - mean).square().sum(0)) / count
        with torch.no_grad():
            running_mean.lerp_(mean, momentum)
            running_var.lerp_(variance * count / (count - 1), momentum)
        return (x - mean) * torch.rsqrt(variance + self.eps)


class LinearHead(nn.Module):
    """The paper's head: pooled frames, standardised if ``standardize`` is set, and one linear layer."""

    def __init__(self, features: int, outputs: int, pooling: str = "mean", standardize: bool = False) -> None:
        super().__init__()
        self.pooling = Pooling(pooling, features)
        size = self.pooling.output_size
        self.standardize = Standardize(size) if standardize else nn.Identity()
        self.linear = nn.Linear(size, outputs)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """``(batch, frames, features)`` and lengths in frames -> ``(batch, outputs)``, as in every head."""
        return self.linear(self.standardize(self.pooling(x, lengths)))


class PooledHead(nn.Module):
    """The pooled frames themselves, standardised if ``standardize`` is set.

    With it the weights of the speaker loss are the only linear layer, as in the paper ("one linear layer per task").
    """

    def __init__(self, features: int, pooling: str = "mean", standardize: bool = False) -> None:
        super().__init__()
        self.pooling = Pooling(pooling, features)
        self.standardize = Standardize(self.pooling.output_size) if standardize else nn.Identity()

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """``(batch, frames, features)`` and lengths in frames -> ``(batch, pooling.output_size)``."""
        return self.standardize(self.pooling(x, lengths))


class ProjectionHead(nn.Module):
    """SUPERB's head for keywords: each frame is projected to ``size`` features and pooled; one linear layer follows.

    There is no nonlinearity. s3prl: ``projector`` in downstream/speech_commands/expert.py and ``UtteranceLevel`` in
    downstream/model.py.
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
    """SUPERB's head for speakers, an x-vector: five convolutions over time, pooling, two linear layers.

    The output is that of the second linear layer in training, and that of the first, the embedding, in evaluation.
    s3prl: downstream/sv_voxceleb1/model.py (``Model``, ``XVector``, ``UtteranceExtractor``), after Snyder et al.,
    "X-vectors: Robust DNN embeddings for speaker recognition", ICASSP 2018. The pooling uses the standard deviation of
    the sample.
    """

    KERNELS = ((5, 1), (3, 2), (3, 3), (1, 1), (1, 1))  # size and dilation of each convolution
    LOST_FRAMES = sum((size - 1) * dilation for size, dilation in KERNELS)  # by which convolutions shorten: 14

    def __init__(self, features: int, outputs: int, pooling: str = "mean_std", pooled: int = 1500) -> None:
        super().__init__()
        self.connector = nn.Linear(features, outputs)
        widths = [outputs] * (len(self.KERNELS) - 1) + [pooled]
        self.convolutions = nn.ModuleList(
            nn.Conv1d(outputs, width, size, dilation=dilation)
            for width, (size, dilation) in zip(widths, self.KERNELS, strict=True)
        )
        self.pooling = Pooling(pooling, pooled, correction=1)
        self.embedding = nn.Linear(self.pooling.output_size, outputs)
        self.output = nn.Linear(outputs, outputs)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        # The last frame replaces padding, and is repeated if the utterance is shorter than the convolutions need. In an
        # exported graph it is always repeated, because some runtimes have no max.
        frames = x.shape[1] + self.LOST_FRAMES if is_exporting() else max(x.shape[1], self.LOST_FRAMES + 1)
        index = torch.arange(frames, device=x.device).minimum(lengths.to(x.device)[:, None] - 1)
        x = self.connector(x.gather(1, index[:, :, None].expand(-1, -1, x.shape[2]))).transpose(1, 2)
        for convolution in self.convolutions:
            x = convolution(x).relu()
        valid = (lengths - self.LOST_FRAMES).clamp(min=1)
        embedding = self.embedding(self.pooling(x.transpose(1, 2), valid)).relu()
        return self.output(embedding).relu() if self.training else embedding


def make_head(settings: Any, features: int, outputs: int) -> nn.Module:
    """The head that the settings of a task name, one of `HEADS`, for ``features`` per frame.

    ``outputs``: Features of its output; those of ``pooled`` follow from the pooling.
    """
    if settings.head == "pooled":
        return PooledHead(features, settings.pooling, settings.standardize)
    if settings.head == "xvector":
        return XVectorHead(features, outputs, settings.pooling)
    if settings.head == "projection":
        return ProjectionHead(features, outputs, settings.pooling)
    return LinearHead(features, outputs, settings.pooling, settings.standardize)
