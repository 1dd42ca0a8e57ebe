"""Speaker verification on the folders of VoxCeleb1: its settings, data, loss and metrics."""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from distilled_student.common import audio, audio_reading
from distilled_student.common.errors import UserError, one_line
from distilled_student.common.processes import count_processes, sum_over_processes
from distilled_student.common.progress import note
from distilled_student.corpora.speaker_groups import SpeakerGroups
from distilled_student.corpora.speaker_names import identity
from distilled_student.corpora.speakers import Trials
from distilled_student.multitask import metrics as M
from distilled_student.multitask.augment import Augmentation, change_speed
from distilled_student.multitask.copies import Use, check_copies
from distilled_student.multitask.group_figures import Figures, eer_by_group
from distilled_student.multitask.heads import PooledHead
from distilled_student.multitask.losses import SpeakerLoss
from distilled_student.multitask.scoring import as_norm, cllr, cosine_scores, fit_calibration
from distilled_student.multitask.short_utterances import Filling
from distilled_student.multitask.speaker_calibration import Recording, ratios
from distilled_student.multitask.speaker_calibration import Trials as ConditionTrials
from distilled_student.multitask.tasks.base import (
    SHORTEST,
    SPEAKER_EMBEDDING,
    BaseTask,
    Item,
    balanced_order,
    grouped_order,
    load_speech,
    samples_of,
)
from distilled_student.multitask.tasks.settings import NO_TEST_PEOPLE, speed_ratio
from distilled_student.multitask.tasks.sv_index import EXTRA, SpeakerIndex
from distilled_student.multitask.tasks.sv_own import OwnSpeakerIndex
from distilled_student.multitask.tasks.sv_settings import Settings
from distilled_student.onnx.calibration import KEY

log = logging.getLogger(__name__)

AT_SPEED = " at speed "  # in the name of a class: a speaker whose utterances are played faster or slower
KINDS = ("cosine", "as_norm")  # of scores
CENTER_BATCHES = 100  # over which `center` is averaged


def filling_of(settings: Settings) -> Filling:
    """See `BaseTask.filling`: shorter utterances are repeated."""
    if not settings.fill:
        return Filling(SHORTEST)
    return Filling(int(settings.crop_seconds * audio.SAMPLE_RATE), repeats=True)


class Training:
    """Random crops of the training speakers' utterances."""

    def __init__(self, items: list[tuple[Path, int]], settings: Settings, key: str, speakers: int) -> None:
        self.items, self.settings = items, settings
        # what a speed adds to the number of a speaker's class: the speakers at each further speed follow those before
        self._first_class = {speed_ratio(speed): (1 + i) * speakers for i, speed in enumerate(settings.speeds)}
        self.augment = Augmentation(settings.augment, f"{key}.augment")
        self.labels = np.array([label for _, label in items])

    def order(self, rng: np.random.Generator) -> Sequence[int]:
        balanced = self.settings.sampling == "speaker"
        if self.settings.clips_per_speaker > 1:
            return grouped_order(self.labels, self.settings.clips_per_speaker, balanced, rng)
        if balanced:
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
        spare = max(0.0, audio_reading.seconds(path) - length)
        waveform = load_speech(path, rng.uniform(0.0, spare), length + 0.01)
        waveform, samples = change_speed(waveform, speed), int(seconds * audio.SAMPLE_RATE)
        to_crop = filling_of(self.settings)
        if self.settings.fill:  # to the length of this crop, which an evaluation does not draw
            to_crop = to_crop._replace(samples=samples)
        waveform = to_crop.fill(waveform[:samples])
        waveform, past = self.augment.with_past(waveform, rng)
        return Item(waveform, label + self._first_class.get(speed_ratio(speed), 0), str(path), past)


class Evaluation:
    """Each utterance of the trials once, not cut."""

    def __init__(self, paths: list[Path], settings: Settings) -> None:
        self.paths, self.filling = paths, filling_of(settings)

    def __len__(self) -> int:
        return len(self.paths)

    def samples(self, index: int) -> int:
        return max(samples_of(self.paths[index]), self.filling.samples)

    def path(self, index: int) -> Path:
        return self.paths[index]

    def item(self, index: int) -> Item:
        return Item(load_speech(self.paths[index]), -1, str(index))


