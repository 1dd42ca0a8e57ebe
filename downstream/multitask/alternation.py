"""The alternation: the batches of a training epoch, in which the tasks take turns.

With ``schedule: {kws: 1, sv: 1}`` the batches are kws, sv, kws, sv, ... The runner makes an optimizer step after each
batch, so the updates of the two tasks alternate: the joint fine-tuning of Kerpicci et al., arXiv 2210.16611.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np

from distilled_student.common.errors import UserError
from distilled_student.multitask.loader import Batch, TrainingItems, load_batches
from distilled_student.multitask.tasks.base import TrainingData

Place = tuple[int, int]  # a training item: the pass, and the index in the task's data


class AlternationLoader:
    """The batches of one training epoch: one cycle of the schedule after the other.

    A cycle has ``schedule[task]`` batches of each task, in the order of the schedule. A pass is one shuffled order of a
    task's utterances, cut into full batches; a task with less data than one batch has one smaller batch. The epoch has
    as many cycles as the longest pass needs. The other tasks then begin further passes, each in another order.

    The batches depend on the seed and the epoch only, not on the number of workers. With several processes each takes
    its share of every batch, and the batches are ``world`` times as large: the same as on one process with this batch
    size.

    Args:
        data: Training data of each task. batch_sizes: Utterances in a batch of each task.
        schedule: Batches of each task in a cycle.
        workers: Processes that read and augment, for each task.
        repeat: Batches of the same task in a row, for gradient accumulation: a step must be of one task.
        rank, world: This process, and the number of processes.
        gain: What every waveform is multiplied by.
        start: Batches of this epoch that were used before a training was interrupted; they are left out.

    Raises:
        UserError: a task has fewer utterances than there are processes.
    """

    def __init__(
        self,
        data: Mapping[str, TrainingData],
        batch_sizes: Mapping[str, int],
        schedule: Mapping[str, int],
        seed: int,
        epoch: int,
        workers: int = 0,
        repeat: int = 1,
        rank: int = 0,
        world: int = 1,
        gain: float = 1.0,
        start: int = 0,
    ) -> None:
        self.data, self.workers, self.gain, self.start = data, workers, gain, start
        self.seeds = {name: [seed, epoch, *name.encode()] for name in schedule}
        per_cycle = {name: batches * repeat for name, batches in schedule.items()}
        sizes = {name: batch_sizes[name] * world for name in schedule}

        first_passes = {name: self._pass(name, 0, sizes[name]) for name in schedule}
        cycles = max(math.ceil(len(first_passes[name]) / per_cycle[name]) for name in schedule)
        cycle = [name for name, batches in per_cycle.items() for _ in range(batches)]  # such as kws, sv
        self.order = cycle * cycles  # the task of each batch: kws, sv, kws, sv, ...

        self.plans: dict[str, list[list[Place]]] = {}  # the items of each batch, for each task
        for name, plan in first_passes.items():
            needed, number = cycles * per_cycle[name], 0
            while len(plan) < needed:
                number += 1
                plan += self._pass(name, number, sizes[name])
            if len(plan[0]) < world:
                raise UserError(
                    f"{name}: has {len(plan[0])} training utterances, too few for {world} processes; use fewer"
                )
            self.plans[name] = [batch[rank::world] for batch in plan[:needed]]

    def _pass(self, name: str, number: int, size: int) -> list[list[Place]]:
        """Pass ``number`` over a task's utterances, in batches of ``size``; what does not fill a batch is left out."""
        order = self.data[name].order(np.random.default_rng([*self.seeds[name], number]))
        batches = max(len(order) // size, 1)
        return [[(number, index) for index in order[b * size : (b + 1) * size]] for b in range(batches)]

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[Batch]:
        used, left = self.order[: self.start], self.order[self.start :]
        streams = {
            name: load_batches(
                TrainingItems(self.data[name], self.seeds[name]),
                plan[used.count(name) :],
                name,
                self.workers,
                self.gain,
            )
            for name, plan in self.plans.items()
        }
        for name in left:  # the tasks take turns
            yield next(streams[name])
