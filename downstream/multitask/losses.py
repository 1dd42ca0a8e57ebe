"""Losses that classify speakers by their embeddings: softmax, and three margins on the angle."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distilled_student.multitask.contrastive import ContrastiveLoss
from distilled_student.multitask.tasks.settings import LossSettings


def angular_psi(cosine: Tensor, margin: int) -> Tensor:
    """psi(theta) = (-1)^k cos(margin * theta) - 2k with k = floor(margin * theta / pi): monotonic on [0, pi].

    Liu et al., SphereFace, arXiv 1704.08063, eq. 6. cos(margin * theta) is computed as a polynomial in cos(theta),
    because the gradient of acos is infinite at 0 and pi.
    """
    multiple = {
        1: cosine,
        2: 2 * cosine**2 - 1,
        3: 4 * cosine**3 - 3 * cosine,
        4: 8 * cosine**4 - 8 * cosine**2 + 1,
    }[margin]
    with torch.no_grad():
        k = (margin * cosine.clamp(-1, 1).acos() / math.pi).floor().clamp(max=margin - 1)
        sign = 1 - 2 * k.remainder(2)
    return sign * multiple - 2 * k


def am_cosine(cosine: Tensor, margin: float | Tensor) -> Tensor:
    """cos(theta) - margin. Wang et al., AM-Softmax, arXiv 1801.05599, eq. 6 (CosFace, 1801.09414, is the same)."""
    return cosine - margin


def aam_cosine(cosine: Tensor, margin: float | Tensor) -> Tensor:
    """cos(theta + margin) up to theta = pi - margin, then cos(theta) - margin * sin(margin), which keeps falling.

    Deng et al., ArcFace, arXiv 1801.07698, eq. 3; the second part is that of the published code.
    """
    cos, sin = (torch.cos, torch.sin) if isinstance(margin, Tensor) else (math.cos, math.sin)
    sine = (1 - cosine.square()).clamp(min=1e-12).sqrt()
    shifted = cosine * cos(margin) - sine * sin(margin)
    return torch.where(cosine > cos(math.pi - margin), shifted, cosine - margin * sin(margin))


class SpeakerLoss(nn.Module):
    """Embeddings ``(batch, embedding)`` and labels ``(batch,)`` -> the mean cross-entropy over the training speakers.

    Attributes:
        weight: ``(speakers, embedding)``, one weight vector per training speaker.
        step: The step of the annealing and of the margin's schedule; a buffer, so that a resumed run continues with it.
        contrastive: The further loss that ``settings.contrastive`` names, or None.
    """

    def __init__(self, settings: LossSettings, embedding: int, speakers: int) -> None:
        super().__init__()
        self.settings = settings
        self.weight = nn.Parameter(nn.init.xavier_normal_(torch.empty(speakers, embedding)))
        self.bias = nn.Parameter(torch.zeros(speakers)) if settings.name == "softmax" else None
        self.contrastive = None if settings.contrastive is None else ContrastiveLoss(settings.contrastive)
        self.register_buffer("step", torch.zeros((), dtype=torch.long))

    def annealing(self) -> Tensor:
        """lambda of the angular softmax: large at first, which means no margin, and falling to ``anneal_stop``.

        SphereFace, section 4.1 and its published code: logit = (lambda cos(theta) + psi(theta)) / (1 + lambda). With
        the published ``anneal_stop`` of 5, reached after 1,659 steps, it ends at (5 cos(theta) + psi(theta)) / 6:
        training never reaches the full margin.
        """
        s = self.settings
        return (s.anneal_start / (1 + s.anneal_decay * self.step)).clamp(min=s.anneal_stop)

    def margin(self) -> float | Tensor:
        """The margin of ``am`` and ``aam`` at this step: it rises linearly over ``margin_warmup`` steps."""
        full, warmup = self.settings.full_margin, self.settings.margin_warmup
        return full * (self.step / warmup).clamp(max=1.0) if warmup else full

    def cosines(self, embedding: Tensor) -> Tensor:
        """``(batch, speakers)`` cosines of embeddings and speaker weights."""
        return F.linear(F.normalize(embedding, dim=1), F.normalize(self.weight, dim=1)).clamp(-1.0, 1.0)

    def logits(self, embedding: Tensor, labels: Tensor) -> Tensor:
        """``(batch, speakers)``; the margin is applied to the speaker of the label only."""
        s = self.settings
        if s.name == "softmax":
            return F.linear(embedding, self.weight, self.bias) * s.factor
        cosine = self.cosines(embedding)
        target = cosine.gather(1, labels[:, None])
        if s.name == "angular":
            lambda_ = self.annealing()
            target = (lambda_ * target + angular_psi(target, int(s.full_margin))) / (1 + lambda_)
        else:
            target = (am_cosine if s.name == "am" else aam_cosine)(target, self.margin())
        scale = embedding.norm(dim=1, keepdim=True) if s.factor is None else s.factor
        return cosine.scatter(1, labels[:, None], target) * scale

    def forward(self, embedding: Tensor, labels: Tensor) -> Tensor:
        with torch.autocast(embedding.device.type, enabled=False):  # half precision is too coarse for margins
            loss = F.cross_entropy(self.logits(embedding.float(), labels), labels)
        if self.contrastive is not None:
            loss = loss + self.settings.contrastive_weight * self.contrastive(embedding, labels)
        if self.training:
            self.step += 1
        return loss
