"""Additive vector quantisation: a frame of features as a few bytes, each of which selects an entry of a codebook.

Our own few lines of torch: `multi_quantization` has not been released since 2022, `vector-quantize-pytorch` makes
layers that are trained with a network, and faiss (17 MB) brings an OpenMP of its own into a process that trains.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

ENTRIES = 256  # of a codebook, so that a code is a byte
BEAM = 4  # hypotheses that the encoder keeps
KMEANS_ROUNDS, REFINEMENTS = 6, 3
CHUNK = 1024  # frames that are encoded at a time
FITTED_TOGETHER = 16  # codebooks; the work rises with the cube of their number, the memory with its square


@dataclass
class Quantizer:
    """Codebooks of one layer: a frame is ``mean + scale * (the sum of one entry of each codebook)``.

    The scale of a feature is the square root of its standard deviation. Entries are fitted to least squares of scaled
    features, and this scale makes a feature count there as it does in an L1 distance of unscaled features. Without a
    scale the few features with values of several hundred that transformers have would take all codes.

    Attributes:
        mean, scale: ``(features,)``.
        entries: ``(codebooks, ENTRIES, features)``, of scaled features.
    """

    mean: Tensor
    scale: Tensor
    entries: Tensor

    def encode(self, states: Tensor) -> Tensor:
        """``(frames, features)`` -> codes ``(frames, codebooks)``, bytes; the best ones that a beam search finds."""
        scaled = (states.to(self.mean) - self.mean) / self.scale
        return torch.cat([_search(self.entries, chunk) for chunk in scaled.split(CHUNK)] or [_no_codes(self.entries)])

    def decode(self, codes: Tensor) -> Tensor:
        """Codes ``(..., codebooks)`` -> states ``(..., features)``, float32."""
        found = _sum_entries(self.entries * self.scale, codes.long().flatten(0, -2))
        return (found + self.mean).reshape(*codes.shape[:-1], len(self.mean))

    def to(self, device: torch.device) -> Quantizer:
        """The same on a device."""
        return Quantizer(self.mean.to(device), self.scale.to(device), self.entries.to(device))


def _sum_entries(entries: Tensor, codes: Tensor) -> Tensor:
    """The sums ``(frames, features)`` of one entry of each codebook; ``codes``: ``(frames, codebooks)``, int64."""
    books, size, features = entries.shape
    first = torch.arange(books, device=codes.device) * size
    return F.embedding_bag(codes + first, entries.reshape(books * size, features), mode="sum")


def _no_codes(entries: Tensor) -> Tensor:
    return torch.zeros(0, len(entries), dtype=torch.uint8, device=entries.device)


def _search(entries: Tensor, frames: Tensor) -> Tensor:
    """Codes ``(frames, codebooks)`` of scaled frames ``(frames, features)``.

    Codebook after codebook, each frame keeps the `BEAM` choices with the smallest squared distance so far.
    """
    rest = frames[:, None]  # (frames, hypotheses, features): what the chosen entries leave
    codes = torch.zeros(len(frames), 1, 0, dtype=torch.long, device=frames.device)
    for book in entries:
        distances = _distances(rest, book)
        best = distances.flatten(1).topk(min(BEAM, distances[0].numel()), dim=1, largest=False).indices
        hypothesis, code = best // len(book), best % len(book)
        rest = rest.gather(1, hypothesis[:, :, None].expand(-1, -1, rest.shape[2])) - book[code]
        codes = codes.gather(1, hypothesis[:, :, None].expand(-1, -1, codes.shape[2]))
        codes = torch.cat([codes, code[:, :, None]], dim=2)
    return codes[:, 0].to(torch.uint8)  # topk sorts: the first one is the best


def _distances(frames: Tensor, book: Tensor) -> Tensor:
    """Squared distances ``(..., entries)`` of frames ``(..., features)`` to the entries of a codebook."""
    return frames.square().sum(dim=-1, keepdim=True) - 2 * frames @ book.T + book.square().sum(dim=1)


def train_quantizer(states: Tensor, codebooks: int, seed: int = 0) -> Quantizer:
    """Fit a quantiser to ``states (frames, features)``.

    Each codebook is fitted by k-means to what the codebooks before it leave. Then, a few times, the frames are encoded
    and the codebooks fitted again by least squares, `FITTED_TOGETHER` of them at a time to what the others leave
    (Babenko and Lempitsky 2014, additive quantisation).

    Raises:
        ValueError: there are no frames.
    """
    if len(states) == 0:
        raise ValueError("codebooks need frames to be trained on")
    states, rng = states.float(), torch.Generator().manual_seed(seed)
    mean, scale = states.mean(dim=0), states.std(dim=0, correction=0).clamp(min=1e-5).sqrt()
    scaled = (states - mean) / scale
    rest, books = scaled.clone(), []
    for _ in range(codebooks):
        book = _kmeans(rest, rng)
        rest -= book[_distances(rest, book).argmin(dim=1)]
        books.append(book)
    quantizer = Quantizer(mean, scale, torch.stack(books))
    for _ in range(REFINEMENTS):
        codes = quantizer.encode(states).long()
        rest = scaled - _sum_entries(quantizer.entries, codes)
        for group in torch.arange(codebooks).split(FITTED_TOGETHER):
            rest += _sum_entries(quantizer.entries[group], codes[:, group])
            quantizer.entries[group] = _fit(quantizer.entries[group], rest, codes[:, group])
            rest -= _sum_entries(quantizer.entries[group], codes[:, group])
    return quantizer


def _kmeans(frames: Tensor, rng: torch.Generator) -> Tensor:
    """The entries ``(ENTRIES, features)`` of one codebook. An entry without frames is drawn again."""
    drawn = torch.randint(len(frames), (KMEANS_ROUNDS + 1, ENTRIES), generator=rng).to(frames.device)
    book = frames[drawn[0]]
    for number in range(1, KMEANS_ROUNDS + 1):
        nearest = _distances(frames, book).argmin(dim=1)
        count = torch.bincount(nearest, minlength=ENTRIES)[:, None]
        sums = torch.zeros_like(book).index_add_(0, nearest, frames)
        book = torch.where(count > 0, sums / count.clamp(min=1), frames[drawn[number]])
    return book


def _fit(entries: Tensor, frames: Tensor, codes: Tensor) -> Tensor:
    """The entries of all codebooks that reconstruct the frames best from their codes, in the sense of least squares.

    Minimises ``|frames - sum of entries|^2 + |entries - entries before|^2``. The second term decides where the first
    one leaves a choice, as for entries that no frame uses.
    """
    books, size, features = entries.shape
    before, count = entries.reshape(-1, features), books * size
    used = codes + torch.arange(books, device=codes.device) * size  # (frames, codebooks): rows of `before`
    together = torch.eye(count, device=frames.device)  # how many frames use both of two entries
    for first in range(books):
        for second in range(books):
            pairs = torch.bincount(codes[:, first] * size + codes[:, second], minlength=size * size)
            block = slice(first * size, (first + 1) * size), slice(second * size, (second + 1) * size)
            together[block] += pairs.reshape(size, size)
    sums = before.clone()
    for book in range(books):
        sums.index_add_(0, used[:, book], frames)
    return torch.cholesky_solve(sums, torch.linalg.cholesky(together)).reshape_as(entries)
