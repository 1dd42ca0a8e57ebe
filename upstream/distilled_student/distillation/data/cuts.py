"""Unlabelled audio for distillation: the cuts of folders and lhotse manifests, in batches of so many seconds.

A cut is lhotse's word for an utterance or a part of one.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from lhotse import AudioSource, CutSet, Recording
from lhotse.cut import Cut
from lhotse.dataset import DynamicBucketingSampler, DynamicCutSampler
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset, Sampler

from distilled_student.common.audio import SAMPLE_RATE, check_channels, resample
from distilled_student.common.audio_folders import AudioFolders
from distilled_student.common.audio_reading import header
from distilled_student.common.errors import UserError, one_line
from distilled_student.common.processes import end_with_parent
from distilled_student.common.sample_range import wrong_range
from distilled_student.distillation.data.config import MANIFESTS, DataConfig
from distilled_student.distillation.data.manifests import (
    Mismatch,
    check_files,
    load_audio,
    read_manifest,
    recordings_of,
)
from distilled_student.distillation.data.student_input import StudentInput

log = logging.getLogger(__name__)
CHECKED_CUTS = 10  # of a manifest, whose files are looked at before the training


class SkippedFiles:
    """Files that cannot be used, with the reason; each is logged once."""

    def __init__(self) -> None:
        self.reasons: dict[str, str] = {}

    def add(self, name: str, reason: str) -> None:
        """Record a file and log it, the first time."""
        if name not in self.reasons:
            self.reasons[name] = reason
            log.warning("skipped %s: %s", one_line(name), reason)

    def __len__(self) -> int:
        return len(self.reasons)


def _cuts_of_files(files: Iterable[Path], min_seconds: float, skipped: SkippedFiles) -> Iterable[Cut]:
    """A cut of each audio file; only headers are read."""
    for path in files:
        try:
            frames, rate, count = header(path)
        except UserError as error:
            skipped.add(str(path), str(error).removeprefix(f"{path}: "))
            continue
        if frames < min_seconds * rate:
            skipped.add(str(path), f"shorter than {min_seconds} s")
            continue
        channels = list(range(count))
        recording = Recording(
            id=str(path),
            sources=[AudioSource("file", channels, str(path))],
            sampling_rate=rate,
            num_samples=frames,
            duration=frames / rate,
            channel_ids=channels,
        )
        yield recording.to_cut()


def _cuts_of_manifest(path: Path, min_seconds: float, skipped: SkippedFiles) -> list[Cut]:
    """The cuts of a manifest that are long enough. Files are compared with it when they are read.

    Raises:
        UserError: none of the first files is what the manifest says.
    """
    cuts = list(read_manifest(path))
    mismatches = list(filter(None, map(_mismatch, cuts[:CHECKED_CUTS])))
    if mismatches and len(mismatches) == len(cuts[:CHECKED_CUTS]):
        raise UserError(f"{path}: {mismatches[0]}")
    for cut in cuts:
        if cut.duration < min_seconds:
            skipped.add(cut.id, f"shorter than {min_seconds} s")
    return [cut for cut in cuts if cut.duration >= min_seconds]


def _mismatch(cut: Cut) -> str | None:
    try:
        check_files(cut)
    except Mismatch as error:
        return str(error)
    return None


def read_cuts(config: DataConfig, where: str | Path = "data", key: str = "paths") -> tuple[CutSet, SkippedFiles]:
    """All audio as cuts of at most ``max_seconds``, and the skipped files.

    A folder or a manifest that several paths lead to is read once.

    Args:
        where: What error messages begin with, ``FILE: data``. key: The setting that ``paths`` come from, for messages.

    Raises:
        UserError: a path does not exist or has no usable audio.
    """
    skipped, cuts, folders, manifests = SkippedFiles(), [], AudioFolders(), set()
    for name in config.paths:
        path, before = Path(name), folders.repeated
        if path.is_dir():
            found = list(_cuts_of_files(folders.files(path), config.min_seconds, skipped))
        elif path.is_file() and path.name.endswith(MANIFESTS):
            found = [] if path.resolve() in manifests else _cuts_of_manifest(path, config.min_seconds, skipped)
        else:
            raise UserError(f"{where}.{key}: {name}: no such folder or manifest ({', '.join(MANIFESTS)})")
        if not found and (folders.repeated > before or path.resolve() in manifests):
            log.warning("%s.%s: %s: adds nothing, because an earlier path leads to it too", where, key, name)
        elif not found:
            problems = f"; {folders.problems()}" if folders.problems() else ""
            raise UserError(f"{where}.{key}: {name}: no usable audio in it ({len(skipped)} files skipped{problems})")
        manifests.add(path.resolve())
        cuts += found
    for folder, reason in folders.unopened.items():
        skipped.add(folder, f"cannot be opened ({reason})")
    if folders.foreign:
        log.warning("%s.%s: not used: %s", where, key, folders.problems())
    pieces = CutSet.from_cuts(cuts).cut_into_windows(config.max_seconds)
    return CutSet.from_cuts(c for c in pieces if c.duration >= config.min_seconds), skipped


@dataclass
class Batch:
    """Decoded utterances.

    Attributes:
        waveforms: ``(batch, samples)`` at 16 kHz.
        student_waveforms: The student's input, of the same shape; None: ``waveforms``.
        lengths: ``(batch,)`` in samples, always on the CPU.
        names: The recording of each utterance: a path, an id in a manifest or a member of a shard.
        failed: Files that could not be read, with the reason.
        targets: For each utterance and each teacher the cached targets, ``(targets, frames, features)``, or None;
            without a cache None for the utterance.
        stream, position: In a streamed corpus, the stream of the batch and its position there, see `make_stream`.
    """

    waveforms: Tensor
    lengths: Tensor
    names: list[str]
    failed: dict[str, str]
    targets: list[Sequence[Tensor | None] | None]
    stream: int = 0
    position: tuple[int, int, int, int] | None = None
    student_waveforms: Tensor | None = None

    def pin_memory(self) -> Batch:
        """Called by torch's DataLoader: copy the waveforms to pinned memory, which a GPU can copy while it computes."""
        student = self.student_waveforms
        student = None if student is None else student.pin_memory()
        return replace(self, waveforms=self.waveforms.pin_memory(), student_waveforms=student)

    def seconds(self) -> float:
        """Seconds of audio."""
        return int(self.lengths.sum()) / SAMPLE_RATE

    def uncached_seconds(self) -> float:
        """Seconds of audio of the utterances for which a teacher has no cached targets."""
        uncached = [found is None or any(targets is None for targets in found) for found in self.targets]
        return int(self.lengths[uncached].sum()) / SAMPLE_RATE


