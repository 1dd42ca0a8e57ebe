"""The settings of a distillation's data; a module of its own, so that settings are checked without importing torch."""

from __future__ import annotations

from dataclasses import dataclass, field

from distilled_student.common.effect_settings import EffectSettings

MANIFESTS = (".jsonl", ".jsonl.gz")
TARS = (".tar", ".tar.gz", ".tgz")


@dataclass
class DataConfig:
    """Where the audio is and how it is batched.

    Attributes:
        paths: Folders of audio, lhotse manifests of cuts or recordings (.jsonl, .jsonl.gz), or WebDataset shards
            (.tar). Shards, manifests of more than 64 MB, and patterns or URLs of either are streamed.
        held_out: Folders or manifests of audio on which the loss is measured during training, see ``held_out_every``.
            Files that ``paths`` leads to as well are not trained on. Its speakers should be others than those of
            ``paths``.
        augment: Effects on the student's input: noise, reverberation, gain. The teachers encode the clean utterance
            (RobustDistiller, Guimarães et al. 2023), and held-out audio stays clean. These keys have a table of their
            own.
        min_seconds: Shorter files are skipped.
        max_seconds: Longer files are cut into pieces.
        batch_seconds: Seconds of audio in a batch of each process, padding included.
        buckets: Number of groups by duration. A batch is drawn from one group, so that it needs little padding.
        workers: Number of processes that read data, for each training process; 0: the training process reads.
        streams: Number of parts of a streamed corpus that each process reads in turn. The batches depend on it, but
            not on the number of workers.
    """

    paths: list[str]
    held_out: list[str] = field(default_factory=list)
    augment: EffectSettings = field(default_factory=EffectSettings)
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
            found = f"{self.min_seconds:g}, {self.max_seconds:g} and {self.batch_seconds:g}"
            key = "batch_seconds" if self.batch_seconds < self.max_seconds else "max_seconds"
            order = "needs 0 < min_seconds < max_seconds <= batch_seconds"
            raise ValueError(f"data.{key}: {order}, found {found}: a batch holds the longest piece at least")
        if self.buckets < 1 or self.streams < 1 or self.workers < 0:
            raise ValueError("data: buckets and streams need at least 1, workers at least 0")
