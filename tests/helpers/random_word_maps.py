"""Maps of words with random numbers, for tests."""

from __future__ import annotations

import numpy as np

from distilled_student.onnx.speakers import unit_length
from distilled_student.onnx.words import WordMaps


def random_maps(features: int, fingerprint: str = "") -> WordMaps:
    """Maps of 40 other words, with thresholds for 1 and 4 recordings."""
    rng = np.random.default_rng(5)
    shapes = network_shapes(features, width=6, blocks=2, taps=3, segments=3, size=8)
    shapes |= {"others": (40, 8), "speech": (2, 100, 6)}
    values = {name: rng.normal(size=shape).astype("f4") for name, shape in shapes.items()}
    values["others"] = unit_length(values["others"])
    values |= {"alarms": np.array([1, 30], "f4"), "margins": np.array([0.1, -0.1], "f4")}
    values |= {"rates": np.array([0.0005, 0.01], "f4"), "clips": np.array([1, 4], "f4")}
    values["thresholds"] = np.array([[[0.3, 0.25], [0.1, 0.05]], [[0.5, 0.4], [0.2, 0.15]]], "f4")
    return WordMaps(fingerprint, 3, 2, 50.0, agreements=np.array([[1, 0.6], [1, 0.9]], "f4"), slope=7.0, **values)


def network_shapes(
    features: int, width: int, blocks: int, taps: int, segments: int, size: int
) -> dict[str, tuple[int, ...]]:
    """The shapes of the arrays of the network and the map."""
    return {
        "front": (features, width),
        "front_bias": (width,),
        "depth": (blocks, taps, width),
        "depth_bias": (blocks, width),
        "mix": (blocks, width, width),
        "mix_bias": (blocks, width),
        "mapping": (segments * width, size),
        "mapping_bias": (size,),
    }