def _file_name(value: str | None) -> str | None:
    """The name of a file without its folder, which may have been moved."""
    return value and Path(value).name


def verification(scores: np.ndarray, trials: Trials, calibration: tuple[float, float] | None) -> dict[str, Any]:
    """EER in percent and detection costs of one kind of scores; with a calibration also Cllr and the actual costs.

    Args:
        scores: ``(trials,)``.
        calibration: Slope and offset that make a score a log-likelihood ratio; None: not fitted yet.
    """
    left, right = trials.speakers[trials.left], trials.speakers[trials.right]
    interval = M.eer_interval(scores, trials.labels, left, right)
    results: dict[str, Any] = {"eer": 100 * M.eer(scores, trials.labels)}
    results["eer_interval"] = None if interval is None else [100 * bound for bound in interval]
    results |= {f"min_dcf_{p}": M.min_dcf(scores, trials.labels, p) for p in M.PRIORS}
    if calibration is not None:
        ratios = calibration[0] * scores + calibration[1]
        results |= {f"act_dcf_{p}": M.act_dcf(ratios, trials.labels, p) for p in M.PRIORS}
        results["cllr"] = cllr(ratios, trials.labels)
    return results


def by_group(scores: np.ndarray, trials: Trials) -> dict[str, dict[str, Any]]:
    """EER, detection costs and number of trials for each value of the further columns of a trial list.

    EER and costs are None for a value that has only target or only non-target trials.
    """
    results: dict[str, dict[str, Any]] = {}
    for column, values in trials.groups.items():
        results[column] = {}
        for value in np.unique(values):
            own, labels = scores[values == value], trials.labels[values == value]
            found: dict[str, Any] = dict.fromkeys(["eer", *(f"min_dcf_{p}" for p in M.PRIORS)])
            if len(set(labels)) == 2:
                found = {"eer": 100 * M.eer(own, labels)}
                found |= {f"min_dcf_{p}": M.min_dcf(own, labels, p) for p in M.PRIORS}
            results[column][str(value)] = found | {"trials": len(labels)}
    return results


def _index(settings: Settings, key: str) -> SpeakerIndex:
    """The index of VoxCeleb1's layout."""
    return SpeakerIndex(
        Path(settings.root),
        settings.trials,
        settings.dev_speakers,
        settings.extra_roots,
        key,
        settings.speaker_pattern,
        settings.trials_root,
        settings.dev_utterances,
    )


