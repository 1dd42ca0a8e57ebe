"""Speaker verification on VoxCeleb1's layout: crops of training speakers, held-out development trials, a trial list."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from distilled_student.common import audio
from distilled_student.common.errors import UserError
from distilled_student.corpora.speakers import Trials
from distilled_student.multitask import metrics as M
from distilled_student.multitask.augment import Augmentation, change_speed, fill
from distilled_student.multitask.heads import HEADS
from distilled_student.multitask.losses import LossSettings, SpeakerLoss
from distilled_student.multitask.scoring import as_norm, cllr, cosine_scores, fit_calibration
from distilled_student.multitask.tasks import SHORTEST, BaseTask, Item, TaskSettings, balanced_order, pad_to, samples_of
from distilled_student.multitask.tasks.sv_index import SpeakerIndex

KINDS = ("cosine", "as_norm")
PRIORS = (0.01, 0.05)  # of a target trial, in the costs: VoxCeleb1's papers have the one or the other


@dataclass
class Settings(TaskSettings):
    """Attributes:
    root: Folder with ``dev/wav/SPEAKER/SESSION/*.wav`` (or ``wav/SPEAKER/...``), and the test speakers beside. One
        utterance is enough of a training speaker, who is a class; a development speaker needs two for a target trial.
    trials: Test trials, ``1|0 a.wav b.wav`` a line, relative to ``root``; None where nothing is tested.
    dev_speakers: Speakers kept out of training, those of the lowest hash; dev_trials: trials made from them.
    extra_roots: Folders of ``SPEAKER/**/*``, further training speakers; one item per ``crop_seconds`` of their files.
    crop_seconds: Length of a training crop. With ``longest_crop_seconds`` each crop's length is drawn between the two:
        positions leak into an upstream's features, so that a head that has heard one length only is lost at others.
    fill: Whether utterances shorter than the crop are repeated until they fill it; false: they stay short.
    sampling: ``utterance`` (each once a pass) or ``speaker`` (speakers equally often).
    as_norm_top: Nearest training speakers that adaptive s-norm compares each utterance with.
    """

    heads: ClassVar[tuple[str, ...]] = HEADS

    root: str = "data/voxceleb1"
    trials: str | None = "veri_test.txt"
    dev_speakers: int = 40
    dev_trials: int = 10_000
    extra_roots: list[str] = field(default_factory=list)
    sampling: str = "utterance"
    crop_seconds: float = 2.0
    longest_crop_seconds: float | None = None
    fill: bool = True
    embedding_size: int = 256
    as_norm_top: int = 100
    loss: LossSettings = field(default_factory=LossSettings)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sampling not in ("utterance", "speaker"):
            raise ValueError(f"sampling: '{self.sampling}' is not utterance or speaker")
        if self.dev_speakers == 1 or self.dev_speakers < 0:
            raise ValueError(f"dev_speakers: trials need at least 2 speakers (0 for none), not {self.dev_speakers}")
        if self.dev_trials < 2 or self.embedding_size < 1 or self.as_norm_top < 2:
            raise ValueError("dev_trials, embedding_size, as_norm_top: need at least 2, 1 and 2")
        if self.crop_seconds < 0.1:
            raise ValueError("crop_seconds: needs at least 0.1")
        if self.longest_crop_seconds is not None and self.longest_crop_seconds < self.crop_seconds:
            raise ValueError(f"longest_crop_seconds: needs at least crop_seconds, {self.crop_seconds:g}")


class Training:
    """Random crops of the training speakers' utterances."""

    def __init__(self, items: list[tuple[Path, int]], settings: Settings, key: str) -> None:
        self.items, self.settings = items, settings
        self.augment = Augmentation(settings.augment, f"{key}.augment")
        self.labels = np.array([label for _, label in items])

    def order(self, rng: np.random.Generator) -> Sequence[int]:
        if self.settings.sampling == "speaker":
            return balanced_order(self.labels, rng)
        return rng.permutation(len(self.items)).tolist()

    def files(self) -> Sequence[Path]:
        return [path for path, _ in self.items]

    def item(self, index: int, rng: np.random.Generator) -> Item:
        path, label = self.items[index]
        speed = self.augment.speed(rng)
        seconds = self.settings.crop_seconds
        if self.settings.longest_crop_seconds is not None:
            seconds = rng.uniform(seconds, self.settings.longest_crop_seconds)
        length = seconds * speed
        spare = max(0.0, audio.seconds(path) - length)
        waveform = audio.load(path, rng.uniform(0.0, spare), length + 0.01)
        waveform, samples = change_speed(waveform, speed), int(seconds * audio.SAMPLE_RATE)
        waveform = fill(waveform, samples) if self.settings.fill else pad_to(waveform[:samples], SHORTEST)
        return Item(self.augment(waveform, rng), label, str(path))


