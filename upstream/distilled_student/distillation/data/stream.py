"""Endless batches of a corpus that is larger than the disk or the memory; can be resumed after any batch.

Each process reads a fixed number of streams in turn, one batch from each. A pass reads every unit once: before each
pass, the units are shuffled and divided among all streams of all processes. A stream holds one chunk of a unit at a
time, shuffles it and sorts it into batches.
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

from distilled_student.common.audio_reading import MAX_FILE_SECONDS
from distilled_student.common.errors import UserError, short_reason
from distilled_student.common.processes import end_with_parent, start_workers
from distilled_student.distillation.data.cuts import Batch, CutDataset, DataConfig
from distilled_student.distillation.data.manifests import parse_cut
from distilled_student.distillation.data.shards import Item, Unit, cut_of_member, read_chunks
from distilled_student.distillation.data.student_input import StudentInput

MAX_EMPTY_BATCHES = 50  # of each stream in a row: after these, the corpus counts as one without audio
Position = tuple[int, int, int, int]  # of a batch in a stream: pass, unit of the pass, chunk of the unit, batch of it
BEFORE_FIRST: Position = (0, 0, 0, -1)


def _cuts_of(items: Sequence[Item], is_shard: bool, config: DataConfig) -> tuple[list[Cut], dict[str, str]]:
    """Cuts of at most ``max_seconds``, not decoded yet, and the items that cannot be used, with the reason."""
    cuts, failed = [], {}
    for name, content, fault in items:
        try:
            if fault:
                raise ValueError(fault)
            cut = cut_of_member(name, content) if is_shard else parse_cut(content)
            if not cut.duration <= MAX_FILE_SECONDS:  # true for NaN too
                raise ValueError(f"{cut.duration} s long")
            pieces = [cut] if cut.duration <= config.max_seconds else cut.cut_into_windows(config.max_seconds)
            cuts += [piece for piece in pieces if piece.duration >= config.min_seconds]
        except Exception as error:  # a damaged member or line can raise any exception
            failed[name] = short_reason(error)
    return cuts, failed


def _group_into_batches(cuts: Sequence[Cut], seconds: float, rng: random.Random) -> list[list[Cut]]:
    """Batches of cuts of similar duration, of at most ``seconds`` with their padding, in random order."""
    batches, longest = [], 0.0
    # durations are varied by 5 %, so that the batches differ from pass to pass
    for cut in sorted(cuts, key=lambda cut: cut.duration * rng.uniform(0.95, 1.05)):
        longest = max(longest, cut.duration)
        if not batches or longest * (len(batches[-1]) + 1) > seconds:
            batches.append([])
            longest = cut.duration
        batches[-1].append(cut)
    rng.shuffle(batches)
    return batches


@dataclass
class StreamDataset(IterableDataset):
    """The endless batches of one process, see `make_stream`."""

    config: DataConfig
    units: Sequence[Unit]
    seed: int
    rank: int
    world: int
    positions: Mapping[int, Sequence[int]]
    count: int
    read: CutDataset

    def __iter__(self) -> Iterator[Batch]:
        """One batch of each stream in turn.

        Of W workers each takes every W-th turn. The number of streams is a multiple of W, so a stream always belongs
        to the same worker.
        """
        worker = get_worker_info()
        first, step = (worker.id, worker.num_workers) if worker else (0, 1)
        streams: dict[int, Iterator[Batch]] = {}
        for turn in itertools.count(self.count + first, step):
            stream = turn % self.config.streams
            if stream not in streams:
                streams[stream] = self._stream(stream)
            yield replace(next(streams[stream]), stream=stream)

    def _stream(self, stream: int) -> Iterator[Batch]:
        """The batches of a stream after its last used position, pass after pass.

        A pass without audio is one empty batch.
        """
        last_used = tuple(self.positions.get(stream, BEFORE_FIRST))
        for number in itertools.count(last_used[0]):
            has_batches = last_used[0] == number and last_used != BEFORE_FIRST
            units = self._units_of_pass(stream, number)
            for position, cuts, failed in self._batches_after(last_used, units, number):
                has_batches, batch = True, self.read.batch(cuts, number)
                yield replace(batch, failed=failed | batch.failed, position=position)
            if not has_batches:
                yield replace(self.read.batch([], number), position=(number, len(units), 0, 0))

    def _units_of_pass(self, stream: int, number: int) -> list[int]:
        """The indices of a stream's units in a pass. The streams of all processes share the units without overlap."""
        order = list(range(len(self.units)))
        random.Random(f"{self.seed} {number}").shuffle(order)
        return order[self.rank * self.config.streams + stream :: self.world * self.config.streams]

    def _batches_after(
        self, last_used: Position, units: Sequence[int], number: int
    ) -> Iterator[tuple[Position, Sequence[Cut], dict[str, str]]]:
        """The batches of pass ``number`` after ``last_used``: position, cuts that are not decoded yet, and failures.

        Units before ``last_used`` are not opened, and chunks before it are not decoded.
        """
        for index, unit in enumerate(units):
            if (number, index) < last_used[:2]:
                continue
            for chunk, (items, unit_failed) in enumerate(read_chunks(self.units[unit])):
                if (number, index, chunk) < last_used[:3]:
                    continue
                rng = random.Random(f"{self.seed} {number} {unit} {chunk}")
                cuts, failed = _cuts_of(items, self.units[unit].is_shard, self.config)
                failed |= unit_failed
                batches = _group_into_batches(cuts, self.config.batch_seconds, rng) or ([[]] if failed else [])
                for batch, batch_cuts in enumerate(batches):
                    if (position := (number, index, chunk, batch)) > last_used:
                        yield position, batch_cuts, {} if batch else failed


def make_stream(
    config: DataConfig,
    units: Sequence[Unit],
    seed: int,
    rank: int = 0,
    world: int = 1,
    positions: Mapping[int, Sequence[int]] | None = None,
    count: int = 0,
    find_targets: Callable[[Tensor], Tensor | None] | None = None,
    student_input: StudentInput | None = None,
    where: str | Path = "data",
) -> Iterator[Batch]:
    """The endless batches of one process. They do not depend on the number of workers.

    In a pass, all streams of all processes together read each unit once. What cannot be read is in the ``failed`` of a
    batch, which may have no utterances.

    Args:
        units: From `open_units`, with the same ``world``.
        rank, world: Number of this process, and of processes.
        positions: To resume: stream -> position of its last used batch. Used batches are not decoded again.
        count: To resume: the number of batches that this process has used.
        find_targets: Returns the cached targets of a waveform, or None. The data workers call it.
        student_input: Makes the student's input, see `StudentInput`; also called by the data workers.
        where: What error messages begin with, ``FILE: data``.

    Raises:
        UserError: many batches in a row had no audio that could be read.
    """
    positions = {int(stream): tuple(position) for stream, position in (positions or {}).items()}
    loader = DataLoader(
        StreamDataset(config, units, seed, rank, world, positions, count, CutDataset(find_targets, student_input)),
        batch_size=None,
        worker_init_fn=end_with_parent,
        num_workers=config.workers,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator().manual_seed(seed),  # its own: a checkpoint stores the default one
    )
    empty = 0
    for batch in start_workers(loader):
        empty = 0 if len(batch.lengths) else empty + 1
        if empty > MAX_EMPTY_BATCHES * config.streams:
            break
        yield batch
    example = [f" ({name}: {reason})" for name, reason in batch.failed.items()][:1]
    raise UserError(f"{where}.paths: {', '.join(config.paths)}: no audio could be read{''.join(example)}")
