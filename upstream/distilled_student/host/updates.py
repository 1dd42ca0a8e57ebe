"""Learning rates, gradient norms and skipped steps of a training, for its log."""

from __future__ import annotations

import torch
from torch import Tensor


class Updates:
    """What a training log says about the updates since its last entry; reads the device only then."""

    def __init__(self) -> None:
        self._norms: list[Tensor] = []
        self._rates: list[float] = []

    def add(self, optimizer: torch.optim.Optimizer, norm: Tensor) -> None:
        """Count an update, before the scheduler changes the learning rates; ``norm``: of the gradient, not clipped."""
        self._norms.append(norm.detach())
        self._rates = [float(group["lr"]) for group in optimizer.param_groups]

    def since_last(self) -> dict[str, float]:
        """The last learning rates, the mean norm of the finite gradients, and the number of skipped steps."""
        norms, self._norms = torch.stack(self._norms).float(), []
        finite = norms[norms.isfinite()]
        found = {"learning_rate": self._rates[0], "skipped_steps": float(len(norms) - len(finite))}
        if len(finite):
            found["gradient_norm"] = finite.mean().item()
        if len(self._rates) > 1:  # runner.upstream_lr
            found["learning_rate-upstream"] = self._rates[-1]
        return found