def recording_name(cut: Cut) -> str:
    """The id of the cut's recording, by which a user finds the file."""
    return getattr(cut, "recording_id", cut.id) if cut.has_recording else cut.id


def _check_sources(cut: Cut) -> None:
    """Raise ValueError for a missing file."""
    for source in (source for recording in recordings_of(cut) for source in recording.sources):
        if source.type == "file" and not Path(source.source).is_file():
            raise ValueError(f"{source.source}: no such file")


def decode_cut(cut: Cut) -> Tensor:
    """The waveform of a cut, ``(samples,)`` at 16 kHz, its channels averaged.

    Raises:
        ValueError: no audio, samples that `distilled_student.common.audio.load` refuses, or another file than the
            manifest says. lhotse raises other errors.
    """
    _check_sources(cut)
    samples = load_audio(cut)
    if samples is None:
        raise ValueError("has no recording")
    channels = torch.from_numpy(samples).float()
    waveform = channels.mean(dim=0)
    if len(channels) > 1 and waveform.numel():
        check_channels(len(channels), float(channels.square().mean()), waveform)
    waveform = resample(waveform, cut.sampling_rate)
    if not torch.isfinite(waveform).all():
        raise ValueError("holds NaN or infinite samples")
    if reason := wrong_range(waveform):
        raise ValueError(reason)
    return waveform


