"""``runner.average``: an exponential moving average of the trained weights, which evaluations use."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn


class WeightAverage:
    """The average of the parameters of some models over the steps of a training.

    After step t the average moves towards the weights by ``1 - min(decay, (1 + t) / (10 + t))``: in the first steps,
    which are far from the last ones, it follows them closely.

    Args:
        models: Name of each trained model -> the model.
        decay: Weight of the average at each step; 0.999 averages over about a thousand steps.
        saved: `state` in a checkpoint, or None at the beginning.
    """

    def __init__(
        self, models: Mapping[str, nn.Module], decay: float, saved: Mapping[str, Tensor] | None = None
    ) -> None:
        self.decay = decay
        self.parameters = {
            f"{name}.{key}": parameter for name, model in models.items() for key, parameter in model.named_parameters()
        }
        self.values = {key: parameter.detach().clone() for key, parameter in self.parameters.items()}
        self.steps = 0
        if saved:
            self.steps = int(saved["steps"])
            for key, value in self.values.items():
                value.copy_(saved[key])

    @torch.no_grad()
    def update(self) -> None:
        """Add the weights after a step."""
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        torch._foreach_lerp_(list(self.values.values()), list(self.parameters.values()), 1 - decay)

    @torch.no_grad()
    def apply(self) -> None:
        """Replace the weights of the models by their averages."""
        for key, parameter in self.parameters.items():
            parameter.copy_(self.values[key])

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """The models have the average weights inside the ``with``, and their own after it."""
        own = {key: parameter.detach().clone() for key, parameter in self.parameters.items()}
        self.apply()
        try:
            yield
        finally:
            with torch.no_grad():
                for key, parameter in self.parameters.items():
                    parameter.copy_(own[key])

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint holds: the averages and the number of steps."""
        return {**self.values, "steps": torch.tensor(self.steps)}
