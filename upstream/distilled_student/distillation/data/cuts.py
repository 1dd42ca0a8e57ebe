"""Unlabelled audio for distillation: any folder or lhotse manifest, in batches of a bounded number of seconds."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import soundfile
import torch
from lhotse import AudioSource, CutSet, Recording
from lhotse.cut import Cut
from lhotse.dataset import DynamicBucketingSampler, DynamicCutSampler
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset, Sampler

from distilled_student.common.audio import SAMPLE_RATE, SUFFIXES, header, resample
from distilled_student.common.errors import UserError, one_line
from distilled_student.common.workers import end_with_parent
from distilled_student.distillation.data.manifests import load_audio, read_manifest

log = logging.getLogger(__name__)
MANIFESTS = (".jsonl", ".jsonl.gz")


@dataclass
class DataConfig:
    """Where the audio is and how it is batched.

    Attributes:
        paths: Folders of audio (LibriSpeech's layout is one), or lhotse manifests of cuts or recordings (.jsonl[.gz]).
            Or, read as a stream: WebDataset shards (.tar), large manifests, and patterns or URLs of both, see `shards`.
        min_seconds: Shorter files are skipped. ``max_seconds``: longer ones are cut into pieces.
        batch_seconds: Seconds of audio in a batch, on each process. ``buckets``: by duration, so that little is padded.
        workers: Processes that read audio ahead. ``streams``: parts of a streamed corpus that each process reads in
            turn; batches depend on their number, and not on how many workers share them.
    """

    paths: list[str]
    min_seconds: float = 0.1
    max_seconds: float = 15.0
    batch_seconds: float = 60.0
    buckets: int = 10
    workers: int = 1
    streams: int = 4

    def __post_init__(self) -> None:
        if not self.paths:
            raise ValueError("data.paths: needs at least one folder or manifest")
        if not 0 < self.min_seconds < self.max_seconds <= self.batch_seconds:
            raise ValueError("data: needs 0 < min_seconds < max_seconds <= batch_seconds")
        if self.buckets < 1 or self.streams < 1 or self.workers < 0:
            raise ValueError("data: buckets and streams need at least 1, workers at least 0")


class Skipped:
    """Files that were left out, counted and named."""

    def __init__(self) -> None:
        self.reasons: dict[str, str] = {}

    def add(self, name: str, reason: str) -> None:
        """Name a file once."""
        if name not in self.reasons:
            self.reasons[name] = reason
            log.warning("skipped %s: %s", one_line(name), reason)

    def __len__(self) -> int:
        return len(self.reasons)


def _folder_cuts(folder: Path, min_seconds: float, skipped: Skipped) -> Iterable[Cut]:
    for path in sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and not p.is_dir()):
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


def read_cuts(config: DataConfig, where: str | Path = "data") -> tuple[CutSet, Skipped]:
    """All audio as cuts of at most ``max_seconds``, and what was skipped.

    Args:
        where: What messages begin with, ``FILE: data``.

    Raises:
        UserError: a path is missing, or nothing usable is left; names it.
    """
    skipped, cuts = Skipped(), []
    for name in config.paths:
        path = Path(name)
        if path.is_dir():
            found = list(_folder_cuts(path, config.min_seconds, skipped))
        elif path.is_file() and path.name.endswith(MANIFESTS):
            found = []
            for cut in read_manifest(path):
                if cut.duration < config.min_seconds:
                    skipped.add(cut.id, f"shorter than {config.min_seconds} s")
                else:
                    found.append(cut)
        else:
            raise UserError(f"{where}.paths: {name}: no such folder or manifest ({', '.join(MANIFESTS)})")
        if not found:
            raise UserError(f"{where}.paths: {name}: no usable audio in it ({len(skipped)} files skipped)")
        cuts += found
    pieces = CutSet.from_cuts(cuts).cut_into_windows(config.max_seconds)
    return CutSet.from_cuts(c for c in pieces if c.duration >= config.min_seconds), skipped


@dataclass
class Batch:
    """Utterances, read.

    Attributes:
        waveforms: ``(batch, samples)`` at 16 kHz. ``lengths (batch,)`` in samples, which stay on the CPU.
        names: The recording of each: a path, a manifest's id or a shard's member.
        failed: Files that could not be read, with the reason.
        targets: Of each utterance what a cache has of the teacher's hidden states, ``(targets, frames, features)``.
        stream, place: Where it comes from in a streamed corpus, see `make_stream`, which goes on behind a place.
    """

    waveforms: Tensor
    lengths: Tensor
    names: list[str]
    failed: dict[str, str]
    targets: list[Tensor | None]
    stream: int = 0
    place: tuple[int, int, int, int] | None = None

    def pin_memory(self) -> Batch:
        """For torch's loader: memory that a GPU copies from while it computes."""
        return replace(self, waveforms=self.waveforms.pin_memory())

    def seconds(self, untaught: bool = False) -> float:
        """Seconds of audio; ``untaught``: of those alone that the teacher must hear, too."""
        counted = [found is None or not untaught for found in self.targets]
        return int(self.lengths[counted].sum()) / SAMPLE_RATE


def name_of(cut: Cut) -> str:
    """The recording's id, by which a person finds the file."""
    return getattr(cut, "recording_id", cut.id) if cut.has_recording else cut.id


def _check_sources(cut: Cut) -> None:
    """Raise ValueError for a missing file, or one far longer than its manifest says: lhotse would decode all of it."""
    parts = [track.cut for track in getattr(cut, "tracks", [])] or [cut]
    recordings = [part.recording for part in parts if getattr(part, "recording", None)]
    for recording, source in [(found, source) for found in recordings for source in found.sources]:
        if source.type != "file":
            continue
        if not Path(source.source).is_file():
            raise ValueError(f"{source.source}: no such file")
        try:
            seconds = soundfile.info(source.source).duration
        except soundfile.LibsndfileError:
            continue  # damaged, or a format that lhotse alone knows: it is to say so
        if seconds > 2 * recording.duration + 1:  # a manifest's speed perturbation is not a lie
            raise ValueError(f"{seconds:.0f} s long, and {recording.duration:.0f} s in the manifest")


def load(cut: Cut) -> Tensor:
    """Decode a cut, ``(samples,)`` at 16 kHz, the mean of its channels.

    Raises:
        ValueError: no audio, NaN or infinite samples, or longer than the manifest says; lhotse raises more.
    """
    _check_sources(cut)
    samples = load_audio(cut)
    if samples is None:
        raise ValueError("has no recording")
    waveform = torch.from_numpy(samples).float().mean(dim=0)
    waveform = resample(waveform, cut.sampling_rate)
    if not torch.isfinite(waveform).all():
        raise ValueError("holds NaN or infinite samples")
    return waveform


class CutDataset(Dataset):
    """Reads the cuts of one batch, and what a cache has of their targets; a file that fails is left out and named."""

    def __init__(self, find_targets: Callable[[Tensor], Tensor | None] | None = None) -> None:
        self.find_targets = find_targets

    def __getitem__(self, cuts: Iterable[Cut]) -> Batch:
        waveforms, names, failed = [], [], {}
        for cut in cuts:
            name = name_of(cut)
            try:
                waveforms.append(load(cut))
                names.append(name)
            except Exception as error:  # whatever a damaged file makes lhotse raise, it is that file's fault
                failed[name] = " ".join(str(error).split())[:300] or type(error).__name__
        if not waveforms:
            return Batch(torch.zeros(0, 0), torch.zeros(0, dtype=torch.long), [], failed, [])
        lengths = torch.tensor([len(w) for w in waveforms])
        targets = [self.find_targets(waveform) if self.find_targets else None for waveform in waveforms]
        return Batch(pad_sequence(waveforms, batch_first=True), lengths, names, failed, targets)


class _Share(Sampler):
    """A process's share of each batch, from the ``start``-th on: what was used before is not even read.

    The batches are those of one process, so that their number changes nothing but the speed. In a batch of fewer
    utterances than processes some shares are empty.
    """

    def __init__(self, sampler: DynamicBucketingSampler | DynamicCutSampler, start: int, rank: int, world: int) -> None:
        self.sampler, self.start, self.rank, self.world = sampler, start, rank, world

    def __iter__(self) -> Iterator[CutSet]:
        for cuts in islice(iter(self.sampler), self.start, None):
            if self.world > 1:  # by length, so that nobody waits for long
                cuts = sorted(cuts, key=lambda cut: (cut.duration, cut.id))[self.rank :: self.world]
            yield CutSet.from_cuts(cuts)


def make_loader(
    cuts: CutSet,
    config: DataConfig,
    seed: int,
    epoch: int,
    start: int = 0,
    rank: int = 0,
    world: int = 1,
    find_targets: Callable[[Tensor], Tensor | None] | None = None,
) -> DataLoader:
    """Batches of one epoch from the ``start``-th on, in an order that depends on the seed and the epoch alone.

    ``find_targets``: gives a waveform's targets that are in a cache; asked by the workers, ahead of training.
    """
    warnings.filterwarnings("ignore", message="You are using Dynamic.*Sampler with an eagerly read CutSet")
    buckets = min(config.buckets, len(cuts) // 4)
    options = {"max_duration": config.batch_seconds * world, "shuffle": True, "seed": seed, "rank": 0, "world_size": 1}
    if buckets > 1:
        sampler = DynamicBucketingSampler(cuts, num_buckets=buckets, **options)
    else:  # a handful of files
        sampler = DynamicCutSampler(cuts, **options)
    sampler.set_epoch(epoch)
    return DataLoader(
        CutDataset(find_targets),
        sampler=_Share(sampler, start, rank, world),
        batch_size=None,
        worker_init_fn=end_with_parent,
        num_workers=config.workers,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator().manual_seed(seed),  # else it draws from the state that a checkpoint holds
    )