class Task(BaseTask):
    """Verification by speaker embeddings: the head's output. The loss classifies training speakers.

    Trials are scored by cosine and by adaptive s-norm. The cohort of the s-norm is the loss's weights of the training
    speakers, which the checkpoint holds.
    """

    output_name: ClassVar[str] = SPEAKER_EMBEDDING
    headline: ClassVar[str] = "eer"
    det_scores: ClassVar[Mapping[str, str]] = {"cosine": "scores", "AS-norm": "as_norm_scores"}

    def __init__(self, settings: Settings, features: int, seed: int, key: str) -> None:
        super().__init__(settings, features, settings.embedding_size)
        self.settings, self.key = settings, key
        self.embedding_size = settings.embedding_size
        if isinstance(self.head, PooledHead):
            self.embedding_size = self.head.pooling.output_size
        self.objective: SpeakerLoss | None = None
        self._trains = False
        self._replaced: str | None = None  # a setting of the test trials that a checkpoint has another value of
        if settings.center:
            self.register_buffer("center", torch.zeros(self.embedding_size))  # running mean of training embeddings
            self.register_buffer("centered_batches", torch.zeros((), dtype=torch.long))
        # slope and offset for each kind of scores, fitted at each evaluation on dev; slope 0: not fitted yet
        self.register_buffer("calibration", torch.zeros(len(KINDS), 2, dtype=torch.float64))
        self.index = OwnSpeakerIndex(settings, key) if settings.data is not None else _index(settings, key)

    @property
    def filling(self) -> Filling:
        return filling_of(self.settings)

    def prepare_training(self) -> None:
        self._trains = True
        names = self.index.training_names
        if len(names) < 2:
            reason = f"one training speaker, '{one_line(names[0])}', but the loss tells speakers apart"
            remedy = f"add speakers (root, extra_roots), or hold out fewer ({self.key}.dev_speakers)"
            raise UserError(f"{self.key}.root: {self.settings.data_folders()[0]}: {reason}: {remedy}")
        held_out = f"{len(self.index.development)} development speakers"
        note(f"{self.key}.root: {len(names)} training speakers, such as '{one_line(names[0])}', and {held_out}")
        self.class_names = names + [f"{name}{AT_SPEED}{s:g}" for s in self.settings.speeds for name in names]
        self.objective = SpeakerLoss(self.settings.loss, self.embedding_size, len(self.class_names))
        if self.settings.has_development:
            _ = self.development  # find missing development data now
        check_copies(self._uses(), self.key)
        self.recordings = self.index.recordings

    def _uses(self) -> list[tuple[Path, Use]]:
        """The files of all speakers that are trained on or held out."""
        training, development = zip(self.index.training_names, self.index.training.values(), strict=True), []
        if self.settings.has_development:
            development = list(self.index.development.items())
        uses = [(file, Use(name, True)) for name, files in training for file in files]
        uses += [(file, Use(name, False)) for name, files in development for file in files]
        if (test := self.index.test) is not None:
            names = [test.speaker_names[speaker] for speaker in test.speakers]
            uses += [(file, Use(name, False)) for file, name in zip(test.paths, names, strict=True)]
        return uses

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        saved = state_dict.get(f"{prefix}objective.weight")
        if saved is not None and self.objective is None:  # an evaluation: only the checkpoint knows the speakers
            objective = SpeakerLoss(self.settings.loss, self.embedding_size, len(saved))
            self.objective = objective.to(self.calibration.device)
        elif saved is not None and len(saved) != len(self.class_names or ()):
            # without this check torch's message would name the shapes of weights
            raise UserError(self._other_number(len(saved)))
        super()._load_from_state_dict(state_dict, prefix, *args)

    def check_classes(self, saved: Sequence[str]) -> None:
        if self.class_names is not None:
            self._check_speeds(saved)
            if len(saved) != len(self.class_names):
                raise UserError(self._other_number(len(saved)))
        super().check_classes(saved)

    def _check_speeds(self, saved: Sequence[str]) -> None:
        """Raise UserError if the classes of a checkpoint are those of the same speakers at other speeds."""
        here, there = ([name.partition(AT_SPEED) for name in names] for names in (self.class_names or (), saved))
        speakers_here, speakers_there = ({speaker for speaker, _, _ in names} for names in (here, there))
        speeds_here, speeds_there = ({speed for _, _, speed in names if speed} for names in (here, there))
        if speakers_here == speakers_there and speeds_here != speeds_there:
            factors = ", ".join(sorted(speeds_there))
            reason = f"each speed is a class of its own, and the checkpoint has the speeds [{factors}]"
            remedy = f"speed_factors=[{factors}], and speed=1.0e-9 if none shall be drawn" if factors else "speed=0"
            raise UserError(f"{self.key}.augment.speed: {reason}: set {remedy}")

    def _other_number(self, saved: int) -> str:
        folders = ", ".join(self.settings.data_folders())
        speeds = f" (at {1 + len(self.settings.speeds)} speeds)" if self.settings.speeds else ""
        reason = f"{len(self.class_names or ())} training speakers{speeds}, but the checkpoint has {saved}"
        remedy = "give the folders, the dev_speakers and the augment.speed that it was trained with"
        return f"{self.key}.root, extra_roots: {folders}: {reason}: {remedy}"

    def check_settings(self, saved: Settings) -> None:
        super().check_settings(saved)
        if self.settings.speaker_pattern != saved.speaker_pattern:
            self._replaced = "speaker_pattern"
        elif _file_name(self.settings.trials) != _file_name(saved.trials):
            self._replaced = "trials"

    def training_data(self) -> Training:
        items = self.index.training_items(self.settings.crop_seconds)
        return Training(items, self.settings, self.key, len(self.index.training))

    @functools.cached_property
    def development(self) -> Trials:
        return self.index.development_trials(self.settings.dev_trials, seed=0)  # the same trials for every seed

    def _trials(self, split: str) -> Trials:
        if split == "dev" and self._replaced is not None and not self._trains:
            reason = "is not that of the training, on which the choice of the development speakers depends"
            raise UserError(f"{self.key}.{self._replaced}: {reason}: replace it for test trials only")
        if split == "dev" and self.settings.has_development:
            if self.settings.dev_utterances and not self._trains:
                self._check_held_out()
            return self.development
        if split == "test" and self.index.test is not None:
            return self.index.test
        if split == "dev":
            raise UserError(f"{self.key}.{self.settings.no_development()}")
        if self.settings.data is not None:
            remedy = "evaluate dev (--split dev)"
            raise UserError(f"{self.key}.test_people: {self.settings.data}: {NO_TEST_PEOPLE}: {remedy}")
        raise UserError(f"{self.key}.trials: null, so there are no trials for test: give a list, or evaluate dev")

    def _check_held_out(self) -> None:
        """Log that held-out utterances of training speakers may have been trained on, if their recordings changed."""
        here = self.index.recordings_of_root
        if self.recordings is not None and here != self.recordings[: len(here)]:
            reason = "the speakers have other recordings than in training, so others are held out"
            log.warning("%s.dev_utterances: %s: some of them may have been trained on", self.key, reason)

    def evaluation_data(self, split: str) -> Evaluation:
        return Evaluation(self._trials(split).paths, self.settings)

    def forward(self, features: Tensor, lengths: Tensor) -> Tensor:
        """The embedding ``(batch, embedding)``; with ``center`` without the training mean, except in training."""
        embedding = super().forward(features, lengths)
        return embedding - self.center if self.settings.center and not self.training else embedding

    @torch.no_grad()
    def _update_center(self, embeddings: Tensor) -> None:
        """Mean over the last batches: over all of the first hundred, then with the weight of a hundredth for each."""
        self.centered_batches += 1
        mean = sum_over_processes(embeddings.float().mean(dim=0)) / count_processes()
        self.center += (mean - self.center) / self.centered_batches.clamp(max=CENTER_BATCHES)

    def loss(self, outputs: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        if self.settings.center:
            self._update_center(outputs)
        with torch.no_grad():
            correct = (self.objective.cosines(outputs.float()).argmax(dim=1) == labels).float().mean()
        return self.objective(outputs, labels), {"accuracy": 100 * correct}

    def collect(self, outputs: Tensor, labels: Sequence[int], keys: Sequence[str]) -> list[Any]:
        return [(int(key), embedding) for key, embedding in zip(keys, outputs.float().cpu(), strict=True)]

    def metrics(self, split: str, collected: list[Any]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        trials = self._trials(split)
        embeddings = torch.stack([embedding for _, embedding in sorted(collected, key=lambda pair: pair[0])])
        if not embeddings.isfinite().all():
            raise UserError(f"{self.key}: {split}: embeddings are NaN or infinite: has the training diverged?")
        kinds, found = self.scores(embeddings, trials), {}
        for kind, scores in kinds.items():
            slope_and_offset = self.calibration[KINDS.index(kind)]
            if split == "dev":
                slope_and_offset.copy_(torch.tensor(fit_calibration(scores, trials.labels)))
            calibration = tuple(slope_and_offset.tolist()) if slope_and_offset[0] else None
            found[kind] = verification(scores, trials, calibration)
            if trials.groups:
                found[kind]["groups"] = by_group(scores, trials)
        results = found.pop("cosine") | found
        results |= {
            "cohort": len(self.cohort()),
            "utterances": len(trials.paths),
            "speakers": len(np.unique(trials.speakers)),
            "trials": len(trials.labels),
        }
        held_out_utterances = split == "dev" and self.settings.dev_utterances > 0  # of training speakers, as stated
        if not held_out_utterances and (trained := self.trained_speakers(trials.speaker_names)):
            results["trained_speakers"] = len(trained)
            reason = f"{len(trained)} of {results['speakers']} speakers are training speakers, such as '{trained[0]}'"
            log.warning("%s: %s: %s: the results do not hold for new speakers", self.key, split, reason)
        arrays = {"scores" if kind == "cosine" else f"{kind}_scores": scores for kind, scores in kinds.items()}
        sides = {"left": trials.speakers[trials.left], "right": trials.speakers[trials.right]}
        return results, arrays | sides | {"labels": trials.labels}

    def figures_by_group(
        self, split: str, groups: SpeakerGroups, collected: list[Any], arrays: Mapping[str, np.ndarray]
    ) -> Figures:
        return eer_by_group(groups, self._trials(split), arrays["scores"])

    def trained_speakers(self, names: Sequence[str]) -> list[str]:
        """The names that are classes of the checkpoint."""
        classes = {
            identity(re.split(f"{re.escape(AT_SPEED)}|{re.escape(EXTRA)}", n)[0]) for n in self.class_names or ()
        }
        return [name for name in names if identity(name) in classes]

    def cohort(self) -> Tensor:
        """``(speakers, embedding)``: the loss's weights of the training speakers, the impostors of adaptive s-norm.

        A speaker's weights stand for the mean of the speaker's embeddings. They are in the checkpoint, so evaluation
        needs no training audio. Classes at another speed are left out: they are no natural voices. With ``center`` the
        mean of the unit weights is subtracted from them, as the mean is from the embeddings. Empty for the ``xvector``
        head: its embedding is the output of an earlier layer than the one before the loss.
        """
        if self.objective is None or self.settings.head == "xvector":
            return torch.empty(0, self.embedding_size)
        weight = self.objective.weight.detach().cpu()
        natural = sum(AT_SPEED not in name for name in self.class_names or ())
        weight = weight[:natural] if natural else weight
        if self.settings.center:
            weight = torch.nn.functional.normalize(weight, dim=1)
            weight = weight - weight.mean(dim=0)
        return weight

    def scores(self, embeddings: Tensor, trials: Trials) -> dict[str, np.ndarray]:
        """Scores ``(trials,)`` of each kind in `KINDS`; ``as_norm`` needs at least two training speakers."""
        cosine, cohort = cosine_scores(embeddings, trials.left, trials.right), self.cohort()
        if len(cohort) < 2:
            return {"cosine": cosine}
        top = self.settings.as_norm_top
        return {"cosine": cosine, "as_norm": as_norm(cosine, embeddings, trials.left, trials.right, cohort, top)}

    def score(self, results: Mapping[str, Any]) -> float:
        return -float(results["eer"])

    def summary(self, results: Mapping[str, Any]) -> str:
        line = f"EER {M.with_interval(results, 'eer')} %, minDCF(0.01) {results['min_dcf_0.01']:.3f}"
        if "as_norm" in results:
            line += f", with AS-norm {results['as_norm']['eer']:.2f} %"
        return f"{line} ({results['trials']} trials)"

    def owner_ratios(self, trials: ConditionTrials) -> np.ndarray | None:
        if self.speaker_calibration is not None:
            return ratios(self.speaker_calibration, trials)
        slope, offset = self.calibration[KINDS.index("cosine")].tolist()
        return slope * trials.cosine + offset if slope else None

    def development_recordings(self) -> list[Recording]:
        if not self.settings.has_development:
            raise UserError(f"{self.key}.{self.settings.no_development()}")
        return [Recording(path, name) for name, paths in self.index.development.items() for path in paths]

    @classmethod
    def interval(cls, runs: Sequence[Mapping[str, np.ndarray]]) -> tuple[float, float] | None:
        """Bootstrap over test speakers."""
        scores, first = np.stack([run["scores"] for run in runs]), runs[0]
        interval = M.eer_interval(scores, first["labels"], first["left"], first["right"])
        return None if interval is None else (100 * interval[0], 100 * interval[1])

    def describe(self, output: Tensor) -> str:
        return f"embedding of {output.numel()} features, length {output.norm().item():.3f}"

    def device_metadata(self, threshold: float | None) -> dict[str, Any]:
        """``sv_slope * cosine + sv_offset`` is a log-likelihood ratio; it is 0 at the cosine ``sv_threshold``.

        Empty without a calibration, or with a slope that would accept the least similar voices. ``speaker_calibration``
        is for each condition, see `distilled_student.onnx.calibration`.
        """
        slope, offset = self.calibration[KINDS.index("cosine")].tolist()
        found = {"sv_slope": slope, "sv_offset": offset, "sv_threshold": -offset / slope} if slope > 0 else {}
        return found if self.speaker_calibration is None else found | {KEY: self.speaker_calibration.to_json()}
