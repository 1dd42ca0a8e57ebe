"""Owner-and-word trials in an evaluation of a joint run: the outputs of both heads for the keyword clips.

The keyword task's batches also go through the head of the speaker task. A clip that the speaker task fills in another
way (`BaseTask.filling`), as a device would, is encoded a second time, in a batch of its own.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distilled_student.common.audio import SAMPLE_RATE
from distilled_student.common.errors import UserError
from distilled_student.multitask import metrics as M
from distilled_student.multitask import owner_trials as T
from distilled_student.multitask.owner_trials import SpokenClip
from distilled_student.multitask.short_utterances import Filling
from distilled_student.multitask.speaker_calibration import Trials
from distilled_student.multitask.tasks.base import KEYWORD_SCORES, SPEAKER_EMBEDDING, BaseTask, EvaluationData, Item
from distilled_student.onnx.calibration import Calibration

log = logging.getLogger(__name__)

OWNER = "owner"  # of results.json, of `score`, and of the batches that are encoded for the speaker task alone
HEADLINE = 3  # the number of enrolled clips whose figure is the score, if the data allow it
WORDS, VOICES = "owner_words", "owner_voices"  # of the records of an evaluation


class FilledForSpeakers:
    """Clips of a keyword task's evaluation data, filled as the speaker task fills utterances."""

    def __init__(self, data: EvaluationData, clips: Sequence[SpokenClip], filling: Filling) -> None:
        self.data, self.clips, self.filling = data, clips, filling

    def __len__(self) -> int:
        return len(self.clips)

    def samples(self, index: int) -> int:
        return max(self.clips[index].samples, self.filling.samples)

    def item(self, index: int) -> Item:
        return self.data.item(self.clips[index].index)


