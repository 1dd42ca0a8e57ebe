"""Product quantisation: the rotation, the codebooks' bits, codes and the error, each against a plain computation."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from distilled_student.distillation.code_cache import quantization_error
from distilled_student.distillation.quantizer import Quantizer, assign_components, train_quantizer, wanted_bits


def correlated_states(frames: int = 1500, features: int = 24, seed: int = 0) -> torch.Tensor:
    """Features that depend on six hidden variables, with noise; one has values of several hundred."""
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(99).standard_normal((6, features))
    states = rng.standard_normal((frames, 6)) @ mixing + 0.1 * rng.standard_normal((frames, features))
    states[:, 3] = 400 + 60 * states[:, 3]
    return torch.from_numpy(states.astype(np.float32))


def small_quantizer(books: int, width: int, features: int) -> Quantizer:
    rng = torch.Generator().manual_seed(2)
    rotation = torch.linalg.qr(torch.randn(books * width, books * width, generator=rng)).Q[:features]
    mean, scale = torch.randn(features, generator=rng), torch.rand(features, generator=rng) + 0.5
    return Quantizer(mean, scale, rotation, torch.randn(books, 256, width, generator=rng))


def in_numpy(quantizer: Quantizer) -> list[np.ndarray]:
    return [getattr(quantizer, name).double().numpy() for name in ("mean", "scale", "rotation", "entries")]


def test_decoding_rotates_the_chosen_entries_back() -> None:
    quantizer, rng = small_quantizer(3, 2, 5), np.random.default_rng(0)
    codes = rng.integers(0, 256, (2, 4, 3)).astype(np.uint8)
    found = quantizer.decode(torch.from_numpy(codes)).numpy()
    mean, scale, rotation, entries = in_numpy(quantizer)
    for row, frame in itertools.product(range(2), range(4)):
        components = np.concatenate([entries[book, codes[row, frame, book]] for book in range(3)])
        expected = mean + scale * (rotation @ components)
        np.testing.assert_allclose(found[row, frame], expected, rtol=1e-5, atol=1e-5)


def test_a_code_is_the_nearest_entry_of_its_group_of_components() -> None:
    quantizer = small_quantizer(3, 2, 5)
    frames = torch.randn(1030, 5, generator=torch.Generator().manual_seed(1))  # more than are encoded at a time
    codes = quantizer.encode(frames)
    assert codes.dtype == torch.uint8 and codes.shape == (1030, 3)
    mean, scale, rotation, entries = in_numpy(quantizer)
    for frame in (0, 1, 1023, 1024, 1029):
        components = rotation.T @ ((frames[frame].double().numpy() - mean) / scale)
        for book in range(3):
            distances = np.square(entries[book] - components[2 * book : 2 * book + 2]).sum(axis=1)
            assert codes[frame, book] == distances.argmin()
    assert quantizer.encode(frames[:0]).shape == (0, 3)


@pytest.mark.parametrize("total", [1, 16, 400])
def test_bits_are_those_of_reverse_water_filling(total: int) -> None:
    variances = np.random.default_rng(3).exponential(size=40) ** 3
    low, high = 1e-300, float(variances.max())  # bisection of the level
    for _ in range(2000):
        level = np.sqrt(low) * np.sqrt(high)
        bits = np.maximum(0.5 * np.log2(variances / level), 0)
        low, high = (level, high) if bits.sum() > total else (low, level)
    np.testing.assert_allclose(wanted_bits(torch.from_numpy(variances), total).numpy(), bits, atol=1e-6)


def test_the_codebooks_get_similar_numbers_of_bits_and_different_columns() -> None:
    bits = np.random.default_rng(4).exponential(size=30)
    columns = assign_components(torch.from_numpy(bits), 8, 4).numpy()
    assert len(set(columns)) == 30 and columns.min() >= 0 and columns.max() < 32
    load = np.bincount(columns // 4, weights=bits, minlength=8)
    assert np.ptp(load) < 0.2 * load.mean() or load.max() == bits.max()


def test_the_rotation_has_the_principal_directions_of_the_scaled_features() -> None:
    states = correlated_states()
    quantizer = train_quantizer(states, 5)  # 24 features, 25 columns
    mean, scale, rotation, entries = in_numpy(quantizer)
    expected = states.double().numpy()
    np.testing.assert_allclose(mean, expected.mean(axis=0), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(scale, np.sqrt(expected.std(axis=0)), rtol=1e-4)
    assert rotation.shape == (24, 25) and entries.shape == (5, 256, 5)
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(24), atol=1e-5)
    components = (expected - mean) / scale @ rotation
    covariance = components.T @ components / len(components)
    variances = np.linalg.svd((expected - mean) / scale, compute_uv=False) ** 2 / len(expected)
    np.testing.assert_allclose(np.sort(np.diag(covariance))[:0:-1], variances, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(covariance, np.diag(np.diag(covariance)), atol=1e-3)


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


def test_codebooks_are_the_same_for_the_same_seed_and_fit_few_or_constant_frames() -> None:
    states = correlated_states(100)
    states[:, 0] = 5.0
    for codebooks in (2, 30):  # 30: more than features
        one, two = (train_quantizer(states, codebooks) for _ in range(2))
        assert torch.equal(one.entries, two.entries)
        assert torch.isfinite(one.decode(one.encode(states))).all()
        np.testing.assert_allclose(one.decode(one.encode(states))[:, 0].numpy(), 5.0, atol=1e-3)
    with pytest.raises(ValueError, match="need frames"):
        train_quantizer(states[:0], 2)
