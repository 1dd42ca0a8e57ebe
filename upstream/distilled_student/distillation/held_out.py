"""The loss on audio that is not trained on, measured while a student is trained."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from lhotse import CutSet
from lhotse.cut import Cut
from torch import Tensor

from distilled_student.common.errors import UserError
from distilled_student.common.processes import sum_over_processes
from distilled_student.distillation.data.config import DataConfig
from distilled_student.distillation.data.cuts import Batch, CutDataset, make_sampler, read_cuts, recording_name

if TYPE_CHECKING:
    from distilled_student.distillation.trainer import Distillation

log = logging.getLogger(__name__)


class HeldOutLoss(NamedTuple):
    """Means over all valid frames: the ``loss``, and its parts for each target of all teachers, ``(targets,)``.

    The loss is the weighted sum over the teachers. For a speaker encoder an utterance is one frame.
    """

    loss: float
    l1: Tensor
    cosine: Tensor


class HeldOut:
    """The audio of ``data.held_out``, in batches of utterances of similar length.

    Raises:
        UserError: a path does not exist or has no usable audio.
    """

    def __init__(self, config: DataConfig, where: str) -> None:
        self.config = config
        cuts, _ = read_cuts(replace(config, paths=config.held_out), where, key="held_out")
        self.cuts = CutSet.from_cuts(sorted(cuts, key=lambda cut: (cut.duration, cut.id)))
        self.seconds = sum(cut.duration for cut in self.cuts)

    def without(self, cuts: CutSet, where: str) -> CutSet:
        """The training cuts whose recording is not held out.

        Raises:
            UserError: none is left.
        """
        held_out = {_file(cut) for cut in self.cuts}
        kept = [cut for cut in cuts if _file(cut) not in held_out]
        if not kept:
            raise UserError(f"{where}.held_out: leaves nothing to train on: all files of paths are held out")
        if len(kept) < len(cuts):
            log.info("%d of %d utterances are held out and not trained on", len(cuts) - len(kept), len(cuts))
        return CutSet.from_cuts(kept)

    def batches(
        self, rank: int = 0, world: int = 1, find_targets: Callable[[Tensor], Sequence[Tensor | None]] | None = None
    ) -> Iterator[Batch]:
        """The batches of process ``rank`` of ``world``, the same at every call.

        ``find_targets``: returns the cached targets of a waveform for each teacher.
        """
        sampler = make_sampler(self.cuts, 1, max_duration=self.config.batch_seconds, rank=0, world_size=1)
        dataset = CutDataset(find_targets)
        for number, cuts in enumerate(sampler):
            if number % world == rank:
                yield dataset[cuts]

    @torch.no_grad()
    def measure(self, run: Distillation) -> HeldOutLoss:
        """The loss of the student as it is now, without dropout. All processes call it together.

        Raises:
            UserError: no file can be read.
        """
        model = run.accelerator.unwrap_model(run.model)
        was_training, counts = model.training, [source.teacher.target_count for source in run.sources]
        model.eval()
        sums = torch.zeros(sum(2 * count + 1 for count in counts), dtype=torch.float64, device=run.accelerator.device)
        rank, world = run.accelerator.process_index, run.accelerator.num_processes
        for batch in self.batches(rank, world, run.find_held_out_targets):
            if len(batch.lengths):
                found = run.loss_parts(batch, model, held_out=True)
                sums += torch.cat([t for p in found for t in (p.l1, p.cosine, p.frames[None].to(p.l1.dtype))])
        model.train(was_training)
        sums = sum_over_processes(sums).cpu()
        if sums[-1] == 0:
            raise UserError(f"{run.where}: data.held_out: {', '.join(self.config.held_out)}: no file could be read")
        means = [part[:-1] / part[-1] for part in sums.split([2 * count + 1 for count in counts])]
        loss = sum(source.weight * float(mean.sum()) for source, mean in zip(run.sources, means, strict=True))
        l1, cosine = zip(*(mean.chunk(2) for mean in means), strict=True)
        return HeldOutLoss(loss, torch.cat(l1), torch.cat(cosine))


def _file(cut: Cut) -> str:
    """The recording of a cut: the file that it leads to, or for another recording its id."""
    name = recording_name(cut)
    return str(Path(name).resolve()) if Path(name).is_file() else name
