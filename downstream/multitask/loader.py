"""The alternation: batches of the tasks in turn, the same for a seed and an epoch whatever the number of workers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from distilled_student.common.audio import SAMPLE_RATE
from distilled_student.common.errors import UserError
from distilled_student.common.workers import end_with_parent
from distilled_student.host.upstreams import LONGEST
from distilled_student.multitask.tasks import EvaluationData, Item, TrainingData, pad_to

Batch = tuple[list[np.ndarray], str, list[int], list[str]]  # wavs, task, labels, keys


class _Seeded(Dataset):
    """Training items addressed by (pass, index), each with its own generator, so that no worker's state matters."""

    def __init__(self, data: TrainingData, seed: Sequence[int]) -> None:
        self.data, self.seed = data, list(seed)

    def __getitem__(self, place: tuple[int, int]) -> Item | UserError:
        try:
            return self.data.item(place[1], np.random.default_rng([*self.seed, *place]))
        except UserError as error:  # raised in a worker it would arrive wrapped in a traceback: hand it over instead
            return error


class _Whole(Dataset):
    """Evaluation items of the length that their header promised."""

    def __init__(self, data: EvaluationData) -> None:
        self.data = data

    def __getitem__(self, index: int) -> Item | UserError:
        try:
            item, samples = self.data.item(index), self.data.samples(index)
            waveform = pad_to(item.waveform, samples)
            if len(waveform) != samples:
                return UserError(f"{item.key}: holds {len(waveform)} samples where its header says {samples}")
            return item._replace(waveform=waveform)
        except UserError as error:
            return error


class _Collate:
    def __init__(self, task: str, gain: float) -> None:
        self.task, self.gain = task, gain

    def __call__(self, items: list[Item | UserError]) -> Batch | UserError:
        for item in items:
            if isinstance(item, UserError):
                return item
        wavs, labels, keys = zip(*items, strict=True)
        return [(self.gain * wav).numpy() for wav in wavs], self.task, list(labels), list(keys)


def _batches(dataset: Dataset, plan: list[Any], task: str, workers: int, gain: float) -> Iterator[Batch]:
    collate, generator = _Collate(task, gain), torch.Generator()  # else it draws from the state that a checkpoint holds
    options = {"num_workers": workers, "collate_fn": collate, "generator": generator}
    for batch in DataLoader(dataset, batch_sampler=plan, worker_init_fn=end_with_parent, **options):
        if isinstance(batch, UserError):
            raise batch
        yield batch


class AlternationLoader:
    """One training epoch: cycles of ``schedule`` (batches of each task, in its order) until every task is through.

    The task with the most cycles sets the length; the others begin another pass, shuffled anew. Batches are full
    (but for a task with less than one). With several processes each takes its share of every batch, which is as many
    times larger: the batches are those of one process with the larger batch size.

    Args:
        data: Training data of each task. batch_sizes: utterances per batch of each.
        schedule: Batches of each task in a cycle: ``{"kws": 1, "sv": 1}`` is the paper's alternation.
        repeat: Times that each batch of the cycle is followed by another of its task, for gradient accumulation.
        gain: What every waveform is multiplied by.
        start: Batches of this epoch that have been used.
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
        self.data, self.seed, self.epoch, self.workers, self.gain = data, seed, epoch, workers, gain
        self.start = start
        self.cycle = [name for name, times in schedule.items() for _ in range(times * repeat)]
        counts = {name: self.cycle.count(name) for name in schedule}
        plans = {name: self._pass(name, 0, batch_sizes[name] * world) for name in schedule}
        self.cycles = max(-(-len(plans[name]) // counts[name]) for name in schedule)
        self.plans: dict[str, list[list[tuple[int, int]]]] = {}
        for name, plan in plans.items():
            needed, number = self.cycles * counts[name], 0
            while len(plan) < needed:
                number += 1
                plan += self._pass(name, number, batch_sizes[name] * world)
            if len(plan[0]) < world:
                raise UserError(f"{name}: {len(plan[0])} utterances to train on are too few for {world} processes")
            self.plans[name] = [batch[rank::world] for batch in plan[:needed]]

    def _seed(self, name: str) -> list[int]:
        return [self.seed, self.epoch, *name.encode()]

    def _pass(self, name: str, number: int, size: int) -> list[list[tuple[int, int]]]:
        order = self.data[name].order(np.random.default_rng([*self._seed(name), number]))
        full = max(len(order) // size, 1)
        return [[(number, i) for i in order[b * size : (b + 1) * size]] for b in range(full)]

    def __len__(self) -> int:
        return self.cycles * len(self.cycle)

    def __iter__(self) -> Iterator[Batch]:
        order = self.cycle * self.cycles
        used = {name: order[: self.start].count(name) for name in self.plans}
        streams = {
            name: _batches(
                _Seeded(self.data[name], self._seed(name)), plan[used[name] :], name, self.workers, self.gain
            )
            for name, plan in self.plans.items()
        }
        for name in order[self.start :]:
            yield next(streams[name])


class EvaluationLoader:
    """All utterances of each task in turn, shortest first; only utterances of one length share a batch.

    So no padding enters, and the result is the same with any upstream and any batch size.
    """

    def __init__(
        self, data: Mapping[str, EvaluationData], batch_sizes: Mapping[str, int], workers: int = 0, gain: float = 1.0
    ) -> None:
        self.data, self.workers, self.gain = data, workers, gain
        self.plans = {name: equal_length_batches(d, batch_sizes[name]) for name, d in data.items()}

    def __len__(self) -> int:
        return sum(map(len, self.plans.values()))

    def __iter__(self) -> Iterator[Batch]:
        for name, plan in self.plans.items():
            yield from _batches(_Whole(self.data[name]), plan, name, self.workers, self.gain)


def equal_length_batches(data: EvaluationData, size: int) -> list[list[int]]:
    """Indices sorted by length, in batches of at most ``size`` and 240 s in all that never mix two lengths.

    A single longer utterance is a batch of its own; an upstream encodes it in pieces.
    """
    by_length: dict[int, list[int]] = {}
    for index in range(len(data)):
        by_length.setdefault(data.samples(index), []).append(index)
    batches = []
    for samples, group in sorted(by_length.items()):
        count = max(1, min(size, LONGEST * SAMPLE_RATE // samples))
        batches += [group[i : i + count] for i in range(0, len(group), count)]
    return batches
