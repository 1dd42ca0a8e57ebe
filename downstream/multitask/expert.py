"""s3prl's downstream expert of the joint task: features in, each task's loss or records out, best checkpoint chosen."""

from __future__ import annotations

import contextlib
import json
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed import get_rank, is_initialized
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from distilled_student.common import audio
from distilled_student.common.errors import UserError
from distilled_student.common.files import write_whole
from distilled_student.common.processes import count_processes, is_leader, summed
from distilled_student.common.provenance import files_fingerprint, fingerprint
from distilled_student.common.random_states import random_states, set_random_states
from distilled_student.common.settings import typed
from distilled_student.host.yaml_sections import source
from distilled_student.multitask.heads import WEIGHTED, LayerChoice
from distilled_student.multitask.loader import AlternationLoader, EvaluationLoader
from distilled_student.multitask.tasks import SHORTEST, TrainingData, need_finite, pad_to, task_module

BEST = "best-dev.ckpt"


@dataclass
class ExpertSettings:
    """``downstream_expert`` in the YAML file.

    Attributes:
        tasks: Settings of each task by name; ``module`` names a module that is not in ``tasks/``.
        schedule: Batches of each task in a cycle, in this order. Only tasks named here are used: naming one is
            single-task training. Empty: one of each.
        update: ``alternate`` (a step per batch) or ``sum`` (a step per cycle, on the sum of its losses).
        layers: Layers that ``-s concatenated`` puts side by side, hidden states from 0; a task's ``layer`` chooses one,
            or their sum with weights of its own.
        gain_db: Decibels by which every waveform is changed, in training and evaluation.
        score: Weight of each task's score in the choice of the best checkpoint; 1 where not named.
        num_workers: Data worker processes of each task.
        seed: Of the data; None: the runner's ``--seed``.
    """

    tasks: dict[str, Any] = field(default_factory=dict)
    schedule: dict[str, int] = field(default_factory=dict)
    update: str = "alternate"
    layers: int = 1
    gain_db: float = 0.0
    score: dict[str, float] = field(default_factory=dict)
    num_workers: int = 0
    seed: int | None = None

    def __post_init__(self) -> None:
        self.schedule = self.schedule or dict.fromkeys(self.tasks, 1)
        if not self.schedule:
            raise ValueError("tasks: names no task")
        for key, names in (("schedule", self.schedule), ("score", self.score)):
            for name in names:
                if name not in self.tasks:
                    raise ValueError(f"{key}.{name}: no such task in tasks ({', '.join(self.tasks)})")
        if min(self.schedule.values()) < 1:
            raise ValueError("schedule: needs 1 or more batches of each task it names")
        if self.update not in ("alternate", "sum"):
            raise ValueError(f"update: '{self.update}' is not alternate or sum")
        if self.layers < 1:
            raise ValueError("layers: needs 1 or more")
        if self.num_workers < 0:
            raise ValueError("num_workers: needs 0 or more")
        if self.seed is not None and self.seed < 0:
            raise ValueError("seed: needs 0 or more")
        need_finite(asdict(self))


