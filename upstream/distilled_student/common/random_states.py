"""The states of all random generators of a process, as plain values that JSON and a checkpoint can hold."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch


def random_states() -> dict[str, Any]:
    """States of Python's, numpy's and torch's generators, and of torch's on this process's GPU."""
    kind, keys, *place = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (kind, keys.tolist(), *place),
        "torch": torch.get_rng_state().tolist(),
        "cuda": torch.cuda.get_rng_state().tolist() if torch.cuda.is_initialized() else None,
    }


def set_random_states(states: dict[str, Any]) -> None:
    """Restore `random_states`. The GPU's state only if there was a GPU then and there is one now."""
    version, keys, gauss = states["python"]
    random.setstate((version, tuple(keys), gauss))
    kind, keys, *place = states["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *place))
    torch.set_rng_state(torch.tensor(states["torch"], dtype=torch.uint8))
    if states["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(torch.tensor(states["cuda"], dtype=torch.uint8))


def seed_all(*numbers: int) -> None:
    """Seed all generators with non-negative numbers; each combination of numbers gives other seeds."""
    python, numpy, *torchs = np.random.SeedSequence(numbers).generate_state(4, np.uint32).tolist()
    random.seed(python)
    np.random.seed(numpy)
    torch.manual_seed(torchs[0] << 32 | torchs[1])
