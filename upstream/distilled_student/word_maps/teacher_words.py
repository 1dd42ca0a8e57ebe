"""Vectors of words from a teacher's hidden states, which the network of `WordMaps` learns to give."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from distilled_student.onnx.words import LEVEL_HOP, quiet_noise, speech_bounds
from distilled_student.teachers.encoders import Encoder
from distilled_student.word_maps.clips import WordFile

SEGMENTS = 8
PROJECTED = 40  # features of a projected frame
SIZE = 96  # of a word's vector
SHIFT = 0.12  # largest shift of the bounds of a clip's second copy, times its length
SHRINKAGE = (0.05, 0.1)  # of the covariance within a segment and within a word
BEFORE, BEHIND = 8000, 3200  # samples of quiet noise that a clip is between


def segment_means(x: Tensor, starts: Tensor, ends: Tensor, segments: int = SEGMENTS) -> Tensor:
    """The means of equal segments of windows, joined in their order.

    Args:
        x: ``(batch, frames, features)``.
        starts, ends: Of windows, in frames, ``(batch, windows)``.

    Returns:
        ``(batch, windows, segments * features)``.
    """
    sums = F.pad(x.cumsum(dim=1), (0, 0, 1, 0))
    bounds = starts[..., None] + (ends - starts)[..., None] * torch.arange(segments + 1) / segments
    before = bounds.long().clamp(0, x.shape[1] - 1)
    rows = torch.arange(len(x))[:, None, None]
    at_bounds = sums[rows, before] + (bounds - before)[..., None] * x[rows, before]
    return (at_bounds.diff(dim=2) / ((ends - starts) / segments)[..., None, None]).flatten(2)


@dataclass(frozen=True)
class TeacherWords:
    """Two linear discriminant analyses: of the parts of words, and of whole words, which are these parts in order.

    Attributes:
        mean, projection: Of a hidden state, ``(features,)`` and ``(features, PROJECTED)``.
        offset, mapping: Of the joined segments, ``(SEGMENTS * PROJECTED,)`` and ``(SEGMENTS * PROJECTED, SIZE)``.
    """

    mean: Tensor
    projection: Tensor
    offset: Tensor
    mapping: Tensor

    def project(self, hidden: Tensor) -> Tensor:
        """``(..., features)`` -> ``(..., PROJECTED)``."""
        return (hidden - self.mean) @ self.projection

    def vectors(self, projected: Tensor, starts: Tensor, ends: Tensor) -> Tensor:
        """The vectors ``(batch, windows, SIZE)``, of length 1, of windows; see `segment_means`."""
        return F.normalize((segment_means(projected, starts, ends) - self.offset) @ self.mapping, dim=-1)


@torch.no_grad()
def word_segments(encoder: Encoder, layer: int, files: Sequence[WordFile], seed: int = 0) -> NDArray[np.float32]:
    """The means of the segments of each word twice ``(files, 2, SEGMENTS, features)``; second with shifted bounds."""
    rng, quiet, rows = np.random.default_rng(seed), quiet_noise(BEFORE), []
    for one in files:
        samples = one.read()
        first, last = (bound * LEVEL_HOP + BEFORE for bound in speech_bounds(samples))
        shifted = rng.uniform(-SHIFT, SHIFT, 2) * (last - first)
        bounds = torch.tensor([[first, first + shifted[0]], [last, last + shifted[1]]]) / encoder.frame_shift
        around = torch.from_numpy(np.concatenate([quiet, samples, quiet[:BEHIND]]))
        hidden = encoder(around[None]).hidden_states[layer].float()
        bounds = bounds.float().clamp(0, hidden.shape[1])
        rows.append(segment_means(hidden, bounds[:1], bounds[1:])[0].unflatten(1, (SEGMENTS, -1)).numpy())
    return np.stack(rows)


def fit_words(segments: NDArray[np.float32], words: Sequence[str]) -> TeacherWords:
    """The analyses of the segments, see `word_segments`, of labelled ``words``."""
    features = segments.shape[-1]
    joined = np.concatenate([segments[:, 0], segments[:, 1]])
    mean, scale = joined.mean(axis=(0, 1)), joined.std(axis=(0, 1)) + 1e-6
    joined = (joined - mean) / scale
    classes = np.tile(np.unique(words, return_inverse=True)[1], 2)
    parts = (classes[:, None] * SEGMENTS + np.arange(SEGMENTS)).ravel()
    of_parts, projection, _ = discriminants(joined.reshape(-1, features), parts, PROJECTED, SHRINKAGE[0])
    joined = ((joined - of_parts) @ projection).reshape(len(joined), -1)
    offset, mapping, ratios = discriminants(joined, classes, SIZE, SHRINKAGE[1])
    mapping = mapping * np.sqrt(np.clip(1 - 1 / ratios, 0, 1))  # less weight for what varies as much within words
    arrays = (mean + of_parts * scale, projection / scale[:, None], offset, mapping)
    return TeacherWords(*(torch.from_numpy(array).float() for array in arrays))


def discriminants(rows: NDArray, classes: NDArray, size: int, shrinkage: float) -> tuple[NDArray, NDArray, NDArray]:
    """Linear discriminant analysis in which a class of n rows counts as much as the square root of n.

    Args:
        rows: ``(rows, features)``.
        classes: ``(rows,)``, numbers from 0.
        size: Directions to keep.
        shrinkage: Of the covariance within classes to a multiple of the identity (Ledoit and Wolf, 2004).

    Returns:
        The mean ``(features,)``; the directions ``(features, size)``, in which the variance within classes is 1; the
        total variances in them.
    """
    mean = rows.mean(axis=0)
    centred = rows - mean
    counts = np.bincount(classes)
    sums = np.zeros((len(counts), rows.shape[1]))
    np.add.at(sums, classes, centred)
    within = centred - (sums / counts[:, None].clip(min=1)).astype(rows.dtype)[classes]
    weights = (1 / np.sqrt(counts[classes])).astype(rows.dtype)
    inside = (within * weights[:, None]).T @ within / weights.sum()
    total = (centred * weights[:, None]).T @ centred / weights.sum()
    inside = (1 - shrinkage) * inside + shrinkage * np.trace(inside) / len(inside) * np.eye(len(inside))
    values, vectors = np.linalg.eigh(inside)
    whitening = vectors / np.sqrt(values)
    ratios, rotation = np.linalg.eigh(whitening.T @ total @ whitening)
    return mean, (whitening @ rotation[:, ::-1])[:, :size], ratios[::-1][:size]
