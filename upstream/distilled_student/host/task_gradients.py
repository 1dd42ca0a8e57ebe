"""``downstream_expert.conflict``: compares the tasks' gradients on shared weights, projects conflicts out."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

Gradient = list[Tensor]  # of each weight of the upstream, in the same order for every task
TINY = 1e-300  # the smallest divisor, in double precision: a gradient of zeros has the cosine 0


def _dot(x: Gradient, y: Gradient) -> Tensor:
    """The scalar product of two gradients, ``()`` in double precision."""
    parts = [torch.dot(a.flatten().float(), b.flatten().float()) for a, b in zip(x, y, strict=True)]
    return torch.stack(parts).double().sum()


def _on_shared(x: Gradient, y: Gradient) -> tuple[Gradient, Gradient]:
    """Both gradients on the weights that both tasks use; zeros on a weight whose gradient is zero for one of them.

    Such weights are a task's own: its branch, or the layers above the one that the other task uses.
    """
    shared = [(a.any() & b.any()).to(a.dtype) for a, b in zip(x, y, strict=True)]
    of_x = [gradient * is_shared for gradient, is_shared in zip(x, shared, strict=True)]
    of_y = [gradient * is_shared for gradient, is_shared in zip(y, shared, strict=True)]
    return of_x, of_y


def cosine(x: Gradient, y: Gradient) -> Tensor:
    """The cosine of the angle between two gradients, ``()``, on the weights that both have; 0 if there are none."""
    x, y = _on_shared(x, y)
    return _dot(x, y) / (_dot(x, x) * _dot(y, y)).sqrt().clamp(min=TINY)


def project_conflicts(gradients: Mapping[str, Gradient], order: random.Random) -> list[Gradient]:
    """The gradient of each task without what conflicts with other tasks: PCGrad (Yu et al., arXiv 2001.06782).

    Algorithm 1 of the paper, on the weights that two tasks share. Where the scalar product with the gradient of another
    task is negative, the projection onto that gradient is subtracted. The other tasks follow in random order.
    """
    projected = []
    for task, gradient in gradients.items():
        own, others = gradient, [other for name, other in gradients.items() if name != task]
        order.shuffle(others)
        for other in others:
            _, direction = _on_shared(gradient, other)
            factor = (_dot(own, direction) / _dot(direction, direction).clamp(min=TINY)).clamp(max=0.0)
            own = [x - factor.to(x.dtype) * y for x, y in zip(own, direction, strict=True)]
        projected.append(own)
    return projected


class TaskGradients:
    """Keeps the gradient of each task on the upstream's weights separate until the step.

    Args:
        parameters: The upstream's weights.
        projects: Whether `combine` projects conflicts out.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], projects: bool) -> None:
        self.parameters, self.projects = list(parameters), projects
        self._of_task: dict[str, list[Tensor | None]] = {}

    def collect(self, task: str) -> None:
        """After the backward pass of a batch of ``task``: move the gradients of the weights to this task's."""
        own = self._of_task.setdefault(task, [None] * len(self.parameters))
        for i, parameter in enumerate(self.parameters):
            if parameter.grad is not None:
                own[i] = parameter.grad if own[i] is None else own[i] + parameter.grad
                parameter.grad = None

    def discard(self) -> None:
        """Forget what was collected since the last step."""
        self._of_task.clear()

    def combine(self, step: int) -> dict[str, Tensor]:
        """Before the optimizer's step: give the weights the sum of the tasks' gradients.

        Args:
            step: Seed of the order of PCGrad's projections, which are then the same in all processes and resumed runs.

        Returns:
            The cosine ``()`` of each pair of tasks, by ``TASK-TASK``, before any projection.
        """
        found, self._of_task = self._of_task, {}
        used = [i for i in range(len(self.parameters)) if any(own[i] is not None for own in found.values())]
        gradients = {task: self._without_gaps(own, used) for task, own in found.items()}
        cosines = {f"{a}-{b}": cosine(gradients[a], gradients[b]) for a, b in itertools.combinations(gradients, 2)}
        parts = list(gradients.values())
        if self.projects:
            parts = project_conflicts(gradients, random.Random(step))
        for i, *of_tasks in zip(used, *parts, strict=True):
            self.parameters[i].grad = sum(of_tasks[1:], start=of_tasks[0])
        return cosines

    def _without_gaps(self, own: Sequence[Tensor | None], used: Sequence[int]) -> Gradient:
        """The gradients of the weights ``used`` by any task; zeros where this task does not use one."""
        return [torch.zeros_like(self.parameters[i]) if own[i] is None else own[i] for i in used]