class OwnerEvaluation:
    """The owner-and-word trials of a run with a keyword task and a speaker task.

    Args:
        tasks: All tasks of the run, by name.

    Attributes:
        keyword, speaker: The names of the two tasks.
    """

    def __init__(self, tasks: Mapping[str, BaseTask]) -> None:
        self._tasks = dict(tasks)
        self.keyword, self.speaker = _first(tasks, KEYWORD_SCORES), _first(tasks, SPEAKER_EMBEDDING)

    @functools.lru_cache(maxsize=2)  # noqa: B019  # an instance has two splits, and lives as long as its expert
    def clips(self, split: str) -> list[SpokenClip]:
        return self._tasks[self.keyword].spoken_clips(split)

    @functools.lru_cache(maxsize=2)  # noqa: B019
    def trials(self, split: str) -> dict[int, T.OwnerTrials]:
        """The trials by the number of enrolled clips, for the numbers that the data allow."""
        clips = self.clips(split)
        keywords = sorted({clip.label for clip in clips if clip.is_keyword})
        made = {count: T.make_trials(clips, keywords, count) for count in T.ENROLLED} if keywords else {}
        return {
            count: trials for count, trials in made.items() if trials is not None and T.OWNER_KEYWORD in trials.quadrant
        }

    def check(self, split: str, key: str) -> None:
        """Raise UserError, with the ``key`` of the score, for a split without trials."""
        if not self.trials(split):
            reason = f"{self._tasks[self.keyword].key} has no trials for {split}"
            remedy = "they need clips of two speakers, one with two clips, and the speakers' names (speaker_pattern)"
            raise UserError(f"{key}: {reason}: {remedy}")

    def data(self, split: str) -> FilledForSpeakers:
        """The clips that are encoded a second time."""
        shared = self._with_shared_features(split)
        clips = [clip for clip in self.clips(split) if clip.key not in shared] if self.trials(split) else []
        data = self._tasks[self.keyword].evaluation_data(split)
        return FilledForSpeakers(data, clips, self._tasks[self.speaker].filling)

    @functools.lru_cache(maxsize=2)  # noqa: B019  # read for each batch
    def _with_shared_features(self, split: str) -> frozenset[str]:
        """The keys of the clips that both tasks fill in the same way."""
        fillings = {self._tasks[name].filling for name in (self.keyword, self.speaker)}
        shortest = 0 if len(fillings) == 1 else max(filling.samples for filling in fillings)
        return frozenset(clip.key for clip in self.clips(split) if clip.samples >= shortest)

    def collect(
        self,
        split: str,
        task: str,
        outputs: Tensor,
        keys: Sequence[str],
        embed: Callable[[list[int]], Tensor],
        records: dict[str, list[Any]],
    ) -> None:
        """Add what the metrics need of a batch to ``records``.

        Args:
            task: Of the batch: the keyword task, or `OWNER`. Batches of other tasks add nothing.
            outputs: Of the head of this task; of `OWNER` the embeddings.
            embed: Places in the batch -> their embeddings from the features of the batch.
        """
        if task == OWNER:
            records[VOICES] += zip(keys, outputs.float().cpu(), strict=True)
        if task != self.keyword or not self.trials(split):
            return
        records[WORDS] += zip(keys, outputs.float().log_softmax(dim=1).cpu(), strict=True)
        shared = self._with_shared_features(split)
        if places := [place for place, key in enumerate(keys) if key in shared]:
            records[VOICES] += zip([keys[place] for place in places], embed(places).float().cpu(), strict=True)

    def score(self, results: Mapping[str, Any]) -> float:
        """The negative EER of the owner-and-word trials, in percent, with `HEADLINE` enrolled clips or the most."""
        counts = [count for count in T.ENROLLED if f"enrolled_{count}" in results]
        count = HEADLINE if HEADLINE in counts else counts[-1]
        return -float(results[f"enrolled_{count}"]["owner_and_word"]["eer"])

    def summary(self, results: Mapping[str, Any]) -> str:
        """The results in one line for the terminal."""
        parts = []
        for count in T.ENROLLED:
            if found := results.get(f"enrolled_{count}"):
                both = found["owner_and_word"]
                missed = f"misses at 1 % {M.with_interval(both, 'miss_at_1', 1)} %"
                word = f"with word {M.with_interval(both, 'eer')} %, {missed}"
                parts.append(f"{count} enrolled: EER {M.with_interval(found, 'eer')} %, {word}")
        return "; ".join(parts)

    def curves(self, results: Mapping[str, Any]) -> dict[str, float]:
        """The metrics that change with training, for TensorBoard."""
        found = {}
        for name, values in results.items():
            if isinstance(values, Mapping):
                found[f"{name}-eer"], found[f"{name}-word-eer"] = values["eer"], values["owner_and_word"]["eer"]
        return found

    def metrics(
        self, split: str, records: Mapping[str, list[Any]]
    ) -> tuple[dict[str, Any] | None, dict[str, np.ndarray]]:
        """The results, which JSON can hold, and the arrays with the scores; None without trials."""
        if not self.trials(split):
            return None, {}
        clips, speaker = self.clips(split), self._tasks[self.speaker]
        words, voices = (_of_clips(clips, records[name]) for name in (WORDS, VOICES))
        if not np.isfinite(voices).all():
            raise UserError(f"{speaker.key}: {split}: embeddings are NaN or infinite: has the training diverged?")
        results: dict[str, Any] = {"clips": len(clips), "speakers": len({clip.speaker for clip in clips})}
        seconds, arrays = np.array([clip.samples for clip in clips]) / SAMPLE_RATE, dict[str, np.ndarray]()
        for count, trials in self.trials(split).items():
            cosines = T.owner_cosines(trials, voices)
            conditions = _conditions(trials, cosines, seconds, voices, speaker.speaker_calibration)
            ratios = speaker.owner_ratios(conditions)
            scores = T.owner_and_word_scores(trials, words, T.uncalibrated(cosines) if ratios is None else ratios)
            found = {"owners": len(np.unique(trials.owner)), "trials": len(cosines)}
            found |= T.verification(trials, cosines, ratios) | {"owner_and_word": T.target_only(trials, scores)}
            results[f"enrolled_{count}"] = found
            arrays |= {f"{count}_scores": cosines, f"{count}_labels": trials.labels}
            arrays |= {f"{count}_left": trials.owner, f"{count}_right": trials.speaker}
            arrays |= {f"{count}_same_word": trials.same_word, f"{count}_word_scores": scores}
            arrays |= {f"{count}_word_quadrant": trials.quadrant, f"{count}_word_trial": trials.asked}
        return results, arrays


