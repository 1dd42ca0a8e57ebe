"""s3prl's downstream expert of the joint task: features in, the loss of one task or records for its metrics out."""

from __future__ import annotations

import hashlib
import logging
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed import get_rank, is_initialized
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from distilled_student.common import audio
from distilled_student.common.early_checks import BEST
from distilled_student.common.errors import UserError, one_line
from distilled_student.common.processes import count_processes, is_leader, sum_over_processes
from distilled_student.common.progress import note
from distilled_student.common.provenance import files_fingerprint, utterances_fingerprint
from distilled_student.common.settings import typed
from distilled_student.corpora.own_folder import read_own_folder
from distilled_student.corpora.speaker_groups import SpeakerGroups
from distilled_student.host.upstreams import StudentUpstream
from distilled_student.host.yaml_sections import source
from distilled_student.multitask.alternation import AlternationLoader
from distilled_student.multitask.group_figures import GROUPS, figure_lines
from distilled_student.multitask.heads import LayerChoice
from distilled_student.multitask.loader import Batch, EvaluationLoader
from distilled_student.multitask.own_data import long_words, report
from distilled_student.multitask.owner_evaluation import OWNER, OwnerEvaluation
from distilled_student.multitask.packed import start_branches, start_heads
from distilled_student.multitask.precise_batch_norm import measure_statistics
from distilled_student.multitask.resume import EpochPosition, saved_calibrations, saved_classes, saved_recordings
from distilled_student.multitask.settings import (
    ExpertSettings,
    check_runner,
    check_shared_weights,
    read_tasks,
    resolved_settings,
)
from distilled_student.multitask.short_utterances import pad_to
from distilled_student.multitask.speaker_calibration import (
    CALIBRATION_SECONDS,
    Piece,
    calibrate,
    development_pieces,
)
from distilled_student.multitask.tasks.base import (
    KEYWORD_SCORES,
    OTHER_SETTINGS,
    SHORTEST,
    SPEAKER_EMBEDDING,
    BaseTask,
    TrainingData,
)
from distilled_student.multitask.tasks.settings import WEIGHTED
from distilled_student.multitask.training_log import TrainingLog

log = logging.getLogger(__name__)

STUDENT = "distilled_student"  # the upstream whose models can have heads