class DownstreamExpert(nn.Module):
    """See s3prl's ``downstream/example/expert.py`` for the contract. Works on the features of any upstream.

    ``results[split]`` holds the last evaluation of a split (JSON can hold it), ``arrays[split]`` its scores.
    """

    def __init__(
        self, upstream_dim: int, upstream_rate: int, downstream_expert: Mapping[str, Any], expdir: str, **kwargs: Any
    ) -> None:
        super().__init__()
        where = source(kwargs)
        self.settings = typed(ExpertSettings, downstream_expert, f"{where}: downstream_expert")
        self.expdir = Path(expdir)
        self.seed = self.settings.seed if self.settings.seed is not None else int(kwargs.get("seed", 0))
        runner = kwargs.get("runner") or {}
        self.gain = 10 ** (self.settings.gain_db / 20)
        self.accumulate = int(runner.get("gradient_accumulate_steps", 1))
        cycle = sum(self.settings.schedule.values())
        if self.settings.update == "sum" and self.accumulate != cycle:
            raise UserError(
                f"{where}: runner.gradient_accumulate_steps: update: sum needs {cycle}, the batches of a cycle"
            )
        if float(runner.get("evaluate_ratio", 1)) != 1:
            raise UserError(f"{where}: runner.evaluate_ratio: needs 1: trials need all their utterances")
        selected = kwargs.get("upstream_feature_selection", "concatenated")
        if self.settings.layers > 1 and selected != "concatenated":
            raise UserError(f"{where}: downstream_expert.layers: needs -s concatenated, not -s {selected}")
        known = {name: self._settings(name, where) for name in self.settings.tasks}  # wrong ones are said, used or not
        self.tasks, self.choices = nn.ModuleDict(), nn.ModuleDict()
        for name in self.settings.schedule:
            module, values, key = known[name]
            if values.layer == WEIGHTED and selected == "concatenated" and self.settings.layers == 1:
                reason = f"{name}.layer: {WEIGHTED} needs the number of hidden states with -s concatenated"
                raise UserError(f"{where}: downstream_expert.layers: {reason}")
            self.tasks[name] = module.Task(values, self._width(upstream_dim, values.layer, key), self.seed, key)
            self.choices[name] = LayerChoice(self.settings.layers, values.layer)
        self.register_buffer("best_score", torch.full((1,), float("-inf"), dtype=torch.float64))
        self._training: dict[str, TrainingData] = {}  # made at the first epoch: it reads headers
        self._epoch, self._used = 0, 0  # batches of this epoch that training has used
        self._resumed: dict[str, Any] = {}  # where a checkpoint stood in its epoch
        self._recent: deque[Sequence[str]] = deque(maxlen=self.accumulate)  # utterances of the last step's batches
        self.results: dict[str, dict[str, Any]] = {}
        self.arrays: dict[str, dict[str, np.ndarray]] = {}
        if kwargs.get("mode", "train") == "train":
            for task in self.tasks.values():
                task.prepare_training()
        if kwargs.get("mode") == "train":  # what an evaluation would find amiss hours from now
            for split in runner.get("eval_dataloaders") or ():
                self.get_dataloader(split)

    def _settings(self, name: str, where: str) -> tuple[ModuleType, Any, str]:
        """A task's module, its checked settings, and ``FILE: dotted.key`` for messages about them."""
        key, values = f"{where}: downstream_expert.tasks.{name}", self.settings.tasks[name]
        if values is not None and not isinstance(values, Mapping):
            raise UserError(f"{key}: expected a group of keys, found '{values}'")
        values = dict(values or {})
        module = task_module(name, values.pop("module", None), key)
        return module, typed(module.Settings, values, key), key

    def _width(self, features: int, layer: int | str | None, key: str) -> int:
        """How many of the upstream's ``features`` a task gets."""
        layers = self.settings.layers
        if features % layers:
            raise UserError(f"{key.rpartition('.tasks.')[0]}.layers: {features} features are not of {layers} layers")
        if isinstance(layer, int) and not 0 <= layer < layers:
            raise UserError(f"{key}.layer: {layer} is not one of layers: {layers}, counted from 0")
        return features if layer is None else features // layers

    def _batch(self, name: str, features: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """A task's features ``(batch, frames, features)``, padded, and lengths in frames."""
        lengths = torch.tensor([len(f) for f in features], device=features[0].device)
        return pad_sequence([self.choices[name](f) for f in features], batch_first=True), lengths

    @property
    def last_keys(self) -> list[str]:
        """Utterances of the last step."""
        return [key for keys in self._recent for key in keys]

    def _sizes(self, name: str) -> dict[str, int]:
        return {task: getattr(self.tasks[task].settings, name) for task in self.tasks}

    # Interface
    def get_dataloader(self, split: str, epoch: int = 0) -> AlternationLoader | EvaluationLoader:
        """``train``: the alternation of one epoch; ``dev``, ``test``: every utterance of each task."""
        if split == "train":
            resumed, self._resumed = self._resumed, {}
            self._epoch, self._used = epoch, resumed["used"] if resumed.get("epoch") == epoch else 0
            loader = self._alternation(epoch, self._used)
            if resumed and is_leader():  # s3prl draws nothing from here to the first batch
                set_random_states(resumed["random"])
            return loader
        if split not in ("dev", "test"):
            raise UserError(f"split: '{split}' is not train, dev or test")
        data = {name: task.evaluation_data(split) for name, task in self.tasks.items()}
        return EvaluationLoader(data, self._sizes("eval_batch_size"), self.settings.num_workers, self.gain)

    def _training_data(self) -> dict[str, TrainingData]:
        if not self._training:
            self._training = {name: task.training_data() for name, task in self.tasks.items()}
        return self._training

    def _alternation(self, epoch: int, start: int = 0) -> AlternationLoader:
        rank = get_rank() if is_initialized() else 0
        repeat = self.accumulate if self.settings.update == "alternate" else 1
        return AlternationLoader(
            self._training_data(),
            self._sizes("batch_size"),
            self.settings.schedule,
            self.seed,
            epoch,
            self.settings.num_workers,
            repeat,
            rank,
            count_processes(),
            self.gain,
            start,
        )

    def resolved(self) -> dict[str, Any]:
        """``downstream_expert`` with all that the YAML file leaves to defaults."""
        tasks = {name: asdict(task.settings) for name, task in self.tasks.items()}
        return {**asdict(self.settings), "tasks": tasks, "seed": self.seed}

    def fingerprints(self, split: str) -> dict[str, Any]:
        """What each task hears in a split: see `fingerprint`."""
        if split == "train":
            data = self._training_data().items()
            return {name: files_fingerprint(of.files()) for name, of in data if hasattr(of, "files")}
        found = {}
        for name, task in self.tasks.items():
            if not hasattr(data := task.evaluation_data(split), "path"):
                continue
            found[name] = fingerprint((data.path(i), data.samples(i) / audio.SAMPLE_RATE) for i in range(len(data)))
        return found

    # torch's hooks: s3prl's runner has no place for where training stands in its epoch, nor for random states
    def get_extra_state(self) -> Tensor:
        """JSON as ``(bytes,)`` uint8: who goes through a state dict expects tensors."""
        state = {"epoch": self._epoch, "used": self._used, "random": random_states()}
        return torch.frombuffer(bytearray(json.dumps(state).encode()), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        self._resumed = json.loads(bytes(state.tolist())) if len(state) else {}

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # heads alone, as somebody else may have saved them
        state_dict.setdefault(f"{prefix}_extra_state", torch.empty(0, dtype=torch.uint8))
        super()._load_from_state_dict(state_dict, prefix, *args)

    # Interface
    def forward(
        self,
        split: str,
        features: Sequence[Tensor],
        task: str,
        labels: Sequence[int],
        keys: Sequence[str],
        records: dict[str, list[Any]],
        **_: Any,
    ) -> Tensor | None:
        """``features``: per utterance ``(frames, features)``, without padding. Training: the loss of ``task``."""
        outputs = self.tasks[task](*self._batch(task, features))
        if split != "train":
            records[task] += self.tasks[task].collect(outputs, labels, keys)
            return None
        self._used += 1
        self._recent.append(keys)
        loss, extra = self.tasks[task].loss(outputs, torch.tensor(labels, device=outputs.device))
        values = {"loss": loss.detach(), **extra}
        # kept on the device and read when they are logged: a step must not wait for the device
        means = summed(torch.stack([value.float() for value in values.values()])) / count_processes()
        for name, value in zip(values, means, strict=True):
            records[f"{task}/{name}"].append(value)
        # the runner divides by the accumulation, so that this is what makes the gradient that of the sum
        return loss * self.accumulate if self.settings.update == "sum" else loss

    @torch.no_grad()
    def calibrate(self, extract: Callable[[list[np.ndarray]], list[Tensor]], cycles: int = 10) -> None:
        """Take the statistics of `standardize` anew from the features of an evaluation, over some training batches.

        Batch norm keeps those of training. In half precision the upstream's rounded weights shift its features by as
        much as speakers differ, so that statistics of training would not fit an evaluation in float32.
        After Wu and Johnson, "Rethinking Batch in BatchNorm" (arXiv 2105.07576), sec. 3, PreciseBN.

        Args:
            extract: Waveforms to features per utterance, ``(frames, features)``, as an evaluation gets them.
            cycles: Batches of each task.
        """
        norms = {name: task.head.standardize for name, task in self.tasks.items() if task.settings.standardize}
        before = {name: (norm.training, norm.momentum) for name, norm in norms.items()}
        for norm in norms.values():
            norm.reset_running_stats()
            norm.alone = True
            norm.train().momentum = None  # torch's way to ask for the average of all batches
        left = dict.fromkeys(norms, cycles)
        batches = iter(self._alternation(0))
        while any(left.values()) and (batch := next(batches, None)) is not None:
            wavs, name = batch[:2]
            if left.get(name):
                left[name] -= 1
                self.tasks[name](*self._batch(name, extract(wavs)))
        for name, norm in norms.items():
            norm.training, norm.momentum = before[name]
            norm.alone = False

    # Interface
    def log_records(
        self, split: str, records: Mapping[str, list[Any]], logger: Any, global_step: int, **_: Any
    ) -> list[str]:
        """TensorBoard, a line per task on the terminal, a line in ``log.jsonl``; on ``dev`` maybe a new best."""
        if split == "train":
            entry = {key: torch.stack(values).float().mean().item() for key, values in records.items()}
            for key, value in entry.items():
                logger.add_scalar(f"multitask/train-{key.replace('/', '-')}", value, global_step=global_step)
            tqdm.write(f"train step {global_step}: " + ", ".join(f"{k} {v:.4g}" for k, v in entry.items()))
            self._log({"split": split, "step": global_step, **entry})
            return []
        results, arrays = {}, {}
        for name, task in self.tasks.items():
            results[name], found = task.metrics(split, records[name])
            arrays |= {f"{name}_{key}": value for key, value in found.items()}
            tqdm.write(f"{split} step {global_step}: {name}: {task.summary(results[name])}")
            for key, value in results[name].items():
                if isinstance(value, int | float):
                    logger.add_scalar(f"multitask/{split}-{name}-{key}", value, global_step=global_step)
        score = self.score(results)
        self.results[split], self.arrays[split] = results, arrays
        if global_step:  # 0: an evaluation outside training, which must not change the experiment's log
            self._log({"split": split, "step": global_step, "score": score, **results})
        if split != "dev" or score <= self.best_score.item():
            return []
        self.best_score.fill_(score)
        return [BEST]

    def score(self, results: Mapping[str, Mapping[str, Any]]) -> float:
        """What chooses the best checkpoint: KWS accuracy (%) minus SV EER (%), or the single task's own."""
        return sum(self.settings.score.get(name, 1.0) * self.tasks[name].score(r) for name, r in results.items())

    def _log(self, entry: Mapping[str, Any]) -> None:
        self.expdir.mkdir(parents=True, exist_ok=True)
        with (self.expdir / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")

    def forget(self, step: int) -> None:
        """Take from ``log.jsonl`` what a killed run wrote behind the checkpoint of ``step``: it is written again."""
        file = self.expdir / "log.jsonl"
        if file.is_file():
            entries = []
            for line in file.read_text(encoding="utf-8").splitlines():
                with contextlib.suppress(ValueError):  # the last one may be torn
                    entries.append(json.loads(line))
            kept = [json.dumps(entry) + "\n" for entry in entries if entry["step"] <= step]
            write_whole(self.expdir, {file.name: "".join(kept).encode()})

    def load_audio(self, path: str | Path) -> Tensor:
        """For s3prl's inference mode: any rate, any channel count."""
        return self.gain * pad_to(audio.load(path), SHORTEST)

    def inference(self, features: Sequence[Tensor], filenames: Sequence[str]) -> None:
        """One line per utterance and task on the standard output."""
        for name, task in self.tasks.items():
            for filename, output in zip(filenames, task(*self._batch(name, features)), strict=True):
                print(f"{filename}: {name}: {task.describe(output)}", file=sys.stdout)
