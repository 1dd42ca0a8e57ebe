"""Batches of a corpus that is larger than a disk or the memory, for ever, and resumed behind any of them.

Each process reads a fixed number of streams in turn, a batch from each. All units are dealt anew to all streams of all
processes for each of their passes; of a unit a chunk at a time is shuffled and sorted into batches.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from lhotse.cut import Cut
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from distilled_student.common.audio import LONGEST
from distilled_student.common.errors import UserError
from distilled_student.common.workers import end_with_parent
from distilled_student.distillation.data.cuts import Batch, CutDataset, DataConfig
from distilled_student.distillation.data.manifests import parse_cut
from distilled_student.distillation.data.shards import Item, Unit, chunks_of, member_cut, reason_of

QUIET = 50  # batches of each stream in a row without any audio, after which there is none
Place = tuple[int, int, int, int]  # pass, unit of the pass, chunk of the unit, batch of the chunk
BEGINNING: Place = (0, 0, 0, -1)


def _cuts(items: Sequence[Item], is_shard: bool, config: DataConfig) -> tuple[list[Cut], dict[str, str]]:
    """Pieces of at most ``max_seconds``, and what cannot be used."""
    cuts, failed = [], {}
    for name, content, fault in items:
        try:
            if fault:
                raise ValueError(fault)
            cut = member_cut(name, content) if is_shard else parse_cut(content)
            if not cut.duration <= LONGEST:  # nor is NaN
                raise ValueError(f"{cut.duration} s long")
            pieces = [cut] if cut.duration <= config.max_seconds else cut.cut_into_windows(config.max_seconds)
            cuts += [piece for piece in pieces if piece.duration >= config.min_seconds]
        except Exception as error:  # whatever a damaged member or line makes its reader raise
            failed[name] = reason_of(error)
    return cuts, failed


def _batches(cuts: Sequence[Cut], seconds: float, chance: random.Random) -> list[list[Cut]]:
    """Batches of similar utterances, of at most so many seconds with their padding, in any order."""
    batches, longest = [], 0.0
    for cut in sorted(cuts, key=lambda cut: cut.duration * chance.uniform(0.95, 1.05)):  # others in the next pass
        longest = max(longest, cut.duration)
        if not batches or longest * (len(batches[-1]) + 1) > seconds:
            batches.append([])
            longest = cut.duration
        batches[-1].append(cut)
    chance.shuffle(batches)
    return batches


@dataclass
class StreamDataset(IterableDataset):
    """One process's batches for ever, see `make_stream`."""

    config: DataConfig
    units: Sequence[Unit]
    seed: int
    rank: int
    world: int
    places: Mapping[int, Sequence[int]]
    count: int
    read: CutDataset

    def __iter__(self) -> Iterator[Batch]:
        """A batch of each stream in turn; each of W workers has every W-th turn, and so the same streams always."""
        worker = get_worker_info()
        first, step = (worker.id, worker.num_workers) if worker else (0, 1)
        streams: dict[int, Iterator[Batch]] = {}
        for turn in itertools.count(self.count + first, step):
            stream = turn % self.config.streams
            if stream not in streams:
                streams[stream] = self._stream(stream)
            yield replace(next(streams[stream]), stream=stream)

    def _stream(self, stream: int) -> Iterator[Batch]:
        """Pass after pass from behind the stream's place; at least one batch of each, if an empty one."""
        done = tuple(self.places.get(stream, BEGINNING))
        for number in itertools.count(done[0]):
            some = done[0] == number and done != BEGINNING
            share = self._share(stream, number)
            for place, cuts, failed in self._rest(share, number, done):
                some, batch = True, self.read[cuts]
                yield replace(batch, failed=failed | batch.failed, place=place)
            if not some:
                yield replace(self.read[[]], place=(number, len(share), 0, 0))

    def _share(self, stream: int, number: int) -> list[int]:
        """The numbers of a stream's units of a pass; together the streams of all processes have each unit once."""
        order = list(range(len(self.units)))
        random.Random(f"{self.seed} {number}").shuffle(order)
        return order[self.rank * self.config.streams + stream :: self.world * self.config.streams]

    def _rest(
        self, share: Sequence[int], number: int, done: Place
    ) -> Iterator[tuple[Place, Sequence[Cut], dict[str, str]]]:
        """What of a pass is behind ``done``: each batch's place, its utterances, not decoded yet, and faults."""
        for index, unit in enumerate(share):
            if (number, index) < done[:2]:
                continue
            for chunk, (items, ended) in enumerate(chunks_of(self.units[unit])):
                if (number, index, chunk) < done[:3]:
                    continue
                chance = random.Random(f"{self.seed} {number} {unit} {chunk}")
                cuts, failed = _cuts(items, self.units[unit].is_shard, self.config)
                failed |= ended
                batches = _batches(cuts, self.config.batch_seconds, chance) or ([[]] if failed else [])
                for batch, found in enumerate(batches):
                    if (place := (number, index, chunk, batch)) > done:
                        yield place, found, {} if batch else failed


def make_stream(
    config: DataConfig,
    units: Sequence[Unit],
    seed: int,
    rank: int = 0,
    world: int = 1,
    places: Mapping[int, Sequence[int]] | None = None,
    count: int = 0,
    find_targets: Callable[[Tensor], Tensor | None] | None = None,
    where: str | Path = "data",
) -> Iterator[Batch]:
    """A process's batches for ever, the same ones for any number of workers.

    In a pass all streams of all processes together read each unit once. What cannot be read is named in the ``failed``
    of a batch, which may be empty.

    Args:
        units: From `open_units`, with the same ``world``.
        places: For each stream the ``place`` of its last batch that was used; it goes on behind that, without decoding
            what was used. ``count``: how many batches of this process were used.
        find_targets: Gives a waveform's targets that are in a cache; asked by the workers, ahead of training.

    Raises:
        UserError: there was no audio that could be read in many batches on end.
    """
    places = {int(stream): tuple(place) for stream, place in (places or {}).items()}
    loader = DataLoader(
        StreamDataset(config, units, seed, rank, world, places, count, CutDataset(find_targets)),
        batch_size=None,
        worker_init_fn=end_with_parent,
        num_workers=config.workers,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator().manual_seed(seed),  # else it draws from the state that a checkpoint holds
    )
    quiet = 0
    for batch in loader:
        quiet = 0 if len(batch.lengths) else quiet + 1
        if quiet > QUIET * config.streams:
            break
        yield batch
    named = [f" ({name}: {reason})" for name, reason in batch.failed.items()][:1]
    raise UserError(f"{where}.paths: {', '.join(config.paths)}: no audio could be read{''.join(named)}")