class Evaluation:
    """Each utterance of the trials once, whole."""

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def samples(self, index: int) -> int:
        return samples_of(self.paths[index])

    def path(self, index: int) -> Path:
        return self.paths[index]

    def item(self, index: int) -> Item:
        return Item(audio.load(self.paths[index]), -1, str(index))


def verification(scores: np.ndarray, trials: Trials, calibration: tuple[float, float] | None) -> dict[str, Any]:
    """What one kind of scores is worth: errors in percent, costs, and how good it is as a log-likelihood ratio."""
    left, right = trials.speakers[trials.left], trials.speakers[trials.right]
    interval = M.eer_interval(scores, trials.labels, left, right)
    results: dict[str, Any] = {"eer": 100 * M.eer(scores, trials.labels)}
    results["eer_interval"] = None if interval is None else [100 * bound for bound in interval]
    results |= {f"min_dcf_{p}": M.min_dcf(scores, trials.labels, p) for p in PRIORS}
    if calibration is not None:
        ratios = calibration[0] * scores + calibration[1]
        results |= {f"act_dcf_{p}": M.act_dcf(ratios, trials.labels, p) for p in PRIORS}
        results["cllr"] = cllr(ratios, trials.labels)
    return results


def by_group(scores: np.ndarray, trials: Trials) -> dict[str, dict[str, Any]]:
    """Errors, costs and trials for each value of the trial list's further columns; None where one kind is missing."""
    results: dict[str, dict[str, Any]] = {}
    for column, values in trials.groups.items():
        results[column] = {}
        for value in np.unique(values):
            of, labels = scores[values == value], trials.labels[values == value]
            found: dict[str, Any] = dict.fromkeys(["eer", *(f"min_dcf_{p}" for p in PRIORS)])
            if len(set(labels)) == 2:
                found = {"eer": 100 * M.eer(of, labels)} | {f"min_dcf_{p}": M.min_dcf(of, labels, p) for p in PRIORS}
            results[column][str(value)] = found | {"trials": len(labels)}
    return results


