"""Losses that compare the embeddings of a batch with each other: GE2E and angular prototypical."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ContrastiveLoss(nn.Module):
    """Embeddings ``(batch, embedding)`` and labels ``(batch,)`` -> the mean loss over the queries, ``()``.

    Each query is classified among the speakers of the batch, by ``scale * cosine + offset`` with each speaker's
    centroid. Only speakers with two or more utterances in the batch take part; without two such speakers the loss is 0.

    ``ge2e``: every utterance is a query, and the centroid of its own speaker is that of the others' utterances (Wan et
    al., arXiv 1710.10467, eq. 6 and 8: softmax). ``prototypical``: the last utterance of each speaker is the query, and
    the others make the centroid (Chung et al., arXiv 2003.11982, eq. 7 to 9: angular prototypical).

    Args:
        kind: ``ge2e`` or ``prototypical``.

    Attributes:
        scale, offset: Learned; they start at the published 10 and -5. The scale stays positive.
    """

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.scale = nn.Parameter(torch.tensor(10.0))
        self.offset = nn.Parameter(torch.tensor(-5.0))

    def forward(self, embedding: Tensor, labels: Tensor) -> Tensor:
        with torch.autocast(embedding.device.type, enabled=False):
            return self._loss(F.normalize(embedding.float(), dim=1), labels)

    def _loss(self, x: Tensor, labels: Tensor) -> Tensor:
        _, speaker, counts = labels.unique(return_inverse=True, return_counts=True)
        several = counts >= 2
        if int(several.sum()) < 2:
            return 0.0 * (x.sum() + self.scale + self.offset)  # every process needs a gradient
        is_of = F.one_hot(speaker, len(counts)).to(x.dtype)[:, several]  # (batch, speakers)
        if self.kind == "prototypical":
            position = torch.arange(1, len(x) + 1, device=x.device)[:, None]
            queries = (is_of * position).argmax(dim=0)  # the last utterance of each speaker
            support = is_of.clone()
            support[queries, torch.arange(len(queries), device=x.device)] = 0.0
            cosines, right = _cosines(x[queries], support.T @ x), torch.arange(len(queries), device=x.device)
        else:
            kept = is_of.any(dim=1)
            x, is_of = x[kept], is_of[kept]
            sums = is_of.T @ x
            others = (is_of @ sums) - x  # the sum over the speaker's other utterances
            own = F.cosine_similarity(x, others, dim=1)
            cosines = torch.where(is_of.bool(), own[:, None], _cosines(x, sums))
            right = is_of.argmax(dim=1)
        return F.cross_entropy(self.scale.clamp(min=1e-6) * cosines + self.offset, right)


def _cosines(x: Tensor, centroids: Tensor) -> Tensor:
    """``(queries, speakers)``; the length of a centroid does not matter, so sums stand for means."""
    return F.normalize(x, dim=1) @ F.normalize(centroids, dim=1).T
