"""The evaluation loop of every downstream, s3prl's and ours."""

from __future__ import annotations

import contextlib
import random
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from tensorboardX import SummaryWriter
from torch import Tensor

from distilled_student.common.errors import UserError
from distilled_student.common.interruption import Interruption
from distilled_student.common.processes import is_leader, start_workers
from distilled_student.common.progress import Progress
from distilled_student.host.runner_parts import RunnerParts
from distilled_student.host.task_moments import TaskMoments
from distilled_student.host.weight_average import WeightAverage


class EvaluationAbandoned(Exception):
    """A signal to exit was received during an evaluation between training steps."""


class EvaluationLoop(RunnerParts):
    """Evaluates a split, during training and on its own, as s3prl 0.4.18 does (downstream/runner.py)."""

    _in_bf16 = False  # whether the upstream trains in bfloat16 now: `runner.bf16`
    average: WeightAverage | None = None  # while it trains with `runner.average`
    moments: TaskMoments | None = None  # while it trains with `downstream_expert.optimizer_per_task`
    stops_evaluation: Interruption | None = None  # between training steps: what an evaluation is abandoned for

    def evaluate(self, split: str | None = None, logger: Any = None, global_step: int = 0) -> list[str]:
        """Evaluate a split in float32; returns the names of checkpoints to save. Only the leader evaluates.

        Without arguments, as the command line calls it: ``args.evaluate_split``, logging to nowhere.

        Raises:
            EvaluationAbandoned: `stops_evaluation` has received a signal.
        """
        if not is_leader():
            return []
        if split is None:
            folder = tempfile.mkdtemp()
            try:
                with contextlib.closing(SummaryWriter(folder)) as logger:
                    return self.evaluate(self.args.evaluate_split, logger, global_step)
            finally:
                shutil.rmtree(folder)
        with contextlib.nullcontext() if self.average is None else self.average.applied():
            return self._evaluate(split, logger, global_step)

    def _evaluate(self, split: str, logger: Any, global_step: int) -> list[str]:
        """Evaluate a split with the present weights."""
        calibrate = getattr(self.expert, "calibrate", None)
        if (self._in_bf16 or self.average is not None) and calibrate is not None:
            calibrate(self._features_for_evaluation)
        self._seed_for_evaluation()
        were_training = [entry.model.training for entry in self.all_entries]
        for entry in self.all_entries:
            entry.model.eval()
        try:
            names = self._run_split(split, logger, global_step)
        finally:
            for entry, training in zip(self.all_entries, were_training, strict=True):
                entry.model.train(training)
        return names if isinstance(names, list) else []

    def _run_split(self, split: str, logger: Any, global_step: int) -> Any:
        """Run the models, which are in evaluation mode, on a split; returns what the downstream's log does."""
        loader = self._batches(split)
        steps = round(len(loader) * float(self.config["runner"].get("evaluate_ratio", 1)))
        records, batch_ids = defaultdict(list), []
        with Progress(steps, f"evaluating {split}") as progress:
            for batch_id, (wavs, *others) in enumerate(start_workers(loader)):
                if batch_id > steps:  # one more than the ratio says, as in s3prl
                    break
                if self.stops_evaluation:
                    raise EvaluationAbandoned
                with torch.no_grad():
                    wavs = self._on_device(wavs)
                    features = self.featurizer.model(wavs, self.upstream.model(wavs))
                    self.downstream.model(split, features, *others, records=records, batch_id=batch_id)
                batch_ids.append(batch_id)
                progress.update()
        names = self._log(split, records, logger, global_step, batch_ids, len(loader))
        if names and (calibrate := getattr(self.expert, "calibrate_speakers_on_features", None)) is not None:
            with torch.no_grad():
                calibrate(self._features_for_evaluation)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return names

    def _batches(self, split: str, **epoch: int) -> Any:
        try:
            loader = self.downstream.model.get_dataloader(split, **epoch)
        except ValueError as error:  # torch samples from no empty data set
            if "num_samples" not in str(error):
                raise
            raise UserError(f"{self.where}: no data to {split} with ({error})") from error
        if not len(loader):  # the loop would ask for the next epoch's batches forever
            raise UserError(f"{self.where}: less data to {split} with than makes one batch")
        return loader

    def _on_device(self, wavs: Sequence[Any]) -> list[Tensor]:
        return [torch.FloatTensor(wav).to(self.args.device) for wav in wavs]

    def _log(self, split: str, records: Any, logger: Any, step: int, batch_ids: list[int], batches: int) -> Any:
        return self.downstream.model.log_records(
            split, records=records, logger=logger, global_step=step, batch_ids=batch_ids, total_batch_num=batches
        )

    def _seed_for_evaluation(self) -> None:
        """The same evaluation at every step: s3prl's experts draw random numbers in theirs."""
        random.seed(self.args.seed)
        np.random.seed(self.args.seed)
        torch.manual_seed(self.args.seed)  # CUDA's generators too
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    @torch.no_grad()
    def _features_for_evaluation(self, wavs: Sequence[Any]) -> list[Tensor]:
        """Features of each utterance as an evaluation computes them: without dropout, in float32."""
        models = [entry.model for entry in (self.upstream, self.featurizer)]
        were_training = [model.training for model in models]
        for model in models:
            model.eval()
        wavs = self._on_device(wavs)
        features = self.featurizer.model(wavs, self.upstream.model(wavs))
        for model, training in zip(models, were_training, strict=True):
            model.train(training)
        return features
