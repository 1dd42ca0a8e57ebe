"""The runner and its training loop, which trains every downstream, s3prl's and ours."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from tensorboardX import SummaryWriter
from torch import Tensor
from torch.utils.data import DistributedSampler

from distilled_student.common.early_checks import checkpoints
from distilled_student.common.errors import UserError
from distilled_student.common.files import read_json, save_torch
from distilled_student.common.interruption import Interruption
from distilled_student.common.processes import is_leader, only_run_in, start_workers, stops_with_other_processes
from distilled_student.common.progress import Progress, note
from distilled_student.common.provenance import FILE, write_provenance
from distilled_student.common.random_states import seed_all
from distilled_student.common.sample_range import skip_range_check
from distilled_student.host.evaluation_loop import EvaluationAbandoned, EvaluationLoop
from distilled_student.host.runner_parts import unwrapped
from distilled_student.host.updates import Updates
from distilled_student.host.upstreams import front_end_warning
from distilled_student.host.yaml_sections import source

DUE = "EvaluationsDue"  # in a checkpoint: splits to evaluate before the next step
WARMUP = "num_warmup_steps"  # key of s3prl's schedulers
MAX_SKIPPED = 10  # steps in a row without a finite gradient


class Runner(EvaluationLoop):
    """s3prl's ``Runner`` with training and evaluation that can be read, resumed and interrupted.

    On one process and in float32, `train` makes the same updates, checkpoints and log entries as s3prl 0.4.18
    (downstream/runner.py), bit for bit on a CPU: ``tests/host/test_training_loop.py``.
    """

    def train(self) -> None:
        """Train to ``runner.total_steps``, from ``init_ckpt`` where there is one, and save the last step.

        Raises:
            UserError: the data, another process or the disk fail.
            Interrupted: SIGTERM or Ctrl-C, after the step's checkpoint. In the last step only if this is one of several
                trainings.
        """
        folder, interruption = Path(self.args.expdir), Interruption()
        self._in_bf16, self.skipped_steps = self.config["runner"].get("bf16", False), 0
        self._failed_in_a_row: list[list[str]] = []
        with contextlib.ExitStack() as stack:
            if is_leader():
                stack.enter_context(only_run_in(folder))
            stack.enter_context(interruption.watched())
            stack.enter_context(stops_with_other_processes(interruption))
            stack.callback(setattr, self, "_in_bf16", False)
            stack.callback(setattr, self, "average", None)
            stack.callback(setattr, self, "moments", None)
            stack.callback(setattr, self, "stops_evaluation", None)
            self._write_provenance()
            if is_leader() and hasattr(self.expert, "forget"):
                self.expert.forget(self.init_ckpt.get("Step", 0))
            self._note_finished()
            self._note_warmup()
            logger = stack.enter_context(contextlib.closing(SummaryWriter(folder))) if is_leader() else None
            self._train(interruption, logger)
            if dist.is_initialized():
                dist.barrier()
        self._note_unevaluated()
        if self.skipped_steps:
            note(f"{self.skipped_steps} steps were skipped: their gradient was not finite")
        if self.args.push_to_hf_hub:
            self.push_to_huggingface_hub()
        interruption.leave_suite(f"all {self.config['runner']['total_steps']} steps of {folder} are trained")

    def _train(self, interruption: Interruption, logger: SummaryWriter | None) -> None:
        """The training loop; the leader of several processes has a logger."""
        runner, leader = self.config["runner"], logger is not None
        total, accumulate = runner["total_steps"], runner["gradient_accumulate_steps"]
        step, epoch = self.init_ckpt.get("Step", 0), self.init_ckpt.get("Epoch", 0)
        trained = self._set_modes()
        skip_range_check(self.upstream.model)  # augmentation may exceed the range
        parameters = [parameter for model in trained for parameter in model.parameters()]
        scaler, optimizer = self._get_scaler(), self._get_optimizer(trained)
        scheduler = self._get_scheduler(optimizer) if self.config.get("scheduler") else None
        specaug = self._get_specaug()
        self.average, self.moments = self._get_average(), self._get_moments(optimizer)
        gradients = self._get_task_gradients()
        if not leader:
            seed_all(self.args.seed, dist.get_rank(), step)
        records, batch_ids, batches = defaultdict(list), [], 0
        due, remedy = self.init_ckpt.get(DUE, []), f"resume: run_downstream.py -m train -e {self.args.expdir}"
        # s3prl's downstreams log what s3prl logs, and nothing of this
        updates = Updates() if leader and hasattr(self.expert, "log_updates") else None

        with Progress(total, "training steps", step, shown=leader) as progress:
            while step < total:
                loader = self._training_batches(epoch)
                if due:  # the evaluation that a signal has stopped; the random states of the checkpoint are set
                    self.stops_evaluation = interruption
                    names, due = self._evaluate_splits(due, logger, step)
                    if names:
                        self._save(names, step, epoch, optimizer, scheduler, scaler)
                    if due:
                        interruption.leave(f"saved step {step}", remedy)
                for batch_id, (wavs, *others) in enumerate(start_workers(loader)):
                    if step >= total:
                        break

                    # The batch. In the joint task others[0] is its task: `AlternationLoader` (multitask/alternation.py)
                    # yields kws, sv, kws, sv, ...; with accumulate = 1 each makes a step: the paper's alternation.
                    try:
                        loss = self._loss(wavs, others, records, specaug) / accumulate
                        batch_ids.append(batch_id)
                        (loss if scaler is None else scaler.scale(loss)).backward()
                        if gradients is not None:
                            gradients.collect(others[0])
                    except torch.OutOfMemoryError as error:
                        self._skip_batch(error, step + 1, optimizer)
                        if gradients is not None:
                            gradients.discard()
                        continue

                    # accumulation: only the last of these batches is followed by a step
                    batches += 1
                    if batches % accumulate > 0:
                        continue
                    step += 1

                    # the gradients of several tasks, clipping and the step
                    cosines = {} if gradients is None else gradients.combine(step)
                    if self.moments is not None:
                        self.moments.use(others[0])
                    if scaler is not None:
                        scaler.unscale_(optimizer)
                    norm = torch.nn.utils.clip_grad_norm_(parameters, runner["gradient_clipping"])
                    if scaler is not None:  # skips a gradient that is not finite by itself
                        scaler.step(optimizer)
                        scaler.update()
                    elif self._is_finite(norm, step):
                        optimizer.step()
                    optimizer.zero_grad()
                    if cosines and torch.isfinite(norm):
                        for tasks, cosine in cosines.items():
                            records[f"gradient_cosine/{tasks}"].append(cosine)
                    if self.average is not None:
                        self.average.update()
                    if updates is not None:
                        updates.add(optimizer, norm)
                    if scheduler is not None:
                        scheduler.step()

                    if not leader:
                        records, batch_ids = defaultdict(list), []
                        if step % runner["save_step"] == 0:  # checkpoints hold the leader's random states alone
                            seed_all(self.args.seed, dist.get_rank(), step)
                        continue

                    if step % runner["log_step"] == 0:
                        self._log(self._train_split, records, logger, step, batch_ids, len(loader))
                        if updates is not None:
                            self.expert.log_updates(updates.since_last(), self._layer_weights(), logger, step)
                        records, batch_ids = defaultdict(list), []

                    # evaluation names the checkpoints to write, such as the best one
                    names = []
                    if step % runner["eval_step"] == 0:
                        self.stops_evaluation = interruption if step < total else None  # nothing resumes after the last
                        names, due = self._evaluate_splits(runner["eval_dataloaders"], logger, step)

                    leaving = bool(interruption)  # read once: a signal during the save belongs to the next step
                    if leaving or step == total or step % runner["save_step"] == 0:
                        names.append(f"states-{step}.ckpt")
                    if names:
                        self._save(names, step, epoch, optimizer, scheduler, scaler, due)
                    progress.update()
                    if leaving and step < total:
                        interruption.leave(f"saved step {step}", remedy)
                epoch += 1

    # Parts of the loop, in the order of their use
    def _evaluate_splits(self, splits: Sequence[str], logger: Any, step: int) -> tuple[list[str], list[str]]:
        """Evaluate these splits; returns the names of checkpoints to save, and the splits that a signal has stopped."""
        names: list[str] = []
        for number, split in enumerate(splits):
            try:
                names += self.evaluate(split, logger, step)
            except EvaluationAbandoned:
                return names, list(splits[number:])
        return names, []

    def _layer_weights(self) -> Tensor | None:
        """The weights ``(layers,)`` of the featurizer's sum, which add up to 1; None for a single layer."""
        featurizer = unwrapped(self.featurizer.model)
        weights = getattr(featurizer, "weights", None)
        if weights is None or len(weights) == 1 or featurizer.layer_selection is not None:
            return None
        return weights.detach().softmax(dim=0)

    @property
    def _train_split(self) -> str:
        return self.config["runner"].get("train_dataloader", "train")

    def _note_finished(self) -> None:
        """Say so where a resumed run has all its steps."""
        step, total = self.init_ckpt.get("Step", 0), self.config["runner"]["total_steps"]
        if is_leader() and step >= total:
            more = f"run_downstream.py -m train -e {self.args.expdir} -o config.runner.total_steps={2 * step}"
            note(f"{self.args.expdir}: finished: all {total} steps are trained; for more steps: {more}")

    def _note_warmup(self) -> None:
        """Say so where the warm-up of the learning rate is as long as the training."""
        total, warmup = self.config["runner"]["total_steps"], (self.config.get("scheduler") or {}).get(WARMUP) or 0
        if is_leader() and warmup >= total:
            reason = f"{warmup}, but runner.total_steps is {total}: the learning rate stays below optimizer.lr"
            note(f"{source(vars(self.args))}: scheduler.{WARMUP}: {reason}")

    def _note_unevaluated(self) -> None:
        """Say so where the training was too short for an evaluation, which would choose the best checkpoint."""
        total, every = self.config["runner"]["total_steps"], self.config["runner"]["eval_step"]
        if is_leader() and total < every and self.config["runner"]["eval_dataloaders"]:
            reason = (
                f"{every}, but runner.total_steps is {total}: nothing was evaluated, and no best checkpoint was saved"
            )
            note(f"{source(vars(self.args))}: runner.eval_step: {reason}")

    def _write_provenance(self) -> None:
        if not is_leader():
            return
        data, config = {}, self.config
        if hasattr(self.expert, "fingerprints"):  # ours
            data, config = self.expert.fingerprints("train"), {**config, "downstream_expert": self.expert.resolved()}
        settings, folder = {"arguments": vars(self.args), "config": config}, Path(self.args.expdir)
        models = {"upstream": self.upstream_provenance()}
        if hasattr(self.expert, "teachers"):
            models |= self.expert.teachers()
        if self.init_ckpt and (folder / FILE).is_file():  # resumed: the weights that the run started from
            models = read_json(folder / FILE).get("models", {})
        write_provenance(folder, settings, self.args.seed, {"train": data}, models=models)

    def _set_modes(self) -> list[torch.nn.Module]:
        """Put every model into training or evaluation mode; those that are trained."""
        for entry in self.all_entries:
            entry.model.train(entry.trainable).to(self.args.device)
        name, ckpt = self.args.upstream, self.args.upstream_ckpt
        warning = front_end_warning(self.upstream.model, name, ckpt) if self.upstream.trainable else None
        if warning and is_leader():
            note(warning)
        return [entry.model for entry in self.all_entries if entry.trainable]

    def _get_specaug(self) -> Any:
        if not self.config.get("specaug"):
            return None
        from s3prl.downstream.specaug import SpecAug

        return SpecAug(**self.config["specaug"])

    def _training_batches(self, epoch: int) -> Any:
        """The downstream's loader of an epoch; some downstreams of s3prl do not take ``epoch``."""
        try:
            return self._batches(self._train_split, epoch=epoch)
        except TypeError as error:
            if "unexpected keyword argument 'epoch'" not in str(error):
                raise
        loader = self._batches(self._train_split)
        if isinstance(getattr(loader, "sampler", None), DistributedSampler):
            loader.sampler.set_epoch(epoch)
        return loader

    def _loss(self, wavs: Sequence[Any], others: Sequence[Any], records: Any, specaug: Any) -> Tensor:
        """Upstream, featurizer and downstream on one batch."""
        wavs = self._on_device(wavs)
        device = torch.device(self.args.device).type
        with torch.autocast("cuda", enabled=self.config["runner"].get("fp16", False)):
            # no `enabled=False` here: inside the autocast of fp16 it would run the upstream in float32
            bf16 = torch.autocast(device, torch.bfloat16) if self._in_bf16 else contextlib.nullcontext()
            with bf16:
                with torch.set_grad_enabled(self.upstream.trainable):
                    features = self.upstream.model(wavs)
                targets = self.expert.soft_targets(wavs, *others) if hasattr(self.expert, "soft_targets") else None
            features = self.featurizer.model(wavs, features)
            if specaug is not None:
                features, _ = specaug(features)
            teaching = {} if targets is None else {"targets": targets}
            return self.downstream.model(self._train_split, features, *others, records=records, **teaching)

    def _skip_batch(self, error: torch.OutOfMemoryError, step: int, optimizer: torch.optim.Optimizer) -> None:
        """Continue without a batch that does not fit into the GPU's memory; several processes cannot."""
        if dist.is_initialized():
            raise error
        note(f"step {step}: a batch was skipped: CUDA out of memory")
        torch.cuda.empty_cache()
        optimizer.zero_grad()

    def _is_finite(self, norm: Tensor, step: int) -> bool:
        """Whether a step's gradient is finite; otherwise the step is skipped.

        Raises:
            UserError: so were ``runner.max_skipped`` (10) steps in a row; names their utterances.
        """
        if torch.isfinite(norm):
            self._failed_in_a_row.clear()
            return True
        self.skipped_steps += 1
        self._failed_in_a_row.append(list(map(str, getattr(self.expert, "last_keys", ()))))
        names = ", ".join(self._failed_in_a_row[-1]) or "its batch"
        note(f"step {step} was skipped: its gradient is {float(norm)}, on {names}")
        if len(self._failed_in_a_row) >= int(self.config["runner"].get("max_skipped", MAX_SKIPPED)):
            where = f"{source(vars(self.args))}: runner.max_skipped"
            names = ", ".join(sorted({name for names in self._failed_in_a_row for name in names})) or "unknown files"
            reason = f"{len(self._failed_in_a_row)} steps in a row had no finite gradient, on {names}"
            raise UserError(f"{where}: {reason}: lower the learning rate or check these files")
        return False

    def _save(
        self,
        names: Sequence[str],
        step: int,
        epoch: int,
        optimizer: Any,
        scheduler: Any | None,
        scaler: Any | None,
        due: Sequence[str] = (),
    ) -> None:
        """Write one state under each name, each completely or not at all; then remove the oldest ``states-*.ckpt``.

        ``due``: the splits that a resumed run evaluates first, because a signal has stopped their evaluation.
        """
        state = {"Optimizer": optimizer.state_dict(), "Step": step, "Epoch": epoch}
        state |= {"Args": self.args, "Config": self.config}
        # a frozen upstream that came from a checkpoint (-i) is in no other file that this run names
        saved = [entry for entry in self.all_entries if entry.trainable or entry.name in self.init_ckpt]
        state |= {entry.name: unwrapped(entry.model).state_dict() for entry in saved}
        if self.average is not None:
            state["Average"] = self.average.state()
        if self.moments is not None:
            state["Optimizer"]["state"], state["Moments"] = {}, self.moments.state()
        if scheduler is not None:
            state["Scheduler"] = scheduler.state_dict()
        if scaler is not None:
            state["Scaler"] = scaler.state_dict()
        if due:
            state[DUE] = list(due)
        if dist.is_initialized():
            state["WorldSize"] = dist.get_world_size()
        folder = Path(self.args.expdir)
        for name in names:
            save_torch(state, folder / name)
        for old in checkpoints(folder)[: -int(self.config["runner"]["max_keep"])]:
            old.unlink()
