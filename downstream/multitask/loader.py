"""Utterances of the tasks as batches for s3prl's runner, and the batches of an evaluation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from distilled_student.common.audio import MAX_ENCODED_SECONDS, SAMPLE_RATE
from distilled_student.common.errors import UserError
from distilled_student.common.processes import end_with_parent, start_workers
from distilled_student.multitask.short_utterances import Filling, pad_to
from distilled_student.multitask.tasks.base import SHORTEST, EvaluationData, Item, TrainingData

# waveforms (samples,), task, labels, keys, samples of `Item.past`
Batch = tuple[list[np.ndarray], str, list[int], list[str], list[int]]


class TrainingItems(Dataset):
    """Training items by (pass, index). Each has a random generator of its own: the workers' states do not matter."""

    def __init__(self, data: TrainingData, seed: Sequence[int]) -> None:
        self.data, self.seed = data, list(seed)

    def __getitem__(self, place: tuple[int, int]) -> Item | UserError:
        try:
            return self.data.item(place[1], np.random.default_rng([*self.seed, *place]))
        except UserError as error:
            return error  # returned, not raised: torch would wrap a worker's exception in a traceback


class EvaluationItems(Dataset):
    """Evaluation items by index, checked to have the length that their header gives."""

    def __init__(self, data: EvaluationData) -> None:
        self.data, self.filling = data, getattr(data, "filling", Filling(SHORTEST))

    def __getitem__(self, index: int) -> Item | UserError:
        try:
            item, samples = self.data.item(index), self.data.samples(index)
            waveform = pad_to(self.filling.fill(item.waveform), samples)
            if len(waveform) != samples:
                return UserError(f"{item.key}: holds {len(waveform)} samples, but its header says {samples}")
            return item._replace(waveform=waveform)
        except UserError as error:
            return error


class _Collate:
    """Items of a task -> a batch for s3prl's runner; the first error of an item instead, if there is one."""

    def __init__(self, task: str, gain: float) -> None:
        self.task, self.gain = task, gain

    def __call__(self, items: list[Item | UserError]) -> Batch | UserError:
        for item in items:
            if isinstance(item, UserError):
                return item
        wavs, *others = zip(*items, strict=True)
        return [(self.gain * wav).numpy() for wav in wavs], self.task, *map(list, others)


def load_batches(dataset: Dataset, plan: list[Any], task: str, workers: int, gain: float) -> Iterator[Batch]:
    """The batches of one task.

    Args:
        plan: For each batch the places of its items in ``dataset``.
        workers: Processes that read and augment; 0: this one.
        gain: What every waveform is multiplied by.

    Raises:
        UserError: an utterance cannot be read.
    """
    # without a generator the DataLoader draws from torch's global state, which a checkpoint saves
    options = {"num_workers": workers, "collate_fn": _Collate(task, gain), "generator": torch.Generator()}
    for batch in start_workers(DataLoader(dataset, batch_sampler=plan, worker_init_fn=end_with_parent, **options)):
        if isinstance(batch, UserError):
            raise batch
        yield batch


class EvaluationLoader:
    """All utterances of the tasks, one task after the other, shortest utterances first.

    All utterances of a batch have the same length: there is no padding, and the results do not depend on the batch
    size, with any upstream.

    Args:
        data: Evaluation data of each task. batch_sizes: Most utterances in a batch of each task.
        workers, gain: See `load_batches`.
    """

    def __init__(
        self, data: Mapping[str, EvaluationData], batch_sizes: Mapping[str, int], workers: int = 0, gain: float = 1.0
    ) -> None:
        self.data, self.workers, self.gain = data, workers, gain
        self.plans = {name: equal_length_batches(of_task, batch_sizes[name]) for name, of_task in data.items()}

    def __len__(self) -> int:
        return sum(map(len, self.plans.values()))

    def __iter__(self) -> Iterator[Batch]:
        for name, plan in self.plans.items():
            yield from load_batches(EvaluationItems(self.data[name]), plan, name, self.workers, self.gain)


def equal_length_batches(data: EvaluationData, size: int) -> list[list[int]]:
    """Indices sorted by length, in batches of utterances of the same length.

    A batch has at most ``size`` utterances and at most `MAX_ENCODED_SECONDS` of audio. A single longer utterance is a
    batch of its own, which an upstream encodes in pieces.
    """
    by_length: dict[int, list[int]] = {}
    for index in range(len(data)):
        by_length.setdefault(data.samples(index), []).append(index)
    batches = []
    for samples, group in sorted(by_length.items()):
        count = max(1, min(size, MAX_ENCODED_SECONDS * SAMPLE_RATE // samples))
        batches += [group[i : i + count] for i in range(0, len(group), count)]
    return batches
