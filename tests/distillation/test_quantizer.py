"""Additive quantisation: decoding, the beam search, the joint fit and the error, each against a plain computation."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from distilled_student.distillation import quantizer as module
from distilled_student.distillation.code_cache import quantization_error
from distilled_student.distillation.quantizer import Quantizer, train_quantizer


def correlated_states(frames: int = 1500, features: int = 24, seed: int = 0) -> torch.Tensor:
    """Features that depend on six hidden variables, with noise; one has values of several hundred."""
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(99).standard_normal((6, features))
    states = rng.standard_normal((frames, 6)) @ mixing + 0.1 * rng.standard_normal((frames, features))
    states[:, 3] = 400 + 60 * states[:, 3]
    return torch.from_numpy(states.astype(np.float32))


def small_quantizer(books: int, size: int, features: int = 5) -> Quantizer:
    rng = torch.Generator().manual_seed(2)
    entries = torch.randn(books, size, features, generator=rng)
    return Quantizer(torch.randn(features, generator=rng), torch.rand(features, generator=rng) + 0.5, entries)


def test_decoding_sums_one_entry_of_each_codebook() -> None:
    quantizer, rng = small_quantizer(3, 256), np.random.default_rng(0)
    codes = rng.integers(0, 256, (2, 4, 3)).astype(np.uint8)
    found = quantizer.decode(torch.from_numpy(codes)).numpy()
    entries, mean, scale = (getattr(quantizer, name).double().numpy() for name in ("entries", "mean", "scale"))
    for row, frame in itertools.product(range(2), range(4)):
        total = sum(entries[book, codes[row, frame, book]] for book in range(3))
        np.testing.assert_allclose(found[row, frame], mean + scale * total, rtol=1e-5, atol=1e-5)


def test_a_wide_beam_finds_the_nearest_sum_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BEAM", 1000)
    quantizer, frames = small_quantizer(3, 6), torch.randn(20, 5, generator=torch.Generator().manual_seed(1))
    choices = np.array(list(itertools.product(range(6), repeat=3)))
    entries, mean, scale = (getattr(quantizer, name).double().numpy() for name in ("entries", "mean", "scale"))
    sums = sum(entries[book, choices[:, book]] for book in range(3))
    scaled = (frames.double().numpy() - mean) / scale
    nearest = choices[((scaled[:, None] - sums[None]) ** 2).sum(axis=2).argmin(axis=1)]
    codes = quantizer.encode(frames)
    assert codes.dtype == torch.uint8
    np.testing.assert_array_equal(codes.numpy(), nearest)


def test_a_beam_of_one_chooses_the_nearest_entry_in_each_codebook(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BEAM", 1)
    quantizer, frames = small_quantizer(4, 8), torch.randn(7, 5, generator=torch.Generator().manual_seed(1))
    scaled = (frames.double().numpy() - quantizer.mean.double().numpy()) / quantizer.scale.double().numpy()
    for frame, codes in zip(scaled, quantizer.encode(frames).tolist(), strict=True):
        rest = frame
        for book, code in zip(quantizer.entries.double().numpy(), codes, strict=True):
            assert code == np.square(rest - book).sum(axis=1).argmin()
            rest = rest - book[code]


def test_the_joint_fit_is_the_least_squares_solution() -> None:
    rng = torch.Generator().manual_seed(0)
    frames, codes = torch.randn(300, 4, generator=rng), torch.randint(7, (300, 3), generator=rng)
    before = torch.randn(3, 7, 4, generator=rng)
    design = np.zeros((300, 21))
    for book in range(3):
        design[np.arange(300), 7 * book + codes[:, book].numpy()] = 1
    matrix = np.concatenate([design, np.eye(21)])
    wanted = np.concatenate([frames.double().numpy(), before.reshape(21, 4).double().numpy()])
    expected = np.linalg.lstsq(matrix, wanted, rcond=None)[0].reshape(3, 7, 4)
    np.testing.assert_allclose(module._fit(before, frames, codes).numpy(), expected, atol=1e-5)


def test_more_codebooks_lose_less_of_other_frames() -> None:
    train, other = correlated_states(), correlated_states(300, seed=1)
    lost = []
    for books in (1, 4):
        quantizer = train_quantizer(train, books)
        codes = quantizer.encode(other)
        assert codes.shape == (300, books)
        found = quantization_error(other, quantizer.decode(codes))
        error = other.double().numpy() - quantizer.decode(codes).double().numpy()
        assert found.lost == pytest.approx(np.mean(error.var(axis=0) / other.double().numpy().var(axis=0)), rel=0.1)
        assert found.l1 == pytest.approx(np.abs(error).mean(), rel=1e-4)
        lost.append(found.lost)
    assert lost[1] < 0.5 * lost[0] and lost[1] < 0.15


def test_refinements_of_groups_of_codebooks_lessen_the_error_of_the_trained_frames(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    states, lost = correlated_states(3000), {}
    for together, rounds in ((2, 0), (2, 2), (4, 2)):
        monkeypatch.setattr(module, "ENTRIES", 32)
        monkeypatch.setattr(module, "FITTED_TOGETHER", together)
        monkeypatch.setattr(module, "REFINEMENTS", rounds)
        quantizer = train_quantizer(states, 4)
        lost[together, rounds] = quantization_error(states, quantizer.decode(quantizer.encode(states))).l1
    assert lost[2, 2] < 0.98 * lost[2, 0] and lost[4, 2] < 0.98 * lost[2, 0]


def test_codebooks_are_the_same_for_the_same_seed_and_fit_few_or_constant_frames() -> None:
    states = correlated_states(100)
    states[:, 0] = 5.0
    one, two = (train_quantizer(states, 2) for _ in range(2))
    assert torch.equal(one.entries, two.entries)
    assert torch.isfinite(one.decode(one.encode(states))).all()
    np.testing.assert_allclose(one.decode(one.encode(states))[:, 0].numpy(), 5.0, atol=1e-3)
    with pytest.raises(ValueError, match="need frames"):
        train_quantizer(states[:0], 2)
