"""The range of samples: floats in [-1, 1]. Samples of 16 bits that nobody divided by 32768 are recognised."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, nn

# torch is imported by the function that needs it: devices have none

# Mixtures, noise and gain may exceed 1 by some decibels: 8 are 18 dB. Speech of 16 bits that was not divided by 32768
# has a peak of more than 8, unless it is 72 dB below full scale.
MAX_PEAK = 8.0
# Of channels without correlation the average has 1 / channels of their energy; of channels that cancel, less than 2 %
# of that. Channels with a mean square below -80 dB are silent.
MIN_SHARE_OF_UNCORRELATED, SILENT = 0.02, 1e-8


def wrong_type(samples: Tensor) -> str | None:
    """What is wrong with the type of samples, and the remedy; None if they are floats."""
    if samples.is_floating_point():
        return None
    name = str(samples.dtype).removeprefix("torch.")
    remedy = {"int16": "divide by 32768", "int32": "divide by 2147483648"}.get(name, "convert them")
    return f"expected floats in [-1, 1], found {name}: {remedy}"


def wrong_range(samples: Tensor) -> str | None:
    """What is wrong with the largest of some samples, and the remedy; None if they are in the range. Reads values."""
    import torch

    if samples.numel() == 0:
        return None
    return wrong_peak(float(torch.stack(samples.detach().aminmax()).abs().max()))


def wrong_peak(peak: float) -> str | None:
    """What is wrong with the largest absolute value of some samples, NaN if any is NaN, and the remedy, or None."""
    if peak <= MAX_PEAK:
        return None
    if not peak < float("inf"):  # NaN too
        return "holds NaN or infinite samples"
    return f"a peak of {peak:g}, but samples are in [-1, 1]: divide samples of 16 bits by 32768"


def skip_range_check(model: nn.Module) -> None:
    """Let a model's parts no longer check the peak of waveforms, for a training: files were checked when read."""
    for part in model.modules():
        if hasattr(part, "checks_range"):
            part.checks_range = False


def cancelling_channels(channels: int, mean_square: float, mean_square_of_average: float) -> str | None:
    """Why channels must not be averaged, and the remedy; None if they may.

    Args:
        mean_square: Of all samples of all channels.
    """
    share = mean_square_of_average * channels
    if channels < 2 or mean_square <= SILENT or share >= MIN_SHARE_OF_UNCORRELATED * mean_square:
        return None
    return f"its {channels} channels cancel each other, as in opposite phase: keep one of them, or invert one"