class DownstreamExpert(nn.Module):
    """The joint downstream, on the features of any upstream: a head per task, and batches of the tasks in turn.

    The contract with the runner is that of s3prl's ``downstream/example/expert.py``: `get_dataloader`, `forward`,
    `log_records`, `inference`. Our runner (``host/runner.py``) also calls `prepare_upstream`, `soft_targets`,
    `calibrate`, `restart`, `forget`, `fingerprints`, `teachers`, `resolved` and `last_keys`, and reads `conflict` and
    `optimizer_per_task`, where an expert has them.

    Attributes:
        conflict, optimizer_per_task: See `ExpertSettings`.
        results: The results of each split's last evaluation, ``results[split][task]``; JSON can hold them.
        arrays: Its scores and labels, ``arrays[split]["TASK_NAME"]``.
    """

    def __init__(
        self, upstream_dim: int, upstream_rate: int, downstream_expert: Mapping[str, Any], expdir: str, **kwargs: Any
    ) -> None:
        super().__init__()
        where, runner = source(kwargs), kwargs.get("runner") or {}
        selected = kwargs.get("upstream_feature_selection", "concatenated")
        self._where = f"{where}: downstream_expert"
        self.settings = resolved_settings(downstream_expert, self._where)  # checkpoints hold what it completes
        check_runner(self.settings, runner, selected, where)
        if kwargs.get("mode") == "train" and "upstream_trainable" in kwargs:
            check_shared_weights(self.settings, kwargs.get("optimizer") or {}, kwargs["upstream_trainable"], where)
        self.conflict, self.optimizer_per_task = self.settings.conflict, self.settings.optimizer_per_task
        self.seed = self.settings.seed if self.settings.seed is not None else int(kwargs.get("seed", 0))
        self.gain = 10 ** (self.settings.gain_db / 20)
        self._frame_shift = upstream_rate  # samples
        self.accumulate = int(runner.get("gradient_accumulate_steps", 1))

        entries, layers = read_tasks(self.settings, where), self.settings.layers
        branched = self.settings.branched
        self.tasks, self.choices = nn.ModuleDict(), nn.ModuleDict()
        for name in self.settings.schedule:
            entry = entries[name]
            entry.check_layer(layers, selected)
            width = entry.width(upstream_dim, layers, len(branched))
            self.tasks[name] = entry.module.Task(entry.settings, width, self.seed, entry.key)
            self.choices[name] = LayerChoice(layers, entry.layer(layers, branched), len(branched))

        self.owner = self._owner_evaluation(kwargs.get("mode"))
        self.register_buffer("best_score", torch.full((1,), float("-inf"), dtype=torch.float64))
        self.results: dict[str, dict[str, Any]] = {}
        self.arrays: dict[str, dict[str, np.ndarray]] = {}
        self._groups: dict[str, dict[str, SpeakerGroups]] = {}  # of each split that was evaluated
        self.log = TrainingLog(Path(expdir))
        self._position = EpochPosition()
        self._is_new = False  # whether another training starts from a checkpoint's weights
        self._training: dict[str, TrainingData] = {}  # made in the first epoch, because it reads the files' headers
        self._recent: deque[Sequence[str]] = deque(maxlen=self.accumulate)  # utterances of the last step's batches

        mode = kwargs.get("mode")
        if mode in (None, "train"):
            self._note_data()
            for task in self.tasks.values():
                task.prepare_training()
        if self.settings.initial_heads and mode == "train" and not kwargs.get("past_exp"):
            if (upstream := kwargs.get("upstream", STUDENT)) != STUDENT:
                raise UserError(f"{self._where}.initial_heads: -u {upstream}: has no heads: set it to false")
            key = f"{self._where}.initial_heads"
            start_heads(kwargs.get("upstream_ckpt"), self.tasks, self.choices, self.settings.branched, key)
        if mode == "train":  # find what is wrong with the evaluation data now, not after hours of training
            for split in runner.get("eval_dataloaders") or ():
                self.get_dataloader(split)

    def _note_data(self) -> None:
        """Print what the folder ``data`` holds, and what is too little."""
        if self.settings.data is None or not is_leader():
            return
        settings = next((task.settings for task in self.tasks.values() if task.settings.data is not None), None)
        if settings is None:  # a task that uses no such folder
            return
        keywords = self.tasks["kws"].settings.keywords if "kws" in self.tasks else ()
        folder = read_own_folder(Path(self.settings.data), f"{self._where}.data", self.settings.layout, keywords)
        for line in report(folder, keywords, settings.dev_people, settings.test_people):
            note(line)
        if "kws" in self.tasks and (line := long_words(folder, keywords, self.tasks["kws"].settings.crop_seconds)):
            note(line)

    @staticmethod
    def prepare_upstream(
        upstream: nn.Module, downstream_expert: Mapping[str, Any], where: str, ckpt: str | None = None
    ) -> None:
        """Add the branches of the tasks to a student; called before the weights of a checkpoint are loaded.

        ``where``: ``FILE: downstream_expert``, for messages. ``ckpt``: ``-k``, from whose branches they start with
        ``initial_heads``.

        Raises:
            UserError: the upstream is no student, or has another number of hidden states than ``layers``.
        """
        settings = typed(ExpertSettings, downstream_expert, where)
        if not settings.branched:
            return
        if not isinstance(upstream, StudentUpstream):
            raise UserError(f"{where}.tasks.{settings.branched[0]}.branch: needs -u distilled_student")
        states = upstream.student.config.layers + 1
        if settings.layers != states:
            raise UserError(f"{where}.layers: {settings.layers}, but the student has {states} hidden states")
        upstream.student.add_branches(len(settings.branched))
        if settings.initial_heads:
            start_branches(ckpt, settings.branched, upstream.student.branches)

    def _owner_evaluation(self, mode: str | None) -> OwnerEvaluation | None:
        """The owner-and-word trials of a run with a keyword task and a speaker task; None for other runs.

        Training leaves them out where its score does not need them, because they can need further passes of the
        upstream.

        Raises:
            UserError: the score needs them, and a task is missing.
        """
        scored = OWNER in self.settings.score
        if {KEYWORD_SCORES, SPEAKER_EMBEDDING} <= {task.output_name for task in self.tasks.values()}:
            return OwnerEvaluation(self.tasks) if scored or mode != "train" else None
        if scored:
            reason = "needs a task of keywords and a task of speakers, kws and sv, in the schedule"
            raise UserError(f"{self._where}.score.{OWNER}: {reason}")
        return None

    # Data
    def get_dataloader(self, split: str, epoch: int = 0) -> AlternationLoader | EvaluationLoader:
        """``train``: the alternation of one epoch. ``dev``, ``test``: every utterance of each task, once.

        Raises:
            UserError: another split, or the data of a task are missing.
        """
        if split == "train":
            loaded = self._position.begin(epoch)
            loader = self._alternation(epoch, start=self._position.used)
            self._position.restore(loaded)
            return loader
        if split not in ("dev", "test"):
            raise UserError(f"split: '{split}' is not train, dev or test")
        data: dict[str, Any] = {name: task.evaluation_data(split) for name, task in self.tasks.items()}
        self._speaker_groups(split)  # find what is wrong with them before an evaluation
        sizes = self._of_tasks("eval_batch_size")
        if self.owner is not None:
            if OWNER in self.settings.score:
                self.owner.check(split, f"{self._where}.score.{OWNER}")
            data[OWNER], sizes[OWNER] = self.owner.data(split), sizes[self.owner.speaker]
        return EvaluationLoader(data, sizes, self.settings.num_workers, self.gain)

    def _speaker_groups(self, split: str) -> dict[str, SpeakerGroups]:
        """The groups of the speakers of each task whose data say them; read once."""
        if split not in self._groups:
            found = {name: task.speaker_groups(split) for name, task in self.tasks.items()}
            self._groups[split] = {name: groups for name, groups in found.items() if groups is not None}
        return self._groups[split]

    def _alternation(self, epoch: int, start: int = 0) -> AlternationLoader:
        return AlternationLoader(
            self._training_data(),
            self._of_tasks("batch_size"),
            self.settings.schedule,
            self.seed,
            epoch,
            self.settings.num_workers,
            repeat=self.accumulate if self.settings.update == "alternate" else 1,
            rank=get_rank() if is_initialized() else 0,
            world=count_processes(),
            gain=self.gain,
            start=start,
        )

    def _training_data(self) -> dict[str, TrainingData]:
        if not self._training:
            self._training = {name: task.training_data() for name, task in self.tasks.items()}
        return self._training

    def _of_tasks(self, setting: str) -> dict[str, int]:
        return {name: getattr(task.settings, setting) for name, task in self.tasks.items()}

    # Training and evaluation
    def forward(
        self,
        split: str,
        features: Sequence[Tensor],
        task: str,
        labels: Sequence[int],
        keys: Sequence[str],
        pasts: Sequence[int] = (),
        *,
        records: dict[str, list[Any]],
        targets: Tensor | None = None,
        **_: Any,
    ) -> Tensor | None:
        """A batch of one task: the loss in training; in evaluation ``records[task]`` grows and None is returned.

        Args:
            features: Of each utterance ``(frames, features)``, without padding.
            labels, keys: The class and the name of each utterance.
            pasts: `Item.past` of each utterance, in samples; empty: none has one.
            records: What `log_records` gets.
            targets: See `soft_targets`.
        """
        features = self._without_past(features, pasts)
        outputs = self.outputs(self.owner.speaker if self.owner and task == OWNER else task, features)
        if split != "train":
            self._collect(split, features, outputs, task, labels, keys, records)
            return None
        self._position.used += 1
        self._recent.append(keys)
        batch = (outputs, torch.tensor(labels, device=outputs.device))
        loss, extra = self.tasks[task].loss(*(batch if targets is None else (*batch, targets)))
        values = {"loss": loss.detach(), **extra}
        # the values stay on the device until they are logged: a step must not wait for the device
        means = sum_over_processes(torch.stack([value.float() for value in values.values()])) / count_processes()
        for name, value in zip(values, means, strict=True):
            records[f"{task}/{name}"].append(value)
        # the runner divides every loss by the accumulation; the gradient must be that of the sum of the losses
        return loss * self.accumulate if self.settings.update == "sum" else loss

    def soft_targets(
        self, wavs: Sequence[Tensor], task: str, labels: Sequence[int], keys: Sequence[str], pasts: Sequence[int] = ()
    ) -> Tensor | None:
        """What the teacher of a task answers to a training batch, without `Item.past`; None without a teacher.

        ``wavs (samples,)``; all else as in `forward`.
        """
        return self.tasks[task].soft_targets([wav[past:] for wav, past in zip_longest(wavs, pasts, fillvalue=0)])

    def _without_past(self, features: Sequence[Tensor], pasts: Sequence[int]) -> Sequence[Tensor]:
        """The features of each utterance without the frames of its `Item.past`."""
        if not any(pasts):
            return features
        return [x[round(past / self._frame_shift) :] for x, past in zip(features, pasts, strict=True)]

    def _collect(
        self,
        split: str,
        features: Sequence[Tensor],
        outputs: Tensor,
        task: str,
        labels: Sequence[int],
        keys: Sequence[str],
        records: dict[str, list[Any]],
    ) -> None:
        """Add what the metrics need of an evaluation batch to ``records``; see `forward`."""
        if task in self.tasks:
            records[task] += self.tasks[task].collect(outputs, labels, keys)
        if self.owner is not None:

            def embed(places: list[int]) -> Tensor:
                return self.outputs(self.owner.speaker, [features[place] for place in places])

            self.owner.collect(split, task, outputs, keys, embed, records)

    def outputs(self, task: str, features: Sequence[Tensor]) -> Tensor:
        """``(frames, features)`` of each utterance -> the outputs of the task's head, ``(batch, outputs)``."""
        lengths = torch.tensor([len(x) for x in features], device=features[0].device)
        chosen = pad_sequence([self.choices[task](x) for x in features], batch_first=True)
        return self.tasks[task](chosen, lengths)

    def calibrate(self, extract: Callable[[list[np.ndarray]], list[Tensor]], cycles: int = 10) -> None:
        """Measure the statistics of ``standardize`` again, on training batches, with the features of an evaluation.

        In half precision the upstream's rounded weights shift its features by as much as speakers differ. An evaluation
        in float32 needs statistics of float32 features, not those of training.

        Args:
            extract: Waveforms -> features of each utterance, ``(frames, features)``, as an evaluation computes them.
            cycles: Batches of each task.
        """
        norms = {name: task.head.standardize for name, task in self.tasks.items() if task.settings.standardize}

        def run(batch: Batch) -> None:
            wavs, task, _, _, pasts = batch
            self.outputs(task, self._without_past(extract(wavs), pasts))

        measure_statistics(norms, self._alternation(epoch=0), run, cycles)

    def calibrate_speakers_on_features(self, extract: Callable[[list[np.ndarray]], list[Tensor]]) -> None:
        """Fit the `BaseTask.speaker_calibration` of the speaker task on the runner's features, for a checkpoint.

        It takes up to `CALIBRATION_SECONDS` of each task's development speech; `pack` takes all.

        Args:
            extract: As in `calibrate`.
        """
        for name, task in self.tasks.items():
            if task.output_name == SPEAKER_EMBEDDING:

                def embed(piece: Piece, name: str = name, task: BaseTask = task) -> np.ndarray:
                    waveform = self.gain * task.filling.fill(piece.load())
                    return self.outputs(name, extract([waveform.numpy()]))[0].double().cpu().numpy()

                pieces = development_pieces(self.tasks, CALIBRATION_SECONDS)
                task.speaker_calibration = calibrate(pieces, embed)

    # Results
    def log_records(
        self, split: str, records: Mapping[str, list[Any]], logger: Any, global_step: int, **_: Any
    ) -> list[str]:
        """Write to TensorBoard, the terminal and ``log.jsonl``; returns the names of checkpoints to save.

        After an evaluation on ``dev`` with the best score so far this is `BEST`.
        """
        if split == "train":
            self._log_training(records, logger, global_step)
            return []
        score = self._log_evaluation(split, records, logger, global_step)
        if split != "dev" or score <= self.best_score.item():
            return []
        self.best_score.fill_(score)
        return [BEST]

    def _log_training(self, records: Mapping[str, list[Tensor]], logger: Any, step: int) -> None:
        """``records``: values of the steps since the last entry, by ``TASK/NAME``; their means are logged."""
        means = {key: torch.stack(values).float().mean().item() for key, values in records.items()}
        for key, value in means.items():
            logger.add_scalar(f"multitask/train-{key.replace('/', '-')}", value, global_step=step)
        tqdm.write(f"train step {step}: " + ", ".join(f"{key} {value:.4g}" for key, value in means.items()))
        self.log.write({"split": "train", "step": step, **means})

    def log_updates(self, updates: Mapping[str, float], weights: Tensor | None, logger: Any, step: int) -> None:
        """Write the updates since the last entry to TensorBoard, and the weights of all learned sums of layers.

        Args:
            updates: ``learning_rate``, ``gradient_norm``, ``skipped_steps``, and ``learning_rate-upstream`` if it
                differs.
            weights: ``(layers,)`` of s3prl's featurizer; None without a sum.
        """
        for key, value in updates.items():
            logger.add_scalar(f"multitask/train-{key}", value, global_step=step)
        sums = {} if weights is None else {"": weights}
        for name, choice in self.choices.items():
            if choice.choice == WEIGHTED:
                sums[f"-{name}"] = choice.weights.detach().softmax(dim=0)
        for name, values in sums.items():
            for layer, value in enumerate(values.tolist()):
                logger.add_scalar(f"multitask/layer_weight{name}/{layer}", value, global_step=step)

    def _log_evaluation(self, split: str, records: Mapping[str, list[Any]], logger: Any, step: int) -> float:
        """Compute, keep and log the metrics of each task; returns the score."""
        results, arrays = {}, {}
        at = f"{split} step {step}" if step else split  # 0: an evaluation after training, which has no step
        for name, task in self.tasks.items():
            results[name], found = task.metrics(split, records[name])
            arrays |= {f"{name}_{key}": value for key, value in found.items()}
            tqdm.write(f"{at}: {name}: {task.summary(results[name])}")
            groups = self._speaker_groups(split).get(name)
            if groups is not None and (by_group := task.figures_by_group(split, groups, records[name], found)):
                results[name][GROUPS] = by_group
                for line in figure_lines(by_group, task.headline):
                    tqdm.write(f"{at}: {name}: {line}")
            for key, value in _curves(results[name]).items():
                logger.add_scalar(f"multitask/{split}-{name}-{key}", value, global_step=step)
        if self.owner is not None:
            found, scores = self.owner.metrics(split, records)
            arrays |= {f"{OWNER}_{key}": value for key, value in scores.items()}
            if found is not None:
                results[OWNER] = found
                tqdm.write(f"{at}: {OWNER}: {self.owner.summary(found)}")
                for key, value in self.owner.curves(found).items():
                    logger.add_scalar(f"multitask/{split}-{OWNER}-{key}", value, global_step=step)
        self.results[split], self.arrays[split] = results, arrays
        score = self.score(results)
        logger.add_scalar(f"multitask/{split}-score", score, global_step=step)
        if step:  # an evaluation after training must not change the log of the training
            self.log.write({"split": split, "step": step, "score": score, **results})
        return score

    def score(self, results: Mapping[str, Mapping[str, Any]]) -> float:
        """The number that chooses the best checkpoint: the weighted sum of the tasks' scores.

        For keywords and speakers it is KWS accuracy (%) minus SV EER (%). Only if the weights name ``owner``, the score
        of the owner-and-word trials is added (`OwnerEvaluation.score`).
        """
        weights = self.settings.score
        score = sum(weights.get(name, 1.0) * task.score(results[name]) for name, task in self.tasks.items())
        return score + weights[OWNER] * self.owner.score(results[OWNER]) if OWNER in weights else score

    # Provenance
    def resolved(self) -> dict[str, Any]:
        """``downstream_expert`` with every default that the YAML file does not name."""
        tasks = {name: asdict(task.settings) for name, task in self.tasks.items()}
        return {**asdict(self.settings), "tasks": tasks, "seed": self.seed}

    def fingerprints(self, split: str) -> dict[str, Any]:
        """The `utterances_fingerprint` of each task's files in a split."""
        if split == "train":
            data = self._training_data().items()
            return {name: files_fingerprint(of_task.files()) for name, of_task in data if hasattr(of_task, "files")}
        found = {}
        for name, task in self.tasks.items():
            if not hasattr(data := task.evaluation_data(split), "path"):
                continue
            utterances = ((data.path(i), data.samples(i) / audio.SAMPLE_RATE) for i in range(len(data)))
            found[name] = utterances_fingerprint(utterances)
            if (groups := self._speaker_groups(split).get(name)) is not None:
                found[name][groups.file.name] = hashlib.sha256(groups.file.read_bytes()).hexdigest()
        return found

    def teachers(self) -> dict[str, Any]:
        """`BaseTask.teachers` of all tasks."""
        found = {name: task.teachers() for name, task in self.tasks.items()}
        return {f"{name}.{teacher}": values for name, of_task in found.items() for teacher, values in of_task.items()}

    # Resuming
    @property
    def last_keys(self) -> list[str]:
        """The utterances of the last step."""
        return [key for keys in self._recent for key in keys]

    def restart(self) -> None:
        """Begin a new training with the loaded weights: the first epoch, without a best score."""
        self._position = EpochPosition()
        self.best_score.fill_(float("-inf"))

    def forget(self, step: int) -> None:
        """Remove log entries after ``step``, from which training resumes."""
        self.log.remove_after(step)

    def get_extra_state(self) -> Tensor:
        """torch's hook of `state_dict`: see `EpochPosition`."""
        classes = {name: task.class_names for name, task in self.tasks.items() if task.class_names is not None}
        recordings = {name: task.recordings for name, task in self.tasks.items() if task.recordings is not None}
        fitted = {name: task.speaker_calibration for name, task in self.tasks.items()}
        calibrations = {name: found.to_json() for name, found in fitted.items() if found is not None}
        return self._position.state(classes, recordings, calibrations)

    def set_extra_state(self, state: Tensor) -> None:
        """torch's hook of `load_state_dict`."""
        self._position.load(state)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # a state dict that other code has saved may lack the position: only the heads are needed
        state = state_dict.setdefault(f"{prefix}_extra_state", torch.empty(0, dtype=torch.uint8))
        saved, recordings, calibrations = saved_classes(state), saved_recordings(state), saved_calibrations(state)
        for name, task in self.tasks.items():
            if name in saved:
                task.check_classes(saved[name])
                task.class_names = saved[name]
            elif task.class_names != task.settings.class_names():  # names of the data
                reason = "the checkpoint does not hold the names of the classes: only their number is compared"
                log.warning("%s: %s", task.key, reason)
            task.speaker_calibration = calibrations.get(name)
            if name in recordings:
                self._check_recordings(task, recordings[name])
        super()._load_from_state_dict(state_dict, prefix, *args)
        if self._is_new:  # the best checkpoint is that of this run, and its development data may be others
            self.best_score.fill_(float("-inf"))

    def _check_recordings(self, task: BaseTask, saved: list[str]) -> None:
        """Refuse classes with each other's recordings; a resumed run logs those with new ones, an evaluation has none.

        Raises:
            UserError: see `BaseTask.check_recordings`.
        """
        changed = task.check_recordings(saved)
        if changed and not self._is_new:
            names = one_line(", ".join((task.class_names or [])[number] for number in changed[:5]))
            reason = f"{len(changed)} classes have other recordings than in the training so far, such as {names}"
            log.warning("%s: %s", task.key, reason)
        task.recordings = task.recordings or saved

    def check_saved(self, config: Mapping[str, Any], is_new: bool = False) -> None:
        """Refuse the heads of a checkpoint whose configuration does not fit this one.

        Checkpoints of versions before 0.2 do not hold the names of the classes themselves.

        Args:
            config: The configuration in the checkpoint.
            is_new: Whether another training starts from the checkpoint's weights: it may hold out other utterances,
                which is logged, and use other inputs. A resumed run and an evaluation must not.

        Raises:
            UserError: the classes have other names or another order, or a setting that must not change has; names the
                key.
        """
        self._is_new = is_new
        expert = config.get("downstream_expert") or {}
        groups = expert.get("tasks") or {}
        if not is_new and (gain := expert.get("gain_db", 0.0)) != self.settings.gain_db:
            reason = f"{self.settings.gain_db}, but {gain} in the checkpoint"
            raise UserError(f"{self._where}.gain_db: {reason}: use the value of its training ({OTHER_SETTINGS})")
        for name, task in self.tasks.items():
            if name not in groups:
                continue
            values = {key: value for key, value in (groups[name] or {}).items() if key != "module"}
            try:
                saved = typed(type(task.settings), values, "checkpoint")
            except UserError:  # settings of another version
                continue
            if (class_names := saved.class_names()) is not None:
                task.check_classes(class_names)
            if not is_new:
                task.check_settings(saved)
            elif changed := task.changed_setting(saved, task.settings.held_out_by):
                log.warning("%s: development data may have utterances that its weights were trained on", changed)

    # s3prl's inference mode
    def load_audio(self, path: str | Path) -> Tensor:
        """``(samples,)`` at 16 kHz of a file with any rate and any number of channels.

        A short file is zero-padded to the most samples that a `BaseTask.filling` pads to, as all tasks get the same
        features here. A warning names the tasks that repeat a short utterance instead.
        """
        waveform, fillings = audio.load(path), {name: task.filling for name, task in self.tasks.items()}
        for name, filling in fillings.items():
            if filling.repeats and len(waveform) < filling.samples:
                seconds = f"{len(waveform) / audio.SAMPLE_RATE:.2f} s"
                reason = f"training and evaluations repeat an utterance to {filling.samples / audio.SAMPLE_RATE:g} s"
                remedy = "use `distilled-student evaluate`, or an exported file"
                log.warning("%s: %s: %s; %s, inference does not: %s", path, name, seconds, reason, remedy)
        silence = [filling.samples for filling in fillings.values() if not filling.repeats]
        return self.gain * pad_to(waveform, max([SHORTEST, *silence]))

    def inference(self, features: Sequence[Tensor], filenames: Sequence[str]) -> None:
        """Print one line for each utterance and task."""
        for name, task in self.tasks.items():
            for filename, output in zip(filenames, self.outputs(name, features), strict=True):
                print(f"{filename}: {name}: {task.describe(output)}", file=sys.stdout)


def _curves(results: Mapping[str, Any]) -> dict[str, float]:
    """The metrics that change with training: floats, in a group as ``GROUP-NAME``; whole numbers are counts."""
    found = {key: value for key, value in results.items() if isinstance(value, float)}
    for group, values in results.items():
        if isinstance(values, Mapping):
            found |= {f"{group}-{key}": value for key, value in values.items() if isinstance(value, float)}
    return found