class Task(BaseTask):
    """The linear layer makes the embedding; the loss owns the training speakers' weights; cosine scores the trials."""

    def __init__(self, settings: Settings, features: int, seed: int, key: str) -> None:
        super().__init__(settings, features, settings.embedding_size)
        self.settings, self.seed, self.key = settings, seed, key
        self.objective: SpeakerLoss | None = None
        # slope and offset for each kind of scores, fitted on development trials at each evaluation; slope 0: not yet
        self.register_buffer("calibration", torch.zeros(len(KINDS), 2, dtype=torch.float64))
        self.index = SpeakerIndex(
            Path(settings.root), settings.trials, settings.dev_speakers, settings.extra_roots, key
        )

    def prepare_training(self) -> None:
        speakers = len(self.index.training)
        self.objective = SpeakerLoss(self.settings.loss, self.settings.embedding_size, speakers)
        if self.settings.dev_speakers:
            _ = self.development  # what is amiss there is said now

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        saved = state_dict.get(f"{prefix}objective.weight")
        if saved is not None and self.objective is None:  # an evaluation: the training speakers are the checkpoint's
            objective = SpeakerLoss(self.settings.loss, self.settings.embedding_size, len(saved))
            self.objective = objective.to(self.calibration.device)
        elif saved is not None and len(saved) != (here := len(self.index.training)):  # before torch speaks of sizes
            folders = ", ".join([self.settings.root, *self.settings.extra_roots])
            raise UserError(
                f"{self.key}.root, extra_roots: {folders}: {here} training speakers where the checkpoint has "
                f"{len(saved)}: give the folders and the dev_speakers that it was trained with"
            )
        super()._load_from_state_dict(state_dict, prefix, *args)

    def training_data(self) -> Training:
        return Training(self.index.training_items(self.settings.crop_seconds), self.settings, self.key)

    @functools.cached_property
    def development(self) -> Trials:
        return self.index.development_trials(self.settings.dev_trials, self.seed)

    def _trials(self, split: str) -> Trials:
        if split == "dev" and self.settings.dev_speakers:
            return self.development
        if split == "test" and self.index.test is not None:
            return self.index.test
        name = "dev_speakers" if split == "dev" else "trials"
        raise UserError(f"{self.key}.{name}: not set, so there are no trials for {split}")

    def evaluation_data(self, split: str) -> Evaluation:
        return Evaluation(self._trials(split).paths)

    def loss(self, outputs: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        with torch.no_grad():
            right = (self.objective.cosines(outputs.float()).argmax(dim=1) == labels).float().mean()
        return self.objective(outputs, labels), {"accuracy": 100 * right}

    def collect(self, outputs: Tensor, labels: Sequence[int], keys: Sequence[str]) -> list[Any]:
        return [(int(key), embedding) for key, embedding in zip(keys, outputs.float().cpu(), strict=True)]

    def metrics(self, split: str, collected: list[Any]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        trials = self._trials(split)
        embeddings = torch.stack([embedding for _, embedding in sorted(collected, key=lambda pair: pair[0])])
        if not embeddings.isfinite().all():
            raise UserError(f"{self.key}: {split}: embeddings are NaN or infinite: has the training diverged?")
        kinds, found = self.scores(embeddings, trials), {}
        for kind, scores in kinds.items():
            line = self.calibration[KINDS.index(kind)]
            if split == "dev":
                line.copy_(torch.tensor(fit_calibration(scores, trials.labels)))
            found[kind] = verification(scores, trials, tuple(line.tolist()) if line[0] else None)
            if trials.groups:
                found[kind]["groups"] = by_group(scores, trials)
        results = found.pop("cosine") | found
        results |= {
            "cohort": len(self.cohort()),
            "utterances": len(trials.paths),
            "speakers": len(np.unique(trials.speakers)),
            "trials": len(trials.labels),
        }
        arrays = {"scores" if kind == "cosine" else f"{kind}_scores": scores for kind, scores in kinds.items()}
        sides = {"left": trials.speakers[trials.left], "right": trials.speakers[trials.right]}
        return results, arrays | sides | {"labels": trials.labels}

    def cohort(self) -> Tensor:
        """``(speakers, embedding)``: the loss's weight of each training speaker, who is an impostor to all others.

        It stands for the mean of his embeddings, and it is in the checkpoint: no audio of training is needed. There is
        none with x-vectors, which are taken before the layer that these weights belong to.
        """
        if self.objective is None or self.settings.head == "xvector":
            return torch.empty(0, self.settings.embedding_size)
        return self.objective.weight.detach().cpu()

    def scores(self, embeddings: Tensor, trials: Trials) -> dict[str, np.ndarray]:
        """``(trials,)`` scores of each kind in `KINDS`; no ``as_norm`` without at least two training speakers."""
        cosine, cohort = cosine_scores(embeddings, trials.left, trials.right), self.cohort()
        if len(cohort) < 2:
            return {"cosine": cosine}
        top = self.settings.as_norm_top
        return {"cosine": cosine, "as_norm": as_norm(cosine, embeddings, trials.left, trials.right, cohort, top)}

    def score(self, results: Mapping[str, Any]) -> float:
        return -float(results["eer"])

    def summary(self, results: Mapping[str, Any]) -> str:
        line = f"EER {results['eer']:.2f} %, minDCF(0.01) {results['min_dcf_0.01']:.3f}"
        if "as_norm" in results:
            line += f", with AS-norm {results['as_norm']['eer']:.2f} %"
        return f"{line} ({results['trials']} trials)"

    def describe(self, output: Tensor) -> str:
        return f"embedding of {output.numel()} features, length {output.norm().item():.3f}"