class CutDataset(Dataset):
    """Decodes the cuts of one batch and reads their cached targets. Files that cannot be read are in ``failed``.

    Args:
        find_targets: Returns the cached targets of a waveform for each teacher, see `Batch`.
        student_input: Makes the student's input; None: it is the utterance as it is.
        epoch: Number of the pass over the data, on which the student's input depends.
    """

    def __init__(
        self,
        find_targets: Callable[[Tensor], Sequence[Tensor | None]] | None = None,
        student_input: StudentInput | None = None,
        epoch: int = 0,
    ) -> None:
        self.find_targets, self.student_input, self.epoch = find_targets, student_input, epoch

    def __getitem__(self, cuts: Iterable[Cut]) -> Batch:
        return self.batch(cuts, self.epoch)

    def batch(self, cuts: Iterable[Cut], epoch: int) -> Batch:
        """The batch of ``cuts`` in pass number ``epoch``."""
        decoded, failed = [], {}
        for cut in cuts:
            name = recording_name(cut)
            try:
                decoded.append((cut, decode_cut(cut)))
            except Exception as error:  # for a damaged file lhotse can raise any exception
                failed[name] = " ".join(str(error).split())[:300] or type(error).__name__
        waveforms, names = [waveform for _, waveform in decoded], [recording_name(cut) for cut, _ in decoded]
        if not waveforms:
            return Batch(torch.zeros(0, 0), torch.zeros(0, dtype=torch.long), [], failed, [])
        lengths = torch.tensor([len(w) for w in waveforms])
        targets = [self.find_targets(waveform) if self.find_targets else None for waveform in waveforms]
        batch = Batch(pad_sequence(waveforms, batch_first=True), lengths, names, failed, targets)
        if self.student_input is None:
            return batch
        inputs = [self.student_input(waveform, cut, epoch, failed) for cut, waveform in decoded]
        return replace(batch, student_waveforms=pad_sequence(inputs, batch_first=True))


class _ProcessSampler(Sampler):
    """One process's cuts of each batch, from batch ``start`` on; earlier batches are not decoded.

    All processes draw the same batches and divide each of them, so that the number of processes does not change what a
    step is trained on. A batch with fewer cuts than processes leaves some processes without any.
    """

    def __init__(self, sampler: DynamicBucketingSampler | DynamicCutSampler, start: int, rank: int, world: int) -> None:
        self.sampler, self.start, self.rank, self.world = sampler, start, rank, world

    def __iter__(self) -> Iterator[CutSet]:
        for cuts in islice(iter(self.sampler), self.start, None):
            if self.world > 1:  # by duration, so that all processes get about the same
                cuts = sorted(cuts, key=lambda cut: (cut.duration, cut.id))[self.rank :: self.world]
            yield CutSet.from_cuts(cuts)


def make_sampler(cuts: CutSet, buckets: int, **options: Any) -> DynamicBucketingSampler | DynamicCutSampler:
    """lhotse's sampler of batches: of cuts of similar duration, or with fewer than two groups in the order of cuts."""
    # cuts of folders are in memory, since all headers are read at the start
    warnings.filterwarnings("ignore", message="You are using Dynamic.*Sampler with an eagerly read CutSet")
    if buckets > 1:
        return DynamicBucketingSampler(cuts, num_buckets=buckets, **options)
    return DynamicCutSampler(cuts, **options)


def make_loader(
    cuts: CutSet,
    config: DataConfig,
    seed: int,
    epoch: int,
    start: int = 0,
    rank: int = 0,
    world: int = 1,
    find_targets: Callable[[Tensor], Sequence[Tensor | None]] | None = None,
    student_input: StudentInput | None = None,
) -> DataLoader:
    """Batches of one epoch, from batch ``start`` on, in an order that depends only on the seed and the epoch.

    Args:
        rank, world: Number of this process, and of processes.
        find_targets: Returns the cached targets of a waveform for each teacher. The data workers call it.
        student_input: Makes the student's input, see `StudentInput`; also called by the data workers.
    """
    options = {"max_duration": config.batch_seconds * world, "shuffle": True, "seed": seed, "rank": 0, "world_size": 1}
    sampler = make_sampler(cuts, min(config.buckets, len(cuts) // 4), **options)
    sampler.set_epoch(epoch)
    return DataLoader(
        CutDataset(find_targets, student_input, epoch),
        sampler=_ProcessSampler(sampler, start, rank, world),
        batch_size=None,
        worker_init_fn=end_with_parent,
        num_workers=config.workers,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator().manual_seed(seed),  # its own: a checkpoint stores the default one
    )
