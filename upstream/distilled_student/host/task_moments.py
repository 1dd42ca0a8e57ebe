"""``downstream_expert.optimizer_per_task``: each task has its own state of the optimizer, such as Adam's moments."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import torch


class TaskMoments:
    """Makes one optimizer work as one for each task: the same weights and learning rates, another state.

    Each optimizer has a state for each weight; a weight without a gradient has none and is not changed. So the state of
    a task holds the shared weights and those of its own head.

    Args:
        optimizer: Its learning rates may be changed by a scheduler.
        tasks: The names of the tasks.
        saved: `state` in a checkpoint, or None at the beginning.

    Raises:
        ValueError, KeyError, TypeError: ``saved`` is of another optimizer or other tasks.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, tasks: Iterable[str], saved: Mapping[str, Any] | None = None
    ) -> None:
        self.optimizer, initial = optimizer, optimizer.state
        self.states: dict[str, Any] = {}
        for task in tasks:
            if saved is None:  # some optimizers have a state before their first step
                own = {weight: copy.deepcopy(values) for weight, values in initial.items()}
                self.states[task] = defaultdict(dict, own)
            else:
                optimizer.load_state_dict({**optimizer.state_dict(), "state": saved[task]})
                self.states[task] = optimizer.state

    def use(self, task: str) -> None:
        """The next step of the optimizer is one of ``task``."""
        self.optimizer.state = self.states[task]

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds: the optimizer's ``state_dict()["state"]`` of each task."""
        found = {}
        for task in self.states:
            self.use(task)
            found[task] = self.optimizer.state_dict()["state"]
        return found