def det_curves(arrays: Mapping[str, np.ndarray]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """False accept and miss rates by a curve's label, from the arrays of an evaluation; empty without trials."""
    curves = {}
    for count in T.ENROLLED:
        if (scores := arrays.get(f"{OWNER}_{count}_scores")) is not None:
            enrolled = f"{count} clip{'s' if count > 1 else ''}"
            curves[f"owner, {enrolled}"] = M.det_curve(scores, arrays[f"{OWNER}_{count}_labels"])[:2]
            quadrant = arrays[f"{OWNER}_{count}_word_quadrant"]
            weights = T.quadrant_weights(quadrant)
            scores = arrays[f"{OWNER}_{count}_word_scores"]
            curves[f"owner and word, {enrolled}"] = M.det_curve(scores, quadrant == T.OWNER_KEYWORD, weights)[:2]
    return curves


def interval_of_runs(runs: Sequence[Mapping[str, np.ndarray]]) -> list[float] | None:
    """95 % bootstrap interval over speakers of the mean EER of owner-and-word trials over runs (seeds), in percent.

    Args:
        runs: The arrays of each run's evaluation, all on the same clips, with `HEADLINE` enrolled clips.
    """
    first = {key: runs[0][f"{OWNER}_{HEADLINE}_{key}"] for key in ("left", "right", "word_trial", "word_quadrant")}
    owners, speakers = first["left"][first["word_trial"]], first["right"][first["word_trial"]]
    scores = [run[f"{OWNER}_{HEADLINE}_word_scores"] for run in runs]
    if any(len(of_run) != len(scores[0]) for of_run in scores):
        return None
    found = [
        [T.target_only_rates(of_run, first["word_quadrant"], weights)["eer"] for of_run in scores]
        for weights in T.drawn_weights(first["word_quadrant"], owners, speakers)
    ]
    return list(M.quantile_interval(np.mean(found, axis=1))) if found else None


def _first(tasks: Mapping[str, BaseTask], output_name: str) -> str:
    return next(name for name, task in tasks.items() if task.output_name == output_name)


def _conditions(
    trials: T.OwnerTrials,
    cosines: np.ndarray,
    seconds: np.ndarray,
    voices: np.ndarray,
    calibration: Calibration | None,
) -> Trials:
    """The verification trials with their conditions; ``seconds (clips,)``, ``voices (clips, embedding)``."""
    enrolled = seconds[trials.enrolled].sum(axis=1)[trials.enrolment]
    clips, weight = np.full(len(cosines), trials.enrolled.shape[1]), np.ones(len(cosines))
    same_word = trials.same_word.astype(float)
    typical = np.zeros((2, len(cosines)))
    if calibration is not None and calibration.mean_voice:
        of_clips, of_enrolments = (
            vectors @ np.array(calibration.mean_voice) for vectors in T.unit_vectors(trials, voices)
        )
        typical = np.stack([of_clips[trials.clip], of_enrolments[trials.enrolment]])
    return Trials(cosines, trials.labels, clips, enrolled, seconds[trials.clip], same_word, *typical, weight)


def _of_clips(clips: Sequence[SpokenClip], recorded: Sequence[tuple[str, Tensor]]) -> np.ndarray:
    """``(clips, outputs)`` from the recorded pairs of key and outputs."""
    by_key = dict(recorded)
    return torch.stack([by_key[clip.key] for clip in clips]).double().numpy()
